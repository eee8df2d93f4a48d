"""The polar factor of a matrix's leading part, found with a random sketch."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.factor import orthogonal_factor
from optkit.linalg.norms import check_matrix, to_unit_peak
from optkit.linalg.subspace import QrMethod, householder_product, orthonormalize, raw_qr

SketchKind = Literal["gaussian", "kaczmarz"]
Side = Literal["columns", "rows", "auto"]


def sketch_size(m: int, n: int, rank: int | float = 0.25, oversampling: int = 10) -> int:
    """Returns how many directions a sketch of an m x n matrix has: rank + oversampling, clipped.

    Args:
      m: rows.
      n: columns.
      rank: number of directions, or as a float in (0, 1] their share of the short side, at least
        one direction.
      oversampling: directions beyond the rank; clipped to the short side, as QR does.

    Returns:
      The size l, at most min(m, n).

    Raises:
      ValueError: a rank larger than the matrix, or a number out of range.

    Example:
      >>> sketch_size(768, 3072, 200), sketch_size(8, 12, 0.5), sketch_size(8, 12, 3, 0)
      (210, 8, 3)
    """
    short = min(m, n)
    if isinstance(rank, float):
        if not 0.0 < rank <= 1.0:
            raise ValueError(
                f"rank={rank!r} is a share of the short side and must be in (0, 1]; an integer "
                "counts directions"
            )
        rank = max(1, round(rank * short))
    if rank < 1 or oversampling < 0:
        raise ValueError(
            f"a sketch needs rank >= 1 and oversampling >= 0, got rank={rank!r} and "
            f"oversampling={oversampling!r}"
        )
    if rank > short > 0:
        raise ValueError(
            f"rank={rank} is larger than the matrix of shape {(m, n)}: give at most {short}, or a "
            "share of the short side such as rank=0.25"
        )
    return min(rank + oversampling, short)


def _turned(m: int, n: int, side: Side) -> bool:
    """Tells whether the transpose is sketched: the basis lives on the longer axis by default."""
    if side not in get_args(Side):
        raise ValueError(f"side must be one of {get_args(Side)}, got {side!r}")
    return side == "rows" or (side == "auto" and n > m)


def _batched_keys(key: int | jax.Array, batch: tuple[int, ...]) -> jax.Array:
    keys = jnp.asarray(key)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys) if keys.ndim else jax.random.key(keys)
    if keys.shape == batch:
        return keys
    if keys.shape:
        raise ValueError(
            f"give one key, or one for each matrix in an array of shape {batch}, got {keys.shape}"
        )
    return jax.random.split(keys, batch)


def _check_kind(kind: str) -> None:
    if kind not in get_args(SketchKind):
        raise ValueError(f"sketch must be one of {get_args(SketchKind)} or an array, got {kind!r}")


def _draw(x: jax.Array, key: jax.Array, size: int, kind: SketchKind) -> jax.Array:
    _check_kind(kind)
    columns = x.shape[-1]
    draw: Callable[..., jax.Array]
    if kind == "gaussian":
        draw = lambda key: jax.random.normal(key, (columns, size), jnp.float32)  # noqa: E731
        operands: tuple[jax.Array, ...] = (key,)
    else:
        weights = jnp.sum(jnp.square(x), axis=-2).astype(jnp.float32)

        def draw(key: jax.Array, weights: jax.Array) -> jax.Array:
            # Gumbel noise on log p: the largest l scores are l draws without replacement.
            logs = jnp.where(jnp.any(weights > 0), jnp.log(weights), 0.0)
            scores = logs + jax.random.gumbel(key, (columns,), jnp.float32)
            # Not by top_k, which gathers a batch that lies on several devices.
            return jnp.argsort(scores, descending=True)[:size]

        operands = key, weights
    for _ in x.shape[:-2]:
        draw = jax.vmap(draw)
    return draw(*operands)


def draw_sketch(
    x: jax.Array,
    key: int | jax.Array,
    size: int,
    kind: SketchKind = "gaussian",
    side: Side = "auto",
) -> jax.Array:
    """Draws the sketch that `randomized_factor` would draw, to keep it or to use it again.

    "gaussian": Omega of independent standard normal numbers. "kaczmarz": l different columns, the
    next one always with probability ||M_j||^2 / ||M||^2 among those left; uniform for zero.

    Args:
      x: (..., m, n) floating point; leading axes are a batch, each matrix has its own sketch.
      key: seed, one PRNG key, or one for each matrix, shape (...).
      size: number of directions l, see `sketch_size`.
      kind: "gaussian" or "kaczmarz".
      side: as in `randomized_factor`.

    Returns:
      Omega, float32 of shape (..., n, l), or indices, int32 of shape (..., l); with the transpose
      sketched m takes the place of n.

    Raises:
      ValueError: an unknown kind or side, or keys that do not fit.

    Example:
      >>> x = jnp.diag(jnp.array([1.0, 0.0, 2.0]))
      >>> sorted(draw_sketch(x, 0, 2, "kaczmarz").tolist())
      [0, 2]
    """
    turned = _turned(x.shape[-2], x.shape[-1], side)
    y, _ = to_unit_peak(x.mT if turned else x)
    return _draw(y, _batched_keys(key, x.shape[:-2]), size, kind)


def _sketched(x: jax.Array, sketch: jax.Array, precision: Any) -> jax.Array:
    """Returns x Omega, (..., m, l), or the columns of x that indices name, at unit length."""
    batch, columns = x.shape[:-2], x.shape[-1]
    indices = jnp.issubdtype(sketch.dtype, jnp.integer)
    rest = sketch.shape[len(batch) :]
    if (
        sketch.shape[: len(batch)] != batch
        or len(rest) != 2 - indices
        or (not indices and rest[0] != columns)
    ):
        raise ValueError(
            f"a sketch for {x.shape} has shape {(*batch, columns, 'l')}, or {(*batch, 'l')} if it "
            f"names columns by integers, got {sketch.shape} of {sketch.dtype}"
        )
    if not indices:
        return jnp.matmul(x, sketch.astype(x.dtype), precision=precision)
    chosen = jnp.take_along_axis(x, sketch[..., None, :], axis=-1)
    # The method divides by sqrt(l p_j); any factor of a column gives the same basis.
    peak = jnp.max(jnp.abs(chosen), axis=-2, keepdims=True)
    return chosen / jnp.where(peak > 0, peak, 1.0)


def _basis(y: jax.Array, method: QrMethod, precision: lax.PrecisionLike) -> jax.Array:
    """Q of the reduced QR of each matrix."""
    short = min(y.shape[-2:])
    if method != "qr":
        return orthonormalize(y[..., :short], method, precision=precision or "highest")
    # By its reflectors: the lowering of a finished Q fails in jax 0.10 on Explicit axes.
    reflectors, factors = raw_qr(y)
    return householder_product(reflectors[..., :short], factors)


def randomized_factor(
    x: jax.Array,
    key: int | jax.Array = 0,
    *,
    rank: int | float = 0.25,
    oversampling: int = 10,
    power_iterations: int = 1,
    sketch: SketchKind | jax.Array = "gaussian",
    side: Side = "auto",
    qr_method: QrMethod = "qr",
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> jax.Array:
    """Approximate polar factor of each matrix within the span of a random sketch of it.

    1. l = rank + oversampling, at most min(m, n);
    2. Y = M Omega, Omega random (n, l) with normal entries ("gaussian"), or Y = l columns of M,
       drawn by their squared length without replacement ("kaczmarz");
    3. h = power_iterations times Y <- M (M^T qr(Y));
    4. Q = qr(Y); 5. Q ortho(Q^T M).

    The result has rank l at most and lies in the span of Y; with l >= rank(M) it is ortho(M), which
    is taken directly, without a sketch, where l = min(m, n) ("auto" then chooses its form). Signs
    that a QR gives its columns cancel. Repeated or dependent columns make Y rank-deficient and some
    columns of Q arbitrary: that matters only if Y spans less than M does, which a Gaussian sketch
    of l <= rank(M) directions excludes, and drawing without replacement for columns in general
    position.

    FLOPs, with a the length of the axis that Q lives on and b that of the other one: 2 m n l for a
    Gaussian sketch, 4 m n l h, QR 4 a l^2 (1 + h), 4 m n l for Q^T M and the product with Q, and
    q (4 l^2 b + 2 l^3) for q quintic steps; Newton-Schulz on all of M has q (4 m^2 n + 2 m^3),
    m <= n.

    Args:
      x: (..., m, n) floating point; leading axes are a batch.
      key: seed, one PRNG key, or one for each matrix, shape (...).
      rank: number of directions, or as a float their share of the short side.
      oversampling: directions beyond the rank.
      power_iterations: how often M M^T is applied; each makes large singular values stand out more.
      sketch: "gaussian", "kaczmarz", or a sketch of your own: Omega (..., n, l), or integers
        (..., l) that name columns, e.g. recorded ones; it then decides l instead of rank.
      side: "columns" sketches the columns as above, "rows" the transpose (Y = M^T Omega; m and n
        change places in what is said of shapes), "auto" whichever puts Q on the longer axis, so
        that ortho works on l x min(m, n); columns for square ones.
      qr_method: "qr" (Householder), or "cqr" and "rcqr" of `orthonormalize`, which work by products
        and suit accelerators.
      precision: precision of the matrix products, as in `jax.numpy.matmul`.
      **options: method, coefficients, steps and so on, as in `orthogonal_factor`.

    Returns:
      The factor, of the shape and dtype of x; sketch and QR are in float32 at least.

    Raises:
      ValueError: bad shape, a rank larger than the matrix, an unknown option or a sketch that does
        not fit.
      TypeError: not a real floating-point dtype.

    Example:
      >>> x = jnp.outer(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0, 3.0]))
      >>> y = randomized_factor(x, 0, rank=1, oversampling=0, coefficients="classic_cubic")
      >>> jnp.abs(y.round(3)).tolist()
      [[0.0, 0.8..., 0.6...], [0.0, 0.0, 0.0]]

    Reference: Choudhury, Cheng, Takac, Na, Kolar, arXiv 2605.06884; Halko, Martinsson, Tropp, SIAM
    Review 53 (2011). The reference draws columns with replacement.
    """
    x = jnp.asarray(x)
    check_matrix(x, "randomized_factor")
    m, n = x.shape[-2:]
    size = sketch_size(m, n, rank, oversampling)
    if power_iterations < 0:
        raise ValueError(f"power_iterations must be at least 0, got {power_iterations}")
    if qr_method not in get_args(QrMethod):
        raise ValueError(f"qr_method must be one of {get_args(QrMethod)}, got {qr_method!r}")
    turned = _turned(m, n, side)
    if math.prod(x.shape) == 0:
        return x
    if isinstance(sketch, str) and size == min(m, n):
        _check_kind(sketch)
        return orthogonal_factor(x, precision=precision, **options)  # the basis is a whole one
    given = x.mT if turned else x
    # In units of its peak, or the power iteration would overflow; the basis has no units.
    work, _ = to_unit_peak(given)
    if isinstance(sketch, str):
        sketch = _draw(work, _batched_keys(key, x.shape[:-2]), size, sketch)
    y = _sketched(work, sketch, precision)
    for _ in range(power_iterations):
        # The span is kept and its basis renewed: left alone, with the powers of M small singular
        # values would sink below the rounding of large ones.
        y = jnp.matmul(work.mT, _basis(y, qr_method, precision), precision=precision)
        y = jnp.matmul(work, y, precision=precision)
    basis = _basis(y, qr_method, precision)
    inner = jnp.matmul(basis.mT, given.astype(basis.dtype), precision=precision)
    solved = orthogonal_factor(inner, precision=precision, **options)
    out = jnp.matmul(basis, solved, precision=precision).astype(x.dtype)
    return out.mT if turned else out
