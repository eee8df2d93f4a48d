"""What all kernels share: the choice by platform, batches on a mesh, blocks and ragged arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.kernels.blocks import Blocks, check_on_chip, cut, filled, least_filled
from optkit.kernels.implementation import Unserved, by_platform
from optkit.kernels.sharded import over_batch
from tests.conformance.hlo import collectives

X = jnp.arange(8 * 8 * 128.0).reshape(8, 8, 128)


def double(x: jax.Array, interpret: bool = True) -> jax.Array:
    def kernel(x: Any, out: Any) -> None:
        out[...] = 2 * x[...]

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=interpret)(x)


def on_tpu(x: jax.Array) -> jax.Array:
    return double(x, interpret=False)


def refusing(x: jax.Array) -> jax.Array:
    raise Unserved("3 is more than 2")


@pytest.mark.parametrize("wrap", (lambda f: f, jax.jit, jax.vmap), ids=("eager", "jit", "vmap"))
def test_a_platform_without_a_kernel_is_told(wrap: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match="double has kernels for TPUs only, not for cpu"):
        wrap(lambda x: by_platform("double", x, tpu=on_tpu))(X)


def test_what_a_kernel_refuses_is_raised_on_its_platform() -> None:
    run = jax.jit(lambda x: by_platform("double", x, tpu=on_tpu, gpu=refusing)).trace(X)
    assert "tpu_custom_call" in run.lower(lowering_platforms=("tpu",)).as_text()
    with pytest.raises(NotImplementedError, match="double: 3 is more than 2; give implementation"):
        run.lower(lowering_platforms=("cuda",))
    with pytest.raises(ValueError, match="3 is more than 2"):
        jax.eval_shape(lambda x: by_platform("double", x, tpu=refusing), X)


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("shape", "spec"),
    [((8, 8, 128), P("a")), ((3, 8, 128), P(None, "a")), ((8, 128), P("b")), ((2, 8, 4, 4), P())],
    ids=str,
)
def test_each_device_gets_its_part_of_a_batch(
    kind: AxisType, shape: tuple[int, ...], spec: P
) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parts: list[tuple[int, ...]] = []

    def function(x: jax.Array) -> jax.Array:
        parts.append(x.shape)
        return double(x)

    found = jax.jit(lambda x: over_batch(function, x))(jax.device_put(x, NamedSharding(mesh, spec)))
    np.testing.assert_array_equal(np.asarray(found), 2 * x)
    wanted = {3: (1, *shape[1:]), 2: shape, 4: (2, 1, 4, 4)}[len(shape)]
    assert set(parts) == {wanted}


@pytest.mark.parametrize(
    ("kind", "spec", "share"),
    [
        (AxisType.Auto, P("a"), 2),
        (AxisType.Explicit, P("a"), 2),
        (AxisType.Explicit, P(("a", "slice")), 1),
    ],
    ids=("auto", "explicit", "explicit_cut"),
)
def test_slices_repeat_work_unless_the_batch_is_cut_over_them(
    kind: AxisType, spec: P, share: int
) -> None:
    mesh = jax.make_mesh((2, 4), ("slice", "a"), axis_types=(kind,) * 2)
    x = np.random.default_rng(0).standard_normal((8, 8, 128)).astype(np.float32)
    parts: list[tuple[int, ...]] = []

    def function(x: jax.Array) -> jax.Array:
        parts.append(x.shape)
        return double(x)

    run = jax.jit(lambda x: over_batch(function, x), out_shardings=NamedSharding(mesh, spec))
    compiled = run.lower(jax.device_put(x, NamedSharding(mesh, spec))).compile()
    found = compiled(jax.device_put(x, NamedSharding(mesh, spec)))
    np.testing.assert_array_equal(np.asarray(found), 2 * x)
    assert set(parts) == {(share, 8, 128)}
    assert not collectives(compiled)


@pytest.mark.parametrize("axes", (("a", "b"), ("a",)), ids=str)
def test_inside_a_shard_map_only_what_is_left_is_split(axes: tuple[str, ...]) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    parts: list[tuple[int, ...]] = []

    def function(x: jax.Array) -> jax.Array:
        parts.append(x.shape)
        return double(x)

    mapped = jax.shard_map(
        lambda x: over_batch(function, x), mesh=mesh, in_specs=P(axes), out_specs=P(axes),
        axis_names=set(axes), check_vma=False,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(jax.jit(mapped)(X)), 2 * np.asarray(X))
    assert set(parts) == {(1, 8, 128)}


def test_blocks_and_memory_say_both_numbers() -> None:
    @dataclasses.dataclass(frozen=True)
    class Tiles(Blocks):
        rows: int = 256
        depth: int = 1
        multiples: ClassVar[Mapping[str, int]] = {"rows": 128}

    assert Tiles(depth=3).depth == 3
    for wrong in ({"rows": 200}, {"rows": 0}, {"depth": -1}, {"rows": 128.0}):
        with pytest.raises(ValueError, match="not a positive multiple of 1"):
            Tiles(**wrong)
    with pytest.raises(ValueError, match=r"a tile needs 232,449 bytes .* there are 232,448"):
        check_on_chip("a tile", 232_449, "gpu")


@pytest.mark.parametrize("size", (1, 100, 128, 300, 640, 768))
def test_ragged_arrays_are_filled_with_zeros_and_come_back(size: int) -> None:
    block = least_filled(size, (128, 256, 512))
    x = np.ones((size, 3), np.float32)
    y = np.asarray(filled(jnp.asarray(x), {0: block}))
    assert len(y) % block == 0 and len(y) - size < 128
    assert y.sum() == x.sum()
    np.testing.assert_array_equal(np.asarray(cut(jnp.asarray(y), x.shape)), x)
