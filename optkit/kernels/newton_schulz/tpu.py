"""The whole iteration as one Pallas kernel for TPUs: X and a few squares stay in vector memory."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from optkit.kernels.blocks import LANES, RARE, bytes_of, check_divides, check_on_chip
from optkit.kernels.newton_schulz.blocks import ResidentBlocks
from optkit.kernels.newton_schulz.dividing import (
    Division,
    copy,
    divide,
    inverse_divisor,
    is_usual,
)
from optkit.kernels.newton_schulz.plan import (
    APPLY,
    GRAM,
    PRODUCT,
    Task,
    multiplications,
    scale_powers,
    slots,
)
from optkit.kernels.newton_schulz.products import apply, gram_slowly, off_diagonal, symmetric

# What the compiler needs beside the buffers: results of products on their way to memory.
_SPARE = 6 * 2**20
# Of a task: whole numbers, those for powers of the scale among them, and numbers that are not.
_WHOLE, _REAL = 7, 3
_POWERS = 5

Carry = Any


def memory(
    shape: tuple[int, ...], dtype: DTypeLike, compute_dtype: DTypeLike, tasks: Sequence[Task]
) -> int:
    """Returns the bytes of vector memory that the kernel needs for matrices ``(..., m, n)``."""
    m, n = shape[-2:]
    # Two of each matrix that comes in and goes out: the next one is loaded during the work.
    buffers = [
        ((2, m, n), dtype),
        ((2, m, n), compute_dtype),
        ((slots(tasks), m, m), compute_dtype),
    ]
    return bytes_of(*buffers) + _SPARE


def iterate(
    x: jax.Array,  # (batch, m, n)
    tasks: Sequence[Task],
    blocks: ResidentBlocks,
    *,
    division: Division | None,
    compute_dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
    interpret: bool = False,
) -> jax.Array:
    """Works through the tasks, one matrix after the other; the next one is loaded meanwhile.

    Raises:
      ValueError: blocks that do not fill the matrix, or too little memory on the chip.
    """
    batch, m, n = x.shape
    check_divides("an axis of rows", m, blocks.rows)
    check_divides("an axis of columns", n, blocks.columns)
    needed = memory(x.shape, x.dtype, compute_dtype, tasks)
    check_on_chip(f"newton_schulz of ({m}, {n})", needed, "tpu")
    # In 16 bits the first product's diagonal tells the norm well enough.
    by_trace = division is not None and jnp.dtype(compute_dtype).itemsize == 2
    scaled = scale_powers(tasks) if by_trace else [(0, 0)] * len(tasks)
    numbers = [(*task[:5], *powers) for task, powers in zip(tasks, scaled, strict=True)]
    whole = np.asarray(numbers, np.int32).reshape(-1)
    real = np.asarray([task[5:] for task in tasks], np.float32).reshape(-1)
    tiles = [
        [place for places in off_diagonal(m // blocks.rows, depth) for place in places]
        for depth in (n, m)
    ]
    # The last entry is the number of trips of loops with one, which the compiler keeps so.
    table = np.asarray([*tiles[0], *tiles[1], (0, 1)], np.int32).reshape(-1)
    block = pl.BlockSpec((None, m, n), lambda i, *_: (i, 0, 0))
    kernel = functools.partial(
        _kernel, tasks=len(tasks), starts=(0, len(tiles[0])), blocks=blocks, division=division,
        by_trace=by_trace, precision=precision,
    )  # fmt: skip
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch,),
            in_specs=[block],
            out_specs=block,
            scratch_shapes=[
                pltpu.VMEM((slots(tasks), m, m), jnp.dtype(compute_dtype)),
                pltpu.SMEM((_POWERS,), jnp.float32),
                pltpu.VMEM((1, n), jnp.float32),
                pltpu.VMEM((1, LANES), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(x.shape, compute_dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=needed
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * multiplications(m, n, tasks, blocks.rows),
            transcendentals=0,
            bytes_accessed=bytes_of((x.shape, x.dtype), (x.shape, compute_dtype)),
        ),
        interpret=interpret,
        name="newton_schulz",
    )(jnp.asarray(whole), jnp.asarray(real), jnp.asarray(table), x)


def _kernel(
    whole: Any,
    real: Any,
    table: Any,
    given: Any,  # (m, n), as it came
    x: Any,  # (m, n), what goes out: X all along, or X without the scale up to its first product
    squares: Any,  # (slots, m, m)
    powers: Any,  # (5,), of the scale
    again: Any,  # (1, n)
    trace: Any,  # (1, 128), of the first product
    *,
    tasks: int,
    starts: tuple[int, int],
    blocks: ResidentBlocks,
    division: Division | None,
    by_trace: bool,
    precision: lax.PrecisionLike,
) -> None:
    """The tasks on one matrix."""
    for power in range(_POWERS):
        powers[power] = 1.0
    if division is None or by_trace:
        copy(given, x)
    else:
        divide(given, x, again, division)
    product_of = functools.partial(symmetric, table=table, tile=blocks.rows, precision=precision)

    def learn_scale() -> None:
        assert division is not None
        total = jnp.sum(trace[...], axis=1, keepdims=True)
        usual = is_usual(total[0, 0])
        scale = jnp.where(usual, inverse_divisor(total, division)[0, 0], 1.0)
        known = scale
        for power in range(1, _POWERS):
            powers[power] = known
            known = known * scale
        with jax.named_scope(RARE):

            @pl.when(~usual)
            def divide_first() -> None:
                divide(given, x, again, division)
                gram_slowly(x, squares.at[whole[1]], precision)

    def task(t: jax.Array, carry: Carry) -> Carry:
        kind, to, left, right, addend, *scaled = (whole[_WHOLE * t + k] for k in range(_WHOLE))
        alpha, beta, gamma = (real[_REAL * t + k] for k in range(_REAL))
        alpha, beta = alpha * powers[scaled[0]], beta * powers[scaled[1]]

        @pl.when(kind == GRAM)
        def gram() -> None:
            trace[...] = jnp.zeros_like(trace)
            own = trace if by_trace else None
            product_of(
                x, x, squares.at[to], lambda product, *at: product, start=starts[0], trace=own
            )

        @pl.when(kind == PRODUCT)
        def product() -> None:
            def end(product: jax.Array, *at: Any) -> jax.Array:
                return alpha * product + beta * squares[addend, *at].astype(product.dtype)

            operands = squares.at[left], squares.at[right]
            product_of(*operands, squares.at[to], end, start=starts[1], gamma=gamma)

        @pl.when(kind == APPLY)
        def multiply() -> None:
            apply(squares.at[left], x, alpha, beta, blocks.columns, precision)

        return carry

    if not by_trace:
        lax.fori_loop(0, tasks, task, 0)
        return

    def turn(i: jax.Array, carry: Carry) -> Carry:
        # The first task by itself, which is a product X X^T; then all others.
        lax.fori_loop(i, 1 + i * (tasks - 1), task, 0)
        pl.when(i == 0)(learn_scale)
        return carry

    lax.fori_loop(0, 2, turn, 0)


__all__ = ["Division", "iterate", "memory"]
