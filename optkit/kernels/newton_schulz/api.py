"""The operation, by whichever implementation."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optkit.kernels.blocks import ON_CHIP, cut, filled, rounded_up
from optkit.kernels.implementation import Choice, Unserved, by_platform, check_implementation
from optkit.kernels.newton_schulz import base, tiled, tpu
from optkit.kernels.newton_schulz.blocks import resident_blocks
from optkit.kernels.newton_schulz.plan import Task, gram_tasks, standard_tasks
from optkit.kernels.sharded import over_batch
from optkit.kernels.symmetric_matmul import gpu as gpu_products
from optkit.kernels.symmetric_matmul import tpu as tpu_products
from optkit.kernels.symmetric_matmul.api import check_served
from optkit.linalg.coefficients import Row
from optkit.linalg.normalise import EpsMode, normalise

__all__ = ["Choice", "iterate"]


def iterate(
    x: jax.Array,
    rows: Iterable[Row],
    *,
    resets: Iterable[int] | None = None,
    eps: float | None = 0.0,
    eps_mode: EpsMode = "add",
    margin: float = 1.0,
    compute_dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    implementation: Choice = "xla",
) -> jax.Array:
    """Runs Newton-Schulz steps on wide matrices.

    1. ``X <- X / (margin ||X||_F + eps)``; 2. for each row (a, b, c): ``G = X X^T``, ``X <- a X +
    (b G + c G^2) X``; or, with ``resets``, the Gram form of the same polynomial. On a TPU one
    kernel does all of it to one matrix after the other, if its vector memory holds the matrix twice
    as it comes in, twice as it goes out, and 2 to 4 squares; a larger matrix takes a kernel a
    product. GPUs always take a kernel a product. Of symmetric products half is computed.

    Args:
      x: (..., m, n), m <= n. The kernels compute in float32 and bfloat16, on GPUs in float16, too;
        zeros are put behind rows and columns up to the tiles.
      rows: one (a, b, c) a step.
      resets: steps at which the Gram form starts afresh; None takes the standard form.
      eps: as in `optkit.linalg.newton_schulz`; None for a matrix that is divided already.
      eps_mode: as there.
      margin: as there.
      compute_dtype: of the iteration and the result; None for that of x.
      precision: of the products, as in `jax.numpy.matmul`.
      implementation: "xla"; "pallas", the kernel of the platform; "auto", which refuses nothing: in
        a program for a TPU the one kernel, for matrices that its vector memory holds (there the
        compiler's estimates say that it wins), plain JAX for all others and on other platforms;
        "interpret", the TPU's kernel on any device, slow.

    Returns:
      (..., m, n) in the dtype of the iteration.

    Raises:
      ValueError: m > n, what no kernel serves, or an unknown implementation.
      NotImplementedError: no kernel for the platform that the program is lowered for.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.newton_schulz import iterate
      >>> y = iterate(jnp.array([[3.0, 0.0]]), [(1.5, -0.5, 0.0)] * 3)
      >>> y.tolist()
      [[1.0, 0.0]]

    Reference: ours; the methods are those of `optkit.linalg.newton_schulz` and
    `optkit.linalg.gram_newton_schulz`.
    """
    check_implementation(implementation, Choice)
    if x.ndim < 2 or x.shape[-2] > x.shape[-1]:
        raise ValueError(f"newton_schulz.iterate takes wide matrices (..., m, n), got {x.shape}")
    rows = tuple(rows)
    chosen = None if resets is None else frozenset(resets)
    dtype = jnp.dtype(x.dtype if compute_dtype is None else compute_dtype)
    meaning = partial(
        base.iterate, rows=rows, resets=chosen, eps=eps, eps_mode=eps_mode, margin=margin,
        compute_dtype=dtype, precision=precision,
    )  # fmt: skip
    if implementation == "xla" or x.size == 0 or not rows:
        return meaning(x)
    tasks = standard_tasks(rows) if chosen is None else gram_tasks(rows, chosen)
    division = None if eps is None else tpu.Division(eps, eps_mode, margin)
    on_tpu = partial(_on_tpu, tasks=tasks, division=division, dtype=dtype, precision=precision)
    if implementation == "auto" and not _is_held(x, tasks, dtype):
        return meaning(x)
    on_gpu = partial(_on_gpu, tasks=tasks, division=division, dtype=dtype, precision=precision)

    @jax.custom_jvp
    def kernel(x: jax.Array) -> jax.Array:
        if implementation == "interpret":
            return over_batch(partial(on_tpu, interpret=True), x)
        if implementation == "auto":
            # Each platform's whole program: XLA partitions its own as it likes.
            return lax.platform_dependent(x, tpu=partial(over_batch, on_tpu), default=meaning)
        return over_batch(lambda y: by_platform("newton_schulz", y, tpu=on_tpu, gpu=on_gpu), x)

    @kernel.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return kernel(*primals), jax.jvp(meaning, primals, tangents)[1]

    return kernel(x)


def _on_tpu(
    x: jax.Array,
    *,
    tasks: list[Task],
    division: tpu.Division | None,
    dtype: Any,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    check_served("newton_schulz", dtype)
    blocks = resident_blocks(*x.shape[-2:])
    y = filled(_flat(x), {1: blocks.rows, 2: blocks.columns})
    if _is_held(x, tasks, dtype):
        done = tpu.iterate(
            y, tasks, blocks, division=division, compute_dtype=dtype, precision=precision,
            interpret=interpret,
        )  # fmt: skip
        return cut(done, (y.shape[0], *x.shape[-2:])).reshape(x.shape)
    y = _divided(_flat(x), division, dtype)
    return tiled.iterate(y, tasks, tpu_products, precision, interpret=interpret).reshape(x.shape)


def _is_held(x: jax.Array, tasks: list[Task], dtype: Any) -> bool:
    """Whether a TPU does the whole iteration of a matrix in its vector memory."""
    try:
        check_served("newton_schulz", dtype)
    except Unserved:
        return False
    blocks = resident_blocks(*x.shape[-2:])
    shape = tuple(map(rounded_up, x.shape[-2:], (blocks.rows, blocks.columns)))
    # A wider matrix is divided in its own precision first.
    divides = x.dtype in (jnp.float32, jnp.bfloat16)
    return divides and tpu.memory(shape, x.dtype, dtype, tasks) <= ON_CHIP["tpu"]


def _on_gpu(
    x: jax.Array,
    *,
    tasks: list[Task],
    division: tpu.Division | None,
    dtype: Any,
    precision: lax.PrecisionLike,
) -> jax.Array:
    check_served("newton_schulz", dtype, jnp.float16)
    y = _divided(_flat(x), division, dtype)
    return tiled.iterate(y, tasks, gpu_products, precision).reshape(x.shape)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[-2:])


def _divided(x: jax.Array, division: tpu.Division | None, dtype: Any) -> jax.Array:
    if division is None:
        return x.astype(dtype)
    return normalise(x, compute_dtype=dtype, **division._asdict())[0]
