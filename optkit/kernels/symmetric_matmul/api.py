"""The operations, by whichever implementation."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optkit.kernels.implementation import (
    Implementation,
    Unserved,
    by_platform,
    check_implementation,
)
from optkit.kernels.sharded import over_batch
from optkit.kernels.symmetric_matmul import base, gpu, tpu

__all__ = ["Implementation", "add_product", "gram", "polynomial", "symmetric_product"]


def gram(
    x: jax.Array,
    *,
    precision: lax.PrecisionLike = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """``X X^T``.

    Args:
      x: (..., m, n); the kernels take float32 and bfloat16, on GPUs float16, too.
      precision: of the product, as in `jax.numpy.matmul`.
      implementation: "xla"; "pallas", the kernel of the platform; "interpret", the TPU's kernel on
        any device, slow.

    Returns:
      (..., m, m) in the dtype of x; summed in float32, and from a kernel bitwise symmetric.

    Raises:
      ValueError: what no kernel serves, or an unknown implementation.
      NotImplementedError: no kernel for the platform that the program is lowered for.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.symmetric_matmul import gram
      >>> gram(jnp.array([[1.0, 2.0], [0.0, 3.0]])).tolist()
      [[5.0, 6.0], [6.0, 9.0]]

    Reference: ours, after the idea of flash-muon and of modded-nanogpt's Triton kernels.
    """
    return symmetric_product(x, x, precision=precision, implementation=implementation)


def polynomial(
    a: jax.Array,
    b: float,
    c: float,
    *,
    precision: lax.PrecisionLike = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """``b A + c A^2`` of a symmetric A.

    Args:
      a: (..., m, m), symmetric.
      b: linear coefficient.
      c: quadratic coefficient.
      precision: as in `gram`.
      implementation: as in `gram`.

    Returns:
      (..., m, m), rounded once to the dtype of a; from a kernel bitwise symmetric.

    Raises:
      ValueError: as `gram`.
      NotImplementedError: as `gram`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.symmetric_matmul import polynomial
      >>> polynomial(2 * jnp.eye(2), 3.0, 1.0).tolist()
      [[10.0, 0.0], [0.0, 10.0]]

    Reference: as `gram`.
    """
    return symmetric_product(
        a, a, addend=a, alpha=c, beta=b, precision=precision, implementation=implementation
    )


def symmetric_product(
    left: jax.Array,
    right: jax.Array,
    *,
    addend: jax.Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    precision: lax.PrecisionLike = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """``alpha L R^T + beta C`` where that is known to be symmetric.

    1. each tile on or below the diagonal is summed in float32; 2. ``beta C`` is added; 3. it is
    rounded, and written twice: where it is, and mirrored.

    Args:
      left: (..., m, k).
      right: (..., m, k): the same as left, or such that both are symmetric and commute.
      addend: (..., m, m), symmetric, or None.
      alpha: factor of the product.
      beta: factor of the addend.
      precision: as in `gram`.
      implementation: as in `gram`.

    Returns:
      (..., m, m) in the dtype of left.

    Raises:
      ValueError: shapes or dtypes that do not go together; as `gram`.
      NotImplementedError: as `gram`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.symmetric_matmul import symmetric_product
      >>> symmetric_product(jnp.eye(2), 2 * jnp.eye(2), alpha=0.5).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    Reference: as `gram`.
    """
    wanted = left.shape[:-1] + left.shape[-2:-1]
    if left.shape != right.shape or (addend is not None and addend.shape != wanted):
        added = "" if addend is None else f", addend {addend.shape}"
        raise ValueError(
            f"symmetric_product takes (..., m, k), (..., m, k) and an addend (..., m, m); got "
            f"{left.shape} and {right.shape}{added}"
        )
    arrays = (left, right) if addend is None else (left, right, addend)

    def by(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def run(left: jax.Array, right: jax.Array, addend: jax.Array | None = None) -> jax.Array:
            return kernel(left, right, addend, alpha, beta, precision)

        return run

    return _by("symmetric_product", implementation, arrays, by)


def add_product(
    factor: jax.Array,
    x: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    precision: lax.PrecisionLike = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """``beta X + alpha B X``, rounded once.

    Args:
      factor: B, (..., m, m).
      x: (..., m, n).
      alpha: factor of the product.
      beta: factor of X.
      precision: as in `gram`.
      implementation: as in `gram`.

    Returns:
      (..., m, n) in the dtype of x.

    Raises:
      ValueError: shapes or dtypes that do not go together; as `gram`.
      NotImplementedError: as `gram`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.symmetric_matmul import add_product
      >>> add_product(jnp.eye(2), jnp.ones((2, 1)), beta=2.0).tolist()
      [[3.0], [3.0]]

    Reference: as `gram`.
    """
    if factor.shape != (*x.shape[:-1], x.shape[-2]):
        raise ValueError(
            f"add_product takes (..., m, m) and (..., m, n), got {factor.shape} and {x.shape}"
        )

    def by(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda factor, x: kernel(factor, x, alpha, beta, precision)

    return _by("add_product", implementation, (factor, x), by)


def _by(
    operation: str,
    implementation: Implementation,
    arrays: tuple[jax.Array, ...],
    by: Callable[..., Callable[..., jax.Array]],
) -> jax.Array:
    """An operation of batches by an implementation; ``by`` gives a kernel its numbers."""
    check_implementation(implementation)
    check_dtypes(operation, *arrays)
    if implementation == "xla" or arrays[-1].size == 0:
        return by(getattr(base, operation))(*arrays)

    def batched(kernel: Callable[..., jax.Array], *half: DTypeLike) -> Callable[..., jax.Array]:
        def run(*xs: jax.Array) -> jax.Array:
            check_served(operation, xs[0].dtype, *half)
            flat = (x.reshape(-1, *x.shape[-2:]) for x in xs)
            done = by(kernel)(*flat)
            return done.reshape(*xs[0].shape[:-2], *done.shape[-2:])

        return run

    tpu_kernel, gpu_kernel = getattr(tpu, operation), getattr(gpu, operation)
    if implementation == "interpret":
        return over_batch(batched(partial(tpu_kernel, interpret=True)), *arrays)
    on_tpu, on_gpu = batched(tpu_kernel), batched(gpu_kernel, jnp.float16)
    return over_batch(
        lambda *xs: by_platform(operation, *xs, tpu=on_tpu, gpu=on_gpu),
        *arrays,
    )


def check_dtypes(operation: str, *arrays: jax.Array) -> None:
    """Raises unless operands are of one dtype.

    Raises:
      ValueError: with the dtypes.
    """
    found = sorted({str(x.dtype) for x in arrays})
    if len(found) > 1:
        raise ValueError(f"{operation} takes operands of one dtype, got {' and '.join(found)}")


def check_served(operation: str, dtype: jnp.dtype, *more: DTypeLike) -> None:
    """Raises unless a kernel serves a dtype: float32, bfloat16 or more.

    Raises:
      ValueError: with the dtype.
    """
    served = [jnp.dtype(name) for name in (jnp.float32, jnp.bfloat16, *more)]
    if dtype not in served:
        raise Unserved(f"{operation} of {dtype}: it takes {', '.join(map(str, served))}")
