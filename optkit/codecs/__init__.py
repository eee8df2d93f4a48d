"""Codecs: rules by which an array is stored in fewer bytes, and read again."""

from optkit.codecs.affine import AffineCodec
from optkit.codecs.base import Codec
from optkit.codecs.floats import (
    Bf16Codec,
    Fp8Codec,
    IdentityCodec,
    bf16_stochastic,
    fp8_nearest,
    fp8_stochastic,
)
from optkit.codecs.signs import SignCodec
from optkit.codecs.sparse import RandomK, TopK
from optkit.codecs.table import TableCodec
from optkit.codecs.tables import dynamic_map, float_map, linear_map
from optkit.codecs.uniform import UniformCodec

__all__ = [
    "AffineCodec",
    "Bf16Codec",
    "Codec",
    "Fp8Codec",
    "IdentityCodec",
    "RandomK",
    "SignCodec",
    "TableCodec",
    "TopK",
    "UniformCodec",
    "bf16_stochastic",
    "dynamic_map",
    "float_map",
    "fp8_nearest",
    "fp8_stochastic",
    "linear_map",
]
