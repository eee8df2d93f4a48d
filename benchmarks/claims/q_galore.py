"""Q-GaLore: how many decompositions do lazy refreshes save, and what do they cost in loss?

Q-GaLore (arXiv 2407.08296) doubles a matrix's interval once its first singular vectors have a mean
cosine of at least 0.4, and is said to save more than 60% of the decompositions without loss. Here:
a decoder of two blocks of width 64 on bytes, weights of 8 bits, bases of 16 directions in 4 bits
every 10 steps at first; thresholds 0.2, 0.4 and 1.1, which is never reached; each at its best rate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import Outcome, Setting, Trainer, language_model, number, spread

THRESHOLDS = (0.2, 0.4, 1.1)
NEVER, PAPERS = 1.1, 0.4
RATES = (1e-2, 2e-2, 4e-2)
RANK, EVERY, SAVED = 16, 10, 0.6


def counts(state: Any, params: Any) -> dict[str, jax.Array]:
    """Decompositions so far, of all matrices."""
    del params
    lazy = state.routes["q_galore"].inner[0].lazy
    return {"refreshes": sum(jnp.sum(leaf) for leaf in jax.tree.leaves(lazy.refreshes))}


def method(threshold: float, steps: int) -> Any:
    """Returns rate -> Q-GaLore with a threshold, its rate falling as a cosine to 0."""

    def build(rate: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, steps)
        lazy = optkit.LazyRefresh(threshold)
        return optkit.q_galore(schedule, rank=RANK, refresh_every=EVERY, lazy=lazy)

    return build


def experiment(setting: Setting) -> Outcome:
    """Counts decompositions beside held-out losses."""
    problem = setting.pick(
        lambda: language_model(64, 32, 8, 2), lambda: language_model(32, 16, 2, 1)
    )()
    steps, evaluations = setting.pick((400, 8), (4, 2))
    losses, refreshes, rates = {}, {}, {}
    for threshold in THRESHOLDS:
        trainer = Trainer(
            problem, method(threshold, steps), steps=steps, evaluations=evaluations, probe=counts
        )
        curves = trainer.tuned(RATES[: setting.pick(None, 1)], setting)
        losses[threshold] = curves.held_out[0, :, -1]
        refreshes[threshold] = curves.probes["refreshes"][0, :, -1].astype(np.float64)
        rates[threshold] = curves.rates[0]
    saved = {t: 1.0 - refreshes[t] / refreshes[NEVER] for t in THRESHOLDS}
    cost = {t: losses[t] - losses[NEVER] for t in THRESHOLDS}
    free = bool(cost[PAPERS].mean() <= cost[PAPERS].std(ddof=1))
    return Outcome(
        claim="with a threshold of 0.4 Q-GaLore takes at least 60% fewer decompositions than with "
        "none, at a held-out loss that is not higher by more than the spread over seeds",
        holds=free and bool(saved[PAPERS].mean() >= SAVED),
        finding="; ".join(
            f"threshold {t}: {100 * saved[t].mean():.0f}% fewer decompositions, loss "
            f"{cost[t].mean():+.4f} (+- {cost[t].std(ddof=1):.4f})"
            for t in THRESHOLDS
            if t != NEVER
        ),
        header=("threshold", "learning rate", "decompositions", "held-out loss"),
        rows=tuple(
            (f"{t}", number(rates[t]), f"{refreshes[t].mean():.1f}", spread(losses[t]))
            for t in THRESHOLDS
        ),
        seeds=setting.seeds,
    )
