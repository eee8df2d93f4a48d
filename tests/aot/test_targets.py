"""Topologies by name, placement on them, and what is said when something is missing or wrong."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optkit.aot import (
    IndivisibleShape,
    UnavailableTarget,
    compile_for,
    find_target,
    schedules,
    targets,
)
from optkit.aot.compiling import argument_bytes, check_shapes, place_shapes, target_mesh, trace_for

P = PartitionSpec


@pytest.mark.parametrize(
    ("name", "size", "slices"),
    [
        ("v5e", 4, 1),
        ("v5e:1x1", 1, 1),
        ("v5e:4x4", 16, 1),
        ("2xv5e:4x4", 32, 2),
        ("v4:2x2x1", 8, 1),
        ("tpu7x:2x2x1", 8, 1),
        ("v5p:2x2x12", 48, 1),
        ("h100", 1, 1),
        ("h100:8", 8, 1),
        ("4xh100:8", 32, 4),
    ],
)
def test_names(name: str, size: int, slices: int) -> None:
    target = find_target(name)
    assert (target.size, target.slices) == (size, slices)
    assert find_target(target) is target


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7x:2x2x1", r"did you mean 'tpu7x'.*v4:\{2x2x1.*h100:\{1"),
        ("V5E:4x4", "did you mean 'v5e'"),
        ("", "unknown topology"),
        ("v5e:3x3", "v5e has no size '3x3'"),
        ("v5e:2x2x1", "no size"),
        ("v5e:32x32", "no size"),
        ("v5p:2x2x0", "no size"),
        ("h100:9", "no size '9'"),
        ("0xv5e:2x2", "no size"),
    ],
)
def test_unknown_names_list_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_target(name)


def test_chips_are_told_per_device() -> None:
    # 275 TFLOP/s and 32 GiB a chip of v4, which is two devices.
    chip = find_target("v4:2x2x1").chip
    assert chip.flops == 137.5e12
    assert chip.memory_bytes == 16 * 2**30


@pytest.mark.parametrize(("name", "command"), [("v5e:2x2", "optkit[tpu]"), ("h100", "optkit[gpu]")])
def test_a_missing_compiler_names_the_command(
    monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    targets._devices.cache_clear()
    with pytest.raises(UnavailableTarget) as error:
        compile_for(name, lambda x: x, jax.ShapeDtypeStruct((4,), jnp.float32))
    assert f"pip install '{command}'" in str(error.value)


def failing(error: Exception) -> Any:
    def describe(*args: Any, **kwargs: Any) -> Any:
        assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
        raise error

    return describe


def test_a_held_lock_is_explained_and_the_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = dict(os.environ)
    locked = jax.errors.JaxRuntimeError("ABORTED: Internal error when accessing libtpu lockfile.")
    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", failing(locked))
    targets._devices.cache_clear()
    with pytest.raises(UnavailableTarget, match=r"holds the lock.*ALLOW_MULTIPLE_LIBTPU_LOAD=1"):
        _ = find_target("v5e:2x2").devices
    assert dict(os.environ) == before


def test_schedules_are_asked_for_while_the_compiler_is_loaded_and_read_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedules, "_folder", None)
    assert schedules.scheduled_bundles() == {}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--own")
    folder = schedules.write_schedules()
    seen = []

    def describe(*args: Any, **kwargs: Any) -> Any:
        seen.append(os.environ["LIBTPU_INIT_ARGS"])
        raise NotImplementedError

    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", describe)
    targets._devices.cache_clear()
    with pytest.raises(UnavailableTarget):
        _ = find_target("v5e:2x2").devices
    assert seen[0].startswith("--own ") and f"--xla_jf_dump_to={folder}" in seen[0]
    assert os.environ["LIBTPU_INIT_ARGS"] == "--own"
    for name, bundles in (("12-k.3-70", 50), ("13-k.3-70", 40), ("12-fusion-71", 7)):
        text = f"Schedule analysis:\n\ttotal scheduled bundles:    {bundles}\n"
        (folder / f"{name}-schedule-analysis_final_bundles.txt").write_text(text)
    (folder / "12-k.3-69-critical-path.txt").write_text("total scheduled bundles:    9")
    assert schedules.scheduled_bundles() == {"k.3": 50, "fusion": 7}
    schedules.forget_schedules()
    assert schedules.scheduled_bundles() == {}
    assert schedules._folder is not None
    schedules._folder.cleanup()


# --- placement; CPU devices stand in for those of a target ----------------------------------------


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a v5e:2x4 whose devices are emulated ones of this machine."""
    monkeypatch.setattr(targets, "_devices", lambda *args: tuple(jax.devices()[:8]))
    return find_target("v5e:2x4")


def test_meshes_have_the_size_of_the_target(target: Any) -> None:
    assert dict(target.mesh({"a": 4, "b": 2}).shape) == {"a": 4, "b": 2}
    assert dict(target.mesh(["data"]).shape) == dict(target.mesh("data").shape) == {"data": 8}
    assert target.mesh().axis_names == ("devices",)
    assert target.mesh({"a": 8}, axis_types=(AxisType.Explicit,)).axis_types == (AxisType.Explicit,)
    with pytest.raises(ValueError, match="has 4 places, and v5e:2x4 has 8 devices"):
        target.mesh({"a": 4})
    with pytest.raises(ValueError, match="2 names and no sizes"):
        target.mesh(["a", "b"])


def shaped(*shape: int, spec: PartitionSpec, mesh: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


@pytest.mark.parametrize("kind", ("abstract", "other devices"))
def test_arguments_keep_their_partition_on_the_mesh_of_the_target(target: Any, kind: str) -> None:
    mesh: Any = AbstractMesh((4, 2), ("a", "b"))
    if kind == "other devices":
        mesh = Mesh(np.array(jax.devices()[:8][::-1]).reshape(4, 2), ("a", "b"))
    args = ({"w": shaped(16, 6, spec=P("a", "b"), mesh=mesh), "n": 3}, jnp.zeros(2))
    found = target_mesh(target, None, args)
    assert found is not None and dict(found.shape) == {"a": 4, "b": 2}
    placed = place_shapes(args, target, found)
    assert placed[0]["w"].sharding == NamedSharding(found, P("a", "b"))
    assert placed[0]["n"] == 3
    assert placed[1].sharding == NamedSharding(found, P())
    assert argument_bytes(placed) == 16 * 6 * 4 / 8 + 2 * 4


def test_two_meshes_are_refused(target: Any) -> None:
    x = shaped(8, spec=P("a"), mesh=AbstractMesh((8,), ("a",)))
    y = shaped(8, spec=P("b"), mesh=AbstractMesh((8,), ("b",)))
    with pytest.raises(ValueError, match="several meshes"):
        target_mesh(target, None, (x, y))


def test_a_jitted_function_keeps_its_own_options(target: Any) -> None:
    with pytest.raises(ValueError, match="jitted already"):
        trace_for(target, jax.jit(lambda x: x), jnp.zeros(2), donate=(0,))


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((10, 4), P("a"), r"argument 1, leaf 'up/kernel' of shape \(10, 4\).*dimension 0 has 10 en"
         r"tries and the mesh axis 'a' has 4; pad it to 12"),
        ((4, 12), P(None, ("a", "b")), r"dimension 1 has 12.*axes 'a', 'b' have 8; pad it to 16"),
        ((4,), P(None, "a"), "fewer dimensions"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_named(
    shape: tuple[int, ...], spec: PartitionSpec, message: str
) -> None:
    class Fake:  # a shape that no sharding has looked at yet
        sharding = NamedSharding(AbstractMesh((4, 2), ("a", "b")), spec)

    leaf = Fake()
    leaf.shape = shape  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message) as error:
        check_shapes((jnp.zeros(3), {"up": {"kernel": leaf}}))
    assert isinstance(error.value, IndivisibleShape) == ("fewer" not in message)
