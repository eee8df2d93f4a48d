"""HyperP: does the best learning rate stay where it is while the width grows?

Ren et al., arXiv 2603.28743, keep every hidden matrix on the sphere of its initial norm. Here: a
residual perceptron predicts a byte from the eight before it, at widths 32 to 256, with weights of
deviation 1/sqrt(fan_in), over a grid of rates of factor 2, for MuonH and for Muon.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import Curves, Outcome, Problem, Setting, Trainer, number
from optkit.tasks.bytelm import windows
from optkit.tasks.corpus import standard_library

WIDTHS = (32, 64, 128, 256)
METHODS = ("hyperp", "muon")
RATES = tuple(2.0**k for k in range(-9, -2))
CONTEXT, EMBED, BLOCKS = 8, 32, 2
DECAY = 0.1


def norm(x: jax.Array) -> jax.Array:
    """RMS norm without a gain."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def perceptron(width: int, batch: int) -> Problem:
    """Returns a residual perceptron on bytes; every kernel has deviation 1/sqrt(fan_in)."""
    corpus = standard_library()

    def batches(seed: int, steps: int) -> Any:
        random = np.random.default_rng([seed, 3])
        starts = random.integers(corpus.train.size - CONTEXT, size=steps * batch)
        data = windows(corpus.train, starts, CONTEXT)
        return jax.tree.map(lambda x: x.reshape(steps, batch, -1), data)

    def kernel(key: jax.Array, rows: int, columns: int) -> Any:
        return {"kernel": jax.random.normal(key, (rows, columns)) / np.sqrt(rows)}

    def init(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, 3 + 2 * BLOCKS))
        return {
            "embed": {"embedding": jax.random.normal(next(keys), (256, EMBED))},
            "input": kernel(next(keys), CONTEXT * EMBED, width),
            "blocks": [
                {"up": kernel(next(keys), width, width), "down": kernel(next(keys), width, width)}
                for _ in range(BLOCKS)
            ],
            "head": kernel(next(keys), width, 256),
        }

    def loss(params: Any, batch: Any) -> jax.Array:
        x = jax.nn.one_hot(batch["inputs"], 256) @ params["embed"]["embedding"]
        x = x.reshape(*x.shape[:-2], -1) @ params["input"]["kernel"]
        for block in params["blocks"]:
            inner = jax.nn.gelu(norm(x) @ block["up"]["kernel"])
            x = x + inner @ block["down"]["kernel"] / np.sqrt(2 * BLOCKS)
        logits = norm(x) @ params["head"]["kernel"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][:, -1:], -1)
        return -jnp.mean(chosen)

    starts = np.linspace(0, corpus.held_out.size - CONTEXT - 1, 4096).astype(np.int64)
    return Problem(init, loss, batches, windows(corpus.held_out, starts, CONTEXT))


def best_exponent(curves: Curves) -> int:
    """Returns log2 of the best rate."""
    return round(np.log2(curves.rates[curves.best]))


def experiment(setting: Setting) -> Outcome:
    """Sweeps rates over widths, and weight decay at the smallest width's best rate."""
    widths = setting.pick(WIDTHS, (8, 16))
    steps, evaluations = setting.pick((150, 3), (4, 2))
    batch = setting.pick(128, 8)
    best, rows, change = {}, [], {}
    rates = RATES[: setting.pick(None, 2)]
    for name in METHODS:

        def build(rate: Any, decay: float = 0.0, name: str = name) -> Any:
            if name == "hyperp":
                return optkit.hyperp(rate, weight_decay=decay)
            return optkit.muon(
                rate, adam_learning_rate=rate, weight_decay=decay, scale="rms_op", nesterov=True
            )

        for width in widths:
            problem = perceptron(width, batch)
            trainer = Trainer(problem, build, steps=steps, evaluations=evaluations)
            curves = trainer.curves(rates, setting.seeds)
            best[name, width] = best_exponent(curves)
            losses = [number(x, 4) for x in curves.final]
            rows.append((name, str(width), f"2^{best[name, width]}", *losses))
        problem, rate = perceptron(widths[0], batch), 2.0 ** best[name, widths[0]]
        ends = [
            Trainer(
                problem,
                lambda r, decay=decay, build=build: build(r, decay),
                steps=steps,
                evaluations=evaluations,
            )
            .curves([rate], setting.seeds)
            .final[0]
            for decay in (0.0, DECAY / rate)
        ]
        change[name] = abs(ends[1] - ends[0])
    drift = {
        name: max(best[name, w] for w in widths) - min(best[name, w] for w in widths)
        for name in METHODS
    }
    return Outcome(
        claim="MuonH's best learning rate stays within one grid point (factor 2) over widths "
        f"{widths[0]} to {widths[-1]}, and weight decay does not change its loss",
        holds=bool(drift["hyperp"] <= 1 and change["hyperp"] < 0.01),
        finding=f"the best rate moves by {drift['hyperp']} grid points (muon {drift['muon']}); "
        f"decaying by {DECAY:.0%} a step changes the loss by {change['hyperp']:.4f} (muon "
        f"{change['muon']:.4f})",
        header=("method", "width", "best", *(f"2^{round(np.log2(r))}" for r in rates)),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
