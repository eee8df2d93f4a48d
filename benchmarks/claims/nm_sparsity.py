"""N:M sparsity: what do 2:4 and 1:8 cost on digits, with CAST and with progressive gradient flow?

CAST (arXiv 2509.25996) decays what the pattern will leave out while it trains, so that pruning
costs nothing: 0.09 in perplexity for LLaMA2-7B at 2:4. Progressive gradient flow (arXiv 2402.04744)
fades it out in the forward pass, and is said to beat SR-STE, which has the mask from the start, by
2% to 5% at high sparsity. Here: a perceptron of two hidden layers on scikit-learn's digits; of both
hidden kernels two of four, or seven of eight, neighbours along the inputs are cut off. Also with
the same steps: pruning at the end, and pruning after two thirds with training of what is left. One
grid of rates for all; where a method has a number of its own, the search chooses it, too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims import streams
from benchmarks.claims.engine import Outcome, Setting, number, spread
from optkit.linalg import nm_mask
from optkit.masks import decayed_weights
from optkit.schedules import mask_decay

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
PATTERNS = ((2, 4), (1, 8))
DECAYS = (4e-7, 1e-4, 1e-2)
FADES = (5.0, 15.0)  # of exp(-fade*t/T), the factor of what the pattern leaves out
# Of each pair the first is said to be better.
PAIRS = (("cast", "prune"), ("cast", "prune early"), ("flow", "sr-ste"))
PRUNED = ("input", "hidden")
BATCH = 32


def adam(rate: Any) -> Any:
    """Adam without decay."""
    return optkit.adamw(rate, weight_decay=0.0)


def mask(params: Any, pattern: tuple[int, int]) -> Any:
    """Ones where the hidden kernels keep their weights, and everywhere else."""
    kept = jax.tree.map(jnp.ones_like, params)
    for name in PRUNED:
        kept[name]["kernel"] = nm_mask(params[name]["kernel"], *pattern, axis=0)
    return kept


def prune(params: Any, pattern: tuple[int, int]) -> Any:
    """Cuts off what the pattern leaves out."""
    return jax.tree.map(lambda p, k: p * k, params, mask(params, pattern))


def prune_early(rate: Any, params: Any, batches: Any, pattern: tuple[int, int]) -> Any:
    """Prunes after two thirds and trains what is left."""
    steps = len(batches["labels"])
    cut = 2 * steps // 3
    before, behind = (
        jax.tree.map(lambda x, part=part: x[part], batches)
        for part in (slice(cut), slice(cut, None))
    )
    _, params, _ = streams.train(adam(rate), params, before)
    kept = mask(params, pattern)
    only = optax.stateless(lambda updates, _: jax.tree.map(lambda u, k: u * k, updates, kept))
    params = jax.tree.map(lambda p, k: p * k, params, kept)
    return streams.train(optax.chain(only, adam(rate)), params, behind)[1]


def sr_ste(rate: Any, params: Any, batches: Any, pattern: tuple[int, int]) -> Any:
    """The mask from the start, its gradient straight through, and a decay of what it leaves out."""
    tx = optax.chain(optkit.add_masked_decay(2e-4, pattern), adam(rate))
    view = lambda p, _: decayed_weights(p, 0.0, pattern)  # noqa: E731
    return streams.train(tx, params, batches, view=view)[1]


def methods(steps: int) -> dict[str, tuple[str, Any]]:
    """Name -> (family, (rate, params, batches, pattern) -> parameters before pruning)."""
    found: dict[str, tuple[str, Any]] = {
        "adam, pruned at the end": (
            "prune",
            lambda rate, params, batches, _: streams.train(adam(rate), params, batches)[1],
        ),
        "adam, pruned at two thirds": ("prune early", prune_early),
    }
    for decay in DECAYS:

        def cast(rate: Any, params: Any, batches: Any, pattern: Any, decay: float = decay) -> Any:
            tx = optkit.cast_adams(rate, l1_decay=decay, total_steps=steps, pattern=pattern)
            return streams.train(tx, params, batches)[1]

        found[f"cast_adams, decay {decay:g}"] = ("cast", cast)
    for fade in FADES:

        def flow(rate: Any, params: Any, batches: Any, pattern: Any, fade: float = fade) -> Any:
            d = mask_decay("exponential", fade / steps, binary_from=5 * steps // 6)
            view = lambda p, time: decayed_weights(p, d(time), pattern)  # noqa: E731
            return streams.train(adam(rate), params, batches, view=view)[1]

        found[f"gradient flow, fade {fade:g}"] = ("flow", flow)
    found["sr-ste"] = ("sr-ste", sr_ste)
    return found


def learner(method: Any, pattern: tuple[int, int], steps: int) -> streams.Run:
    """Returns (rate, seed) -> held-out errors and training losses before and after pruning."""
    train, test = streams.digits()

    @jax.jit
    def run(rate: jax.Array, key: jax.Array, batches: Any) -> dict[str, jax.Array]:
        params = method(rate, streams.perceptron(key), batches, pattern)
        sparse = prune(params, pattern)
        return {
            "dense": streams.error(params, test),
            "sparse": streams.error(sparse, test),
            "dense loss": streams.loss(params, test),
            "sparse loss": streams.loss(sparse, test),
        }

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        batches = streams.drawn(train, (seed, 2), steps, BATCH)
        return run(rate, jax.random.key(seed), batches)

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Trains, prunes and compares the errors of the sparse networks."""
    steps = setting.pick(1500, 6)
    rows, notes, holds = [], [], []
    for pattern in PATTERNS[: setting.pick(None, 1)]:
        text = f"{pattern[0]}:{pattern[1]}"
        best: dict[str, tuple[float, np.ndarray, np.ndarray]] = {}
        for name, (family, method) in methods(steps).items():
            rates = RATES[: setting.pick(None, 1)]
            run = learner(method, pattern, steps)
            rate, score, found = streams.tuned(run, rates, setting, "sparse loss")
            errors = (spread(100 * found[key]) for key in ("dense", "sparse"))
            losses = (spread(found[key]) for key in ("dense loss", "sparse loss"))
            rows.append((f"{text} {name}", number(rate), *errors, *losses))
            if score < best.get(family, (np.inf,))[0]:
                best[family] = score, found["sparse loss"], found["dense loss"]
        jump = best["cast"][1] - best["cast"][2]
        compared = []
        for name, rival in PAIRS:
            gain = best[rival][1] - best[name][1]
            holds.append(bool(gain.mean() > gain.std(ddof=1)))
            compared.append(f"{name} {gain.mean():+.4f} (+- {gain.std(ddof=1):.4f}) over {rival}")
        notes.append(
            f"{text}: gain in sparse loss {', '.join(compared)}; pruning raises CAST's loss by "
            f"{jump.mean():.4f}"
        )
    return Outcome(
        claim="at 2:4 and at 1:8 CAST's sparse network has a lower held-out loss than Adam's "
        "pruned at the end or at two thirds, and that of progressive gradient flow than SR-STE's",
        holds=all(holds),
        finding="; ".join(notes),
        header=("method", "learning rate", "% error", "pruned", "held-out loss", "pruned"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
