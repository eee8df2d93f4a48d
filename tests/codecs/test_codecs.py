"""Block codecs: nearest entries, laws of round trips, layouts, rounding that is true on average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.codecs import (
    AffineCodec,
    Bf16Codec,
    Codec,
    Fp8Codec,
    IdentityCodec,
    TableCodec,
    bf16_stochastic,
    dynamic_map,
    fp8_nearest,
    fp8_stochastic,
)
from optkit.codecs.blocks import blocks_shape, largest, largest_by_slices

DYNAMIC8 = TableCodec(block=64)
DYNAMIC4 = TableCodec(bits=4, exponent_bits=3, block=64)
CODECS: list[Codec] = [
    IdentityCodec(),
    Bf16Codec(),
    DYNAMIC8,
    DYNAMIC8.for_sign(False),
    TableCodec(block=64, scale="extreme"),
    TableCodec(block=64, ties="upper", floor=1e-12),
    DYNAMIC4,
    DYNAMIC4.for_sign(False),
    TableCodec("linear", block=64),
    TableCodec("nf4", bits=4, block=64),
    TableCodec("e4m3", block=64),
    Fp8Codec(block=64),
    AffineCodec(group=64),
    AffineCodec(bits=4, group=64, packed=True),
]
RANDOM: list[Codec] = [
    Bf16Codec("stochastic"),
    TableCodec(block=64, rounding="stochastic"),
    TableCodec(block=64, rounding="stochastic", signed=False),
    Fp8Codec(block=64, rounding="stochastic"),
    AffineCodec(group=64, rounding="stochastic"),
]
SHAPES = [(3, 130), (7, 9), (2, 3, 64), (), (2, 0, 4)]


def label(codec: Codec) -> str:
    return codec.name + ("_random" if codec.is_random else "")


@functools.partial(jax.jit, static_argnums=0)
def store(codec: Codec, x: jax.Array, key: jax.Array | None = None) -> tuple:
    parts = codec.encode(x, key)
    return parts, codec.decode(parts, x.shape)


SHARE = jax.jit(lambda codec, x: codec.contraction(x), static_argnums=0)


def is_unsigned(codec: Codec) -> bool:
    return isinstance(codec, TableCodec) and not codec.signed


def values(seed: int, shape: tuple[int, ...], codec: Codec, scale: float = 1.0) -> np.ndarray:
    """Normal numbers over four decades, without negative ones where the codec has none."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 0, shape) * scale
    return np.float32(np.abs(x) if is_unsigned(codec) else x)


def oracle(codec: TableCodec, x: np.ndarray) -> np.ndarray:
    """What a table codec reads, block by block with a search over all entries."""
    rows = x.ndim > 0 and x.shape[-1] >= codec.block
    out = np.zeros(x.shape, np.float32)
    flat = x.reshape(-1, x.shape[-1]) if rows else x.reshape(1, -1)
    read = out.reshape(flat.shape)
    entries = codec.entries.astype(np.float64)
    for row in range(flat.shape[0]):
        for start in range(0, flat.shape[1], codec.block):
            block = flat[row, start : start + codec.block]
            scale = np.max(np.abs(block), initial=0.0)
            if codec.scale == "extreme" and block[np.argmax(np.abs(block))] < 0:
                scale = -scale
            y = (block / np.float32(scale or 1.0)).astype(np.float64)
            index = np.argmin(np.abs(y[:, None] - entries), axis=1)
            read[row, start : start + codec.block] = codec.entries[index] * np.float32(scale)
    return out


@pytest.mark.sweep
@pytest.mark.parametrize("codec", CODECS, ids=label)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_stored_as_said(codec: Codec, shape: tuple[int, ...]) -> None:
    x = values(0, shape, codec)
    parts, y = store(codec, x)
    assert {k: (v.shape, v.dtype) for k, v in parts.items()} == {
        k: (s.shape, s.dtype) for k, s in codec.shapes(shape).items()
    }
    assert codec.bytes(shape) == sum(np.asarray(part).nbytes for part in parts.values())
    assert (y.shape, y.dtype) == (shape, jnp.float32)


@pytest.mark.parametrize("codec", [c for c in CODECS if isinstance(c, TableCodec)], ids=label)
@given(seed=st.integers(0, 2**16), shape=st.sampled_from(SHAPES[:3]))
def test_the_nearest_entry_is_taken(codec: TableCodec, seed: int, shape: tuple[int, ...]) -> None:
    x = values(seed, shape, codec)
    np.testing.assert_allclose(store(codec, x)[1], oracle(codec, x), rtol=2e-7, atol=0)


def test_ties_go_down_or_up() -> None:
    entries = dynamic_map()
    middle = np.float32((entries[200] + entries[201]) / 2)
    x = np.float32([1.0, middle])
    for ties, code in (("lower", 200), ("upper", 201)):
        assert store(TableCodec(ties=ties), x)[0]["codes"].tolist() == [255, code]


def test_keep_sign_moves_off_entries_of_the_other_sign() -> None:
    x = np.float32([1.0, 1e-9, -1e-9, 0.0])
    entries = dynamic_map()
    assert entries[127] == 0.0
    assert store(TableCodec(keep_sign=True), x)[0]["codes"].tolist() == [255, 128, 126, 127]


@pytest.mark.sweep
@pytest.mark.parametrize("codec", CODECS + RANDOM, ids=label)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-18, 1e-4, 1.0, 1e15]))
def test_the_contraction_law_holds(codec: Codec, seed: int, scale: float) -> None:
    x = values(seed, (3, 130), codec, scale)
    y = store(codec, x, jax.random.key(seed) if codec.is_random else None)[1]
    lost = np.sum((np.float64(y) - x) ** 2) / np.sum(np.float64(x) ** 2)
    assert lost <= 1.0 - float(SHARE(codec, x)) + 1e-6


@pytest.mark.parametrize("codec", CODECS[:6] + CODECS[6:8] + CODECS[10:12], ids=label)
@given(seed=st.integers(0, 2**16))
def test_stored_twice_is_stored_once(codec: Codec, seed: int) -> None:
    x = values(seed, (3, 128), codec)
    if isinstance(codec, TableCodec) and codec.scale == "magnitude":
        # The extreme of each block is positive: the table has no -1.
        x[:, ::64] = np.abs(x).max() * 1.5
    parts, y = store(codec, x)
    again, z = store(codec, y)
    # A quotient by 448 is not undone to the last bit; all else is.
    exact = not isinstance(codec, Fp8Codec)
    np.testing.assert_allclose(z, y, rtol=0 if exact else 2.5e-7)
    for name in parts:
        loose = name == "scale" and not exact
        np.testing.assert_allclose(
            np.float32(again[name]), np.float32(parts[name]), rtol=1.3e-7 if loose else 0
        )


def test_a_negative_extreme_shrinks_unless_the_scale_bears_its_sign() -> None:
    x = np.float32([-1.0, 0.25, 0.0, 0.5])
    for scale, kept in (("magnitude", float(-dynamic_map()[0])), ("extreme", 1.0)):
        codec, y = TableCodec(scale=scale), jnp.asarray(x)
        for _ in range(20):
            y = store(codec, y)[1]
        assert float(-y[0]) == pytest.approx(kept**20, rel=1e-5)
    assert float(dynamic_map()[0]) == pytest.approx(-0.99297, abs=1e-5)
    assert -1.0 not in dynamic_map()


@pytest.mark.parametrize("codec", [DYNAMIC8, DYNAMIC4, Fp8Codec(block=64), AffineCodec(group=64)])
def test_layouts_agree_where_the_block_divides_the_row(codec: Codec) -> None:
    x = values(3, (5, 192), codec)
    rows, flat = (
        store(dataclasses.replace(codec, layout=layout), x) for layout in ("rows", "flat")
    )
    np.testing.assert_array_equal(rows[1], flat[1])
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name].ravel(), flat[0][name].ravel())


def test_blocks_follow_rows_that_hold_one() -> None:
    assert blocks_shape((4, 300), 256, "auto") == (4, 2, 256)
    assert blocks_shape((4, 100), 256, "auto") == (2, 256)
    assert blocks_shape((4, 100), 256, "rows") == (4, 1, 256)
    assert blocks_shape((), 256, "rows") == (1, 256)


@pytest.mark.parametrize("shape", [(3, 64), (2, 3, 256), (4, 7)])
def test_maxima_do_not_depend_on_how_they_are_taken(shape: tuple[int, ...]) -> None:
    x = values(1, shape, DYNAMIC8)
    x.flat[5] = np.nan
    want = np.max(np.abs(x), axis=-1)
    np.testing.assert_array_equal(largest(x), want)
    if shape[-1] % 32 == 0:
        np.testing.assert_array_equal(largest_by_slices(jnp.asarray(x)), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_hides_a_number_that_is_none(bad: float) -> None:
    for codec in (DYNAMIC8, DYNAMIC4, Fp8Codec(block=64), AffineCodec(group=64)):
        x = values(0, (130,), codec)
        x[3] = bad
        y = store(codec, x)[1]
        assert not np.isfinite(y[:64]).all(), codec
        assert np.isfinite(y[64:]).all(), codec


def test_fp8_rounds_as_a_cast_does() -> None:
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    middles = (numbers[1:] + numbers[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(sign * 1e9)) for sign in (-1, 1)]
    rest = np.float32([1e-30, -1e-30, np.nan])
    x = np.concatenate([numbers, middles, *beside, rest])
    got = np.asarray(fp8_nearest(x)).view(np.uint8)
    np.testing.assert_array_equal(got, x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


# ---- rounding at random


def z_score(draws: np.ndarray, mean: float) -> float:
    """By how many standard errors a mean is off."""
    spread = draws.std(ddof=1) / np.sqrt(draws.size)
    return abs(draws.mean() - mean) / max(spread, 1e-30)


@pytest.mark.parametrize(
    "codec", [*RANDOM, TableCodec("linear", block=64, rounding="stochastic")], ids=label
)
@pytest.mark.parametrize("value", [0.3017, 0.00123, 0.77])
def test_stochastic_rounding_is_true_on_average(codec: Codec, value: float) -> None:
    """Of 4000 draws the mean is within 5 standard errors: by chance once in 1.7 million tests."""
    x = np.full((4000, 64), value, np.float32)
    x[:, 0] = 1.0  # the scale
    y = np.float64(store(codec, x, jax.random.key(7))[1][:, 1])
    assert len(np.unique(y)) == 2
    assert y.min() < np.float32(value) < y.max()
    assert z_score(y, float(np.float32(value))) < 5.0


@pytest.mark.parametrize("codec", RANDOM, ids=label)
def test_what_can_be_stored_is_not_rounded(codec: Codec) -> None:
    nearest = {
        "bfloat16": Bf16Codec(),
        "affine8_64_auto": AffineCodec(group=64),
    }.get(codec.name)
    if nearest is None:
        nearest = dataclasses.replace(codec, rounding="nearest")  # type: ignore[type-var]
    x = values(5, (128,), codec)
    x[::64] = 2.0  # a positive extreme
    y = store(nearest, x)[1]
    if isinstance(codec, AffineCodec):
        return  # its scale is computed anew from what was rounded
    np.testing.assert_array_equal(store(codec, y, jax.random.key(0))[1], y)


def test_stochastic_fp8_knows_both_neighbours_everywhere() -> None:
    numbers = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    inside = numbers[:-1] + 0.25 * (numbers[1:] - numbers[:-1])
    low = fp8_stochastic(inside, jnp.full(126, 0.26)).astype(jnp.float32)
    high = fp8_stochastic(-inside, jnp.full(126, 0.24)).astype(jnp.float32)
    np.testing.assert_array_equal(low, numbers[:-1])
    np.testing.assert_array_equal(high, -numbers[1:])


def test_bf16_rounds_away_from_zero_as_often_as_bits_are_lost() -> None:
    x = np.float32([1.0 + 2.0**-8, -1.0 - 2.0**-9, 3.0])
    drawn = jnp.arange(2**16)
    y = np.asarray(bf16_stochastic(jnp.tile(x, (2**16, 1)), jnp.stack([drawn] * 3, 1)), np.float64)
    np.testing.assert_array_equal(y.mean(0), x)  # over all draws exactly
    assert np.isnan(np.float32(bf16_stochastic(jnp.float32(np.nan), jnp.uint32(0))))


# ---- integers


def test_affine_groups_beside_zero_need_a_wider_range() -> None:
    w = np.linspace(1.0, 2.0, 64, dtype=np.float32)
    narrow = store(AffineCodec(group=64, widen=False), w)[1]
    assert np.ptp(narrow) == 0.0  # all of them are read as one number
    wide = np.asarray(store(AffineCodec(group=64), w)[1])
    assert np.abs(wide - w).max() <= 2.0 / 255 / 2 * (1 + 1e-5)


@given(seed=st.integers(0, 2**16))
def test_affine_codes_are_those_of_the_formula(seed: int) -> None:
    x = values(seed, (4, 64), DYNAMIC8)
    s = np.maximum(np.ptp(x, axis=-1), 1e-5) / np.float32(255)
    z = np.clip(-np.round(x.min(-1) / s), 0, 255)
    codes = np.clip(np.round(x / s[:, None]) + z[:, None], 0, 255)
    for widen in (False, True):  # every group straddles 0
        got = store(AffineCodec(group=64, widen=widen), x)[0]["codes"]
        assert np.abs(np.float32(got) - codes).max() <= 1  # a quotient on a boundary
        assert np.mean(np.float32(got) != codes) < 0.02


def test_bytes_are_those_of_the_table() -> None:
    size = (1024, 1024)
    each = {
        TableCodec(): 1 + 4 / 256,
        TableCodec(block=2048, layout="flat"): 1 + 4 / 2048,
        TableCodec(bits=4, exponent_bits=3, block=128): 0.5 + 4 / 128,
        Fp8Codec(): 1 + 4 / 256,
        AffineCodec(): 1 + 8 / 256,
        AffineCodec(bits=4, packed=True): 0.5 + 8 / 256,
        Bf16Codec(): 2,
        IdentityCodec(): 4,
    }
    for codec, want in each.items():
        assert codec.bytes(size) == want * 1024**2, codec


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TableCodec(block=1), "block=1 cannot be served"),
        (lambda: TableCodec(bits=4, exponent_bits=3, block=7), "block=7 cannot be served"),
        (lambda: TableCodec(bits=5), "bits=5 must be 4 or 8"),
        (lambda: TableCodec("sixteenths", bits=4), "give signed=False"),
        (lambda: TableCodec("decimal"), "kind='decimal' is none of"),
        (lambda: TableCodec("nf4", bits=4, signed=False), "has both signs"),
        (lambda: TableCodec(signed=False, scale="extreme"), "for signed tables"),
        (lambda: dynamic_map(True, 8, 8), "exponent_bits=8 must be from 1"),
        (lambda: Fp8Codec(block=0), "block=0 must be an integer"),
        (lambda: AffineCodec(bits=8, packed=True), "at most 4"),
        (lambda: Fp8Codec(rounding="stochastic").encode(jnp.ones(4)), "give encode a PRNG key"),
        (lambda: Bf16Codec("stochastic").encode(jnp.ones(4)), "give it a PRNG key"),
    ],
)
def test_wrong_options_are_answered(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
