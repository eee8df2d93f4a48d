"""Compressors: what they keep, what they store, and that random ones are true on average."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.codecs import Codec, RandomK, SignCodec, TopK, UniformCodec

FIXED: list[Codec] = [
    TopK(3),
    TopK(0.25),
    SignCodec(),
    SignCodec(zero="plus"),
    SignCodec(zero="plus", size="rms"),
    SignCodec(block=8),
    UniformCodec(bits=4, block=8),
    UniformCodec(bits=4, block=8, packed=True),
    UniformCodec(bits=3, block=None, packed=True),
    UniformCodec(bits=8, block=None),
    UniformCodec(bits=2, block=8, norm="norm"),
]
UNBIASED: list[Codec] = [
    RandomK(0.25, unbiased=True),
    UniformCodec(bits=4, block=8, rounding="stochastic"),
    UniformCodec(bits=3, block=None, norm="norm", rounding="stochastic"),  # QSGD
]
RANDOM = [*UNBIASED, RandomK(3)]


@functools.partial(jax.jit, static_argnums=0)
def read(codec: Codec, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return codec.round_trip(x, key)


SHARE = jax.jit(lambda codec, x: codec.contraction(x), static_argnums=0)


def normal(seed: int, shape: tuple[int, ...] = (4, 10), scale: float = 1.0) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).standard_normal(shape) * scale)


@pytest.mark.sweep
@pytest.mark.parametrize("codec", [*FIXED, *RANDOM], ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(4, 10), (7,), ()], ids=str)
def test_what_is_stored_has_the_shapes_that_are_said(codec: Codec, shape: tuple) -> None:
    parts = jax.eval_shape(codec.encode, jnp.zeros(shape), jax.random.key(0))
    assert {k: (v.shape, v.dtype) for k, v in parts.items()} == {
        k: (v.shape, v.dtype) for k, v in codec.shapes(shape).items()
    }
    assert jax.eval_shape(lambda p: codec.decode(p, shape), parts).shape == shape
    assert not np.asarray(read(codec, jnp.zeros(shape), jax.random.key(0)))[...].any() or (
        isinstance(codec, SignCodec) and not codec.scaled
    )


@pytest.mark.parametrize("codec", FIXED, ids=lambda c: c.name)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-15, 1.0, 1e15]))
def test_they_contract_as_they_say(codec: Codec, seed: int, scale: float) -> None:
    x = normal(seed, scale=scale)
    lost = np.sum((np.float64(read(codec, x)) - x) ** 2) / np.sum(np.float64(x) ** 2)
    share = float(SHARE(codec, x))
    assert lost <= 1.0 - share + 1e-5
    if isinstance(codec, SignCodec | UniformCodec):
        assert lost == pytest.approx(1.0 - share, rel=1e-3, abs=1e-6)  # the law is exact


@pytest.mark.parametrize("codec", RANDOM, ids=lambda c: c.name)
def test_on_average_they_contract_as_they_say(codec: Codec) -> None:
    x = normal(3)
    draws = np.stack([read(codec, x, jax.random.key(i)) for i in range(400)]).astype(np.float64)
    lost = np.sum((draws - x) ** 2, axis=(1, 2)) / np.sum(np.float64(x) ** 2)
    spread = 5 * lost.std() / 20 + 1e-6  # five standard errors: once in 1.7 million
    assert abs(lost.mean() - (1.0 - float(SHARE(codec, x)))) < spread
    if codec in UNBIASED:
        error = np.abs(draws.mean(0) - x) / (draws.std(0) / 20 + 1e-7)
        assert error.max() < 6  # of 40 entries, six standard errors


def test_top_k_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    x = jnp.array([[1.0, -2.0], [2.0, 0.5]])
    assert read(TopK(1), x).tolist() == [[0.0, -2.0], [0.0, 0.0]]
    assert read(TopK(0.5), x).tolist() == [[0.0, -2.0], [2.0, 0.0]]
    assert read(TopK(9), x).tolist() == x.tolist()


@pytest.mark.parametrize("codec", [c for c in FIXED if isinstance(c, SignCodec)])
def test_signs_are_read_alike_packed_or_not(codec: Codec) -> None:
    x = normal(2)
    x[1, 3] = 0.0
    packed = codec.decode(codec.encode(x), x.shape)
    np.testing.assert_allclose(read(codec, x), packed, rtol=1e-6)


def test_signs_of_zero() -> None:
    x = jnp.array([2.0, 0.0, -4.0])
    assert read(SignCodec(), x).tolist() == [2.0, 0.0, -2.0]
    assert read(SignCodec(zero="plus"), x).tolist() == [2.0, 2.0, -2.0]
    assert read(SignCodec(scaled=False), x).tolist() == [1.0, 0.0, -1.0]


@given(seed=st.integers(0, 2**16))
def test_a_filled_up_block_has_the_mean_of_what_is_there(seed: int) -> None:
    x = normal(seed, (10,))
    got = np.abs(read(SignCodec(block=8), x))
    np.testing.assert_allclose(got[:8], np.abs(x[:8]).mean(), rtol=1e-6)
    np.testing.assert_allclose(got[8:], np.abs(x[8:]).mean(), rtol=1e-6)


def test_bytes() -> None:
    size = (64, 64)
    each = {
        TopK(40): 8 * 40,
        RandomK(0.01): 8 * 41,
        SignCodec(zero="plus"): 4096 / 8 + 4,
        SignCodec(): 4096 / 4 + 4,
        SignCodec(block=64, zero="plus"): 4096 / 8 + 4 * 64,
        UniformCodec(bits=4, block=64): 4096 / 2 + 4 * 64,
        UniformCodec(bits=8, block=None): 4096 + 4,
    }
    for codec, want in each.items():
        assert codec.bytes(size) == want, codec
    assert math.prod(UniformCodec().shapes(size)["codes"].shape) == 4096
    assert math.prod(UniformCodec(packed=True).shapes(size)["codes"].shape) == 2048


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TopK(0), "k=0 must be a number"),
        (lambda: TopK(1.5), "k=1.5 is a share"),
        (lambda: RandomK(2).encode(jnp.ones(3)), "give encode a PRNG key"),
        (lambda: SignCodec(zero="minus"), "zero='minus'"),
        (lambda: SignCodec(block=0), "block=0"),
        (lambda: UniformCodec(bits=1), "bits=1 must be from 2"),
        (lambda: UniformCodec(norm="l1"), "norm='l1'"),
    ],
)
def test_wrong_options_are_answered(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
