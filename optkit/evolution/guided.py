"""Guided evolution strategies: noise that favours the span of surrogate gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import LeafBytes, register
from optkit.evolution.deviation import check_deviation, deviation_at, inverse, next_deviation
from optkit.evolution.drawing import Drawing
from optkit.evolution.judging import Judge
from optkit.evolution.noise import leaf_keys
from optkit.evolution.search.population import check_floats
from optkit.evolution.shaping import NonFinite
from optkit.evolution.strategy import Strategy
from optkit.evolution.unrolling.pairs import noise_given
from optkit.transforms.base import check_same_leaves, map_leaves, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, upcast, zeros_like_params
from optkit.tree.sharding import place_like


class GuidedState(NamedTuple):
    """State of ``guided_es``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # float32 scalar, deviation of the present population
    es_surrogates: PyTree  # (subspace, *shape), float32: the last surrogates, the newest last


class GuidedStrategy(Strategy):
    """What ``guided_es`` returns: a ``Strategy`` that is shown surrogate gradients.

    Attributes:
      population: number of members.
    """

    draw: Any

    def guide(self, state: Any, surrogate: PyTree) -> Any:
        """Returns a state that has seen one more surrogate gradient; the oldest is forgotten.

        Args:
          state: this method's state, or that of a chain that has it.
          surrogate: a tree like the parameters; its scale does not matter.

        Raises:
          ValueError: other leaves or shapes than the parameters have.
        """
        self.state(state)  # is there, and once

        def shown(node: Any) -> Any:
            if not isinstance(node, GuidedState):
                return node
            return node._replace(es_surrogates=_pushed(node.es_surrogates, surrogate))

        return jax.tree.map(shown, state, is_leaf=lambda node: isinstance(node, GuidedState))

    def noise(self, params: PyTree, state: Any) -> PyTree:
        """Returns the noise of all pairs in units of sigma, leaves ``(pairs, *shape)``.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
        """
        return self.draw(params, self.state(state))


@register(
    kind="strategy",
    family="evolution",
    paper=("Guided evolutionary strategies", "1806.10230", 2018),
    state_bytes={"*": LeafBytes(4, lambda size: 4 * size, "4 a surrogate")},
    tags=("evolution", "surrogate gradient", "subspace"),
    chain="noise in and around the span of surrogates, - sum f eps",
    example={"population": 32, "sigma": 0.1, "subspace": 1},
)
def guided_es(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    subspace: int = 1,
    alpha: ScalarOrSchedule = 0.5,
    beta: ScalarOrSchedule = 1.0,
    divide_by_pairs: bool = True,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    key: Key = 0,
) -> GuidedStrategy:
    """Searches where surrogate gradients point, and also elsewhere: for gradients that are biased.

    1. ``Q``, ``(d, r)``: an orthonormal basis of the span of the last k surrogate gradients;
    2. ``eps = sigma*(sqrt(alpha/d)*n1 + sqrt((1-alpha)/r)*Q*n2)``, n1 and n2 standard normal;
    3. members ``params + eps`` and ``params - eps``;
    4. ``g = -beta/(2*sigma^2) * mean over pairs of (f+ - f-)*eps``.

    Surrogates are gradients of something else: of a smoothed or relaxed loss, of old parameters,
    of a model. Show one before each population by ``state = es.guide(state, surrogate)``, or give
    it to ``update`` as ``surrogate=``, which then guides the next population. Until there is one
    the noise is that of alpha = 1. The sum of squares of a member's noise is ``sigma^2`` in the
    mean, whatever d. Extra matrix work: ``5*d*k^2 + N/2*d*k`` multiply-adds.

    Args:
      population: number of members N, even.
      sigma: length of the noise, a number or a schedule.
      subspace: k, surrogates that are kept.
      alpha: share of the noise that goes everywhere: 1 is antithetic search, 0 stays in the span.
      beta: scale of the estimate; the paper has 2.
      divide_by_pairs: False for the sum over pairs, as evosax has it.
      maximize: False for losses. Surrogates may have either sign.
      nonfinite: what a member without a finite fitness counts as, see ``population_perturb``.
      key: seed or PRNG key.

    Returns:
      A ``GuidedStrategy``, to be followed by an optimizer. State: 4 bytes a parameter and
      surrogate, a key, a step. ``update`` takes ``noise`` (in units of sigma) or the ``members``
      that were evaluated.

    Raises:
      ValueError: an odd population, numbers out of range, or a surrogate that does not fit.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> es = optkit.guided_es(4, sigma=0.1, alpha=0.0)
      >>> params = {"w": jnp.zeros(3)}
      >>> state = es.guide(es.init(params), {"w": jnp.array([0.0, 5.0, 0.0])})
      >>> gradient, state = es.update(jnp.arange(4.0), state, params)
      >>> (gradient["w"] == 0.0).tolist()
      [True, False, True]

    Reference:
      Maheswaranathan et al., ICML 2019, https://arxiv.org/abs/1806.10230. Theirs has a QR
      decomposition; here directions that surrogates repeat, or that are 0, are left out, and r is
      the number of those that remain.
    """
    check_deviation(sigma)
    check_number("alpha", alpha, low=0.0, high=1.0)
    check_number("beta", beta, low=0.0)
    check_static_int("subspace", subspace)
    check_seed(key)
    drawing, judge = Drawing(population), Judge(population, None, maximize, nonfinite)

    def init(params: PyTree) -> GuidedState:
        check_floats(params, "guided_es")
        step = jnp.zeros((), jnp.int32)
        kept = map_leaves(
            lambda p: jnp.zeros((subspace, *p.shape), p.dtype), zeros_like_params(params)
        )
        return GuidedState(fresh_key(key), step, deviation_at(sigma, step), kept)

    def draw(params: PyTree, state: GuidedState) -> PyTree:
        return _noise(drawing, params, state, value_at(alpha, state.es_step))

    def members_of(params: PyTree, state: GuidedState) -> PyTree:
        pairs = jnp.arange(drawing.pairs, dtype=jnp.uint32)
        scales = drawing.scales(state.es_sigma, pairs)
        return drawing.full_members(params, draw(params, state), scales)

    def update(
        fitness: Any,
        state: GuidedState,
        params: PyTree | None = None,
        *,
        surrogate: PyTree | None = None,
        noise: PyTree | None = None,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, GuidedState]:
        del extra_args
        params = need_params(params, "guided_es")
        plus, minus = judge(fitness).reshape(-1, 2).T
        used = noise_given(drawing, params, state.es_sigma, noise, members)
        used = draw(params, state) if used is None else used
        factor = value_at(beta, state.es_step) * inverse(state.es_sigma) / 2.0
        weights = -factor * (plus - minus) / (drawing.pairs if divide_by_pairs else 1)
        gradient = map_leaves(
            lambda p, z: place_like(
                jnp.tensordot(weights.astype(z.dtype), z, axes=1).astype(p.dtype), p
            ),
            params,
            used,
        )
        step = state.es_step + 1
        deviation = next_deviation(sigma, state.es_sigma, step)
        kept = state.es_surrogates
        kept = kept if surrogate is None else _pushed(kept, surrogate)
        return gradient, GuidedState(state.es_key, step, deviation, kept)

    made = GuidedStrategy(
        init,
        update,
        population=population,
        members=members_of,
        state=GuidedState,
        maximize=maximize,
    )
    made.draw = draw
    return made


def _pushed(kept: PyTree, surrogate: PyTree) -> PyTree:
    """The surrogates with a new one at the end and without the oldest."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), kept)
    check_same_leaves(like, surrogate, "surrogate", shapes=True)
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old[1:], jnp.asarray(new, old.dtype)[None]]),
        kept,
        surrogate,
    )


def _noise(drawing: Drawing, params: PyTree, state: GuidedState, alpha: Any) -> PyTree:
    """Noise of all pairs in units of sigma."""
    pairs = jnp.arange(drawing.pairs, dtype=jnp.uint32)
    everywhere = drawing.noise(params, state.es_key, state.es_step, pairs)
    basis, rank = orthonormal(state.es_surrogates)
    leaves = jax.tree.leaves(params)
    # The key after those of the leaves.
    own = leaf_keys(state.es_key, len(leaves) + 1, state.es_step, None)[-1]
    vectors = jax.tree.leaves(basis)[0].shape[0]
    chosen = jax.random.normal(own, (drawing.pairs, vectors), jnp.float32)
    size = sum(leaf.size for leaf in leaves)
    share = jnp.where(rank > 0, alpha, 1.0)
    inside = chosen * jnp.sqrt((1.0 - share) / jnp.maximum(rank, 1))
    outside = jnp.sqrt(share / size)
    return jax.tree.map(
        lambda z, u: (outside * z + u).astype(z.dtype), everywhere, _mixed(inside, basis)
    )


def _unit_peaks(rows: PyTree) -> PyTree:
    """Rows ``(k, *shape)`` with largest entries of 1; 0 where one is 0 or not finite."""
    peaks = jnp.stack(
        [jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(rows) if x.size]
    ).max(axis=0)
    good = jnp.isfinite(peaks) & (peaks > 0.0)

    def leaf(x: jax.Array) -> jax.Array:
        def row(v: jax.Array) -> jax.Array:
            return v.reshape(-1, *[1] * (x.ndim - 1))

        return jnp.where(row(good), upcast(x) / row(jnp.where(good, peaks, 1.0)), 0.0)

    return jax.tree.map(leaf, rows)


def orthonormal(rows: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns an orthonormal basis of the span of vectors that are trees, and its dimension.

    Args:
      rows: leaves ``(k, *shape)``: k vectors.

    Returns:
      A tree like ``rows`` whose rows are orthonormal, or 0 beyond the dimension of the span; and
      that dimension, a float32 scalar. Vectors that are 0 or not finite are left out.
    """
    scaled = _unit_peaks(rows)
    lengths = jnp.sqrt(jnp.diag(_gram(scaled)))
    unit = jnp.where(lengths > 0.0, 1.0 / jnp.where(lengths > 0.0, lengths, 1.0), 0.0)
    scaled = _mixed(jnp.diag(unit), scaled)
    gram = _gram(scaled)
    # Below this an eigenvalue is what rounding leaves of a direction that is there already.
    least = 16.0 * len(gram) * float(jnp.finfo(gram.dtype).eps)
    mix, rank = _whitening(gram, least)
    basis = _mixed(mix, scaled)
    # Once more: rounding was magnified by the condition of the vectors.
    return _mixed(_whitening(_gram(basis), 0.5)[0], basis), rank


def _gram(rows: PyTree) -> jax.Array:
    # Sums of products, not products of matrices: those need a rule where leaves are spread.
    axes = (tuple(range(2, x.ndim + 1)) for x in jax.tree.leaves(rows))
    first, *others = (
        jnp.sum(x[:, None] * x[None], axis=over)
        for x, over in zip(jax.tree.leaves(rows), axes, strict=True)
    )
    return functools.reduce(jnp.add, others, first)


def _mixed(mix: jax.Array, rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.tensordot(mix.astype(x.dtype), x, axes=1), rows)


def _whitening(gram: jax.Array, least: float) -> tuple[jax.Array, jax.Array]:
    """What mixes vectors of a Gram matrix to orthonormal ones, and how many of them there are."""
    values, basis = jnp.linalg.eigh(gram)
    kept = values > least
    roots = jnp.where(kept, jnp.where(kept, values, 1.0) ** -0.5, 0.0)
    return (basis * roots[None]).T, jnp.sum(kept).astype(jnp.float32)
