"""What the experiments on states of few bytes share: one language model, rates, bytes.

Rates are chosen on the first half of the held-out files' text, and losses reported on the second,
with other seeds: the reported text decides nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import Problem, Setting, Trainer, language_model
from optkit.tasks.bytelm import windows
from optkit.tasks.corpus import standard_library

Build = Callable[[Any], optax.GradientTransformation]
WARM_UP, LAST = 0.05, 0.1  # share of the steps; of the rate
WINDOWS = 128


@dataclasses.dataclass(frozen=True)
class Method:
    """A method on one problem at its best rate.

    Attributes:
      rate: that of the lowest loss on the text for choosing.
      losses: (seeds,) on the reported text; a run that diverged is infinite.
      state_bytes: of the optimizer, counters included.
    """

    rate: float
    losses: np.ndarray
    state_bytes: int


def problem(width: int, context: int, batch: int) -> tuple[Problem, Any]:
    """Returns the two-block language model that is judged on text for choosing, and other text."""
    text = standard_library().held_out
    halves = np.linspace(0, text.size, 3).astype(np.int64)
    chosen, reported = (
        windows(text, np.linspace(a, b - context - 1, WINDOWS).astype(np.int64), context)
        for a, b in itertools.pairwise(halves)
    )
    model = language_model(width, context, batch)
    return dataclasses.replace(model, held_out=chosen), reported


def cosine(rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the schedule of all runs: a short linear warm-up, a cosine down to a tenth."""
    warm = max(1, round(WARM_UP * steps))

    def value(count: jax.Array) -> jax.Array:
        done = jnp.clip((count - warm) / max(1, steps - warm), 0.0, 1.0)
        down = LAST + (1.0 - LAST) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return rate * jnp.minimum((count + 1.0) / warm, down)

    return value


def state_bytes(tx: optax.GradientTransformation, init: Callable[[jax.Array], Any]) -> int:
    """Returns the bytes of a state; allocates nothing."""
    return int(optkit.plan(tx, jax.eval_shape(init, jax.random.key(0))).state_bytes)


def trained(
    given: tuple[Problem, Any], build: Build, rates: Sequence[float], steps: int, setting: Setting
) -> Method:
    """Returns a method at the best of its rates, the grid going on where the best is at its edge.

    Args:
      given: ``problem``'s.
      build: schedule -> transformation.
      rates: the grid.
      steps: of each run.
      setting: seeds.
    """
    model, reported = given

    def probe(state: Any, params: Any) -> dict[str, jax.Array]:
        del state
        return {"reported": model.loss(params, reported)}

    def scheduled(rate: Any) -> optax.GradientTransformation:
        return build(cosine(rate, steps))

    trainer = Trainer(model, scheduled, steps=steps, evaluations=1, probe=probe)
    runs = trainer.tuned(rates[: setting.pick(None, 1)], setting)
    losses = runs.probes["reported"][0, :, -1]
    return Method(
        runs.rates[0],
        np.where(np.isfinite(losses), losses, np.inf),
        state_bytes(scheduled(rates[0]), model.init),
    )


def parameters(given: tuple[Problem, Any]) -> list[int]:
    """Returns the sizes of the model's leaves."""
    shapes = jax.eval_shape(given[0].init, jax.random.key(0))
    return [leaf.size for leaf in jax.tree.leaves(shapes)]
