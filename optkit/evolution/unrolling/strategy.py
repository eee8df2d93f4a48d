"""What turns the fitness of truncations into a pseudo-gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.deviation import inverse
from optkit.evolution.judging import Judge
from optkit.evolution.strategy import Strategy
from optkit.evolution.unrolling.pairs import Unrolled, UnrolledState, noise_given
from optkit.transforms.base import map_leaves, need_params
from optkit.transforms.noise import Key, check_seed
from optkit.tree import PyTree
from optkit.tree.sharding import place_like


class UnrolledStrategy(Strategy):
    """What ``pes``, ``nres`` and ``truncated_es`` return: it knows which inner problems begin.

    Attributes:
      population: number of members.
    """

    unrolled: Unrolled

    def begins(self, state: Any) -> jax.Array:
        """Returns which members start their inner problem anew, ``(population,)`` booleans.

        Args:
          state: this method's state, or that of a chain that has it.
        """
        held = self.state(state)
        return jnp.repeat((held.es_inner == 0) | (held.es_step == 0), 2)

    def noise(self, params: PyTree, state: Any) -> PyTree:
        """Returns the unit noise of the present pairs, leaves ``(pairs, *shape)``.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
        """
        return self.unrolled.noise(params, self.state(state))


def unrolled_strategy(unrolled: Unrolled, judge: Judge, key: Key, name: str) -> UnrolledStrategy:
    """Makes the strategy of its parts; ``name`` is what messages call it."""
    check_seed(key)
    population, pairs = unrolled.drawing.population, unrolled.drawing.pairs

    def differences(fitness: Any) -> jax.Array:
        plus, minus = judge(fitness).reshape(pairs, 2).T
        return plus - minus

    def update(
        fitness: Any,
        state: UnrolledState,
        params: PyTree | None = None,
        *,
        done: Any | None = None,
        after: Any | None = None,
        noise: PyTree | None = None,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, UnrolledState]:
        del extra_args
        params = need_params(params, name)
        given = noise_given(unrolled.drawing, params, state.es_sigma, noise, members)
        _check_fed(unrolled, given, done, after, name)
        over = None if done is None else _flags(done, pairs)
        first = differences(fitness)
        second = jnp.zeros_like(first) if after is None else differences(after)
        weights = jnp.stack([first, second], axis=1)
        total = unrolled.total(params, state, weights, given)
        factor = -jnp.square(inverse(state.es_sigma)) / population
        gradient = map_leaves(
            lambda p, x: place_like((factor * x).astype(p.dtype), p), params, total
        )
        return gradient, unrolled.next(params, state, given, over, after is not None)

    made = UnrolledStrategy(
        lambda params: unrolled.begin(params, key),
        update,
        population=population,
        members=unrolled.members,
        state=UnrolledState,
        maximize=judge.maximize,
    )
    made.unrolled = unrolled
    return made


def _check_fed(unrolled: Unrolled, given: Any, done: Any, after: Any, name: str) -> None:
    if given is not None and unrolled.kind == "sum" and not unrolled.store:
        raise ValueError(
            f'{name} with accumulate="replay" draws past noise again, and can\'t do so with '
            'noise or members that it is given; take accumulate="store"'
        )
    if after is not None and done is None:
        raise ValueError(
            "after= is what followed the end of inner problems; tell by done= of which"
        )
    if after is not None and unrolled.kind == "same":
        raise ValueError(
            f"{name} has one noise for a whole inner problem, and can't begin another within a "
            "truncation; end truncations where inner problems end, or take pes"
        )


def _flags(done: Any, pairs: int) -> jax.Array:
    flags = jnp.asarray(done)
    if flags.shape != (pairs,) or flags.dtype != jnp.bool_:
        raise ValueError(
            f"done is {flags.dtype} of shape {flags.shape}, not bool ({pairs},): one flag a pair, "
            "whose members share their inner problem's length; for flags of members give "
            "done.reshape(-1, 2).any(1)"
        )
    return flags
