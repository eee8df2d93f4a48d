"""Elastic test-time training: after each chunk the fast weights are pulled back to an anchor."""

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from optkit.linalg.norms import accumulation_dtype

Weights = TypeVar("Weights")
Statistic = Literal["ewc", "mas", "si"]
Anchor = Literal["global", "streaming", "streaming_ema"]


class ElasticState(NamedTuple):
    """What one chunk hands to the next, float32 at least.

    Attributes:
      anchor: where the weights are pulled to, like the weights.
      importance: how strongly, at least 0, like the weights without the axes averaged over.
    """

    anchor: Any
    importance: Any


def elastic_init(weights: Any, *, batch_axes: int = 0) -> ElasticState:
    """State before the first chunk: the anchor is where the weights are, nothing is important.

    Args:
      weights: the fast weights, a `FastWeights` or any tree of floating-point arrays.
      batch_axes: leading axes that share one importance, such as 1 for (batch, heads, ...).

    Returns:
      The state, in buffers of its own: twice the bytes of the weights, or a little more than once.

    Raises:
      ValueError: fewer axes than batch_axes.

    Example:
      >>> state = elastic_init({"w": jnp.ones((5, 3, 2))}, batch_axes=1)
      >>> state.anchor["w"].shape, state.importance["w"].shape
      ((5, 3, 2), (3, 2))
    """

    def zeros(w: jax.Array) -> jax.Array:
        if not 0 <= batch_axes <= w.ndim:
            raise ValueError(f"weights of shape {w.shape} do not have {batch_axes} leading axes")
        return jnp.zeros(w.shape[batch_axes:], accumulation_dtype(w.dtype))

    own = jax.tree.map(lambda w: jnp.array(w, accumulation_dtype(w.dtype)), weights)
    return ElasticState(own, jax.tree.map(zeros, weights))


def elastic_step(
    before: Weights,
    after: Weights,
    state: ElasticState,
    *,
    strength: float | jax.Array = 0.5,
    decay: float | jax.Array = 0.5,
    statistic: Statistic = "ewc",
    anchor: Anchor = "streaming_ema",
    anchor_decay: float | jax.Array = 0.5,
) -> tuple[Weights, ElasticState]:
    """Pulls the fast weights of a chunk back to an anchor, and learns which of them matter.

    With t the weights before the chunk's update, t' those after it, F the importance:

    1. w = t' - strength F (t' - anchor);
    2. S = mean(t' - t) over the batch axes; F <- decay F + (1 - decay) phi(S), with phi(S) = S^2
       ("ewc"), |S| ("mas"), or |S mean(t' - anchor)| ("si");
    3. the anchor stays ("global"), becomes w ("streaming"), or goes to
       anchor_decay anchor + (1 - anchor_decay) w ("streaming_ema").

    This moves weights, behind whatever update was made, and is no gradient of a penalty as in
    `optkit.elastic_prior`. With strength F in [0, 1] each weight ends between t' and the anchor;
    larger products overshoot and are not cut. Works under jit, vmap, scan and autodiff.

    Extra work: some ten operations a fast weight and chunk.

    Args:
      before: fast weights before the update, a `FastWeights` or any tree of arrays.
      after: those after it, likewise.
      state: from `elastic_init` or the chunk before.
      strength: lambda of the paper, at least 0; 0 changes nothing.
      decay: alpha, in [0, 1].
      statistic: which importance.
      anchor: which anchor.
      anchor_decay: beta, in [0, 1], of "streaming_ema".

    Returns:
      The weights after the pull, in the dtype of `after`, and the state.

    Raises:
      ValueError: an unknown statistic or anchor, a coefficient out of range, or a state whose
        shapes do not fit.

    Example:
      >>> from optkit.fast_weights import draw_fast_weights, lact_chunk_update, lact_init
      >>> lact = lact_init(draw_fast_weights(jax.random.key(0), 8, 16, 4))
      >>> elastic, rate = elastic_init(lact.weights), jnp.ones((5, 1))
      >>> for seed in range(2):
      ...   k, v = jax.random.normal(jax.random.key(seed), (5, 8)), jnp.ones((5, 4))
      ...   new = lact_chunk_update(lact, k, v, (rate,) * 3, ortho=None)
      ...   weights, elastic = elastic_step(lact.weights, new.weights, elastic)
      ...   lact = new._replace(weights=weights)
      >>> bool(jnp.all(elastic.importance.w0 >= 0))
      True

    Reference: Fast Spatial Memory with Elastic Test-Time Training, arXiv 2604.07350, whose default
    coefficients are 0.5. No official code was read: that F starts at 0, that it is the new one only
    from the next chunk on, and that the mean is taken of both factors of "si" are our reading. That
    it helps on long sequences of views is the paper's claim.
    """
    if statistic not in ("ewc", "mas", "si"):
        raise ValueError(f"statistic={statistic!r} is not one of 'ewc', 'mas', 'si'")
    if anchor not in ("global", "streaming", "streaming_ema"):
        raise ValueError(f"anchor={anchor!r} is not one of 'global', 'streaming', 'streaming_ema'")
    for name, value, high in (
        ("strength", strength, float("inf")),
        ("decay", decay, 1.0),
        ("anchor_decay", anchor_decay, 1.0),
    ):
        if not isinstance(value, jax.Array) and not 0.0 <= value <= high:
            raise ValueError(f"{name}={value!r} is outside [0, {high}]")

    def leaf(old: jax.Array, new: jax.Array, home: jax.Array, f: jax.Array) -> tuple[Any, Any, Any]:
        axes = new.ndim - f.ndim
        if axes < 0 or f.shape != new.shape[axes:] or home.shape != new.shape:
            raise ValueError(
                f"fast weights of shape {new.shape} have an anchor {home.shape} and an importance "
                f"{f.shape}: make the state by elastic_init of these weights"
            )
        wide, kept = new.astype(home.dtype), tuple(range(axes))
        share = strength * f.reshape((1,) * axes + f.shape)
        # So written that a share of 0 or 1 gives one end exactly.
        pulled = (1.0 - share) * wide + share * home
        moved = jnp.mean(wide - old.astype(home.dtype), axis=kept)
        if statistic == "si":
            matter = jnp.abs(moved * jnp.mean(wide - home, axis=kept))
        else:
            matter = jnp.square(moved) if statistic == "ewc" else jnp.abs(moved)
        importance = decay * f + (1.0 - decay) * matter
        if anchor == "streaming":
            home = pulled
        elif anchor == "streaming_ema":
            home = anchor_decay * home + (1.0 - anchor_decay) * pulled
        return pulled.astype(new.dtype), home, importance

    structure: Any = jax.tree.structure(after)
    trees = [structure.flatten_up_to(x) for x in (before, after, *state)]
    done = [leaf(*columns) for columns in zip(*trees, strict=True)]
    weights, home, importance = (
        jax.tree.unflatten(structure, [x[i] for x in done]) for i in range(3)
    )
    return weights, ElasticState(home, importance)
