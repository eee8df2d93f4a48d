"""Muon with a randomized polar factor: as good as Muon once the rank covers the signal?

Choudhury et al., arXiv 2605.06884. Here: a 256 x 256 matrix of rank 16 plus small noise is fitted;
the rank of the sketch is varied, and one step of each optimizer is timed in the same process.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import Outcome, Problem, Setting, Trainer, number, spread
from benchmarks.common import interleave

RATES = tuple(2.0**k for k in range(-8, -2))
RANKS = (16, 64, 256)
OVERSAMPLING = 10


def teacher(size: int, rank: int, batch: int = 64) -> Problem:
    """Returns y = x W with W of low rank plus noise."""
    random = np.random.default_rng(11)
    left, right = random.standard_normal((2, size, rank)).astype(np.float32)
    noise = 0.02 * random.standard_normal((size, size)).astype(np.float32)
    target = left @ right.T / np.sqrt(size * rank) + noise / np.sqrt(size)
    clean = random.standard_normal((512, size)).astype(np.float32)

    def batches(seed: int, steps: int) -> Any:
        x = np.random.default_rng([seed, 2]).standard_normal((steps, batch, size), np.float32)
        return {"x": x, "y": x @ target}

    def init(key: jax.Array) -> Any:
        return {"dense": {"kernel": 0.02 * jax.random.normal(key, (size, size))}}

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch["x"] @ params["dense"]["kernel"] - batch["y"]) ** 2)

    return Problem(init, loss, batches, {"x": clean, "y": clean @ target})


def step_seconds(txs: dict[str, Any], size: int, rounds: int) -> dict[str, float]:
    """Returns the best time of one update of each optimizer, interleaved."""
    params = {"dense": {"kernel": jnp.ones((size, size)) + jnp.eye(size)}}
    calls = {}
    for name, tx in txs.items():
        update = jax.jit(tx.update)
        state = tx.init(params)
        calls[name] = lambda update=update, state=state: jax.block_until_ready(
            update(params, state, params)
        )
        calls[name]()
    return {name: min(times) for name, times in interleave(calls, rounds).items()}


def experiment(setting: Setting) -> Outcome:
    """Compares held-out losses and times over ranks."""
    size = setting.pick(256, 12)
    ranks = setting.pick(RANKS, (4, 12))
    steps, evaluations = setting.pick((200, 10), (4, 2))
    problem = teacher(size, min(16, size // 3))
    rates = RATES[: setting.pick(None, 1)]
    # The same momentum and polynomials around the whole polar factor: only the sketch differs.
    builds = {"muon": lambda rate: optkit.muon_randomized(rate, method="ns", steps=7)}
    for rank in ranks:
        builds[f"rank {rank}"] = lambda rate, rank=rank: optkit.muon_randomized(
            rate, rank=rank, oversampling=OVERSAMPLING, power_iterations=1
        )
    txs = {name: build(0.01) for name, build in builds.items()}
    seconds = step_seconds(txs, size, setting.pick(30, 1))
    final, rows = {}, []
    for name, build in builds.items():
        trainer = Trainer(problem, build, steps=steps, evaluations=evaluations)
        curves = trainer.tuned(rates, setting)
        losses = curves.held_out[0, :, -1]
        final[name] = float(losses.mean())
        time = 1e3 * seconds[name]
        rows.append((name, number(curves.rates[0]), spread(losses), number(time, 3)))
    middle = f"rank {ranks[len(ranks) // 2]}"
    good, fast = final[middle] <= 1.1 * final["muon"], seconds[middle] < seconds["muon"]
    return Outcome(
        claim=f"with {middle} of {size} the loss is within 10% of Muon's at a shorter step",
        holds=good and fast,
        finding=f"{middle}: loss {final[middle]:.4g} against {final['muon']:.4g}, step "
        f"{seconds[middle] / seconds['muon']:.2f} times Muon's",
        header=("method", "learning rate", "held-out loss", "ms an update"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
