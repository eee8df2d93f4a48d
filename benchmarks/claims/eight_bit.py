"""Moments in 8 and 4 bits: are AdamW and Lion with them as good as with moments in float32?

Block-wise 8-bit moments (Dettmers et al., arXiv 2110.02861), 4-bit ones (Li et al., arXiv
2309.01507) and float8 ones are said to train as 32-bit moments do. Here: a byte language model of
width 64, almost all of whose parameters lie in leaves of at least 4096 entries, the smallest whose
moments are stored in few bits; the same batches and initial weights for all methods.
"""

import dataclasses
from typing import Any

import numpy as np

import optkit
from benchmarks.claims import lm
from benchmarks.claims.engine import Outcome, Setting, number, spread

ADAM_RATES, LION_RATES = (1.5e-3, 3e-3, 6e-3), (2e-4, 4e-4, 8e-4)
MIN_SIZE, SEEDS = 4096, 6  # of three seeds the deviation would be known too badly
# Method -> the one in float32 that it should equal.
FULL = {
    "adamw_8bit": "adamw",
    "adamw_fp8": "adamw",
    "adamw_4bit": "adamw",
    "lion_8bit": "lion",
}
METHODS = ("adamw", "adamw_8bit", "adamw_fp8", "adamw_4bit", "lion", "lion_8bit")
NUMBERS = {"weight_decay": 1e-4}


def experiment(setting: Setting) -> Outcome:
    """Trains all methods and compares losses with those of float32."""
    model = setting.pick(lambda: lm.problem(64, 64, 4), lambda: lm.problem(16, 16, 2))()
    steps = setting.pick(500, 4)
    more_seeds = tuple(range(max(SEEDS, len(setting.seeds))))
    setting = dataclasses.replace(setting, seeds=setting.pick(more_seeds, setting.seeds))
    runs = {}
    for name in METHODS:

        def build(rate: Any, name: str = name) -> Any:
            return getattr(optkit, name)(rate, **NUMBERS)

        rates = LION_RATES if "lion" in name else ADAM_RATES
        runs[name] = lm.trained(model, build, rates, steps, setting)
    sizes = lm.parameters(model)
    share = sum(size for size in sizes if size >= MIN_SIZE) / sum(sizes)
    more = {name: runs[name].losses - runs[full].losses for name, full in FULL.items()}
    noise = {full: float(np.std(runs[full].losses, ddof=1)) for full in set(FULL.values())}
    within = {name: abs(float(more[name].mean())) <= noise[full] for name, full in FULL.items()}
    return Outcome(
        claim="the mean held-out loss of AdamW with 8-bit, float8 and 4-bit moments, and of Lion "
        "with an 8-bit one, differs from float32's by no more than float32's losses do over seeds",
        holds=all(within.values()),
        finding=f"{100 * share:.1f}% of {sum(sizes):,} parameters have moments of few bits; "
        + "; ".join(
            f"{name} {more[name].mean():+.4f} (+- {more[name].std(ddof=1):.4f} over seeds) beside "
            f"{full}, whose deviation is {noise[full]:.4f}: {'within' if within[name] else 'NOT'}"
            for name, full in FULL.items()
        ),
        header=("method", "learning rate", "held-out loss", "beside float32", "state bytes"),
        rows=tuple(
            (
                name,
                number(run.rate),
                spread(run.losses),
                spread(more[name]) if name in more else "",
                f"{run.state_bytes:,}",
            )
            for name, run in runs.items()
        ),
        seeds=setting.seeds,
    )
