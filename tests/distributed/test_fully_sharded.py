"""Where leaves lie that are cut over all devices."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import optkit

AUTO = AxisType.Auto


def mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AUTO,) * len(sizes))


@pytest.mark.parametrize(
    ("shape", "sizes", "spec"),
    [
        ((16, 32), {"x": 8}, P(None, "x")),
        ((32, 16), {"x": 8}, P("x", None)),
        ((16, 16), {"x": 8}, P(None, "x")),
        ((3, 16, 10), {"x": 8}, P(None, "x", None)),
        ((10, 4), {"x": 8}, P(None, None)),
        ((), {"x": 8}, P()),
        ((0, 16), {"x": 8}, P(None, "x")),
        ((5, 8, 6), {"x": 4, "y": 2}, P(None, "x", "y")),
        ((6, 16), {"x": 4, "y": 2}, P(None, ("x", "y"))),
        ((16,), {"x": 4, "y": 2}, P(("x", "y"))),
        ((8, 8), {"x": 2, "y": 2, "z": 2}, P("x", ("y", "z"))),
    ],
)
def test_a_leaf_is_cut_where_devices_divide_it(shape: tuple, sizes: dict, spec: P) -> None:
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert optkit.fully_sharded({"w": leaf}, mesh(**sizes))["w"].spec == spec


@given(
    st.lists(st.integers(0, 24), max_size=4),
    st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3),
)
def test_every_part_is_whole_and_cut_over_all_devices_or_none(shape: list, sizes: list) -> None:
    devices = mesh(**{f"axis{i}": size for i, size in enumerate(sizes)})
    place = optkit.fully_sharded(jax.ShapeDtypeStruct(tuple(shape), np.float32), devices)
    local = place.shard_shape(tuple(shape))  # raises where a dimension does not divide
    whole, part = np.prod(shape, dtype=int), np.prod(local, dtype=int)
    assert part * devices.size == whole or local == tuple(shape)
    assert (local == tuple(shape)) == (not any(place.spec))


def test_one_axis_may_be_chosen_and_must_exist() -> None:
    devices = mesh(slice=2, fsdp=4)
    leaf = jax.ShapeDtypeStruct((8, 4), np.float32)
    assert optkit.fully_sharded(leaf, devices, "fsdp").spec == P("fsdp", None)
    with pytest.raises(ValueError, match=r"axes \('slice', 'fsdp'\), and no 'data'"):
        optkit.fully_sharded(leaf, devices, "data")
