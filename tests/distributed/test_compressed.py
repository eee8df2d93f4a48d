"""Compressed averages: nothing is lost, both execution forms, wire bytes, zeros, refusals."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from optkit.codecs import Codec, SignCodec, TopK, UniformCodec
from tests.conformance.hlo import collectives, sent_bytes
from tests.distributed.workers import AXIS, follow, gradients, on_devices

SHAPES = {"w": (3, 7), "b": (5,), "gain": (), "none": (0, 4)}
CODECS: list[Codec] = [
    SignCodec(zero="plus", size="rms"),
    SignCodec(),
    UniformCodec(bits=8, block=None),
    UniformCodec(bits=8, block=8),
]


def served(errors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What the servers' chunks (workers, 1, chunk) say of the leaf."""
    return np.float64(errors).reshape(-1)[: int(np.prod(shape))].reshape(shape)


def waiting(state: Any, name: str) -> np.ndarray:
    own = np.float64(state.error.of_worker["worker"][name]).mean(0)[0]
    size = int(np.prod(SHAPES[name]))
    return own[:size].reshape(SHAPES[name]) + served(
        state.error.of_worker["server"][name], SHAPES[name]
    )


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**16))
def test_what_was_averaged_and_what_waits_is_all_there_was(codec: Codec, seed: int) -> None:
    grads = gradients(seed, 4, 3, SHAPES)
    out, states = follow(optkit.compressed_mean(codec, AXIS, every_leaf=True), grads)
    for name in SHAPES:
        sent = np.sum([np.float64(u[name][0]) for u in out], 0)
        total = np.sum([np.float64(g[name]).mean(0) for g in grads], 0)
        np.testing.assert_allclose(sent + waiting(states[-1], name), total, atol=1e-5)
        assert all(np.all(u[name] == u[name][:1]) for u in out)  # bit for bit on all workers


def test_bytes_keep_more_than_bits_and_both_the_mean_in_the_end() -> None:
    g = gradients(0, 1, 4, {"w": (64,)}) * 60
    mean, off = g[0]["w"].mean(0), {}
    for codec in CODECS[1:3]:
        out, _ = follow(optkit.compressed_mean(codec, AXIS), g)
        first = np.linalg.norm(out[0]["w"][0] - mean) / np.linalg.norm(mean)
        settled = np.mean([u["w"][0] for u in out], 0)
        off[codec] = first, np.linalg.norm(settled - mean) / np.linalg.norm(mean)
    (sign, signs), (byte, many) = off.values()
    assert byte < 0.05 < 0.3 < sign and signs < sign / 5 and many < byte / 5


def test_one_bit_is_what_the_reference_says() -> None:
    """Independently: two workers, 24 entries filled up to 32 of two chunks, signs of 0 are 1."""
    grads = [{"w": g["w"].round(1)} for g in gradients(1, 3, 2, {"w": (4, 6)})]
    grads[1]["w"][0] = 0.0
    out, states = follow(optkit.onebit_mean(AXIS), grads)
    here, there = np.zeros((2, 32)), np.zeros((2, 16))
    sign = lambda x: np.where(x >= 0, 1.0, -1.0)  # noqa: E731
    for u, g, state in zip(out, grads, states, strict=True):
        y = np.pad(np.float64(g["w"]).reshape(2, 24), ((0, 0), (0, 8))) + here
        sent = np.linalg.norm(y, axis=1, keepdims=True) / np.sqrt(32) * sign(y)
        here = y - sent
        z = sent.mean(0).reshape(2, 16) + there
        back = np.linalg.norm(z, axis=1, keepdims=True) / np.sqrt(16) * sign(z)
        there = z - back
        np.testing.assert_allclose(u["w"][0], back.reshape(-1)[:24].reshape(4, 6), atol=1e-5)
        np.testing.assert_allclose(state.error.of_worker["worker"]["w"][:, 0], here, atol=1e-5)
        np.testing.assert_allclose(state.error.of_worker["server"]["w"][:, 0], there, atol=1e-5)


@pytest.mark.parametrize("codec", [CODECS[0], CODECS[2]], ids=lambda c: c.name)
def test_eight_devices_do_what_a_vmapped_axis_does(codec: Codec) -> None:
    grads = gradients(2, 3, 8, {"w": (24, 16), "v": (128,)})
    tx = optkit.compressed_mean(codec, AXIS)
    want, states = follow(tx, grads)
    got, state, compiled = on_devices(tx, grads)
    for u, v in zip(got, want, strict=True):
        for name in u:
            np.testing.assert_allclose(u[name], v[name][0], atol=1e-5)
    for side in ("worker", "server"):
        for name, e in states[-1].error.of_worker[side].items():
            own = np.asarray(state.error.of_worker[side][name])
            np.testing.assert_allclose(own, np.asarray(e)[:, 0], atol=1e-5)
    # Codes of both leaves in one exchange, their scales in another; as many are gathered.
    assert collectives(compiled) == {"all-to-all": 2, "all-gather": 2}
    size, each = 24 * 16 + 128, 1 / 8 if isinstance(codec, SignCodec) else 1
    formula = 7 / 8 * (2 * size * each + 2 * 8 * 2 * 4)  # and two scales to and from each worker
    assert sent_bytes(compiled, 8) == pytest.approx(formula)
    shapes = {
        "w": jax.ShapeDtypeStruct((24, 16), "float32"),
        "v": jax.ShapeDtypeStruct((128,), "float32"),
    }
    sent = optkit.wire_bytes(tx, shapes, 8, AXIS)
    assert sent.least == sent.most == pytest.approx(formula)
    assert sent.plain == pytest.approx(2 * 7 / 8 * 4 * size)


def test_entries_that_are_always_zero_need_to_be_named() -> None:
    grads = gradients(3, 4, 2, {"w": (4, 8)})
    for g in grads:
        g["w"][:, 2:] = 0.0
    active = {"w": np.arange(4)[:, None] < 2}
    plain, _ = follow(optkit.onebit_mean(AXIS), grads)
    named, _ = follow(optkit.onebit_mean(AXIS, active=active), grads)
    assert np.all(plain[0]["w"][:, 2:] != 0.0)  # a bit cannot say 0
    for u, v in zip(plain, named, strict=True):
        np.testing.assert_array_equal(v["w"], u["w"] * active["w"])


def test_without_memory_what_is_lost_is_lost() -> None:
    grads = gradients(4, 2, 2, {"w": (16,)})
    tx = optkit.onebit_mean(AXIS, error_feedback=False)
    out, states = follow(tx, grads)
    assert states[0].error is None
    again, _ = follow(tx, grads[1:])
    np.testing.assert_array_equal(out[1]["w"], again[0]["w"])


def test_16_bit_gradients_lose_nothing_either() -> None:
    grads = [jax.tree.map(lambda x: x.astype("bfloat16"), g) for g in gradients(5, 4, 2, SHAPES)]
    codec = UniformCodec(bits=8, block=None)
    out, states = follow(optkit.compressed_mean(codec, AXIS, every_leaf=True), grads)
    assert all(u["w"].dtype == "bfloat16" for u in out)
    sent = np.sum([np.float64(u["w"][0]) for u in out], 0)
    total = np.sum([np.float64(g["w"]).mean(0) for g in grads], 0)
    np.testing.assert_allclose(sent + waiting(states[-1], "w"), total, atol=1e-5)


def test_what_cannot_be_cut_is_refused() -> None:
    for codec in (TopK(3), UniformCodec(rounding="stochastic")):
        with pytest.raises(ValueError, match=re.escape(f"compressor={codec!r} cannot be cut")):
            optkit.compressed_mean(codec)
    with pytest.raises(TypeError, match=r"compressor='sign' must be a codec, .*SignCodec\(\)"):
        optkit.compressed_mean("sign")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size='median' is not one of"):
        SignCodec(size="median")  # type: ignore[arg-type]
    with pytest.raises(NameError, match=r"averages over the axis 'workers', which is not there"):
        optkit.onebit_mean(AXIS).init({"w": np.zeros(3, np.float32)})


def test_leaves_for_which_it_does_not_pay_are_averaged_plainly() -> None:
    """Of 8 workers' leaves at least 8*(256 + 4) bytes travel with blocks of 256 codes."""
    tx = optkit.compressed_mean(UniformCodec(bits=8), AXIS)
    shapes = {"big": (53, 10), "edge": (520,), "b": (32,), "gain": (), "none": (0, 4)}
    grads = gradients(6, 1, 8, shapes)
    (out,), (state,) = follow(tx, grads)
    assert {name for name, e in state.error.of_worker["worker"].items() if e is not None} == {"big"}
    for name, u in out.items():
        mean = grads[0][name].mean(0)
        if name == "big":
            assert 0.0 < np.linalg.norm(u[0] - mean) < 0.05 * np.linalg.norm(mean)
        else:
            np.testing.assert_allclose(u, np.broadcast_to(mean, u.shape), atol=1e-6)
    got, last, compiled = on_devices(tx, grads)
    np.testing.assert_allclose(got[0]["big"], out["big"][0], atol=1e-5)
    assert last.error.of_worker["worker"]["b"] is None
    plain = 2 * 7 / 8 * 4 * (520 + 32 + 1)
    assert sent_bytes(compiled, 8) == pytest.approx(2 * 7 * 260 + plain)
    specs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    assert optkit.wire_bytes(tx, specs, 8, AXIS).most == pytest.approx(2 * 7 * 260 + plain)
    bias = {"b": specs["b"]}
    assert optkit.wire_bytes(tx, bias, 8, AXIS).most == pytest.approx(224)
    always = optkit.compressed_mean(UniformCodec(bits=8), AXIS, every_leaf=True)
    assert optkit.wire_bytes(always, bias, 8, AXIS).most == 3640


def test_what_is_sent_of_a_large_matrix() -> None:
    """By hand: 4 Mi numbers, eight workers, 28 MiB for a plain average."""
    params = {"w": jax.ShapeDtypeStruct((1024, 4096), np.float32)}
    byte = UniformCodec(bits=8, block=None)
    for tx, mib in (
        (optkit.onebit_mean(AXIS), 0.875),
        (optkit.compressed_mean(byte, AXIS), 7.0),
        (optkit.powersgd_mean(AXIS, rank=4), 4 * 5120 * 4 * 1.75 / 2**20),
    ):
        sent = optkit.wire_bytes(tx, params, 8, AXIS)
        assert sent.least / 2**20 == pytest.approx(mib, rel=1e-3)
        assert sent.plain == 28 * 2**20
