"""Tasks for populations: what has a fitness for each member, and need not have a gradient."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import optkit.tasks
from optkit.evolution import Perturbed, Varied, population_apply
from optkit.tasks.base import Batch, Params, Task, UnknownTask, check_options, suggestion

__all__ = ["PopulationTask", "as_population", "count_members", "from_task", "get", "names"]

# Modules with a function of the name, imported when asked for; the other tasks have a loss.
_MODULES = {
    "acrobot": "control",
    "breakout": "control",
    "cartpole": "control",
    "digits": "digits_accuracy",
    "int8_bytes": "int8_reading",
    "pendulum": "control",
}
_EVALUATION_SEED = 20261122  # fixed: what is shown for progress never depends on the run's seed
_EPISODES = 0x6570  # sets the keys of a run's data apart from those of its noise


@dataclass(frozen=True)
class PopulationTask:
    """A model and a fitness, as pure functions of JAX operations; larger fitness is better.

    Attributes:
      name: the name under which ``get`` finds it.
      description: one line.
      metric: the headline of what ``score`` returns.
      init: ``init(key) -> params``, a nested dict of arrays.
      fitness: ``fitness(population, data) -> (n,)`` float32, one for each member. The population is
        what ``population_apply`` takes, or a tree of arrays ``(n, *shape)``; the data are a PRNG
        key, which decides episodes or examples, or what ``sample`` returns.
      score: ``score(params, key) -> dict of scalars`` of one model, the unperturbed one.
      default_generations: generations of a short demonstration.
      parameters: number of evolved scalars.
      sample: ``sample(seed, step) -> data`` of a generation; None for a key.
    """

    name: str
    description: str
    metric: str
    init: Callable[[jax.Array], Params]
    fitness: Callable[[Any, Any], jax.Array]
    score: Callable[[Params, jax.Array], Any]
    default_generations: int
    parameters: int
    sample: Callable[[int, int], Batch] | None = None

    @property
    def default_steps(self) -> int:
        """The generations, under the name that tasks with gradients have for steps."""
        return self.default_generations

    def batch(self, seed: int, step: int) -> Any:
        """Returns what decides a generation: of its arguments alone, so that a run can be resumed.

        Args:
          seed: run seed, 0 or above.
          step: generation, 0 or above.

        Returns:
          What ``fitness`` takes.
        """
        if self.sample is not None:
            return self.sample(seed, step)
        key = jax.random.fold_in(jax.random.key(seed), _EPISODES)
        return jax.random.fold_in(key, step)

    def evaluate(self, params: Params) -> dict[str, float]:
        """Returns the score of one model, on the same episodes or examples every time.

        Args:
          params: its parameters.

        Returns:
          Numbers by name, that of ``metric`` first.
        """
        found = self.score(params, jax.random.key(_EVALUATION_SEED))
        names = [self.metric, *(name for name in found if name != self.metric)]
        return {name: float(found[name]) for name in names}


def as_population(tree: Any) -> Any:
    """Returns a population as ``population_apply`` takes it.

    Args:
      tree: a population with shared leaves, which stays as it is, or arrays ``(n, *shape)``.

    Returns:
      The tree, every leaf of arrays alone marked as the members' own.

    Example:
      >>> import jax.numpy as jnp
      >>> type(as_population({"w": jnp.zeros((4, 3))})["w"]).__name__
      'Varied'
    """
    if any(isinstance(leaf, Perturbed | Varied) for leaf in _leaves(tree)):
        return tree
    return jax.tree.map(Varied, tree)


def count_members(population: Any) -> int:
    """Returns the number of members of what ``as_population`` returned.

    Args:
      population: a tree with ``Perturbed`` or ``Varied`` leaves.

    Returns:
      The length of its axis of members.

    Raises:
      ValueError: no leaf has such an axis.
    """
    for leaf in _leaves(population):
        if isinstance(leaf, Perturbed | Varied):
            array = leaf.scale if isinstance(leaf, Perturbed) else leaf.value
            return int(array.shape[0])
    raise ValueError("the population has no leaf with an axis of members; give as_population(tree)")


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Perturbed | Varied))


def from_task(task: Task) -> PopulationTask:
    """Returns a task with a loss as one for populations; it need not be differentiable.

    Args:
      task: the task.

    Returns:
      The task whose fitness is minus the loss, on one batch for all members.

    Example:
      >>> from optkit import tasks
      >>> from_task(tasks.get("regression")).metric
      'loss'
    """

    def fitness(population: Any, batch: Batch) -> jax.Array:
        members = as_population(population)
        losses = population_apply(lambda p, b: task.loss(p, b)[0], members, batch, in_axes=None)
        return -jnp.asarray(losses)

    return PopulationTask(
        name=task.name,
        description=task.description,
        metric=task.metric,
        init=task.init,
        fitness=fitness,
        score=lambda params, key: task.evaluate(params),
        default_generations=task.default_steps,
        parameters=task.parameters,
        sample=task.batch,
    )


def names() -> list[str]:
    """Lists the tasks for populations: those with a fitness, and all that have a loss.

    Returns:
      The names that `get` knows, sorted.
    """
    return sorted({*_MODULES, *optkit.tasks.names(), *optkit.tasks.names(hard=True)})


def get(name: str, **options: Any) -> PopulationTask:
    """Builds the task of that name.

    Args:
      name: one of `names()`.
      **options: the keyword arguments of the function that builds it, such as `hidden=32`.

    Returns:
      The task.

    Raises:
      UnknownTask: if there is no such task.
      TaskOptionError: if the task has no such option, or the option can't take the value.
      ImportError: if a package is missing, which it names.

    Example:
      >>> get("digits", width=16).metric
      'accuracy'
    """
    if name not in names():
        known = ", ".join(names())
        raise UnknownTask(f"no task {name!r}.{suggestion(name, names())} Tasks: {known}")
    if name not in _MODULES:
        return from_task(optkit.tasks.get(name, **options))
    build = getattr(importlib.import_module(f"optkit.tasks.{_MODULES[name]}"), name)
    check_options(name, build, options)
    task: PopulationTask = build(**options)
    return task
