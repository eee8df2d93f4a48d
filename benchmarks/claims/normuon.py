"""NorMuon: does it beat Muon, and does it even out the rows of the update?

The reported gain is 11% of the steps at 1.1 B parameters (Li et al., arXiv 2510.05491).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import (
    Outcome,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
    steps_text,
)

RATES = (0.005, 0.01, 0.02, 0.04)
ADAM_RATE = 3e-3


def row_spread(params: Any, updates: Any) -> jax.Array:
    """Returns the mean over hidden matrices of the largest over the smallest row norm."""
    roles = optkit.roles(params)
    chosen = [
        jnp.linalg.norm(u, axis=0)  # kernels are (in, out): a row of the matrix is a column here
        for u, role in zip(jax.tree.leaves(updates), jax.tree.leaves(roles), strict=True)
        if role in optkit.MATRIX_ROLES
    ]
    return jnp.mean(jnp.stack([norms.max() / norms.min() for norms in chosen]))


def experiment(setting: Setting) -> Outcome:
    """Compares final losses, steps to Muon's loss, and the row norms of an update."""
    problem = setting.pick(language_model, lambda: language_model(16, 16, 2, 1))()
    steps, evaluations = setting.pick((500, 25), (4, 2))
    rates = RATES[: setting.pick(None, 1)]
    runs, spreads = {}, {}
    for name in ("muon", "normuon"):
        factory = getattr(optkit, name)

        def build(rate: Any, factory: Any = factory) -> Any:
            return factory(rate, adam_learning_rate=ADAM_RATE)

        def probe(state: Any, params: Any, build: Any = build) -> dict[str, jax.Array]:
            grads = jax.grad(problem.loss)(params, problem.held_out)
            updates, _ = build(1.0).update(grads, state, params)
            return {"spread": row_spread(params, updates)}

        trainer = Trainer(problem, build, steps=steps, evaluations=evaluations, probe=probe)
        runs[name] = trainer.tuned(rates, setting)
        spreads[name] = float(runs[name].probes["spread"][0].mean())
    goal = float(runs["muon"].held_out[0, :, -1].mean())
    rows = tuple(
        (
            name,
            number(curves.rates[0]),
            spread(curves.held_out[0, :, -1] / np.log(2)),
            steps_text(curves.steps_to(goal)),
            number(spreads[name], 3),
        )
        for name, curves in runs.items()
    )
    needed = runs["normuon"].steps_to(goal)
    return Outcome(
        claim="NorMuon reaches Muon's final loss in at most 90% of the steps, with evener rows",
        holds=needed <= 0.9 * steps and spreads["normuon"] < spreads["muon"],
        finding=f"normuon needs {steps_text(needed)} of {steps} steps; largest over smallest row "
        f"norm of an update {spreads['normuon']:.2f} against {spreads['muon']:.2f}",
        header=("method", "learning rate", "bits/byte", "steps to Muon's loss", "row spread"),
        rows=rows,
        seeds=setting.seeds,
    )
