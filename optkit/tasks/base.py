"""What a task is, and the checks and small helpers that all built-in tasks share.

A task bundles data, a model and a loss as pure functions. It knows nothing of optimizers:
`optkit.tasks.training` does.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Params = dict[str, Any]  # nested dict of arrays, string keys only
Batch = dict[str, Any]  # flat dict of numpy arrays
Metrics = dict[str, jax.Array]  # scalars


@dataclass(frozen=True)
class Task:
    """Data, model and loss of one learning problem, as pure functions.

    Attributes:
      name: the name under which `optkit.tasks.get` finds it.
      description: one line.
      metric: name of the headline held-out metric in what `evaluate` returns; lower is better.
      init: `init(key) -> params`, a nested dict of float32 arrays; works under `jit`, `eval_shape`
        and `vmap` over keys.
      loss: `loss(params, batch) -> (scalar, dict of scalar metrics)`; works under `jit`, `grad`,
        `vmap` over a population of params, and with sharded params or batches.
      batch: `batch(seed, step) -> dict of numpy arrays`, a pure function of its arguments, so that
        a resumed run needs nothing but the step number.
      evaluate: `evaluate(params) -> dict of floats` on the held-out set.
      default_steps: training steps of a short demonstration.
      parameters: number of trained scalars.
      activations: `activations(params, batch) -> dict`, the output of each module by its path; None
        where a task has no model to look into. Works under `jit`.
      logits: `logits(params, batch) -> (..., classes)`, of which `loss` is the mean cross entropy;
        None where the loss is another.
      attention: `attention(params) -> {path of a layer: scores}` on a few held-out examples: what
        the softmax is taken of, (batch, heads, queries, keys), minus infinity where a query may not
        look. None where the model has no attention. Works under `jit`.
    """

    name: str
    description: str
    metric: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch], tuple[jax.Array, Metrics]]
    batch: Callable[[int, int], Batch]
    evaluate: Callable[[Params], dict[str, float]]
    default_steps: int
    parameters: int
    activations: Callable[[Params, Batch], Metrics] | None = None
    logits: Callable[[Params, Batch], jax.Array] | None = None
    attention: Callable[[Params], Metrics] | None = None


class UnknownTask(KeyError):
    """No task has this name; the message lists the names and close matches."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the message in quotes.
        return str(self.args[0])


class TaskOptionError(ValueError):
    """A task was given an option that it does not have, or a value that the option can't take."""


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest candidates, or an empty string.

    Example:
      >>> suggestion("digit", ["digits", "bytelm"])
      " Did you mean 'digits'?"
    """
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_options(task: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises `TaskOptionError` unless `options` fits the keyword arguments of `build`.

    Args:
      task: name of the task, for the message.
      build: a function with annotated keyword-only arguments.
      options: the values a user gave.

    Raises:
      TaskOptionError: naming the option, its value and what is allowed.
    """
    allowed = inspect.signature(build).parameters
    for name, value in options.items():
        if name not in allowed:
            listing = ", ".join(f"{p.name}={p.default!r}" for p in allowed.values())
            hint = suggestion(name, allowed)
            raise TaskOptionError(f"task {task!r} has no option {name!r}.{hint} Allowed: {listing}")
        expected = allowed[name].annotation
        accepted = expected | int if expected is float else expected
        # bool is a subclass of int, but True is never meant as a size.
        if isinstance(value, bool) or not isinstance(value, accepted):
            label = getattr(expected, "__name__", str(expected))
            raise TaskOptionError(
                f"task {task!r}: option {name}={value!r} must be of type {label} "
                f"(default {allowed[name].default!r})"
            )


def check_positive(task: str, **sizes: float) -> None:
    """Raises `TaskOptionError` unless all sizes are finite and above zero."""
    for name, value in sizes.items():
        if not (math.isfinite(value) and value > 0):
            raise TaskOptionError(
                f"task {task!r}: option {name}={value!r} must be finite and above 0"
            )


def generator(seed: int, step: int) -> np.random.Generator:
    """Returns the random generator of one step, which the two arguments alone decide.

    Args:
      seed: run seed, 0 or above.
      step: step number, 0 or above.

    Example:
      >>> int(generator(0, 7).integers(100)) == int(generator(0, 7).integers(100))
      True
    """
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must be 0 or above, got seed={seed}, step={step}")
    return np.random.default_rng(np.random.SeedSequence((seed, step)))


def count_parameters(init: Callable[[jax.Array], Params]) -> int:
    """Returns the number of scalars that `init` makes, without making them."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
