"""Sep-CMA-ES: a deviation for each parameter, learnt as CMA-ES learns a covariance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.drawing import Drawing
from optkit.evolution.noise import summed
from optkit.evolution.search.cma_es import fitting
from optkit.evolution.search.constants import (
    SOURCES,
    Constants,
    Source,
    default_population,
    sep_cma_constants,
)
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
    stalled,
    unless_lost,
)
from optkit.evolution.shaping import RankTies, by_rank
from optkit.evolution.strategy import Strategy, fitness_vector
from optkit.transforms.base import map_leaves, need_params
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, compute_dtype, upcast, zeros_like_params


class SepCMAState(NamedTuple):
    """State of ``sep_cma_es``; trees like the parameters are float32 (float64 for such)."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # scalar, deviation
    es_variance: PyTree  # like params, diagonal of the covariance
    es_path_sigma: PyTree  # like params, path of the step size
    es_path_c: PyTree  # like params, path of the covariance


@register(
    kind="strategy",
    family="evolution",
    paper=(
        "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity",
        None,
        2008,
    ),
    state_bytes={"*": 12},
    tags=("evolution", "covariance", "learned deviation"),
    chain="members m + s sqrt(C) z, rank weights, paths, - s sum w y",
    example={"population": 32, "sigma": 0.3},
)
def sep_cma_es(
    population: int | None = None,
    *,
    sigma: float,
    constants: Source | Constants = "cmaes",
    ties: RankTies = "order",
    bounds: Bounds | None = None,
    boundary: Boundary = "resample",
    resamples: int = 32,
    maximize: bool = True,
    chunk: int | None = None,
    key: Key = 0,
) -> Strategy:
    """Learns a deviation for each parameter of any tree: CMA-ES with a diagonal covariance.

    1. Members ``x = m + s*sqrt(C)*z`` around the parameters ``m``, ``z`` standard normal;
    2. ``y_k = (x_k - m)/s``, weighted by rank, the better half only; ``y_w`` is their sum; the
       parameters move by ``s*y_w``, and minus that is emitted: follow by ``optax.sgd(1.0)``;
    3. ``p_s <- (1-c_s)*p_s + sqrt(c_s*(2-c_s)*mu_eff)*y_w/sqrt(C)``;
    4. ``s <- s*exp(c_s/d_s*(|p_s|/chi - 1))``, the norm over all leaves;
    5. ``p_c <- (1-c_c)*p_c + h*sqrt(c_c*(2-c_c)*mu_eff)*y_w``, h being 0 while ``|p_s|`` is large;
    6. ``C <- (1 + c_1*(1-h)*c_c*(2-c_c) - c_1 - c_mu)*C + c_1*p_c^2 + c_mu*sum(w*y^2)``.

    Leaves stay leaves: nothing is ravelled, and the members of an update are drawn again in chunks.
    Only ranks are used. Members without a finite fitness are the worst; equal ones are ranked by
    their number. Choose it where parameters differ in scale, and ``cma_es`` where up to a
    thousand of them depend on each other.

    Args:
      population: number of members N, at least 2; None for ``4 + floor(3 ln d)``, which is known
        once there are parameters: the strategy's own ``population`` is then None.
      sigma: first deviation.
      constants: "cmaes", "paper", "pycma" or "evosax" (see ``search.sep_cma_constants``), or what
        that function returned. In a few hundred dimensions "pycma" and "paper" learn faster than
        the default: see ``python -m benchmarks.claims covariance_search``.
      ties: "order"; "average" shares the weights of equal members, and then shrinks the deviation
        in flat generations; "floor" gives them the weight of their average rank, as evosax does.
      bounds: (low, high), two numbers or trees; None for none. The mean stays inside too.
      boundary: "resample" draws members outside anew, and clips what stays outside for the
        evaluation; "penalty" clips at once and makes members worse by how far outside they were.
      resamples: draws of a member at most.
      maximize: whether larger fitness is better.
      chunk: members whose noise lives together in an update; None for what fits in 64 MiB.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``. State: 12 bytes a parameter, a key and two scalars. ``update(...,
      members=tree)`` takes the ``(N, *shape)`` members that were really evaluated.

    Raises:
      ValueError: bad numbers, leaves that are no floats, weights below 0, or constants of another
        dimension or population.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optkit.evolution import search
      >>> es = search.sep_cma_es(16, sigma=0.5)
      >>> params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
      >>> state = es.init(params)
      >>> members = es.perturb(params, state)
      >>> updates, state = es.update(members["b"][:, 0], state, params)
      >>> bool(updates["b"][0] < 0.0)
      True

    Reference:
      Ros and Hansen, PPSN 2008. The default rates are those of the package cmaes, which leaves the
      rank-one rate of the full method unscaled.
    """
    check_population(population)
    check_sigma(sigma)
    if not isinstance(constants, Constants):
        check_choice("constants", constants, SOURCES)
    check_choice("ties", ties, ("order", "average", "floor"))
    check_bounds(bounds, boundary, resamples)
    check_seed(key)

    def prepared(params: PyTree) -> tuple[Constants, Drawing, Box | None]:
        size = check_floats(params, "sep_cma_es")
        k = _constants(constants, size, population)
        box = box_of(bounds, boundary, resamples, params, flat=False)
        return k, Drawing(k.population, antithetic=False), box

    def init_fn(params: PyTree) -> SepCMAState:
        prepared(params)
        ones = map_leaves(lambda z: z + 1.0, zeros_like_params(params))
        paths = [zeros_like_params(params) for _ in range(2)]
        deviation = jnp.array(sigma, compute_dtype(*jax.tree.leaves(params)))
        return SepCMAState(fresh_key(key), jnp.zeros((), jnp.int32), deviation, ones, *paths)

    def members_of(params: PyTree, state: SepCMAState) -> PyTree:
        _, drawing, box = prepared(params)
        drawn = _draw(params, state, drawing, box)
        return drawn if box is None else box.clip(drawn)

    def update_fn(
        fitness: Any,
        state: SepCMAState,
        params: PyTree | None = None,
        *,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SepCMAState]:
        del extra_args
        params = need_params(params, "sep_cma_es")
        k, drawing, box = prepared(params)
        costs = costs_of(fitness_vector(fitness, k.population), maximize)
        costs = costs.astype(state.es_sigma.dtype)
        if members is not None:
            members = given_members(members, params, k.population)
        elif box is not None:
            members = _draw(params, state, drawing, box)
            spread = jax.tree.map(lambda v: state.es_sigma * jnp.sqrt(v), state.es_variance)
            costs = box.penalized(costs, members, spread)
        weights = by_rank(k.weights, costs, ties)
        y_w, squares = _moments(params, state, drawing, weights, members, chunk)
        new = _learn(y_w, squares, state, k)
        still = jax.tree.map(jnp.zeros_like, y_w), state._replace(es_step=state.es_step + 1)
        y_w, new = unless_lost(costs, (y_w, new), still)
        updates = map_leaves(lambda p, y: -k.cm * state.es_sigma * y, params, y_w)
        if box is not None:
            moved = box.clip(map_leaves(lambda p, u: upcast(p) - u, params, updates))
            updates = map_leaves(lambda p, x: upcast(p) - x, params, moved)
        return map_leaves(lambda p, u: u.astype(p.dtype), params, updates), new

    return Strategy(
        init_fn,
        update_fn,
        population=population,
        members=members_of,
        state=SepCMAState,
        own_step=True,
        maximize=maximize,
    )


def _constants(given: Source | Constants, size: int, population: int | None) -> Constants:
    wanted = default_population(size) if population is None else population
    if not isinstance(given, Constants):
        return sep_cma_constants(size, wanted, given)
    if min(given.weights) < 0:
        raise ValueError(
            f"constants have the negative weight {min(given.weights)}: a diagonal covariance would "
            "not stay positive; give what search.sep_cma_constants makes"
        )
    return fitting(given, size, wanted, "sep_cma_constants")


def _draw(params: PyTree, state: SepCMAState, drawing: Drawing, box: Box | None) -> PyTree:
    """The members ``(N, *shape)``, which a box has still to clip."""
    pairs = jnp.arange(drawing.pairs, dtype=jnp.uint32)

    def draw(trial: Any) -> PyTree:
        return drawing.noise(params, _key(state.es_key, trial), state.es_step, pairs)

    def placed(noise: PyTree) -> PyTree:
        spread = map_leaves(lambda z, v: z * jnp.sqrt(v)[None], noise, state.es_variance)
        return drawing.full_members(params, spread, drawing.scales(state.es_sigma, pairs))

    return placed(draw(0) if box is None else box.drawn(draw, placed))


def _key(key: jax.Array, trial: Any) -> jax.Array:
    return jax.random.fold_in(key, trial)


def _moments(
    params: PyTree,
    state: SepCMAState,
    drawing: Drawing,
    weights: jax.Array,
    members: PyTree | None,
    chunk: int | None,
) -> tuple[PyTree, PyTree]:
    """Sums over members of ``w*y`` and ``w*y^2``, as trees."""

    def both(noise: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.tensordot(w, noise, axes=1), jnp.tensordot(w, jnp.square(noise), axes=1)

    structure: Any = jax.tree.structure(params)
    if members is not None:
        steps = map_leaves(
            lambda x, p: (upcast(x) - upcast(p)[None]) / state.es_sigma, members, params
        )
        pairs = [both(y, weights.astype(y.dtype)) for y in jax.tree.leaves(steps)]
    else:
        leaves = drawing.leaves(params)
        keys = drawing.keys(len(leaves), _key(state.es_key, 0), state.es_step)
        pairs = []
        for leaf, key, v in zip(leaves, keys, jax.tree.leaves(state.es_variance), strict=True):
            first, second = summed(leaf, key, weights.astype(v.dtype), both, chunk)
            pairs.append((jnp.sqrt(v) * first, v * second))
    return structure.unflatten([x for x, _ in pairs]), structure.unflatten([x for _, x in pairs])


def _learn(y_w: PyTree, squares: PyTree, state: SepCMAState, k: Constants) -> SepCMAState:
    push = (k.c_sigma * (2.0 - k.c_sigma) * k.mu_eff) ** 0.5
    path_sigma = jax.tree.map(
        lambda p, y, v: (1.0 - k.c_sigma) * p + push * y / jnp.sqrt(v),
        state.es_path_sigma,
        y_w,
        state.es_variance,
    )
    dtype = state.es_sigma.dtype
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(p)).astype(dtype) for p in jax.tree.leaves(path_sigma)))
    h = stalled(k, norm, state.es_step)
    pull = (k.cc * (2.0 - k.cc) * k.mu_eff) ** 0.5
    kept = 1.0 + k.c1 * (1.0 - h) * k.cc * (2.0 - k.cc) - k.c1 - k.cmu * sum(k.weights)

    def path(p: jax.Array, y: jax.Array) -> jax.Array:
        return ((1.0 - k.cc) * p + h * pull * y).astype(p.dtype)

    def variance(v: jax.Array, p: jax.Array, square: jax.Array) -> jax.Array:
        least = float(jnp.finfo(v.dtype).tiny) * 1e4
        new = kept * v + k.c1 * jnp.square(p) + k.cmu * square
        return jnp.clip(new, least, 1e32).astype(v.dtype)

    path_c = jax.tree.map(path, state.es_path_c, y_w)
    return state._replace(
        es_step=state.es_step + 1,
        es_sigma=grown(state.es_sigma, k.c_sigma / k.d_sigma * (norm / k.chi_n - 1.0)),
        es_variance=jax.tree.map(variance, state.es_variance, path_c, squares),
        es_path_sigma=path_sigma,
        es_path_c=path_c,
    )
