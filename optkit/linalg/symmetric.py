"""Newton-Schulz steps that compute only the lower half of every symmetric product.

Cutting a symmetric m x m product into three column panels and dropping what lies above the
diagonal blocks saves a third of its FLOPs. It pays on CPU, where a large product runs at the peak
of the cores and copies are cheap beside it; accelerators want few, large products.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.coefficients import Row
from optkit.linalg.implementation import Choice, check_implementation
from optkit.linalg.norms import accumulation_dtype
from optkit.linalg.resets import segments

# Panel edges at multiples of this keep the inner loops of the matrix product full.
_EDGE = 32

_Carry = tuple[jax.Array, jax.Array, jax.Array]


def symmetric_product(
    a: jax.Array,
    b: jax.Array,
    *,
    blocks: int = 3,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """A B^T of two matrices whose product is known to be symmetric, from its lower half.

    Column panel j is computed from its diagonal block downwards, and mirrored above it: the FLOPs
    fall from 2 m^2 k to about (1 + 1 / blocks) m^2 k, and the result is bitwise symmetric.

    Args:
      a: (..., m, k).
      b: (..., m, k), such that A B^T = B A^T: A itself, or with A and B symmetric and commuting.
      blocks: number of panels; 1 computes the whole product and makes it exactly symmetric.
      precision: of the products.

    Returns:
      (..., m, m) in float32 at least.

    Raises:
      ValueError: `blocks` is smaller than 1.

    Example:
      >>> x = jnp.arange(6.0).reshape(3, 2)
      >>> bool(jnp.allclose(symmetric_product(x, x, blocks=3), x @ x.T))
      True
    """
    check_blocks(blocks)
    m = a.shape[-2]
    edges = _edges(m, blocks)
    panels: list[jax.Array] = []
    columns: list[jax.Array] = []
    for start, stop in pairwise(edges):
        panel = jnp.matmul(
            a[..., start:, :],
            b[..., start:stop, :].mT,
            precision=precision,
            preferred_element_type=accumulation_dtype(a.dtype),
        )
        mirrored = [
            earlier[..., start - first : stop - first, :].mT
            for first, earlier in zip(edges, panels, strict=False)
        ]
        panels.append(panel)
        # A diagonal block left as it came would be symmetric only up to rounding, unlike the rest;
        # the Gram form then loses two digits, since its factors no longer commute.
        size = stop - start
        corner = 0.5 * (panel[..., :size, :] + panel[..., :size, :].mT)
        columns.append(jnp.concatenate([*mirrored, corner, panel[..., size:, :]], axis=-2))
    # Without the barrier the compiler inlines the assembly into every reader of the product.
    return lax.optimization_barrier(jnp.concatenate(columns, axis=-1))


def check_blocks(blocks: int, implementation: str = "xla") -> None:
    """Raises unless `blocks` is a number of panels, and goes with an implementation.

    Raises:
      ValueError: smaller than 1; an unknown implementation, or panels of a kernel.
    """
    if blocks < 1:
        raise ValueError(f"blocks is a number of panels, 1 or more, got {blocks}")
    check_implementation(implementation, Choice)
    if implementation != "xla" and blocks > 1:
        raise ValueError(
            f"blocks={blocks} are panels of implementation='xla'; {implementation!r} has tiles of "
            "its own: leave blocks out"
        )


def _edges(m: int, blocks: int) -> list[int]:
    unit = _EDGE if m >= _EDGE * blocks else 1
    inner = {round(m * i / (blocks * unit)) * unit for i in range(1, blocks)}
    return [0, *sorted(edge for edge in inner if 0 < edge < m), m]


def _product(
    left: jax.Array, right: jax.Array, blocks: int, precision: lax.PrecisionLike
) -> jax.Array:
    """The symmetric left right^T in the dtype of the iteration."""
    wide = symmetric_product(left, right, blocks=blocks, precision=precision)
    return wide.astype(left.dtype)


def _factor(
    gram: jax.Array, row: tuple[jax.Array, ...], blocks: int, precision: lax.PrecisionLike
) -> jax.Array:
    """The factor a I + b G + c G^2 of one step, rounded once."""
    a, b, c = row
    square = symmetric_product(gram, gram, blocks=blocks, precision=precision)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=square.dtype), square.shape)
    return (a * identity + b * gram.astype(square.dtype) + c * square).astype(gram.dtype)


def _stack(rows: tuple[Row, ...], x: jax.Array) -> tuple[jax.Array, ...]:
    """The columns a, b, c of the rows as arrays to scan over."""
    wide = accumulation_dtype(x.dtype)
    return tuple(jnp.asarray([row[i] for row in rows], wide) for i in range(3))


def _apply(factor: jax.Array, x: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    wide = accumulation_dtype(x.dtype)
    product = jnp.matmul(factor, x, precision=precision, preferred_element_type=wide)
    return product.astype(x.dtype)


def blocked_standard_steps(
    x: jax.Array,
    rows: tuple[Row, ...],
    *,
    blocks: int,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The steps of `standard_steps`, with X X^T and G^2 from their lower halves.

    The steps are a loop, so that the program does not grow with their number.

    Args:
      x: (..., m, n), m <= n, singular values at most about 1.
      rows: one (a, b, c) a step.
      blocks: number of panels of each symmetric product.
      precision: of the products.

    Returns:
      (..., m, n).
    """

    def step(x: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        gram = _product(x, x, blocks, precision)
        return _apply(_factor(gram, row, blocks, precision), x, precision), None

    return lax.scan(step, x, _stack(rows, x))[0] if rows else x


def blocked_gram_steps(
    x: jax.Array,
    rows: tuple[Row, ...],
    resets: frozenset[int],
    *,
    blocks: int,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The steps of `gram_steps`, with every m x m product from its lower half.

    Args:
      x: (..., m, n), m <= n, singular values at most about 1.
      rows: one (a, b, c) a step.
      resets: steps before which Q is applied to X and R recomputed.
      blocks: number of panels of each symmetric product.
      precision: of the products.

    Returns:
      (..., m, n).
    """
    for part in segments(rows, resets):
        x = _apply(_segment(x, part, blocks, precision), x, precision)
    return x


def _segment(
    x: jax.Array, rows: tuple[Row, ...], blocks: int, precision: lax.PrecisionLike
) -> jax.Array:
    """The factor Q of the steps between two resets."""
    coefficients = _stack(rows, x)
    r = _product(x, x, blocks, precision)
    q = w = _factor(r, tuple(v[0] for v in coefficients), blocks, precision)

    def step(carry: _Carry, row: tuple[jax.Array, ...]) -> tuple[_Carry, None]:
        q, r, w = carry
        r = _product(w, _product(r, w, blocks, precision), blocks, precision)
        w = _factor(r, row, blocks, precision)
        return (_product(q, w, blocks, precision), r, w), None

    (q, _, _), _ = lax.scan(step, (q, r, w), tuple(v[1:] for v in coefficients))
    return q
