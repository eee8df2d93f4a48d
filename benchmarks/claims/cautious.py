"""Cautious AdamW and Grams: are they better than AdamW at equal steps, all at their best rates?

The reported gains are up to 1.47 times fewer samples for cautious optimizers (Liang et al., arXiv
2411.16085), and for Grams a lower loss than Adam's, Lion's and the cautious ones' (Cao et al.,
arXiv 2412.17107). Here: a small byte language model, one grid of rates for all, three seeds.
"""

from typing import Any

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

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
NUMBERS = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 1e-2}
METHODS = ("adamw", "cautious_adamw", "grams")


def experiment(setting: Setting) -> Outcome:
    """Trains the three methods on equal batches and compares final losses and steps to AdamW's."""
    problem = setting.pick(lambda: language_model(batch=8), lambda: language_model(16, 16, 2, 1))()
    steps, evaluations = setting.pick((400, 20), (4, 2))
    runs = {}
    for name in METHODS:

        def build(rate: Any, name: str = name) -> Any:
            return getattr(optkit, name)(rate, **NUMBERS)

        trainer = Trainer(problem, build, steps=steps, evaluations=evaluations)
        runs[name] = trainer.tuned(RATES[: setting.pick(None, 1)], setting)
    final = {name: run.held_out[0, :, -1] for name, run in runs.items()}
    goal = float(final["adamw"].mean())
    # Same seeds, same batches: what counts is the difference of each pair.
    gains = {name: final["adamw"] - final[name] for name in METHODS[1:]}
    noise = {name: float(np.std(gain, ddof=1)) for name, gain in gains.items()}
    better = [name for name, gain in gains.items() if float(gain.mean()) > noise[name]]
    return Outcome(
        claim="at equal steps cautious AdamW and Grams both have a lower loss than AdamW, by more "
        "than the spread of the difference over seeds",
        holds=len(better) == len(gains),
        finding="; ".join(
            f"{name} lower by {float(gain.mean()):.4f} (+- {noise[name]:.4f} over seeds), at "
            f"AdamW's final loss after {steps_text(runs[name].steps_to(goal))} of {steps} steps"
            for name, gain in gains.items()
        ),
        header=("method", "learning rate", "held-out loss", "steps to AdamW's loss"),
        rows=tuple(
            (name, number(run.rates[0]), spread(final[name]), steps_text(run.steps_to(goal)))
            for name, run in runs.items()
        ),
        seeds=setting.seeds,
    )
