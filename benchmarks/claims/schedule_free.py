"""Schedule-Free: is one run, stopped anywhere, as good as a cosine run made for that length?

The paper (arXiv 2405.15682) reports that Schedule-Free AdamW, which knows no horizon, matches tuned
cosine runs. Here: a two-layer decoder of width 64 on bytes; one schedule-free run is evaluated at
its average at five lengths, against five cosine runs of AdamW, the rate of each tuned.
"""

from typing import Any

import numpy as np

import optkit
from benchmarks.claims.engine import (
    Curves,
    Outcome,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
)
from benchmarks.claims.wsd_s import following
from optkit import schedules

COSINE_RATES = (1e-3, 3e-3, 1e-2)
FREE_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
WITHIN = 1.01  # of the cosine's loss


def free_run(problem: Any, steps: int, lengths: int, warmup: int, setting: Setting) -> Curves:
    """Returns the run at the rate whose average is best; evaluated at x, with y as a probe."""

    def probe(state: Any, params: Any) -> dict[str, Any]:
        del state
        return {"y": problem.loss(params, problem.held_out)}

    return Trainer(
        problem,
        lambda rate: optkit.schedule_free_adamw(rate, b1=0.95, warmup_steps=warmup),
        steps=steps,
        evaluations=lengths,
        probe=probe,
    ).tuned(FREE_RATES[: setting.pick(None, 1)], setting)


def experiment(setting: Setting) -> Outcome:
    """Compares held-out losses at five lengths of one run with those of five cosine runs."""
    problem = setting.pick(language_model, lambda: language_model(16, 16, 2, 1))()
    lengths = setting.pick((100, 200, 300, 400, 500), (4,))
    warmup = setting.pick(25, 2)
    free = free_run(problem, lengths[-1], len(lengths), warmup, setting)
    rows, ratios = [], []
    for index, steps in enumerate(lengths):
        course = schedules.cosine(1.0, steps, warmup=warmup, final=0.1, skip_zero=True)
        trainer = Trainer(problem, following(course), steps=steps, evaluations=1)
        tuned = trainer.tuned(COSINE_RATES[: setting.pick(None, 1)], setting)
        cosine, average = tuned.held_out[0, :, -1], free.held_out[0, :, index]
        ratios.append(float(average.mean() / cosine.mean()))
        rows.append(
            (
                str(steps),
                f"{number(free.rates[0])}, {number(tuned.rates[0])}",
                spread(average / np.log(2)),
                spread(free.probes["y"][0, :, index] / np.log(2)),
                spread(cosine / np.log(2)),
                f"{ratios[-1]:.4f}",
            )
        )
    return Outcome(
        claim="one Schedule-Free AdamW run is at each of five lengths within 1% of a cosine run",
        holds=max(ratios) <= WITHIN,
        finding="loss of the average over that of the cosine run: "
        + ", ".join(f"{ratio:.4f}" for ratio in ratios),
        header=("steps", "rates", "average x, bits/byte", "at y", "cosine", "ratio"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
