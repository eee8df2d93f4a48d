"""Muon: does it reach AdamW's loss in three quarters of the steps?

The reported speed-up is 1.35 on GPT-2 small (Jordan et al., 2024). Here: a two-layer decoder of
width 64 on bytes, both methods with a tuned learning rate, what Muon leaves to AdamW at AdamW's.
"""

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

ADAMW_RATES = (1e-3, 3e-3, 1e-2)
MUON_RATES = (0.005, 0.01, 0.02, 0.04)


def experiment(setting: Setting) -> Outcome:
    """Compares steps to AdamW's final held-out loss."""
    problem = setting.pick(language_model, lambda: language_model(16, 16, 2, 1))()
    steps, evaluations = setting.pick((500, 25), (4, 2))
    size = {"steps": steps, "evaluations": evaluations}
    few = setting.pick(None, 1)
    adamw = Trainer(problem, optkit.adamw, **size).tuned(ADAMW_RATES[:few], setting)
    rest = adamw.rates[0]
    build = lambda rate: optkit.muon(rate, adam_learning_rate=rest)  # noqa: E731
    muon = Trainer(problem, build, **size).tuned(MUON_RATES[:few], setting)
    goal = float(adamw.held_out[0, :, -1].mean())
    needed = muon.steps_to(goal)
    rows = tuple(
        (
            name,
            number(curves.rates[0]),
            spread(curves.held_out[0, :, -1] / np.log(2)),
            steps_text(curves.steps_to(goal)),
        )
        for name, curves in (("adamw", adamw), ("muon", muon))
    )
    return Outcome(
        claim="Muon reaches AdamW's final held-out loss in at most 75% of the steps",
        holds=needed <= 0.75 * steps,
        finding=f"muon needs {steps_text(needed)} of {steps} steps",
        header=("method", "learning rate", "bits/byte", "steps to AdamW's loss"),
        rows=rows,
        seeds=setting.seeds,
    )
