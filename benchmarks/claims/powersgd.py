"""PowerSGD: how much less may be sent of a gradient before the loss notices?

Vogels et al. (2019) train with averages of rank 1 to 4 and error feedback to the accuracy of plain
averages, sending a hundredth. Here: a two-layer decoder of width 64 on bytes, four workers of batch
8, AdamW behind the average at the rate tuned for plain averages; the ranks in turn, and rank 1
without feedback. Bytes are what a worker sends in a step, as the traced program has it.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import (
    Outcome,
    Problem,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
)
from optkit.tree import PyTree

WORKERS, AXIS = 4, "worker"
RATES = (3e-3, 1e-2, 3e-2)
CLOSE, CLAIMED = 1.01, 4  # of the bits a byte with plain averages, at this rank


class _State(NamedTuple):
    mean: PyTree  # of each worker
    optimizer: PyTree


def averaged(mean: Any, rate: Any) -> optax.GradientTransformationExtraArgs:
    """AdamW on an average over workers, whose gradients come as ``grads=``."""
    tx = optkit.adamw(rate)

    def init(params: PyTree) -> _State:
        start = jax.vmap(mean.init, in_axes=None, axis_name=AXIS, axis_size=WORKERS)
        return _State(start(params), tx.init(params))

    def update(updates: PyTree, state: _State, params: PyTree, *, grads: PyTree) -> Any:
        del updates  # of the whole batch; the compiler drops it
        step = jax.vmap(mean.update, in_axes=(0, 0, None), axis_name=AXIS)
        out, own = step(grads, state.mean, params)
        common = jax.tree.map(lambda x: x[0], out)
        updates, optimizer = tx.update(common, state.optimizer, params)
        return updates, _State(own, optimizer)

    return optax.GradientTransformationExtraArgs(init, update)


def curves(problem: Problem, mean: Any, rate: float, steps: int, setting: Setting) -> np.ndarray:
    """Returns held-out losses at the end, (seeds,)."""

    def grads(params: Any, batch: Any) -> dict[str, Any]:
        parts = jax.tree.map(lambda x: x.reshape(WORKERS, -1, *x.shape[1:]), batch)
        return {"grads": jax.vmap(jax.grad(problem.loss), in_axes=(None, 0))(params, parts)}

    trainer = Trainer(
        problem, lambda lr: averaged(mean, lr), steps=steps, evaluations=1, extras=grads
    )
    return trainer.curves([rate], setting.seeds).held_out[0, :, -1]


def experiment(setting: Setting) -> Outcome:
    """Compares losses and bytes by rank."""
    problem = language_model(*setting.pick((64, 32, 32, 2), (16, 16, 8, 1)))
    steps = setting.pick(300, 4)
    plain = Trainer(problem, optkit.adamw, steps=steps, evaluations=1)
    tuned = plain.tuned(RATES[: setting.pick(None, 1)], setting)
    rate, base = tuned.rates[0], tuned.held_out[0, :, -1]
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    ranks = setting.pick((8, 4, 2, 1), (CLAIMED, 1))
    methods = {f"rank {rank}": optkit.powersgd_mean(AXIS, rank=rank) for rank in ranks}
    methods["rank 1, no feedback"] = optkit.powersgd_mean(AXIS, rank=1, error_feedback=False)
    rows, ratios = [], {}
    for name, mean in methods.items():
        losses = curves(problem, mean, rate, steps, setting)
        sent = optkit.wire_bytes(mean, shapes, WORKERS, AXIS)
        ratios[name] = float(losses.mean() / base.mean())
        if not rows:
            whole = number(sent.plain / 2**10)
            rows.append(("plain", spread(base / np.log(2)), "1.0000", whole, "1"))
        less = number(sent.plain / sent.least, 3)
        kib = number(sent.least / 2**10)
        rows.append((name, spread(losses / np.log(2)), f"{ratios[name]:.4f}", kib, less))
    return Outcome(
        claim=f"At rank {CLAIMED} with error feedback the bits a byte are within 1 % of those with "
        "plain averages",
        holds=bool(ratios[f"rank {CLAIMED}"] <= CLOSE),
        finding=f"tuned rate {number(rate)}; bits a byte relative to plain averages: "
        + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()),
        header=("average", "bits/byte", "ratio", "KiB a worker and step", "times less"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
