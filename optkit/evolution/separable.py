"""Strategies that learn a deviation for every parameter: PGPE and SNES."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.drawing import Drawing
from optkit.evolution.judging import Judge
from optkit.evolution.noise import summed
from optkit.evolution.shaping import NonFinite, Shaping, Ties, nes_utilities
from optkit.evolution.strategy import Strategy
from optkit.transforms.base import check_same_leaves, map_leaves, need_params
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice, check_number, value_at
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, upcast, zeros_like_params


class SeparableState(NamedTuple):
    """State of ``pgpe`` and ``snes``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_std: PyTree  # like params, float32 (float64): deviation of each parameter


class SeparableStrategy(Strategy):
    """What ``pgpe`` and ``snes`` return: a ``Strategy`` that also gives its noise.

    Attributes:
      population: number of members.
      drawing: the settings of the noise.
    """

    drawing: Drawing

    def noise(self, params: PyTree, state: Any) -> PyTree:
        """Returns the unit noise of all pairs, leaves ``(pairs, *shape)``.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
        """
        held = self.state(state)
        pairs = jnp.arange(self.drawing.pairs, dtype=jnp.uint32)
        return self.drawing.noise(params, held.es_key, held.es_step, pairs)


def _moments(noise: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over pairs of ``w_k E_k`` and of ``v_k (E_k^2 - 1)``, weights ``(K, 2)``."""
    first = jnp.tensordot(weights[:, 0], noise, axes=1)
    return first, jnp.tensordot(weights[:, 1], jnp.square(noise) - 1.0, axes=1)


def _sums(
    drawing: Drawing,
    params: PyTree,
    state: SeparableState,
    weights: jax.Array,
    noise: PyTree | None,
    chunk: int | None,
) -> tuple[PyTree, PyTree]:
    """The two moments of every leaf, as trees."""
    structure: Any = jax.tree.structure(params)
    check_same_leaves(params, state.es_std, "state", shapes=True)
    if noise is not None:
        check_same_leaves(params, noise, "noise")
        pairs = [_moments(upcast(x), weights) for x in jax.tree.leaves(noise)]
    else:
        leaves = drawing.leaves(params)
        keys = drawing.keys(len(leaves), state.es_key, state.es_step)
        pairs = [
            summed(leaf, key, weights, _moments, chunk)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
    return structure.unflatten([x for x, _ in pairs]), structure.unflatten([x for _, x in pairs])


def _members(drawing: Drawing, params: PyTree, state: SeparableState) -> PyTree:
    check_same_leaves(params, state.es_std, "state", shapes=True)
    pairs = jnp.arange(drawing.pairs, dtype=jnp.uint32)
    noise = drawing.noise(params, state.es_key, state.es_step, pairs)
    spread = jax.tree.map(lambda e, std: e * std[None], noise, state.es_std)
    return drawing.full_members(params, spread, drawing.scales(1.0, pairs))


def _checked(std: PyTree, params: PyTree) -> PyTree:
    """Fresh deviations: one number for all, or a tree like the parameters."""
    if not isinstance(std, int | float | jax.Array):
        check_same_leaves(params, std, "tree of deviations", shapes=True)
        return map_leaves(lambda p, s: jnp.array(s, upcast(p).dtype), params, std)
    return map_leaves(lambda z: z + jnp.asarray(std, z.dtype), zeros_like_params(params))


def _made(
    drawing: Drawing, judge: Judge, init: Any, update: Any, *, own_step: bool
) -> SeparableStrategy:
    made = SeparableStrategy(
        init,
        update,
        population=drawing.population,
        members=partial(_members, drawing),
        state=SeparableState,
        maximize=judge.maximize,
        own_step=own_step,
    )
    made.drawing = drawing
    return made


@register(
    kind="strategy",
    family="evolution",
    paper=("Parameter-exploring policy gradients", None, 2010),
    state_bytes={"*": 4},
    tags=("evolution", "reinforcement", "learned deviation"),
    chain="noise with learned deviations, centered ranks, - sum z d",
    example={"population": 32},
)
def pgpe(
    population: int,
    *,
    std: float | PyTree = 1.0,
    std_learning_rate: ScalarOrSchedule = 0.1,
    max_change: float = 0.2,
    shaping: str | Shaping | None = "centered_rank",
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    chunk: int | None = None,
    key: Key = None,
) -> SeparableStrategy:
    """Policy gradients in parameter space: mean and deviation of each parameter are learnt.

    1. ``x = mean + d`` and ``mean - d``, ``d = std*eps``; z their shaped fitnesses;
    2. ``g = -1/N * sum_k (z+ - z-) d_k``, for the optimizer that follows, usually ``clipup``;
    3. ``h = 1/N * sum_k (z+ + z- - 2 mean(z)) (d_k^2 - std^2)/std``;
    4. ``std <- std + std_learning_rate*h``, by at most ``max_change*std``.

    Args:
      population: number N of members, even.
      std: deviation at the start, a number or a tree like the parameters.
      std_learning_rate: of the deviations; 0 keeps them.
      max_change: largest relative change of a deviation in a generation.
      shaping: see ``population_perturb``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as.
      chunk: pairs whose noise lives together while the sums are taken.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer. State: 4 bytes a parameter, a key, a step.

    Raises:
      ValueError: a negative number, an odd population, deviations that do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.pgpe(8, std=0.1), optkit.clipup(0.01))
      >>> params = {"w": jnp.zeros(5)}
      >>> updates, state = tx.update(jnp.arange(8.0), tx.init(params), params)
      >>> updates["w"].shape
      (5,)

    Reference:
      Sehnke et al., Neural Networks 23 (2010); the form with ranks and ClipUp of Toklu et al.,
      https://arxiv.org/abs/2008.02387, as in evosax.
    """
    check_number("std_learning_rate", std_learning_rate, low=0.0)
    check_number("max_change", max_change, low=0.0, high=1.0)
    check_seed(key)
    drawing, judge = Drawing(population), Judge(population, shaping, maximize, nonfinite)

    def init(params: PyTree) -> SeparableState:
        drawing.leaves(params)
        return SeparableState(fresh_key(key), jnp.zeros((), jnp.int32), _checked(std, params))

    def update(
        fitness: Any,
        state: SeparableState,
        params: PyTree | None = None,
        *,
        noise: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SeparableState]:
        del extra_args
        params = need_params(params, "pgpe")
        z = judge(fitness)
        plus, minus = z.reshape(-1, 2).T
        weights = jnp.stack([plus - minus, plus + minus - 2.0 * jnp.mean(z)], axis=1) / population
        first, second = _sums(drawing, params, state, weights, noise, chunk)
        rate = value_at(std_learning_rate, state.es_step)

        def spread(s: jax.Array, h: jax.Array) -> jax.Array:
            low, high = s * (1.0 - max_change), s * (1.0 + max_change)
            return jnp.clip(s + rate * h * s, low, high)

        gradient = map_leaves(lambda p, m, s: (-m * s).astype(p.dtype), params, first, state.es_std)
        new = map_leaves(spread, state.es_std, second)
        return gradient, SeparableState(state.es_key, state.es_step + 1, new)

    return _made(drawing, judge, init, update, own_step=False)


@register(
    kind="strategy",
    family="evolution",
    paper=("Natural Evolution Strategies", "1106.4487", 2014),
    state_bytes={"*": 4},
    tags=("evolution", "natural gradient", "learned deviation"),
    chain="noise with learned deviations, NES utilities, - std sum u z",
    example={"population": 32},
)
def snes(
    population: int,
    *,
    std: float | PyTree = 1.0,
    std_learning_rate: ScalarOrSchedule | None = None,
    ties: Ties = "average",
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    chunk: int | None = None,
    key: Key = None,
) -> SeparableStrategy:
    """Separable natural evolution strategies: a natural-gradient step of each mean and deviation.

    1. ``x_i = mean + std*z_i``, without pairs; u their utilities (``shaping.nes_utilities``);
    2. ``g = -std * sum_i u_i z_i``, to be followed by ``optax.sgd(1.0)``;
    3. ``std <- std * exp(std_learning_rate/2 * sum_i u_i (z_i^2 - 1))``.

    For problems that are badly scaled along the axes, in time linear in their size.

    Args:
      population: number N of members.
      std: deviation at the start, a number or a tree like the parameters.
      std_learning_rate: of the deviations; None for ``(3 + ln d)/(5 sqrt(d))`` of d parameters.
      ties: how equal members share utilities; "floor" is evosax' way, which moves the search where
        all are equal.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as.
      chunk: members whose noise lives together while the sums are taken.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``. State: 4 bytes a parameter, a key, a step.

    Raises:
      ValueError: a negative number, deviations that do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.snes(8, std=0.1), optax.sgd(1.0))
      >>> params = {"w": jnp.zeros(5)}
      >>> updates, state = tx.update(jnp.arange(8.0), tx.init(params), params)
      >>> updates["w"].shape
      (5,)

    Reference:
      Wierstra et al., JMLR 15 (2014), https://arxiv.org/abs/1106.4487
    """
    if std_learning_rate is not None:
        check_number("std_learning_rate", std_learning_rate, low=0.0)
    check_seed(key)
    check_choice("ties", ties, ("average", "floor"))
    drawing = Drawing(population, antithetic=False)
    utilities = partial(nes_utilities, ties=ties)
    judge = Judge(population, utilities, maximize, nonfinite, paired=False)

    def init(params: PyTree) -> SeparableState:
        drawing.leaves(params)
        return SeparableState(fresh_key(key), jnp.zeros((), jnp.int32), _checked(std, params))

    def update(
        fitness: Any,
        state: SeparableState,
        params: PyTree | None = None,
        *,
        noise: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SeparableState]:
        del extra_args
        params = need_params(params, "snes")
        u = judge(fitness)
        weights = jnp.stack([u, u], axis=1)
        first, second = _sums(drawing, params, state, weights, noise, chunk)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        usual = (3.0 + math.log(size)) / (5.0 * math.sqrt(size))
        rate = usual if std_learning_rate is None else value_at(std_learning_rate, state.es_step)
        gradient = map_leaves(lambda p, m, s: (-m * s).astype(p.dtype), params, first, state.es_std)
        new = map_leaves(lambda s, h: s * jnp.exp(0.5 * rate * h), state.es_std, second)
        return gradient, SeparableState(state.es_key, state.es_step + 1, new)

    return _made(drawing, judge, init, update, own_step=True)
