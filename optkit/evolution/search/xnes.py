"""xNES: natural gradients for the mean, the deviation and the shape of the search."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import LeafBytes, register
from optkit.evolution.search.constants import default_population
from optkit.evolution.search.population import (
    Boundary,
    Bounds,
    Box,
    box_of,
    check_bounds,
    check_floats,
    check_population,
    check_sigma,
    costs_of,
    given_members,
    grown,
    ravel,
    unravel,
)
from optkit.evolution.shaping import RankTies, by_rank, nes_table
from optkit.evolution.strategy import Strategy, fitness_vector
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree


class XNESState(NamedTuple):
    """State of ``xnes``; d is the number of parameters, floats are float32 (float64 for such)."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # scalar, deviation
    es_shape: jax.Array  # (d, d), B of determinant 1: steps are sigma*B*z


@register(
    kind="strategy",
    family="evolution",
    paper=("Natural Evolution Strategies", "1106.4487", 2014),
    state_bytes={"*": LeafBytes(0, lambda size: 4 * size**2, "and 4 a pair of them")},
    tags=("evolution", "covariance", "natural gradient"),
    chain="members m + s B z, NES utilities, - s B sum u z",
    example={"population": 32, "sigma": 0.3},
)
def xnes(
    population: int | None = None,
    *,
    sigma: float,
    eta_sigma: float | None = None,
    eta_shape: float | None = None,
    ties: RankTies = "average",
    max_size: int = 1024,
    bounds: Bounds | None = None,
    boundary: Boundary = "resample",
    resamples: int = 32,
    maximize: bool = True,
    key: Key = 0,
) -> Strategy:
    """Follows the natural gradient of the expected rank: a full covariance without paths.

    1. Members ``x = m + s*B*z`` around the parameters ``m``, ``z`` standard normal;
    2. utilities ``u`` by rank, of sum 0; ``g = sum(u*z)``, ``M = sum(u*(z*z^T - I))``;
    3. the parameters move by ``s*B*g``, and minus that is emitted: follow by ``optax.sgd(1.0)``;
    4. ``s <- s*exp(eta_sigma/2*tr(M)/d)``;
    5. ``B <- B*expm(eta_shape/2*(M - tr(M)/d*I))``.

    Members without a finite fitness are the worst. If all are equal nothing moves. Extra matrix
    work a generation: ``3*N*d^2 + 2*d^3`` multiply-adds and an eigendecomposition. ``cma_es`` needs
    fewer evaluations on most problems; this one has fewer constants.

    Args:
      population: number of members N, at least 2; None for ``4 + floor(3 ln d)``, which is known
        once there are parameters: the strategy's own ``population`` is then None.
      sigma: first deviation.
      eta_sigma: rate of the deviation; None for ``0.6*(3 + ln d)/(d*sqrt(d))``.
      eta_shape: rate of B; None for the same.
      ties: "average" shares the utilities of equal members among them; "order" ranks them by their
        number, as the implementations do; "floor" by their average rank, rounded down.
      max_size: largest d that is accepted.
      bounds: (low, high), two numbers or trees; None for none. The mean stays inside too.
      boundary: "resample" draws members outside anew, and clips what stays outside for the
        evaluation; "penalty" clips at once and makes members worse by how far outside they were.
      resamples: draws of a member at most.
      maximize: whether larger fitness is better.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``. State ``4*d^2`` bytes, a key and two scalars. ``update(..., members=tree)``
      takes the ``(N, *shape)`` members that were really evaluated.

    Raises:
      ValueError: bad numbers, more parameters than ``max_size``, or leaves that are no floats.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optkit.evolution import search
      >>> es = search.xnes(6, sigma=0.5)
      >>> params = {"x": jnp.ones(2)}
      >>> updates, _ = es.update(jnp.full(6, 3.0), es.init(params), params)
      >>> bool(jnp.all(updates["x"] == 0.0))
      True

    Reference:
      Wierstra et al., Natural Evolution Strategies, JMLR 15 (2014), https://arxiv.org/abs/1106.4487.
      The deviation grows by at most a factor of e a generation, and members given that are further
      away than ``4*sqrt(d)`` deviations count as that far.
    """
    check_population(population)
    check_sigma(sigma)
    for name, rate in (("eta_sigma", eta_sigma), ("eta_shape", eta_shape)):
        if rate is not None:
            check_number(name, rate, low=0.0)
    check_choice("ties", ties, ("order", "average", "floor"))
    check_static_int("max_size", max_size)
    check_bounds(bounds, boundary, resamples)
    check_seed(key)

    def prepared(params: PyTree) -> tuple[int, Box | None]:
        size = check_floats(params, "xnes")
        if size > max_size:
            raise ValueError(
                f"xnes was given {size} parameters and is to hold a matrix of {size}x{size} "
                f"numbers; use snes or search.sep_cma_es, or ask for it by max_size={size}"
            )
        box = box_of(bounds, boundary, resamples, params, flat=True)
        return default_population(size) if population is None else population, box

    def init_fn(params: PyTree) -> XNESState:
        prepared(params)
        mean = ravel(params)
        step = jnp.zeros((), jnp.int32)
        return XNESState(
            fresh_key(key), step, jnp.array(sigma, mean.dtype), jnp.eye(len(mean), dtype=mean.dtype)
        )

    def members_of(params: PyTree, state: XNESState) -> PyTree:
        count, box = prepared(params)
        x = _draw(ravel(params), state, count, box)[1]
        return unravel(x if box is None else box.clip(x), params)

    def update_fn(
        fitness: Any,
        state: XNESState,
        params: PyTree | None = None,
        *,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, XNESState]:
        del extra_args
        params = need_params(params, "xnes")
        count, box = prepared(params)
        mean = ravel(params)
        costs = costs_of(fitness_vector(fitness, count), maximize)
        if members is None:
            z, x = _draw(mean, state, count, box)
            if box is not None:
                spread = state.es_sigma * jnp.linalg.norm(state.es_shape, axis=1)
                costs = box.penalized(costs, x, spread)
        else:
            z = _whitened(ravel(given_members(members, params, count), 1) - mean[None], state)
        weights = by_rank(nes_table(count), costs.astype(mean.dtype), ties)
        step, state = _learn(z, weights, state, eta_sigma, eta_shape)
        if box is not None:
            step = box.clip(mean + step) - mean
        return unravel(-step, params), state

    return Strategy(
        init_fn,
        update_fn,
        population=population,
        members=members_of,
        state=XNESState,
        own_step=True,
        maximize=maximize,
    )


def _draw(
    mean: jax.Array, state: XNESState, count: int, box: Box | None
) -> tuple[jax.Array, jax.Array]:
    """Normal numbers ``(N, d)`` and the members that they make."""
    own = jax.random.fold_in(state.es_key, state.es_step)

    def draw(trial: Any) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(own, trial), (count, len(mean)), mean.dtype)

    def placed(z: jax.Array) -> jax.Array:
        return mean[None] + state.es_sigma * (z @ state.es_shape.T)

    z = draw(0) if box is None else box.drawn(draw, placed)
    return z, placed(z)


def _whitened(steps: jax.Array, state: XNESState) -> jax.Array:
    """Steps in deviations; what no draw would have made is shortened, lest it overflow."""
    z = jnp.linalg.solve(state.es_shape, steps.T / state.es_sigma).T
    length, most = jnp.linalg.norm(z, axis=1, keepdims=True), 4.0 * z.shape[1] ** 0.5
    return z * jnp.minimum(1.0, most / jnp.maximum(length, most))


def _learn(
    z: jax.Array,
    weights: jax.Array,
    state: XNESState,
    eta_sigma: float | None,
    eta_shape: float | None,
) -> tuple[jax.Array, XNESState]:
    """The step of the mean and the state after a generation."""
    size = z.shape[1]
    usual = 0.6 * (3.0 + math.log(size)) / (size * math.sqrt(size))
    shape, identity = state.es_shape, jnp.eye(size, dtype=z.dtype)
    moment = (z.T * weights[None]) @ z - jnp.sum(weights) * identity
    trace = jnp.trace(moment) / size
    # The exponent is symmetric: its eigenvalues are exponentiated, which needs no series.
    values, basis = jnp.linalg.eigh(moment - trace * identity)
    half = (usual if eta_shape is None else eta_shape) / 2.0
    growth = (basis * jnp.expm1(half * values)[None]) @ basis.T
    rate = (usual if eta_sigma is None else eta_sigma) / 2.0
    new = state._replace(
        es_step=state.es_step + 1,
        es_sigma=grown(state.es_sigma, rate * trace),
        es_shape=shape + shape @ growth,
    )
    return state.es_sigma * (shape @ (weights @ z)), new
