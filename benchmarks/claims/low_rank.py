"""Low-rank methods on matrix regression: is it worth to use what the subspace does not hold?

Fira (arXiv 2410.01623), APOLLO (arXiv 2412.05270), FRUGAL (arXiv 2411.07837) and LDAdam (arXiv
2410.16103) all use the part of the gradient outside of the subspace that their moments live in;
GaLore (arXiv 2403.03507) drops it, and BAdam (arXiv 2404.02827) has a block of the weights at a
time. FRUGAL's moments begin anew with each subspace, GaLore's are kept. Here: a matrix of 24 inputs
and 32 outputs, its rows shrinking by 0.8 from one input to the next, is learned from 32 samples a
step without noise, in 600 steps at rates that fall as a cosine to 0, with 4 directions (or inputs)
of state and new ones every 50 steps. Where every direction counts in the end and gradients have no
noise at the optimum, updates of full rank are favoured. Losses are exact; rates are chosen on other
teachers and samples.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims import lm, streams
from benchmarks.claims.engine import Outcome, Setting, number

RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
INPUTS, OUTPUTS, RANK, EVERY, BATCH, SHRINK = 24, 32, 4, 50, 32, 0.8
LOW: dict[str, Any] = {"rank": RANK, "refresh_every": EVERY}
PART: dict[str, Any] = {"density": RANK, "refresh_every": EVERY}
FULL_RANK, PURE = ("fira", "apollo", "frugal, reset"), ("galore, kept", "galore, reset")
RESETS = (("frugal, reset", "frugal, kept"), ("galore, reset", "galore, kept"))

METHODS: dict[str, lm.Build] = {
    "adamw": lambda rate: optkit.adamw(rate, weight_decay=0.0),
    "galore, kept": lambda rate: optkit.galore_adamw(rate, **LOW),
    "galore, reset": lambda rate: optkit.galore_adamw(rate, state_on_refresh="reset", **LOW),
    "fira": lambda rate: optkit.fira(rate, **LOW),
    "ldadam": lambda rate: optkit.ldadam(rate, rank=RANK),
    "apollo": lambda rate: optkit.apollo(rate, **LOW),
    "apollo_mini": lambda rate: optkit.apollo_mini(rate, refresh_every=EVERY),
    "frugal, reset": lambda rate: optkit.frugal(rate, **PART),
    "frugal, kept": lambda rate: optkit.frugal(rate, state_on_refresh="keep", **PART),
    "frugal, rest dropped": lambda rate: optkit.frugal(rate, free="drop", **PART),
    "badam": lambda rate: optkit.badam(
        rate, blocks="leaves", refresh_every=EVERY, weight_decay=0.0
    ),
}


def pieces(name: str) -> Any:
    """Returns the matrix of zeros: whole, or in blocks of inputs for BAdam."""
    count = INPUTS // RANK if name == "badam" else 1
    return {f"part_{i}": {"kernel": jnp.zeros((INPUTS // count, OUTPUTS))} for i in range(count)}


def whole(params: Any) -> jax.Array:
    """Puts it together."""
    return jnp.concatenate([part["kernel"] for part in params.values()])


def drawn(seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a teacher and the inputs of all steps."""
    random = np.random.default_rng([seed, 17])
    teacher = random.standard_normal((INPUTS, OUTPUTS)) * SHRINK ** np.arange(INPUTS)[:, None]
    samples = random.standard_normal((steps, BATCH, INPUTS))
    return teacher.astype(np.float32), samples.astype(np.float32)


def learner(name: str, steps: int) -> streams.Run:
    """Returns (rate, seed) -> the exact loss at the end."""

    @jax.jit
    def run(rate: jax.Array, teacher: jax.Array, samples: jax.Array) -> dict[str, jax.Array]:
        tx = METHODS[name](optax.cosine_decay_schedule(rate, steps))

        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(x @ (whole(params) - teacher)))

        def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
            state, params = carry
            updates, state = tx.update(jax.grad(loss)(params, x), state, params)
            return (state, optax.apply_updates(params, updates)), None

        params = pieces(name)
        (_, params), _ = jax.lax.scan(step, (tx.init(params), params), samples)
        # The mean over standard normal inputs.
        return {"loss": jnp.sum(jnp.square(whole(params) - teacher)) / OUTPUTS}

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        return run(rate, *drawn(seed, steps))

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Learns the matrix with every method at its best rate and compares the orders of losses."""
    steps = setting.pick(600, 4)
    rates, decades, sizes = {}, {}, {}
    for name, build in METHODS.items():
        given = RATES[: setting.pick(None, 1)]
        run = learner(name, steps)
        rates[name], _, found = streams.tuned(run, given, setting, "loss")
        decades[name] = np.log10(np.maximum(found["loss"], 1e-30))
        sizes[name] = lm.state_bytes(build(1e-3), lambda key, name=name: pieces(name))

    def lower(better: str, worse: str) -> tuple[bool, str]:
        gain = decades[worse] - decades[better]
        text = f"{better} {gain.mean():+.2f} (+- {gain.std(ddof=1):.2f}) decades below {worse}"
        return bool(gain.mean() > gain.std(ddof=1)), text

    used = [lower(better, worse) for better in FULL_RANK for worse in PURE]
    reset = [lower(*pair) for pair in RESETS]
    return Outcome(
        claim="at the state of 4 directions Fira, APOLLO and FRUGAL, whose updates have full rank, "
        "reach lower losses than GaLore with moments kept or reset, and both FRUGAL and GaLore "
        "lower ones with moments reset than kept",
        holds=all(yes for yes, _ in (*used, *reset)),
        finding=f"full rank, {'as claimed' if all(y for y, _ in used) else 'NOT as claimed'}: "
        + ", ".join(text for _, text in used)
        + f"; resets, {'as claimed' if all(y for y, _ in reset) else 'NOT as claimed'}: "
        + ", ".join(text for _, text in reset),
        header=("method", "state bytes", "learning rate", "loss", "decades"),
        rows=tuple(
            (
                name,
                f"{sizes[name]:,}",
                number(rates[name]),
                f"{10 ** decades[name].mean():.1e}",
                f"{decades[name].mean():.2f} +- {decades[name].std(ddof=1):.2f}",
            )
            for name in METHODS
        ),
        seeds=setting.seeds,
    )
