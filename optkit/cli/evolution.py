"""A population method on a task: its settings, its compiled generation, and its run."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import Entry
from optkit.cli.errors import CommandError, message_of
from optkit.cli.hyperparameters import build, find_recipe, find_strategy
from optkit.cli.parsing import parse_method
from optkit.cli.running import Prepared
from optkit.cli.settings import TrainRequest, TrainSettings
from optkit.cli.tasks import make_population_task
from optkit.cli.training import Outcome, Procedure, carry_out
from optkit.evolution import PopulationPerturb, Strategy, evaluate
from optkit.tasks.population import PopulationTask

__all__ = ["EVOLUTION", "EvolveRequest", "EvolveSettings", "evolve"]

_POPULATION = 256
# Strategies that emit minus a step of their own, which no optimizer should scale by its moments.
_BUILT_IN: dict[str, Callable[..., Any]] = {"adam": optax.adam, "sgd": optax.sgd}
_RATES = {"adam": 0.03, "sgd": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolveRequest(TrainRequest):
    """What was asked for; None means not given: the saved value, or else the default."""

    population: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolveSettings(TrainSettings):
    """A run of a population with nothing left open; its steps are generations.

    Attributes:
      population: number of members; None for the method's own or what `hyperparameters` say.
      optimizer: what follows the method, ``NAME[:name=value,...]``; None for what fits it.
      learning_rate: of the optimizer; None for its own.
    """

    FIXED: ClassVar[tuple[str, ...]] = (
        *TrainSettings.FIXED,
        "population",
        "optimizer",
        "learning_rate",
    )
    DEFAULT_TASK: ClassVar[str] = "cartpole"

    population: int | None
    optimizer: str | None
    learning_rate: float | None

    @staticmethod
    def make_task(name: str, options: Mapping[str, Any]) -> PopulationTask:
        """Builds the task of such a run."""
        return make_population_task(name, options)

    @property
    def entry(self) -> Entry:
        """The method."""
        return find_strategy(self.method)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method is called with: larger fitness is better, and the seed is the run's."""
        allowed, given = self.entry.hyperparameters(), self.hyperparameters
        usual = {"key": self.seed, "maximize": True}
        usual = {name: value for name, value in usual.items() if name in allowed}
        return {**usual, **self._members(allowed), **given}

    def _members(self, allowed: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """Returns the argument that sets the number of members."""
        count, given = self.population, self.hyperparameters
        if count is None:
            needed = (
                "population" in allowed and allowed["population"].default is inspect.Parameter.empty
            )
            return {"population": _POPULATION} if needed and "population" not in given else {}
        if "population" in given or "pairs" in given:
            raise CommandError("the size of the population is given twice: drop --population or -p")
        if "population" in allowed:
            return {"population": count}
        if count % 2:
            raise CommandError(f"{self.method} evaluates pairs: --population {count} is odd")
        return {"pairs": count // 2}


def evolve(
    request: EvolveRequest,
    *,
    on_start: Callable[[Any, int], None] = lambda settings, step: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Outcome:
    """Evolves the model of one task, with a log and checkpoints in ``request.out``.

    Args:
      request: what to run.
      on_start: called with the settings and the first generation, before anything is compiled.
      on_row: called with each row that is logged.

    Returns:
      How it ended.

    Raises:
      CommandError: as ``optkit.cli.training.carry_out``.
    """
    return carry_out(EVOLUTION, request, on_start=on_start, on_row=on_row)


def _optimizer(settings: EvolveSettings, es: Strategy) -> optax.GradientTransformation:
    """Builds what follows the strategy."""
    usual = "sgd" if es.own_step else "adam"
    spec = parse_method(settings.optimizer or usual)
    given, rate = dict(spec.hyperparameters), settings.learning_rate
    if rate is not None and given.setdefault("learning_rate", rate) != rate:
        raise CommandError("the learning rate is given twice: drop --learning-rate")
    if spec.name in _BUILT_IN:
        given.setdefault("learning_rate", _RATES[spec.name])
        entry = Entry(spec.name, _BUILT_IN[spec.name], "recipe", "", None, {}, (), "")
    else:
        try:
            entry = find_recipe(spec.name)
        except CommandError as error:
            raise CommandError(f"--optimizer: {error}, or {' or '.join(_BUILT_IN)}") from error
    return build(entry, given, settings.schedule, settings.steps)


def _measure(es: Strategy, task: PopulationTask) -> Callable[[Any, Any, Any], jax.Array]:
    """Returns ``measure(data, state, params)``, the fitnesses of a population."""
    if isinstance(es, PopulationPerturb):
        return lambda data, state, params: evaluate(
            es, task.fitness, params, state, data, in_axes=None
        )
    return lambda data, state, params: task.fitness(es.perturb(params, state), data)


def _deviation(es: Strategy, state: Any) -> dict[str, jax.Array]:
    """Returns the deviation of the members, if the method has one: its mean over parameters."""
    own = es.state(state)
    if hasattr(own, "es_sigma"):
        return {"sigma": jnp.asarray(own.es_sigma)}
    if not hasattr(own, "es_std"):
        return {}
    leaves = jax.tree.leaves(own.es_std)
    count = sum(leaf.size for leaf in leaves)
    return {"sigma": jnp.asarray(sum(jnp.sum(leaf) for leaf in leaves)) / count}


def _figures(fitness: jax.Array, updates: Any) -> dict[str, jax.Array]:
    """Returns what the log says of a generation; members without a finite fitness do not count."""
    known = jnp.where(jnp.isfinite(fitness), fitness, jnp.nan)
    return {
        "fitness_mean": jnp.nanmean(known),
        "fitness_best": jnp.nanmax(known),
        "fitness_std": jnp.nanstd(known),
        "update_norm": optax.tree.norm(updates),
    }


def _prepare(settings: EvolveSettings) -> Prepared:
    """Builds a method and what follows it for a task, without allocating anything."""
    task = settings.make_task(settings.task, settings.task_options)
    es = build(settings.entry, settings.arguments)
    tx = optax.chain(es, _optimizer(settings, es))
    measure = _measure(es, task)

    def generation(data: Any, state: Any, params: Any) -> tuple[Any, Any, Any, jax.Array]:
        fitness = measure(data, state, params)
        deviation = _deviation(es, state)
        updates, state = tx.update(fitness, state, params)
        metrics = {**_figures(fitness, updates), **deviation}
        return state, optax.apply_updates(params, updates), metrics, fitness

    def step(data: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        return generation(data, state, params)[:3]

    params = jax.eval_shape(task.init, jax.random.key(0))
    try:
        state = jax.eval_shape(tx.init, params)
        shapes = jax.eval_shape(generation, task.batch(settings.seed, 0), state, params)
    except (TypeError, ValueError) as error:
        raise CommandError(f"{settings.method}: {message_of(error)}") from error
    members = int(shapes[3].size)
    return Prepared(
        task=task,
        tx=tx,
        step=jax.jit(step, donate_argnums=(1, 2)),
        abstract_params=params,
        abstract_state=state,
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        watched="update_norm",
        counts=lambda step: {"evaluations": step * members},
    )


EVOLUTION = Procedure(EvolveSettings, _prepare, "evolve")
