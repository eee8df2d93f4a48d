"""What the memory consists of: the fast weights, and what one chunk hands to the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.linalg.norms import accumulation_dtype, check_matrix, norm_over


class FastWeights(NamedTuple):
    """Weights of f(q) = w1 (silu(w0 q) * (w2 q)), or anything with one array for each of them.

    Rows are outputs, (fan_out, fan_in). Where the first weights are parameters that a matrix method
    trains, tell it so with ``dims=optax.contrib.MuonDimensionNumbers(-1, -2)``.

    Attributes:
      w0: of the gate, (..., dh, dk), floating point.
      w1: of the output, (..., dv, dh).
      w2: of the hidden layer, (..., dh, dk).
    """

    w0: jax.Array
    w1: jax.Array
    w2: jax.Array


class LactState(NamedTuple):
    """What one chunk hands to the next, float32 at least.

    Attributes:
      weights: the fast weights that are applied; their rows keep the norms of the first ones.
      norms: norms of the rows of the first weights, (..., rows, 1) each.
      main: with ``prenorm`` the sum of all steps, like the weights; else None.
      momentum: the last sum of gradients before orthogonalization, like the weights, or None.
    """

    weights: FastWeights
    norms: FastWeights
    main: FastWeights | None
    momentum: FastWeights | None


def draw_fast_weights(
    key: jax.Array,
    dk: int,
    dh: int,
    dv: int,
    *,
    batch_shape: tuple[int, ...] = (),
    dtype: DTypeLike = jnp.float32,
) -> FastWeights:
    """First fast weights: Gaussian, of variance 1 / fan_in.

    Args:
      key: a PRNG key.
      dk: size of queries and keys.
      dh: hidden size.
      dv: size of values and outputs.
      batch_shape: leading axes, one set of weights for each head.
      dtype: of the weights.

    Returns:
      The weights, (*batch_shape, rows, columns).

    Example:
      >>> [w.shape for w in draw_fast_weights(jax.random.key(0), 8, 16, 4, batch_shape=(2,))]
      [(2, 16, 8), (2, 4, 16), (2, 16, 8)]
    """
    shapes = ((dh, dk), (dv, dh), (dh, dk))
    return FastWeights(*[
        jax.random.normal(one, (*batch_shape, *shape), dtype) / shape[1] ** 0.5
        for one, shape in zip(jax.random.split(key, 3), shapes, strict=True)
    ])  # fmt: skip


def lact_init(weights: FastWeights, *, momentum: bool = False, prenorm: bool = False) -> LactState:
    """State before the first chunk.

    Args:
      weights: the first fast weights; the state gets copies of its own.
      momentum: keep the sum of gradients of the chunks before.
      prenorm: keep the unnormalised sum of all steps beside the weights that are applied.

    Returns:
      The state. Beside the weights and their row norms, ``momentum`` and ``prenorm`` cost the bytes
      of the weights each.

    Raises:
      ValueError: weights whose shapes do not fit together.
      TypeError: weights that are not floating point.

    Example:
      >>> state = lact_init(draw_fast_weights(jax.random.key(0), 8, 16, 4), momentum=True)
      >>> state.norms.w1.shape, state.momentum.w1.shape, state.main
      ((4, 1), (4, 16), None)
    """
    weights = check_weights(weights)
    own = FastWeights(*[jnp.array(w, accumulation_dtype(w.dtype)) for w in weights])
    return LactState(
        weights=own,
        norms=FastWeights(*[norm_over(w, (-1,)) for w in own]),
        main=FastWeights(*[jnp.array(w) for w in own]) if prenorm else None,
        momentum=FastWeights(*[jnp.zeros_like(w) for w in own]) if momentum else None,
    )


def check_weights(weights: FastWeights) -> FastWeights:
    """Returns the weights as arrays.

    Raises:
      ValueError: shapes that do not fit together.
      TypeError: not floating point.
    """
    weights = FastWeights(*map(jnp.asarray, weights))
    for name, w in weights._asdict().items():
        check_matrix(w, f"lact's {name}")
    shapes = ", ".join(f"{name} {w.shape}" for name, w in weights._asdict().items())
    w0, w1, w2 = weights
    if not (w0.shape == w2.shape and (*w1.shape[:-2], w1.shape[-1]) == w0.shape[:-1]):
        raise ValueError(
            f"fast weights are w0 and w2 (..., dh, dk) and w1 (..., dv, dh), got {shapes}: outputs "
            "are rows, and leading axes are the same"
        )
    return weights


def spread(weights: FastWeights, batch: tuple[int, ...]) -> FastWeights:
    """Repeats the weights, or those of each head, for all leading axes of the queries.

    Raises:
      ValueError: leading axes that are not the last ones of the queries.
    """
    own = weights.w0.shape[:-2]
    if own != batch[len(batch) - len(own) :]:
        raise ValueError(
            f"leading axes {own} of the fast weights are neither {batch}, those of q, nor its last "
            "ones: give () or (heads,) or (batch, heads)"
        )
    return FastWeights(*[jnp.broadcast_to(w, (*batch, *w.shape[-2:])) for w in weights])


def check_tokens(
    weights: FastWeights,
    k: jax.Array,
    v: jax.Array,
    lr: tuple[jax.Array, jax.Array, jax.Array],
    momentum: jax.Array | None,
    q: jax.Array | None = None,
) -> None:
    """Checks that each array is (..., tokens, size) with the leading axes of the weights.

    Raises:
      ValueError: an array of another shape.
      TypeError: not floating point.
    """
    (*batch, hidden, inner), outer = weights.w0.shape, weights.w1.shape[-2]
    if len(lr) != 3:
        raise ValueError(f"lr has one array for each of w0, w1 and w2, got {len(lr)}")
    sizes = {"k": (k, inner), "v": (v, outer)}
    if q is not None:
        sizes["q"] = (q, inner)
    if momentum is not None:
        sizes["momentum"] = (momentum, 1)
    for i, (rate, size) in enumerate(zip(lr, (inner, hidden, inner), strict=True)):
        sizes[f"lr[{i}]"] = (rate, 1 if rate.shape[-1:] == (1,) else size)
    for name, (x, size) in sizes.items():
        check_matrix(x, f"lact's {name}")
        if x.shape != (*batch, k.shape[-2], size):
            raise ValueError(
                f"lact's {name} has the shape {x.shape}; for weights {weights.w0.shape} and keys "
                f"{k.shape} it has to be {(*batch, k.shape[-2], size)}"
            )
