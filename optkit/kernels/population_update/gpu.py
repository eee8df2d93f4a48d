"""The operation as a Pallas kernel for GPUs, by Triton.

A program has 64 places of rows and 64 of columns, which is 128 by 128 entries of the sum: numbers
are generated in twos that stand 128 apart, so that its entries are four blocks. It keeps them in
registers while it goes through the pairs. More would not fit, so that a number is made again for
each 128 entries of the other axis.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from optkit.kernels.counters import APART, normals_at, signs_of, stream
from optkit.kernels.implementation import Unserved

PLACES, PAIRS = 64, 32


def population_update(
    weights: jax.Array,
    words: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    signs: bool = False,
    precision: Any = None,
    interpret: bool = False,
) -> jax.Array:
    """``base.population_update`` of the counters that ``words`` are, ``Counters.words()``."""
    n, m = shape
    if n * m >= 2**31:
        raise Unserved(f"{n * m:,} entries are more than 32-bit indices count")
    out = pl.pallas_call(
        functools.partial(_kernel, shape, rank, weights.shape[0], signs, precision),
        grid=(_programs(n), _programs(m)),
        out_shape=jax.ShapeDtypeStruct((n * m,), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
    )(words, weights)
    return out.reshape(shape)


def _programs(size: int) -> int:
    """How many blocks of places an axis has: only those that begin before its end."""
    whole, rest = divmod(size, 2 * APART)
    return whole * (APART // PLACES) + min(APART // PLACES, pl.cdiv(rest, PLACES))


def _kernel(
    shape: tuple[int, int],
    rank: int,
    pairs: int,
    signs: bool,
    precision: Any,
    words: Any,
    weights: Any,
    out: Any,
) -> None:
    held = [jax.lax.bitcast_convert_type(words[n], jnp.uint32) for n in range(3)]
    places = [jnp.arange(PLACES, dtype=jnp.int32) + pl.program_id(axis) * PLACES for axis in (0, 1)]

    def factor(side: str, number: Any, k: Any, axis: int) -> tuple[jax.Array, jax.Array]:
        """Of some pairs, which lie along ``axis``."""
        full = (PAIRS, PLACES) if axis == 0 else (PLACES, PAIRS)
        along = [number, places[1]] if axis == 0 else [places[0], number]
        along = [jnp.broadcast_to(along[0][:, None], full), jnp.broadcast_to(along[1][None], full)]
        near, far = normals_at(held, along[axis], along[1 - axis], stream(side, k))
        return (signs_of(near), signs_of(far)) if signs else (near, far)

    def step(index: Any, totals: Any) -> Any:
        tile, k = jax.lax.div(index, jnp.int32(rank)), jax.lax.rem(index, jnp.int32(rank))
        number = jnp.arange(PAIRS, dtype=jnp.int32) + tile * PAIRS
        each = plgpu.load(weights.at[number], mask=number < pairs, other=0.0)
        left = factor("a", number, k, 0)
        return tuple(
            total + jnp.dot(own, other, precision=precision, preferred_element_type=jnp.float32)
            for total, (own, other) in zip(
                totals,
                [(b * each[None], a) for b in factor("b", number, k, 1) for a in left],
                strict=True,
            )
        )

    zeros = jnp.zeros((PLACES, PLACES), jnp.float32)
    totals = jax.lax.fori_loop(0, pl.cdiv(pairs, PAIRS) * rank, step, (zeros,) * 4)
    row, column = (place // APART * (2 * APART) + place % APART for place in places)
    for half, total in enumerate(totals):
        own, other = row + half // 2 * APART, column + half % 2 * APART
        mask = (own < shape[0])[:, None] & (other < shape[1])[None]
        plgpu.store(out.at[own[:, None] * shape[1] + other[None]], total, mask=mask)
