"""Maths of one adapter, or a batch of them: A (..., r, n), B (..., m, r), W + s B A.

Gradients are those of the two factors, ``gA = s B^T G`` and ``gB = s G A^T`` of a gradient G of W.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.one_by_one import one_by_one

Split = Literal["closest", "zero"]


def product(*factors: jax.Array) -> jax.Array:
    """Returns the product of matrices from left to right, in full float32."""
    out = factors[0]
    for factor in factors[1:]:
        out = jnp.matmul(out, factor, precision="highest")
    return out


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of a Gram matrix."""

    values: jax.Array  # (..., r), at least 0
    vectors: jax.Array  # (..., r, r), in columns


def spectrum(rows: jax.Array) -> Spectrum:
    """Returns that of ``X X^T``, X (..., r, k)."""
    values, vectors = one_by_one(jnp.linalg.eigh, product(rows, rows.mT))
    return Spectrum(jnp.maximum(values, 0.0), vectors)


def pseudo_inverse(of: Spectrum, ridge: Any) -> jax.Array:
    """Returns the pseudo-inverse of a Gram matrix plus ``ridge I``, (..., r, r).

    Eigenvalues within the rounding of the largest one have no direction of their own.
    """
    values = of.values + ridge
    rank = values.shape[-1]
    most = jnp.max(values, axis=-1, keepdims=True, initial=0.0)
    kept = values > rank * float(jnp.finfo(values.dtype).eps) * most
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)
    return product(of.vectors * inverse[..., None, :], of.vectors.mT)


def sylvester(p: Spectrum, q: Spectrum, right: jax.Array) -> jax.Array:
    """Returns X of ``P X + X Q = C`` for P and Q of these spectra; 0 where both have none."""
    turned = product(p.vectors.mT, right, q.vectors)
    sums = p.values[..., :, None] + q.values[..., None, :]
    solved = jnp.where(sums > 0.0, turned / jnp.where(sums > 0.0, sums, 1.0), 0.0)
    return product(p.vectors, solved, q.vectors.mT)


class Frame(NamedTuple):
    """What both adjustments of a step share."""

    a: jax.Array  # (..., r, n)
    b: jax.Array  # (..., m, r)
    of_a: Spectrum  # of A A^T
    of_b: Spectrum  # of B^T B
    inverse_a: jax.Array  # (A A^T + delta I)^+
    inverse_b: jax.Array  # (B^T B + delta I)^+


def frame(a: jax.Array, b: jax.Array, delta: Any) -> Frame:
    """Decomposes both Gram matrices of an adapter."""
    of_a, of_b = spectrum(a), spectrum(b.mT)
    return Frame(a, b, of_a, of_b, pseudo_inverse(of_a, delta), pseudo_inverse(of_b, delta))


def adjusted(
    at: Frame, ga: jax.Array, gb: jax.Array, scale: Any, split: Split
) -> tuple[jax.Array, jax.Array]:
    """Returns the changes of A and B whose ``s (B da + db A)`` is closest to G.

    Args:
      at: the adapter.
      ga: (..., r, n).
      gb: (..., m, r).
      scale: s.
      split: see ``optkit.lora.adjust``.
    """
    da = product(at.inverse_b, ga) / scale / scale
    half = product(gb, at.inverse_a) / scale / scale
    db = half - product(at.b, product(at.inverse_b, product(at.b.mT, half)))
    if split == "closest":
        x = sylvester(at.of_b, at.of_a, -product(da, at.a.mT))
        return da + product(x, at.a), db - product(at.b, x)
    return da, db


def adjusted_at_zero(
    at: Frame, ga: jax.Array, gb: jax.Array, scale: Any
) -> tuple[jax.Array, jax.Array]:
    """The same for B = 0, whatever B is."""
    return ga, product(gb, at.inverse_a) / scale / scale


def together(at: Frame, da: jax.Array, db: jax.Array, scale: Any) -> jax.Array:
    """Returns ``s (B da + db A)``, (..., m, n)."""
    return scale * (product(at.b, da) + product(db, at.a))


def adjust(
    a: jax.Array,
    b: jax.Array,
    ga: jax.Array,
    gb: jax.Array,
    *,
    scale: float = 1.0,
    delta: float = 0.0,
    split: Split = "closest",
) -> tuple[jax.Array, jax.Array]:
    """Returns changes of A and B that move W like its own gradient, as far as they can.

    With ``Ai = (A A^T + delta I)^+``, ``Bi = (B^T B + delta I)^+``:

    1. ``da = Bi gA / s^2 + X A``; ``db = (I - B Bi B^T) gB Ai / s^2 - B X``;
    2. ``s (B da + db A)`` is the projection of G onto all changes of W that an adapter can make;
       it does not depend on X.

    Args:
      a: A, (..., r, fan_in).
      b: B, (..., fan_out, r).
      ga: gradient of A.
      gb: gradient of B.
      scale: s of ``W + s B A``.
      delta: added to both Gram matrices.
      split: "closest" takes the X of ``B^T B X + X A A^T = -Bi gA A^T / s^2``, "zero" X = 0.

    Returns:
      (da, db), to be subtracted.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> a, b, g = jnp.eye(2), jnp.eye(2), jnp.array([[2.0, 4.0], [6.0, 8.0]])
      >>> [x.tolist() for x in optkit.lora.adjust(a, b, g, g)]  # half of the way each
      [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]]

    Reference:
      Wang et al., LoRA-Pro, arXiv 2407.18242.
    """
    return adjusted(frame(a, b, delta), ga, gb, scale, split)


def equivalent_gradient(
    a: jax.Array,
    b: jax.Array,
    ga: jax.Array,
    gb: jax.Array,
    *,
    scale: float = 1.0,
    delta: float = 0.0,
) -> jax.Array:
    """Returns the part of W's gradient that an adapter can follow, from its own gradients.

    It is the projection of G onto the tangent space ``{B da + db A}``: the closest to G in it, the
    same for ``(B M, M^-1 A)``.

    Args:
      a: A, (..., r, fan_in).
      b: B, (..., fan_out, r).
      ga: gradient of A.
      gb: gradient of B.
      scale: s of ``W + s B A``.
      delta: added to both Gram matrices.

    Returns:
      (..., fan_out, fan_in).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0], [1.0]])
      >>> g = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> optkit.lora.equivalent_gradient(a, b, b.T @ g, g @ a.T).tolist()  # row 1 and column 0
      [[1.0, 0.0], [3.0, 4.0]]

    Reference:
      Wang et al., LoRA-Pro, arXiv 2407.18242.
    """
    at = frame(a, b, delta)
    return together(at, *adjusted(at, ga, gb, scale, "zero"), scale)
