"""Deltas of weights: every bit arrives, whatever it means; places, merging, bases."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit

DTYPES: list[Any] = [
    np.float32,
    np.float16,
    np.int8,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.int4,
    np.bool_,
]
IDS = [np.dtype(d).name for d in DTYPES]
FIXED = jax.jit(optkit.encode_delta_fixed, static_argnums=2)
APPLY = jax.jit(optkit.apply_delta_fixed)


def bits(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}")


def weights(seed: int, dtype: Any, share: float, old: Any = None) -> Any:
    """Trees of all bit patterns, NaNs among them; a share of the entries is drawn anew."""
    random, out = np.random.default_rng(seed), {}
    for name, shape in {"w": (5, 7), "gain": (), "none": (0, 3)}.items():
        dtype = np.dtype(dtype)
        drawn = random.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
        if dtype in (np.bool_, ml_dtypes.int4):  # of whose byte a part is used
            drawn = drawn % 2
        new = np.ascontiguousarray(drawn).view(dtype).reshape(shape)
        keep = random.random(shape) >= share
        out[name] = new if old is None else np.where(keep, old[name], new).astype(dtype)
    return out


def assert_bits(got: Any, want: Any) -> None:
    for name in want:
        assert np.asarray(got[name]).dtype == want[name].dtype
        assert np.shape(got[name]) == want[name].shape
        np.testing.assert_array_equal(bits(got[name]), bits(want[name]))


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_every_bit_arrives(dtype: Any, seed: int, share: float) -> None:
    old = weights(seed, dtype, 1.0)
    new = weights(seed + 1, dtype, share, old)
    delta = optkit.encode_delta(old, new)
    assert_bits(optkit.apply_delta(old, delta), new)
    each, want = np.dtype(dtype).itemsize, 0
    for name in old:
        count, size = int(np.sum(bits(old[name]) != bits(new[name]))), new[name].size
        assert (name in delta.leaves) == (count > 0)
        if count:
            whole = size * each < count * (each + 2)
            assert (delta.leaves[name].form == "dense") == whole
            assert delta.leaves[name].count == (size if whole else count)
        want += min(count * (each + 2), size * each)
    assert optkit.payload_bytes(delta) == want


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
def test_every_bit_arrives_from_inside_jit(dtype: Any) -> None:
    old = weights(0, dtype, 1.0)
    for share in (0.0, 0.3, 1.0):
        new = weights(1, dtype, share, old)
        delta = FIXED(old, new, 40)
        assert_bits(APPLY(old, delta), new)
        for name in old:
            count = int(delta.count[name])
            assert count == np.sum(bits(old[name]) != bits(new[name]))
            assert np.all(np.asarray(delta.places[name])[count:] == old[name].size)


def test_zeros_of_both_signs_and_nans_of_all_kinds_differ() -> None:
    old = {"w": np.array([0.0, np.nan, 1.0, np.nan], np.float32)}
    new = {"w": np.array([0x80000000, 0x7FC00001, 0x3F800000, 0x7FC00000], np.uint32).view("f4")}
    delta = optkit.encode_delta(old, new)
    assert delta.leaves["w"].indices().tolist() == [0, 1]
    assert delta.leaves["w"].form == "gaps16"
    assert_bits(optkit.apply_delta(old, delta), new)
    assert not optkit.encode_delta(new, new).leaves


def test_places_far_apart_are_filled_in_or_written_whole() -> None:
    size, far = 2**18, [0, 1, 65536, 65536 + 65535, 2**18 - 1]
    for places, form, units in (
        (far, "gaps16", 7),  # the last is 131072 behind the one before: two fillers
        ([65534], "gaps16", 1),
        ([65535], "gaps16", 2),
        ([2**18 - 1], "int32", 1),  # four fillers would cost more
        (list(range(100, 200)), "gaps16", 100),
    ):
        old, new = np.zeros(size, np.int8), np.zeros(size, np.int8)
        new[places] = 1
        leaf = optkit.encode_delta({"w": old}, {"w": new}).leaves["w"]
        assert (leaf.form, len(leaf.places)) == (form, units), places
        assert leaf.indices().tolist() == places
    whole = optkit.encode_delta({"w": old}, {"w": np.ones_like(old)})
    assert whole.leaves["w"].form == "dense" and optkit.payload_bytes(whole) == size


@given(seed=st.integers(0, 2**16))
def test_merging_is_associative_and_the_last_one_wins(seed: int) -> None:
    steps = [weights(seed, np.float16, 1.0)]
    for i in range(3):
        steps.append(weights(seed + 1 + i, np.float16, 0.3, steps[-1]))
    one, two, three = (optkit.encode_delta(a, b) for a, b in itertools.pairwise(steps))
    merge = optkit.merge_deltas
    left, right = merge(merge(one, two), three), merge(one, merge(two, three))
    for delta in (left, right):
        assert_bits(optkit.apply_delta(steps[0], delta), steps[3])
    for name in left.leaves:
        np.testing.assert_array_equal(left.leaves[name].indices(), right.leaves[name].indices())
        np.testing.assert_array_equal(left.leaves[name].values, right.leaves[name].values)
        assert left.leaves[name].form == right.leaves[name].form


def test_another_base_is_refused() -> None:
    a, b, c = (weights(i, np.float32, 1.0) for i in range(3))
    delta = optkit.encode_delta(a, b)
    with pytest.raises(ValueError, match="not those that the delta starts from"):
        optkit.apply_delta(c, delta)
    with pytest.raises(ValueError, match="does not start from"):
        optkit.merge_deltas(delta, optkit.encode_delta(c, a))
    partly = {**a, "w": np.where(np.arange(7) > 2, a["w"], c["w"])}
    got = optkit.apply_delta(partly, delta, check=False)
    np.testing.assert_array_equal(bits(got["w"]), bits(b["w"]))  # all of it had changed
    with pytest.raises(ValueError, match=r"leaf 'w' is float16\(5, 7\); the delta has float32"):
        optkit.apply_delta({**a, "w": np.zeros((5, 7), np.float16)}, delta, check=False)


def test_trees_that_differ_are_refused_by_leaf() -> None:
    a = weights(0, np.float32, 1.0)
    for encode in (optkit.encode_delta, lambda old, new: optkit.encode_delta_fixed(old, new, 3)):
        with pytest.raises(ValueError, match=r"leaf 'w' was of shape \(5, 7\) and is of \(2, 7\)"):
            encode(a, {**a, "w": a["w"][:2]})
        for old, new, which in ((a, {**a, "x": a["w"]}, "new"), ({**a, "x": a["w"]}, a, "old")):
            with pytest.raises(ValueError, match=f"leaf 'x' is in the {which} weights only"):
                encode(old, new)
    with pytest.raises(ValueError, match="same paths in other containers"):
        optkit.encode_delta({"a": (a["w"],)}, {"a": [a["w"]]})
    with pytest.raises(ValueError, match="leaf 'w' was of dtype float32 and is of float16"):
        optkit.encode_delta(a, {**a, "w": np.zeros((5, 7), np.float16)})
    key = {"k": jax.random.key(0)}
    with pytest.raises(TypeError, match="leaf 'k' of dtype key<fry> has no bits"):
        optkit.encode_delta(key, key)


def test_what_is_no_delta_or_has_no_bits_is_told() -> None:
    a, b = (weights(i, np.float32, 1.0) for i in range(2))
    delta = optkit.encode_delta(a, b)
    with pytest.raises(TypeError, match=r"delta of type dict .*; the weights come first"):
        optkit.apply_delta(delta, a)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaf 'w' is not there; the delta has float32"):
        optkit.apply_delta({"gain": a["gain"]}, delta)
    with pytest.raises(TypeError, match=r"leaf '.*' has no bits yet .*encode_delta_fixed"):
        jax.jit(optkit.encode_delta)(a, b)


def test_arrays_of_jax_stay_where_they_are() -> None:
    old = {"w": jax.device_put(jnp.zeros(4), jax.devices()[1])}
    new = {"w": old["w"].at[2].set(3.0)}
    got = optkit.apply_delta(old, optkit.encode_delta(old, new))
    assert got["w"].sharding == old["w"].sharding and got["w"].tolist() == [0.0, 0.0, 3.0, 0.0]


def test_more_changes_than_there_is_room_for_are_told() -> None:
    delta = FIXED({"w": np.zeros(6, np.float32)}, {"w": np.ones(6, np.float32)}, 4)
    assert int(delta.count["w"]) == 6 and delta.places["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="capacity=0"):
        optkit.encode_delta_fixed({}, {}, 0)
