"""What training and racing share: building and warming up one optimizer on one task."""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.catalogue import Entry
from optkit.cli.errors import CommandError, message_of
from optkit.cli.hyperparameters import build
from optkit.cli.measuring import SPECTRA, Measure, measure_for, measure_sizes
from optkit.cli.schedules import CONSTANT, RateSchedule
from optkit.tasks import Task
from optkit.tasks.population import PopulationTask
from optkit.tasks.training import train_step

__all__ = ["Prepared", "fresh_copy", "prepare", "versions", "warm_up"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A method on a task: the transformation and its compiled training step.

    Attributes:
      task: has ``init``, ``batch`` and ``evaluate``.
      tx: the transformation.
      step: ``step(batch, state, params) -> (state, params, metrics)``.
      abstract_params: shapes and dtypes of the parameters.
      abstract_state: the same of the state.
      state_bytes: bytes of the method's state, without what a diagnosis keeps.
      watched: the metric that has to stay finite.
      counts: what else a row of the log says, from the number of steps.
      measure: `measure(state, params)`, what a row says of measurements.
    """

    task: Task | PopulationTask
    tx: optax.GradientTransformation
    step: Callable[..., tuple[Any, Any, dict[str, jax.Array]]]
    abstract_params: Any
    abstract_state: Any
    state_bytes: int
    watched: str = "loss"
    counts: Callable[[int], dict[str, float]] = lambda step: {}
    measure: Measure = measure_sizes


def prepare(
    task: Task,
    entry: Entry,
    hyperparameters: Mapping[str, Any],
    schedule: RateSchedule = CONSTANT,
    steps: int | None = None,
    diagnose: int | None = None,
    measures: Sequence[str] | None = None,
) -> Prepared:
    """Builds a method for a task without allocating anything.

    Args:
      task: the task.
      entry: a recipe of the catalogue.
      hyperparameters: its values by name, as parsed.
      schedule: the course of the learning rate.
      steps: steps of the run, which such a course may end with.
      diagnose: steps from one measurement to the next; None measures nothing.
      measures: what is measured beside sizes and top singular values, of `measuring.MEASURES`.

    Returns:
      The transformation, its step function and the shapes of parameters and state.

    Raises:
      CommandError: for hyperparameters that the method refuses, or a measure that the task does.
    """
    measure = measure_for(task, measures or ())
    bare = tx = build(entry, hyperparameters, schedule, steps)
    if diagnose is not None:
        tx = optkit.diagnose(tx, diagnose, spectrum=SPECTRA in (measures or ()))
    params = jax.eval_shape(task.init, jax.random.key(0))
    try:
        state = jax.eval_shape(tx.init, params)
    except (TypeError, ValueError) as error:
        # Some values, such as a dtype's name, are looked at only when the state is made.
        raise CommandError(f"{entry.name}: {message_of(error)}") from error
    return Prepared(
        task=task,
        tx=tx,
        step=train_step(task, tx),
        abstract_params=params,
        abstract_state=state,
        state_bytes=int(optkit.plan(bare, params).state_bytes),
        measure=measure,
    )


def fresh_copy(tree: Any) -> Any:
    """Copies every leaf into a buffer of its own.

    Args:
      tree: a pytree of arrays.

    Returns:
      The same values, safe to donate: no two leaves share a buffer. An optimizer state may hold the
      parameters themselves, and a buffer may be donated only once.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), tree)


def warm_up(prepared: Prepared, seed: int, state: Any, params: Any) -> float:
    """Compiles the step by two steps on copies, so that no compilation falls on the training clock.

    Args:
      prepared: the method on its task.
      seed: seed of the batches.
      state: optimizer state; left untouched.
      params: parameters; left untouched.

    Returns:
      The seconds it took. The second step matters if the first changed a type of the state.
    """
    begin = time.perf_counter()
    state, params = fresh_copy(state), fresh_copy(params)
    for _ in range(2):
        batch = prepared.task.batch(seed, 0)
        state, params, metrics = prepared.step(batch, state, params)
        jax.block_until_ready((params, metrics))
    return time.perf_counter() - begin


def versions() -> dict[str, str]:
    """Returns what a report must name to be repeated.

    Returns:
      Versions of Python and of the libraries that shape the numbers, and the device.
    """
    libraries = ("jax", "jaxlib", "optax", "flax", "numpy")
    device = jax.devices()[0]
    return {
        "optkit": optkit.__version__,
        **{name: importlib.metadata.version(name) for name in libraries},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "machine": f"{platform.system()} {platform.machine()}",
    }
