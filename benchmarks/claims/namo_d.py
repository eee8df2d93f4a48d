"""NAMO: does its step shrink as the gradient gets noisy, and does it forgive a wrong rate?

Zhang et al., arXiv 2602.17080, scale Muon's step by the ratio of momentum to gradient norm. Here: a
64 x 64 matrix is fitted from minibatches whose labels carry noise of a chosen size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import Curves, Outcome, Problem, Setting, Trainer, number

SIZE = 64
NOISES = (1.0, 4.0, 16.0)  # deviation of a label; clean ones have 1
RATES = tuple(2.0**k for k in range(-9, 1))
PROBED = 3  # the rate at which the size of a step is taken
SLACK = 1.5  # a rate is good if its loss is at most this times the best one


def regression(noise: float, size: int = SIZE, batch: int = 32) -> Problem:
    """Returns y = x W + noise for a fixed W; the held-out labels are clean."""
    random = np.random.default_rng(7)
    target = (random.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
    clean = random.standard_normal((512, size)).astype(np.float32)

    def batches(seed: int, steps: int) -> Any:
        own = np.random.default_rng([seed, 1])
        x = own.standard_normal((steps, batch, size), np.float32)
        return {"x": x, "y": x @ target + noise * own.standard_normal(x.shape, np.float32)}

    def init(key: jax.Array) -> Any:
        return {"dense": {"kernel": 0.1 * jax.random.normal(key, (size, size))}}

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch["x"] @ params["dense"]["kernel"] - batch["y"]) ** 2)

    return Problem(init, loss, batches, {"x": clean, "y": clean @ target})


def good_rates(curves: Curves) -> int:
    """Returns how many factor-2 steps of the learning rate end near the best loss."""
    return int(np.sum(curves.final <= SLACK * curves.final.min()))


def experiment(setting: Setting) -> Outcome:
    """Sweeps noise and rate; measures the size of an update after a tenth of the run."""
    steps, evaluations = setting.pick((300, 10), (4, 2))
    size = setting.pick(SIZE, 8)
    rates = setting.pick(RATES, RATES[: PROBED + 1])
    rows, sizes, widths = [], {}, {}
    for name in ("muon", "namo", "namo_d"):
        options = {"scale": "match_rms"} if name == "muon" else {}
        factory = getattr(optkit, name)

        def build(rate: Any, factory: Any = factory, options: Any = options) -> Any:
            return factory(rate, weight_decay=0.0, **options)

        for noise in NOISES:
            problem = regression(noise, size)

            def probe(state: Any, params: Any, *, build: Any = build, on: Any = problem) -> Any:
                batch = jax.tree.map(lambda x: x[-1], on.batches(99, 4))
                grads = jax.grad(on.loss)(params, batch)
                updates, _ = build(RATES[PROBED]).update(grads, state, params)
                return {"step": jnp.sqrt(jnp.mean(updates["dense"]["kernel"] ** 2))}

            trainer = Trainer(problem, build, steps=steps, evaluations=evaluations, probe=probe)
            curves = trainer.curves(rates, setting.seeds)
            # Early on, at one small rate for all: later, near the minimum, noise is all there is.
            step = float(curves.probes["step"][PROBED, :, 0].mean()) / RATES[PROBED]
            sizes[name, noise], widths[name, noise] = step, good_rates(curves)
            rows.append(
                (
                    name,
                    f"{noise:g}",
                    number(curves.rates[curves.best]),
                    number(curves.final.min(), 3),
                    f"{widths[name, noise]}",
                    number(step, 3),
                )
            )
    low, high = NOISES[0], NOISES[-1]
    shrinks = all(sizes[name, high] < 0.75 * sizes[name, low] for name in ("namo", "namo_d"))
    wider = all(widths["namo_d", noise] >= widths["muon", noise] for noise in NOISES)
    good = {n: [widths[n, noise] for noise in NOISES] for n in ("namo_d", "muon")}
    ends = ", ".join(
        f"{n} {sizes[n, low]:.3f} to {sizes[n, high]:.3f}" for n in ("namo", "namo_d", "muon")
    )
    return Outcome(
        claim="NAMO's step shrinks with the noise by itself, and NAMO-D's range of good learning "
        "rates is at least as wide as Muon's",
        holds=shrinks and wider,
        finding=f"update RMS per unit of rate from noise {low:g} to {high:g}: {ends}; good rates "
        f"on a grid of factor 2: namo_d {good['namo_d']}, muon {good['muon']}",
        header=("method", "noise", "best rate", "held-out loss", "good rates", "RMS per rate"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
