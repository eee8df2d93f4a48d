"""WSD-S: does one run serve three budgets as well as a cosine run for each of them?

The paper reports that a single WSD-S run (arXiv 2410.05192), which falls at the end of each budget
and goes on at the peak, is as good at each as runs made for it. Here: a two-layer decoder of width
64 on bytes under AdamW, the rate of each method tuned, falls of a tenth of each cycle to a tenth of
the peak, cosines to a tenth too.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import optkit
from benchmarks.claims.engine import (
    Outcome,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
)
from optkit import schedules

RATES = (1e-3, 3e-3, 1e-2)
WITHIN = 1.01  # of the cosine's loss
WARM_UP = 0.05  # of the shortest budget


def following(course: schedules.Schedule) -> Callable[[Any], Any]:
    """Returns rate -> AdamW; the rate is traced, so that all rates share a program."""

    def build(rate: jax.Array) -> Any:
        return optkit.adamw(lambda count: rate * course(count))

    return build


def experiment(setting: Setting) -> Outcome:
    """Compares the held-out loss of one WSD-S run at three budgets with three cosine runs."""
    problem = setting.pick(language_model, lambda: language_model(16, 16, 2, 1))()
    budgets = setting.pick((250, 500, 1000), (10, 20))
    warmup, rates = round(WARM_UP * budgets[0]), RATES[: setting.pick(None, 1)]
    options: dict[str, Any] = {"warmup": warmup, "final": 0.1, "skip_zero": True}
    ends = Trainer(
        problem,
        following(schedules.wsd_s(1.0, budgets, decay=0.1, **options)),
        steps=budgets[-1],
        evaluations=budgets[-1] // budgets[0],
    ).tuned(rates, setting)
    rows, ratios = [], []
    for budget in budgets:
        one = Trainer(
            problem,
            following(schedules.cosine(1.0, budget, **options)),
            steps=budget,
            evaluations=1,
        ).tuned(rates, setting)
        cosine = one.held_out[0, :, -1]
        branch = ends.held_out[0, :, budget // budgets[0] - 1]
        ratios.append(float(branch.mean() / cosine.mean()))
        rows.append(
            (
                str(budget),
                f"{number(ends.rates[0])}, {number(one.rates[0])}",
                spread(branch / np.log(2)),
                spread(cosine / np.log(2)),
                f"{ratios[-1]:.4f}",
            )
        )
    return Outcome(
        claim="one WSD-S run is at each of three budgets within 1% of a cosine run of that length",
        holds=max(ratios) <= WITHIN,
        finding="loss over that of the cosine run: "
        + ", ".join(f"{ratio:.4f}" for ratio in ratios)
        + f"; {budgets[-1]} steps in all, the cosine runs take {sum(budgets)}",
        header=("steps", "rates (WSD-S, cosine)", "WSD-S bits/byte", "cosine bits/byte", "ratio"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
