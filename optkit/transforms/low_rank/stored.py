"""Bases as codes: blocks lie along each matrix's own basis, in the order of the references."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.codecs import Codec
from optkit.codecs.base import Parts, stored
from optkit.transforms.low_rank.projection import Projector
from optkit.transforms.stored_leaves import read, write
from optkit.tree.sharding import spec_of, zeros_beside


def row_codec(stored_as: Any) -> Codec | None:
    """Returns the codec of bases, one matrix a row; None for a dtype."""
    if not isinstance(stored_as, Codec):
        return None
    if not any(field.name == "layout" for field in dataclasses.fields(stored_as)):
        raise ValueError(
            f"stored_as={stored_as!r} has no blocks along rows; give a codec with a layout, such "
            "as optkit.codecs.AffineCodec(4, packed=True), or a dtype"
        )
    if stored_as.is_random:
        raise ValueError(
            f"stored_as={stored_as!r} rounds at random: a basis that is stored once gains nothing "
            'from that; give rounding="nearest"'
        )
    return dataclasses.replace(stored_as.for_sign(True), layout="rows")  # type: ignore[call-arg]


def _flat_shape(part: Projector, side: str) -> tuple[int, ...]:
    return (*part.batch, part.size(side) * part.rank)


def coded_zeros(codec: Codec, part: Projector, side: str, leaf: Any) -> Parts:
    """Returns what stands for a basis that waits for its first gradient: codes that read as 0."""
    shapes = codec.shapes(_flat_shape(part, side))
    zeros = {name: zeros_beside(leaf, own.shape, own.dtype) for name, own in shapes.items()}
    return stored(codec, zeros)


def write_basis(codec: Codec, part: Projector, side: str, basis: jax.Array) -> Parts:
    """Stores a basis (*batch, side, r) in the order of (r, n) on the right, (m, r) on the left."""
    rows = basis.mT if side == "right" else basis
    return write(codec, rows.reshape(_flat_shape(part, side)))


def read_basis(
    codec: Codec, part: Projector, side: str, node: Any, matrices: jax.Array
) -> jax.Array:
    """Returns a stored basis (*batch, side, r) in float32."""
    shape = _flat_shape(part, side)
    if math.prod(shape) == 0:
        return jnp.zeros((*part.batch, part.size(side), part.rank), jnp.float32)
    spec = spec_of(matrices)
    if spec is not None:
        spec = PartitionSpec(*tuple(spec)[: len(part.batch)], None)
    flat = read(codec, node, shape, spec)
    size = part.size(side)
    if side == "right":
        return flat.reshape(*part.batch, part.rank, size).mT
    return flat.reshape(*part.batch, size, part.rank)
