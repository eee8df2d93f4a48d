"""What all population methods have in common: the first link of a chain, fed with fitness."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from optkit.tree import PyTree

State = TypeVar("State", bound=NamedTuple)


class Strategy(optax.GradientTransformationExtraArgs):
    """A population method: an Optax transformation whose "gradients" are fitnesses.

    ``update(fitness, state, params)`` returns a pseudo-gradient, to be descended, so that
    ``optax.chain(strategy, optax.adam(1e-2))`` is an ordinary optimizer. Methods that move the
    parameters by a step of their own emit minus that step: follow them by ``optax.sgd(1.0)``.

    Attributes:
      init: ``init(params) -> state``.
      update: ``update(fitness, state, params, **extra_args) -> (pseudo-gradient, state)``.
      population: number of members, the length of a fitness vector; None where the parameters
        decide it.
      maximize: whether larger fitness is better.
      own_step: the method moves the parameters by a step of its own; False if it emits a gradient.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optkit.evolution import openai_es
      >>> es = openai_es(population=64, sigma=0.1)
      >>> tx = optax.chain(es, optax.adam(0.1))
      >>> params = {"w": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def generation(params, state):
      ...     members = es.perturb(params, state)
      ...     fitness = -jnp.sum((members["w"] - 1.0) ** 2, axis=-1)
      ...     updates, state = tx.update(fitness, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(60):
      ...     params, state = generation(params, state)
      >>> bool(jnp.all(jnp.abs(params["w"] - 1.0) < 0.1))
      True
    """

    population: int
    maximize: bool
    own_step: bool
    _members: Callable[..., PyTree]
    _state: type[Any]

    def __new__(
        cls,
        init: Callable[[PyTree], Any],
        update: Callable[..., tuple[PyTree, Any]],
        *,
        population: int | None,
        members: Callable[[PyTree, Any], PyTree],
        state: type[Any],
        maximize: bool = True,
        own_step: bool = False,
    ) -> "Strategy":
        """Makes a strategy of its parts.

        Args:
          init: as of an Optax transformation.
          update: the same, with a fitness vector in the place of gradients.
          population: number of members.
          members: ``members(params, state)`` returns the population, materialised: the parameters
            with a leading axis of members.
          state: class of its state, by which it is found in the state of a chain.
          maximize: whether larger fitness is better.
          own_step: what it emits is minus a step, to be followed by ``optax.sgd(1.0)``.
        """
        self = super().__new__(cls, init, update)
        self.population = population  # None: known with the parameters
        self.maximize, self.own_step = maximize, own_step
        self._members, self._state = members, state
        return self

    def state(self, state: Any) -> Any:
        """Returns this method's own state out of the state of a chain that has it.

        Args:
          state: the state of an optimizer of which this method is a link, or its own.

        Raises:
          ValueError: there is none, or more than one; says how many.
        """
        return state_of(state, self._state)

    def perturb(self, params: PyTree, state: Any) -> PyTree:
        """Returns the population: leaves ``(population, *shape)`` in the dtypes of ``params``.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
        """
        return self._members(params, self.state(state))


def state_of(state: Any, kind: type[State]) -> State:
    """Returns the one state of a class inside the state of an optimizer."""
    held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    found = [x for x in held if isinstance(x, kind)]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer's state holds {len(found)} of {kind.__name__}, not one; "
            "give the state that init() of this chain returned"
        )
    return found[0]


def fitness_vector(fitness: Any, population: int) -> jax.Array:
    """Returns the fitnesses of a population in float32 or better, checked.

    Args:
      fitness: ``(population,)`` numbers, or a dict that has them as ``fitness``.
      population: how many there must be.

    Raises:
      ValueError: they are of another shape.
    """
    given = fitness
    if isinstance(fitness, Mapping):
        if "fitness" not in fitness:
            raise ValueError(
                f"the fitness is a dict of {', '.join(map(repr, fitness))} without 'fitness'; a "
                "population method is fed with one number a member, and not with gradients: it is "
                "the first link of its chain"
            )
        given = fitness["fitness"]
    given = jnp.asarray(given)
    if given.shape != (population,):
        raise ValueError(
            f"the fitness is of shape {given.shape}, not ({population},): one number a member; "
            "give the mean over the episodes or examples of each, or another population="
        )
    return given.astype(jnp.promote_types(given.dtype, jnp.float32))
