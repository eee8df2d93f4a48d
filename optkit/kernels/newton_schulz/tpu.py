"""The whole iteration as one Pallas kernel for TPUs: X and a few squares stay in vector memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from optkit.kernels.blocks import LANES, bytes_of, check_divides, check_on_chip
from optkit.kernels.newton_schulz.blocks import ResidentBlocks
from optkit.kernels.newton_schulz.plan import APPLY, GRAM, PRODUCT, SUM, Task, loops, slots
from optkit.linalg.normalise import EpsMode

# What the compiler needs beside the buffers: results of products on their way to memory.
_SPARE = 6 * 2**20
# Of a Task: whole numbers, and numbers that are not.
_WHOLE, _REAL = 5, 2
# Its inverse is a normal number.
_LARGEST_PEAK = 2.0**126
_USUAL = 2.0**40

Carry = Any


class Division(NamedTuple):
    """What a matrix is divided by before the steps; see ``optkit.linalg.normalise``."""

    eps: float
    eps_mode: EpsMode
    margin: float


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
    whole = np.asarray([task[:_WHOLE] for task in tasks], np.int32).reshape(-1)
    real = np.asarray([task[_WHOLE:] for task in tasks], np.float32).reshape(-1)
    below = [(i, j) for i in range(m // blocks.rows) for j in range(i)]
    pairs = np.asarray(below or [(0, 0)], np.int32).reshape(-1)
    block = pl.BlockSpec((None, m, n), lambda i, *_: (i, 0, 0))
    work = loops(m, n, tasks, blocks.rows, blocks.columns)
    kernel = functools.partial(
        _kernel, tasks=len(tasks), pairs=len(below), blocks=blocks, division=division,
        precision=precision,
    )  # fmt: skip
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch,),
            in_specs=[block],
            out_specs=block,
            scratch_shapes=[pltpu.VMEM((slots(tasks), m, m), jnp.dtype(compute_dtype))],
        ),
        out_shape=jax.ShapeDtypeStruct(x.shape, compute_dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=needed
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * sum(loop.trips * loop.products for loop in work),
            transcendentals=0,
            bytes_accessed=bytes_of((x.shape, x.dtype), (x.shape, compute_dtype)),
        ),
        interpret=interpret,
        name="newton_schulz",
    )(jnp.asarray(whole), jnp.asarray(real), jnp.asarray(pairs), x)


def _kernel(
    whole: Any,
    real: Any,
    table: Any,
    given: Any,  # (m, n), as it came
    x: Any,  # (m, n), what goes out: X all along
    squares: Any,  # (slots, m, m)
    *,
    tasks: int,
    pairs: int,
    blocks: ResidentBlocks,
    division: Division | None,
    precision: lax.PrecisionLike,
) -> None:
    """The tasks on one matrix."""
    _load(given, x, division)
    symmetric = functools.partial(
        _symmetric, table=table, pairs=pairs, tile=blocks.rows, precision=precision
    )

    def task(t: jax.Array, carry: Carry) -> Carry:
        kind, to, left, right, addend = (whole[_WHOLE * t + k] for k in range(_WHOLE))
        alpha, beta = (real[_REAL * t + k] for k in range(_REAL))

        @pl.when(kind == GRAM)
        def gram() -> None:
            symmetric(x, x, squares.at[to], lambda product, *at: product)

        @pl.when(kind == PRODUCT)
        def product() -> None:
            def end(product: jax.Array, *at: Any) -> jax.Array:
                return alpha * product + beta * squares[addend, *at].astype(product.dtype)

            symmetric(squares.at[left], squares.at[right], squares.at[to], end)

        @pl.when(kind == SUM)
        def add_identity() -> None:
            _add_identity(squares.at[left], squares.at[to], beta)

        @pl.when(kind == APPLY)
        def apply() -> None:
            _apply(squares.at[left], x, alpha, beta, blocks.columns, precision)

        return carry

    lax.fori_loop(0, tasks, task, 0)


def _symmetric(
    left: Any,
    right: Any,
    to: Any,
    end: Callable[..., jax.Array],
    *,
    table: Any,
    pairs: int,
    tile: int,
    precision: lax.PrecisionLike,
) -> None:
    """``left right^T``, which is symmetric, from tiles on and below the diagonal."""

    def off(pair: jax.Array, carry: Carry) -> Carry:
        here, there = (_tile(table[2 * pair + k], tile) for k in (0, 1))
        y = end(_transposed(left[here, :], right[there, :], precision), here, there)
        y = y.astype(to.dtype)
        to[here, there] = y
        to[there, here] = y.T
        return carry

    def on(i: jax.Array, carry: Carry) -> Carry:
        here = _tile(i, tile)
        if tile == LANES:
            y = end(_transposed(left[here, :], right[here, :], precision), here, here)
            to[here, here] = _mean(y).astype(to.dtype)
            return carry
        # Of a tile on the diagonal, too, only what lies below it.
        half = tile // 2
        top, low = (pl.ds(pl.multiple_of(i * tile + k * half, half), half) for k in (0, 1))
        first = _transposed(left[here, :], right[top, :], precision)
        last = _transposed(left[low, :], right[low, :], precision)
        side = end(first[half:], low, top).astype(to.dtype)
        corners = [end(x, at, at) for x, at in ((first[:half], top), (last, low))]
        to[top, top], to[low, low] = (_mean(x).astype(to.dtype) for x in corners)
        to[low, top], to[top, low] = side, side.T
        return carry

    if pairs:
        lax.fori_loop(0, pairs, off, 0)
    lax.fori_loop(0, to.shape[0] // tile, on, 0)


def _apply(
    factor: Any, x: Any, alpha: jax.Array, beta: jax.Array, columns: int, precision: Any
) -> None:
    """``X = alpha factor X + beta X``, in place."""

    def panel(j: jax.Array, carry: Carry) -> Carry:
        here = _tile(j, columns)
        y = x[:, here]
        product = jnp.dot(factor[:, :], y, precision=precision, preferred_element_type=jnp.float32)
        x[:, here] = (alpha * product + beta * y.astype(product.dtype)).astype(x.dtype)
        return carry

    lax.fori_loop(0, x.shape[1] // columns, panel, 0)


def _add_identity(x: Any, to: Any, beta: jax.Array) -> None:
    def panel(i: jax.Array, carry: Carry) -> Carry:
        y = x[_tile(i), :].astype(jnp.float32)
        row, column = (lax.broadcasted_iota(jnp.int32, y.shape, axis) for axis in (0, 1))
        to[_tile(i), :] = jnp.where(row + i * LANES == column, y + beta, y).astype(to.dtype)
        return carry

    lax.fori_loop(0, x.shape[0] // LANES, panel, 0)


def _load(given: Any, x: Any, division: Division | None) -> None:
    """Brings the matrix to where it is worked on, divided by its norm."""
    panels, n = given.shape[0] // LANES, given.shape[1]
    inverse: Any = None
    rest: Any = None
    if division is not None:

        def first(i: jax.Array, carry: Carry) -> Carry:
            y = given[_tile(i), :].astype(jnp.float32)
            most, total = carry
            most = jnp.maximum(most, jnp.max(jnp.abs(y), axis=0, keepdims=True))
            return most, total + jnp.sum(y * y, axis=0, keepdims=True)

        def again(i: jax.Array, total: jax.Array) -> jax.Array:
            y = given[_tile(i), :].astype(jnp.float32) * inverse
            return total + jnp.sum(y * y, axis=0, keepdims=True)

        zeros = jnp.zeros((1, n), jnp.float32)
        most, total = lax.fori_loop(0, panels, first, (zeros, zeros))
        most = jnp.max(most, axis=1, keepdims=True)
        inverse = _inverse_peak(most)
        # Squares of numbers far from 1 overflow or vanish: then they are summed once more.
        usual = (most[0, 0] > 1.0 / _USUAL) & (most[0, 0] < _USUAL)
        start = jnp.where(usual, total * inverse * inverse, 0.0)
        total = lax.fori_loop(0, jnp.where(usual, 0, panels), again, start)
        total = jnp.sum(total, axis=1, keepdims=True)
        rest = 1.0 / _divisor(jnp.sqrt(total), inverse, division)

    def panel(i: jax.Array, carry: Carry) -> Carry:
        y = given[_tile(i), :]
        if division is not None:
            # In two steps: both factors at once may be too small a number, or too large.
            y = y.astype(jnp.float32) * inverse * rest
        x[_tile(i), :] = y.astype(x.dtype)
        return carry

    lax.fori_loop(0, panels, panel, 0)


def _inverse_peak(largest: jax.Array) -> jax.Array:
    """One over the power of two below a number ``(1, 1)``: what has no normal number becomes 0."""
    alive = ~(largest < jnp.finfo(jnp.float32).tiny)
    known = jnp.clip(jnp.where(alive, largest, 1.0), None, _LARGEST_PEAK)
    exponent = lax.bitcast_convert_type(known, jnp.int32) & 0x7F800000
    return jnp.where(alive, 1.0 / lax.bitcast_convert_type(exponent, jnp.float32), 0.0)


def _divisor(norm: jax.Array, inverse: jax.Array, division: Division) -> jax.Array:
    scaled, eps = division.margin * norm, division.eps * inverse
    scaled = scaled + eps if division.eps_mode == "add" else jnp.maximum(scaled, eps)
    return jnp.where(scaled == 0.0, 1.0, scaled)


def _tile(i: jax.Array, size: int = LANES) -> Any:
    return pl.ds(pl.multiple_of(i * size, size), size)


def _mean(x: jax.Array) -> jax.Array:
    """With its transpose: symmetric bit for bit."""
    return 0.5 * (x + x.T)


def _transposed(a: jax.Array, b: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    """``a b^T``."""
    over = (((1,), (1,)), ((), ()))
    return lax.dot_general(a, b, over, precision=precision, preferred_element_type=jnp.float32)
