"""Pairs of members that are followed over the truncations of an inner problem."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.evolution.deviation import check_deviation, deviation_at, next_deviation
from optkit.evolution.drawing import Drawing
from optkit.kernels.population_update.base import TOGETHER
from optkit.transforms.base import check_same_leaves, map_leaves
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_static_int,
)
from optkit.transforms.noise import Key, fresh_key
from optkit.tree import PyTree, upcast, zeros_like_params


class UnrolledState(NamedTuple):
    """State of ``pes``, ``nres`` and ``truncated_es``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished truncations
    es_sigma: jax.Array  # float32 scalar, deviation of the present population
    es_inner: jax.Array  # (pairs,) int32, steps that each pair's inner problem has behind it
    es_start: jax.Array  # (pairs,) int32, truncation in which its inner problem began
    es_sum: PyTree  # (pairs, *shape), float32 sums of perturbations; None unless stored


def noise_given(
    drawing: Drawing, params: PyTree, sigma: jax.Array, noise: PyTree | None, members: PyTree | None
) -> PyTree | None:
    """Returns the unit noise of the pairs that a user fed, from members if need be; None if none.

    Raises:
      ValueError: arrays of other leaves or shapes than the population has.
    """
    name, rows = ("noise", drawing.pairs) if members is None else ("members", drawing.population)
    given = noise if members is None else members
    if given is None:
        return None
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct((rows, *p.shape), p.dtype), params)
    check_same_leaves(like, given, name, shapes=True)
    given = jax.tree.map(lambda x: upcast(jnp.asarray(x)), given)
    if members is None:
        return given
    return jax.tree.map(lambda x: ((x[0::2] - x[1::2]) / (2.0 * sigma)).astype(x.dtype), given)


@dataclass(frozen=True)
class Unrolled:
    """What the three methods have in common, and where they differ.

    Attributes:
      kind: "sum" weights by all perturbations since the inner problem began, "same" has one
        perturbation for all of it, "fresh" one for each truncation.
      drawing: the settings of the noise.
      sigma: deviation, a number or a schedule over truncations.
      horizon: steps of an inner problem; None where the user tells when it is over.
      truncation: steps of one truncation.
      store: sums are kept in the state.
      staggered: pairs start at different places of their inner problem.
      chunk: pairs whose noise lives together.
    """

    kind: Literal["sum", "same", "fresh"]
    drawing: Drawing
    sigma: ScalarOrSchedule
    horizon: int | None
    truncation: int
    store: bool = False
    staggered: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_deviation(self.sigma)
        check_static_int("truncation", self.truncation)
        if self.horizon is not None:
            check_static_int("horizon", self.horizon, low=self.truncation)
        elif self.staggered:
            raise ValueError("staggered pairs need the horizon; give the steps of an inner problem")

    def begin(self, params: PyTree, key: Key) -> UnrolledState:
        """Returns the state before the first truncation."""
        self.drawing.leaves(params)
        pairs, step = self.drawing.pairs, jnp.zeros((), jnp.int32)
        inner, start = jnp.zeros(pairs, jnp.int32), jnp.zeros(pairs, jnp.int32)
        if self.staggered and self.horizon is not None:
            rounds = -(-self.horizon // self.truncation)
            inner = jnp.arange(pairs, dtype=jnp.int32) % rounds * self.truncation
        sums = None
        if self.store:
            sums = map_leaves(
                lambda p: jnp.zeros((pairs, *p.shape), p.dtype), zeros_like_params(params)
            )
        deviation = deviation_at(self.sigma, step)
        return UnrolledState(fresh_key(key), step, deviation, inner, start, sums)

    def _drawn(self, params: PyTree, key: jax.Array, step: jax.Array, pair: jax.Array) -> PyTree:
        """Unit noise of one pair at one truncation."""
        return jax.tree.map(lambda x: x[0], self.drawing.noise(params, key, step, pair[None]))

    def _rows(
        self, params: PyTree, state: UnrolledState, pairs: jax.Array, start: jax.Array
    ) -> PyTree:
        steps = start if self.kind == "same" else jnp.broadcast_to(state.es_step, pairs.shape)
        return jax.vmap(partial(self._drawn, params, state.es_key))(steps, pairs)

    def noise(self, params: PyTree, state: UnrolledState) -> PyTree:
        """Returns the unit noise of the present pairs."""
        pairs = jnp.arange(self.drawing.pairs, dtype=jnp.uint32)
        return self._rows(params, state, pairs, state.es_start)

    def members(self, params: PyTree, state: UnrolledState) -> PyTree:
        """Returns the population in full."""
        pairs = jnp.arange(self.drawing.pairs, dtype=jnp.uint32)
        scales = self.drawing.scales(state.es_sigma, pairs)
        return self.drawing.full_members(params, self.noise(params, state), scales)

    def _past(
        self, params: PyTree, state: UnrolledState, start: jax.Array, pair: jax.Array
    ) -> PyTree:
        """The sum of all perturbations of a pair before this truncation, drawn again."""

        def add(step: jax.Array, total: PyTree) -> PyTree:
            scale = next_deviation(self.sigma, state.es_sigma, step)
            drawn = self._drawn(params, state.es_key, step, pair)
            return map_leaves(lambda t, z: t + (scale * z).astype(t.dtype), total, drawn)

        return jax.lax.fori_loop(start, state.es_step, add, zeros_like_params(params))

    def _weighted(
        self,
        params: PyTree,
        state: UnrolledState,
        rows: tuple[jax.Array, jax.Array, jax.Array],
        given: PyTree | None,
        sums: PyTree | None,
    ) -> PyTree:
        """Sum over pairs of ``w*(past + present) + v*present``, in units of the parameters.

        Args:
          params: the parameters.
          state: the state.
          rows: numbers of the pairs, their starts, and their weights ``(K, 2)``.
          given: unit noise of these pairs; None draws it.
          sums: what is stored of the past.
        """
        pairs, start, weights = rows
        noise = self._rows(params, state, pairs, start) if given is None else given
        first, second = weights[:, 0], weights[:, 1]
        now = state.es_sigma * (first + second)
        total = map_leaves(lambda z: jnp.tensordot(now.astype(z.dtype), z, axes=1), noise)
        if self.kind != "sum":
            return total
        past = sums if self.store else jax.vmap(partial(self._past, params, state))(start, pairs)
        return map_leaves(
            lambda t, x: t + jnp.tensordot(first.astype(x.dtype), x, axes=1), total, past
        )

    def total(
        self, params: PyTree, state: UnrolledState, weights: jax.Array, given: PyTree | None
    ) -> PyTree:
        """Returns ``_weighted`` over all pairs, chunk by chunk where nothing of them is held."""
        pairs = jnp.arange(self.drawing.pairs, dtype=jnp.uint32)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
        size = min(len(pairs), self.chunk or max(1, TOGETHER // max(1, numbers)))
        if self.store or given is not None or size == len(pairs):
            rows = (pairs, state.es_start, weights)
            return self._weighted(params, state, rows, given, state.es_sum)
        missing = -len(pairs) % size

        def cut(x: jax.Array) -> jax.Array:
            # What is filled in has weight 0, and no past that would have to be drawn.
            full = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
            return full.reshape(-1, size, *x.shape[1:])

        def step(total: PyTree, rows: tuple[jax.Array, ...]) -> tuple[PyTree, None]:
            more = self._weighted(params, state, rows, None, None)  # type: ignore[arg-type]
            return map_leaves(jnp.add, total, more), None

        behind = jnp.concatenate([state.es_start, jnp.full(missing, state.es_step)])
        starts = behind.reshape(-1, size)
        zeros = zeros_like_params(params)
        return jax.lax.scan(step, zeros, (cut(pairs), starts, cut(weights)))[0]

    def next(
        self,
        params: PyTree,
        state: UnrolledState,
        given: PyTree | None,
        done: jax.Array | None,
        went_on: bool,
    ) -> UnrolledState:
        """Returns the state after a truncation.

        Args:
          params: the parameters.
          state: the state before it.
          given: unit noise that was fed.
          done: ``(pairs,)``, whose inner problem ended in it; None for none but by the horizon.
          went_on: those that ended went on with a new inner problem at once.
        """
        step = state.es_step + 1
        inner = state.es_inner + self.truncation
        over = jnp.zeros(inner.shape, bool) if self.horizon is None else inner >= self.horizon
        ended = jnp.zeros(inner.shape, bool) if done is None else done
        inner = jnp.where(over | ended, 0, inner)
        start = jnp.where(over, step, state.es_start)
        start = jnp.where(ended, state.es_step if went_on else step, start)
        sums = state.es_sum
        if self.store:
            noise = self.noise(params, state) if given is None else given

            def leaf(past: jax.Array, z: jax.Array) -> jax.Array:
                def row(mask: jax.Array) -> jax.Array:
                    return mask.reshape(-1, *[1] * (past.ndim - 1))

                now = (state.es_sigma * z).astype(past.dtype)
                new = jnp.where(row(over), 0.0, past + now)
                return jnp.where(row(ended), now if went_on else 0.0, new)

            sums = map_leaves(leaf, state.es_sum, noise)
        deviation = next_deviation(self.sigma, state.es_sigma, step)
        return UnrolledState(state.es_key, step, deviation, inner, start, sums)
