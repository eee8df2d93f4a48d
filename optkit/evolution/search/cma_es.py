"""CMA-ES: a search that learns the whole covariance of its steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import LeafBytes, register
from optkit.evolution.search.constants import Constants, cma_constants, default_population
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
    stalled,
    unless_lost,
    unravel,
)
from optkit.evolution.shaping import RankTies, by_rank
from optkit.evolution.strategy import Strategy, fitness_vector
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, compute_dtype


class CMAState(NamedTuple):
    """State of ``cma_es``; d is the number of parameters, floats are float32 (float64 for such)."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # scalar, deviation
    es_covariance: jax.Array  # (d, d), symmetric
    es_basis: jax.Array  # (d, d), its eigenvectors
    es_scales: jax.Array  # (d,), roots of its eigenvalues
    es_path_sigma: jax.Array  # (d,), path of the step size
    es_path_c: jax.Array  # (d,), path of the covariance


@register(
    kind="strategy",
    family="evolution",
    paper=("The CMA Evolution Strategy: A Tutorial", "1604.00772", 2016),
    state_bytes={"*": LeafBytes(12, lambda size: 8 * size**2 + 12 * size, "and 8 a pair of them")},
    tags=("evolution", "covariance", "second order"),
    chain="members m + s B D z, rank weights, paths, - s sum w y",
    example={"population": 32, "sigma": 0.3},
)
def cma_es(
    population: int | None = None,
    *,
    sigma: float,
    covariance: Any | None = None,
    constants: Constants | None = None,
    ties: RankTies = "order",
    eigen_interval: int = 1,
    max_size: int = 1024,
    bounds: Bounds | None = None,
    boundary: Boundary = "resample",
    resamples: int = 32,
    maximize: bool = True,
    key: Key = 0,
) -> Strategy:
    """Learns the covariance of its steps: the search for up to a thousand badly scaled parameters.

    1. Members ``x = m + s*B*D*z`` around the parameters ``m``, where ``C = B*D^2*B^T`` and ``z`` is
       standard normal;
    2. ``y_k = (x_k - m)/s``, weighted by rank; ``y_w`` is the sum over weights above 0; the
       parameters move by ``s*y_w``, and minus that is emitted: follow by ``optax.sgd(1.0)``;
    3. ``p_s <- (1-c_s)*p_s + sqrt(c_s*(2-c_s)*mu_eff)*C^(-1/2)*y_w``;
    4. ``s <- s*exp(c_s/d_s*(|p_s|/chi - 1))``;
    5. ``p_c <- (1-c_c)*p_c + h*sqrt(c_c*(2-c_c)*mu_eff)*y_w``, h being 0 while ``|p_s|`` is large;
    6. weights below 0 are scaled by ``d/|C^(-1/2)*y_k|^2``;
    7. ``C <- (1 + c_1*(1-h)*c_c*(2-c_c) - c_1 - c_mu*sum(w))*C + c_1*p_c*p_c^T
       + c_mu*sum(w*y*y^T)``.

    Only ranks are used, so that monotone maps of the fitness change nothing, and no rotation of the
    parameters does. Members without a finite fitness are the worst. Equal members are ranked by
    their number, which makes a flat generation a random walk. Extra matrix work a generation:
    ``2*N*d^2 + 2*N*d^2`` multiply-adds and an eigendecomposition. Choose it for up to about a
    thousand parameters, ``sep_cma_es`` beyond.

    Args:
      population: number of members N, at least 2; None for ``4 + floor(3 ln d)``, which is known
        once there are parameters: the strategy's own ``population`` is then None.
      sigma: first deviation; a third of the distance to the solution is a good guess.
      covariance: first C, ``(d, d)`` or its diagonal ``(d,)``, in the order of the tree's leaves;
        None for the identity.
      constants: ``search.cma_constants(d, N, c1=..., ...)``; None for the usual ones.
      ties: "order"; "average" shares the weights of equal members, and then shrinks the deviation
        in flat generations; "floor" gives them the weight of their average rank, as evosax does.
      eigen_interval: generations between eigendecompositions; ``1/(10*d*(c_1+c_mu))`` of them cost
        no evaluations that can be measured, says the tutorial.
      max_size: largest d that is accepted.
      bounds: (low, high), two numbers or trees; None for none. The mean stays inside too.
      boundary: "resample" draws members outside anew, and clips what stays outside for the
        evaluation; "penalty" clips at once and makes members worse by how far outside they were.
      resamples: draws of a member at most.
      maximize: whether larger fitness is better.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``. State ``8*d^2 + 12*d`` bytes, a key and two scalars. ``update(...,
      members=tree)`` takes the ``(N, *shape)`` members that were really evaluated.

    Raises:
      ValueError: bad numbers, more parameters than ``max_size``, leaves that are no floats, or
        constants of another dimension or population.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.evolution import ask_tell, search
      >>> es = ask_tell(search.cma_es(8, sigma=0.5))
      >>> ask, tell = jax.jit(es.ask), jax.jit(es.tell)
      >>> state, scale = es.init({"x": jnp.ones(4)}), jnp.arange(1.0, 5.0)
      >>> for _ in range(100):
      ...     members = ask(state)
      ...     state = tell(state, -((members["x"] ** 2) @ scale))
      >>> bool(state.best_fitness[0] > -1e-4)
      True

    Reference:
      Hansen, The CMA Evolution Strategy: A Tutorial, https://arxiv.org/abs/1604.00772. ``h``
      compares with generations counted from 1 after the update, as the implementations do. Where
      rounding makes C indefinite, a multiple of the identity is added to it; the deviation grows
      by at most a factor of e a generation.
    """
    check_population(population)
    check_sigma(sigma)
    check_choice("ties", ties, ("order", "average", "floor"))
    check_static_int("eigen_interval", eigen_interval)
    check_static_int("max_size", max_size)
    check_bounds(bounds, boundary, resamples)
    check_seed(key)

    def prepared(params: PyTree) -> tuple[Constants, Box | None]:
        size = _check_size(params, max_size)
        box = box_of(bounds, boundary, resamples, params, flat=True)
        return _constants(constants, size, population), box

    def init_fn(params: PyTree) -> CMAState:
        size = prepared(params)[0].dimension
        dtype = compute_dtype(*jax.tree.leaves(params))
        start = _covariance(covariance, size, dtype)
        start, basis, scales = factored(start)
        paths = [jnp.zeros(size, dtype) for _ in range(2)]
        step, deviation = jnp.zeros((), jnp.int32), jnp.array(sigma, dtype)
        return CMAState(fresh_key(key), step, deviation, start, basis, scales, *paths)

    def members_of(params: PyTree, state: CMAState) -> PyTree:
        k, box = prepared(params)
        drawn = _draw(ravel(params), state, k.population, box)
        return unravel(drawn if box is None else box.clip(drawn), params)

    def update_fn(
        fitness: Any,
        state: CMAState,
        params: PyTree | None = None,
        *,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, CMAState]:
        del extra_args
        params = need_params(params, "cma_es")
        k, box = prepared(params)
        mean = ravel(params)
        costs = costs_of(fitness_vector(fitness, k.population), maximize)
        if members is None:
            x = _draw(mean, state, k.population, box)
            if box is not None:
                deviations = state.es_sigma * jnp.sqrt(jnp.diag(state.es_covariance))
                costs = box.penalized(costs, x, deviations)
        else:
            x = ravel(given_members(members, params, k.population), 1)
        weights = by_rank(k.weights, costs.astype(mean.dtype), ties)
        learnt = _learn((x - mean[None]) / state.es_sigma, weights, state, k, eigen_interval)
        still = jnp.zeros_like(mean), state._replace(es_step=state.es_step + 1)
        step, state = unless_lost(costs, learnt, still)
        if box is not None:
            step = box.clip(mean + step) - mean
        return unravel(-step, params), state

    return Strategy(
        init_fn,
        update_fn,
        population=population,
        members=members_of,
        state=CMAState,
        own_step=True,
        maximize=maximize,
    )


def _learn(
    y: jax.Array, weights: jax.Array, state: CMAState, k: Constants, interval: int
) -> tuple[jax.Array, CMAState]:
    """The step of the mean and the state after a generation, from steps y ``(N, d)`` of members."""
    y_w = jnp.maximum(weights, 0.0) @ y
    basis, scales = state.es_basis, state.es_scales
    whitened = basis @ ((basis.T @ y_w) / scales)
    push = (k.c_sigma * (2.0 - k.c_sigma) * k.mu_eff) ** 0.5
    path_sigma = (1.0 - k.c_sigma) * state.es_path_sigma + push * whitened
    norm = jnp.linalg.norm(path_sigma)
    h = stalled(k, norm, state.es_step)
    pull = (k.cc * (2.0 - k.cc) * k.mu_eff) ** 0.5
    path_c = (1.0 - k.cc) * state.es_path_c + h * pull * y_w

    lengths = jnp.sum(jnp.square((y @ basis) / scales[None]), axis=1)
    eps = 1e-8
    each = weights * jnp.where(weights < 0, k.dimension / (lengths + eps), 1.0)
    kept = 1.0 + k.c1 * (1.0 - h) * k.cc * (2.0 - k.cc) - k.c1 - k.cmu * sum(k.weights)
    covariance = kept * state.es_covariance + k.c1 * jnp.outer(path_c, path_c)
    covariance += k.cmu * (y.T * each[None]) @ y
    due = (state.es_step + 1) % interval == 0
    if interval == 1:
        shape = factored(covariance)
    else:
        shape = jax.lax.cond(due, factored, lambda c: (c, basis, scales), covariance)
    new = state._replace(
        es_step=state.es_step + 1,
        es_sigma=grown(state.es_sigma, k.c_sigma / k.d_sigma * (norm / k.chi_n - 1.0)),
        es_covariance=shape[0],
        es_basis=shape[1],
        es_scales=shape[2],
        es_path_sigma=path_sigma,
        es_path_c=path_c,
    )
    return k.cm * state.es_sigma * y_w, new


def factored(covariance: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns C made positive definite, its eigenvectors and the roots of its eigenvalues."""
    symmetric = (covariance + covariance.T) / 2.0
    values, basis = jnp.linalg.eigh(symmetric)
    floor = 8.0 * float(jnp.finfo(values.dtype).eps) * values[-1]
    lift = jnp.maximum(floor - values[0], 0.0)
    lifted = symmetric + lift * jnp.eye(len(values), dtype=values.dtype)
    return lifted, basis, jnp.sqrt(values + lift)


def _draw(mean: jax.Array, state: CMAState, population: int, box: Box | None) -> jax.Array:
    own = jax.random.fold_in(state.es_key, state.es_step)

    def draw(trial: Any) -> jax.Array:
        shape = (population, len(mean))
        return jax.random.normal(jax.random.fold_in(own, trial), shape, mean.dtype)

    def placed(z: jax.Array) -> jax.Array:
        return mean[None] + state.es_sigma * ((z * state.es_scales[None]) @ state.es_basis.T)

    return placed(draw(0) if box is None else box.drawn(draw, placed))


def _check_size(params: PyTree, max_size: int) -> int:
    size = check_floats(params, "cma_es")
    if size > max_size:
        raise ValueError(
            f"cma_es was given {size} parameters and is to hold two matrices of {size}x{size} "
            f"numbers, {8e-6 * size**2:.0f} MB; use search.sep_cma_es or eggroll, or ask for it by "
            f"max_size={size}"
        )
    return size


def _constants(given: Constants | None, size: int, population: int | None) -> Constants:
    wanted = default_population(size) if population is None else population
    if given is None:
        return cma_constants(size, wanted)
    return fitting(given, size, wanted, "cma_constants")


def fitting(given: Constants, size: int, population: int, maker: str) -> Constants:
    """Returns given constants, or raises ValueError if they are for something else."""
    if (given.dimension, given.population) != (size, population):
        raise ValueError(
            f"constants are for {given.dimension} parameters and {given.population} members, not "
            f"for {size} and {population}; give search.{maker}({size}, {population}, ...)"
        )
    return given


def _covariance(given: Any | None, size: int, dtype: Any) -> jax.Array:
    if given is None:
        return jnp.eye(size, dtype=dtype)
    array = jnp.asarray(given, dtype)
    if array.shape == (size,):
        return jnp.diag(array)
    if array.shape != (size, size):
        raise ValueError(
            f"covariance is of shape {array.shape}; give ({size}, {size}) for the {size} "
            f"parameters, or its diagonal ({size},)"
        )
    return array
