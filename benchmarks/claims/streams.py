"""What the experiments on sequences of tasks share: digits, perceptrons, stages of training."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims.engine import MOST_EXTENSIONS, SEARCH, Setting
from optkit.tasks.digits_data import load

WIDTH = 64
# One run may be stable by luck where a method has a number of its own that may be too large.
SEARCHES = (*SEARCH, SEARCH[0] + 1)
Params = Any
Run = Callable[[float, int], dict[str, Any]]  # (learning rate, seed) -> numbers


def perceptron(key: jax.Array, width: int = WIDTH, outputs: int = 10) -> Params:
    """Returns two hidden layers and a head; kernels have deviation sqrt(2/fan_in)."""
    sizes = {"input": (64, width), "hidden": (width, width), "head": (width, outputs)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * np.sqrt(2.0 / shape[0]),
            "bias": jnp.zeros(shape[1]),
        }
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def logits(params: Params, images: jax.Array, *, normalised: bool = False) -> jax.Array:
    """Returns the logits of flat images; with a normalization before each nonlinearity if asked."""
    x = images
    for name in ("input", "hidden"):
        x = x @ params[name]["kernel"] + params[name]["bias"][None]
        if normalised:
            x = x - jnp.mean(x, -1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = jax.nn.relu(x)
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params: Params, batch: Any, *, normalised: bool = False) -> jax.Array:
    """Returns the mean cross-entropy."""
    out = logits(params, batch["images"], normalised=normalised)
    return optax.losses.softmax_cross_entropy_with_integer_labels(out, batch["labels"]).mean()


def error(params: Params, batch: Any) -> jax.Array:
    """Returns the share of wrong answers."""
    return jnp.mean(jnp.argmax(logits(params, batch["images"]), -1) != batch["labels"])


def digits(seed: int | None = None) -> tuple[Any, Any]:
    """Returns training and held-out digits as flat images; a seed shuffles the pixels of all."""
    data = load()
    order = np.arange(64)
    if seed is not None:
        order = np.random.default_rng([seed, 11]).permutation(64)
    return tuple(  # type: ignore[return-value]
        {"images": part["images"].reshape(-1, 64)[:, order], "labels": part["labels"]}
        for part in (data.train, data.held_out)
    )


def drawn(data: Any, seed: Sequence[int], steps: int, batch: int) -> Any:
    """Draws batches with replacement, on a leading axis."""
    rows = np.random.default_rng(list(seed)).integers(len(data["labels"]), size=(steps, batch))
    return jax.tree.map(lambda x: x[rows], data)


def train(
    tx: Any,
    params: Params,
    batches: Any,
    state: Any = None,
    view: Callable[[Params, jax.Array], Params] | None = None,
    **options: Any,
) -> Any:
    """Returns (state, params, losses) after a compiled loop over batches.

    A view maps parameters and the number of finished steps to those that the loss sees.
    """
    tx = optax.with_extra_args_support(tx)

    def step(carry: Any, given: Any) -> Any:
        (state, params), (time, batch) = carry, given

        def seen(p: Params) -> jax.Array:
            return loss(p if view is None else view(p, time), batch, **options)

        value, grads = jax.value_and_grad(seen)(params)
        updates, state = tx.update(grads, state, params)
        return (state, optax.apply_updates(params, updates)), value

    start = (tx.init(params) if state is None else state, params)
    times = jnp.arange(len(batches["labels"]))
    (state, params), losses = jax.lax.scan(step, start, (times, batches))
    return state, params, losses


def tuned(
    run: Run,
    rates: Sequence[float],
    setting: Setting,
    goal: str,
) -> tuple[float, float, dict[str, np.ndarray]]:
    """Finds the rate of the lowest goal with seeds of its own.

    As ``engine.Trainer.tuned``: the grid goes on as long as the best rate is at its edge, and a run
    that diverged counts as infinitely bad.

    Returns:
      The rate, the goal that the search found, and the numbers of the reported seeds.
    """

    def score(rate: float) -> float:
        value = float(np.mean([run(rate, seed)[goal] for seed in SEARCHES]))
        return value if np.isfinite(value) else np.inf

    found = {rate: score(rate) for rate in rates}
    for _ in range(setting.pick(MOST_EXTENSIONS, 0)):
        tried, best = sorted(found), min(found, key=lambda rate: found[rate])
        if best not in (tried[0], tried[-1]):
            break
        further = tried[0] ** 2 / tried[1] if best == tried[0] else tried[-1] ** 2 / tried[-2]
        rate = float(f"{further:.2g}")
        found[rate] = score(rate)
    best = min(found, key=lambda rate: found[rate])
    runs = [jax.device_get(run(best, seed)) for seed in setting.seeds]
    return best, found[best], {name: np.array([one[name] for one in runs]) for name in runs[0]}
