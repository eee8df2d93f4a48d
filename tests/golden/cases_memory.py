"""Cases of low-bit states: tables and codes."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from optkit.codecs import (
    TableCodec,
    bf16_stochastic,
    dynamic_map,
    float_map,
    linear_map,
)
from optkit.codecs.tables import table
from tests.golden.replay import Comparison, Golden, case


def _entries(name: str, signed: bool) -> np.ndarray | None:
    """The table that a name in the file stands for; None for what is no codec of ours."""
    if found := re.fullmatch(r"dynamic(\d)(?:_e(\d))?(?:_padded)?", name):
        bits = int(found[1])
        return dynamic_map(signed, int(found[2] or bits - 1), bits)
    if found := re.fullmatch(r"linear(\d)", name):
        return linear_map(signed, int(found[1]))
    if found := re.fullmatch(r"fp8_e(\d)m(\d)", name):
        return float_map(int(found[1]), int(found[2]), signed)
    if name.startswith("nf4"):
        return np.frombuffer(table("nf4", True, 4), np.float32)
    if found := re.fullmatch(r"ao_(signed|unsigned)(\d)", name):
        codec = TableCodec(bits=int(found[2]), exponent_bits=None if found[2] == "8" else 3)
        return codec.for_sign(found[1] == "signed").entries
    return None


@case("bnb_dynamic_map")
def bnb_dynamic_map(golden: Golden) -> Iterator[Comparison]:
    for key, want in golden.arrays.items():
        name, _, sign = key.partition("/")
        got = _entries(name, sign != "unsigned")
        if got is not None:
            # Short tables are filled up with zeros there.
            filled = np.sort(np.append(got, np.zeros(len(want) - len(got), np.float32)))
            yield Comparison(float(np.sum(filled != np.sort(want))), 0.5)


@case("bnb_blockwise_roundtrip")
def bnb_blockwise_roundtrip(golden: Golden) -> Iterator[Comparison]:
    for key in golden.arrays:
        name, _, field = key.rpartition("/")
        if field != "x":
            continue
        _, sign, block = name.split("/")
        codec = TableCodec(signed=sign == "signed", block=int(block), layout="flat")
        x = jnp.asarray(golden.arrays[key])
        parts = jax.jit(codec.encode)(x)
        got = {"code": parts["codes"], "absmax": parts["scale"], "y": codec.decode(parts, x.shape)}
        for field, value in got.items():
            want = golden.arrays[f"{name}/{field}"]
            yield Comparison(float(np.sum(np.asarray(value) != want)), 0.5)


@case("bf16_stochastic_round")
def bf16_stochastic_round(golden: Golden) -> Iterator[Comparison]:
    x, drawn = (jnp.asarray(golden.arrays[key]) for key in ("x", "rand16"))
    got = np.asarray(bf16_stochastic(x, drawn)).view(np.uint16)
    yield Comparison(float(np.sum(got != golden.arrays["y_bits"])), 0.5)
