"""Preflights through the compilers of TPUs and GPUs, which need no device: ``make test-tpu``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from optkit.aot import compile_for, find_target, model_shapes, place_model

pytestmark = pytest.mark.usefixtures("optimizing")

ROOT = Path(__file__).resolve().parents[2]


def kernel(*shape: int, axes: dict[str, int], spec: tuple[str | None, ...]) -> Any:
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)


def matrices(axes: dict[str, int]) -> Any:
    """Returns 8 layers of two kernels, split along the model's width."""
    return {
        "blocks": {
            "up": {"kernel": kernel(8, 128, 512, axes=axes, spec=(None, "fsdp"))},
            "out": {"kernel": kernel(8, 128, 128, axes=axes, spec=(None, None, "fsdp"))},
        }
    }


def check_whole_matrices_move(found: optkit.Preflight, times: int) -> None:
    assert found.compiles and found.fits
    rows = found.exchanges()
    assert {row["kind"] for row in rows} == {"all-to-all"}
    assert all(row["axes"] == ["fsdp"] for row in rows)
    # Each time all but the own share of what a device has, at most in float32.
    own = 8 * 128 * (512 + 128) * 4 / 4
    assert 0 < found.wire_bytes(between_slices=False) <= times * own * 3 / 4
    assert found.flops > 0
    assert found.advice == ()


@pytest.mark.tpu
def test_muon_on_a_slice() -> None:
    params = matrices({"fsdp": 4})
    found = optkit.preflight(optkit.muon(), params, topology="v5e:2x2")
    check_whole_matrices_move(found, 2)  # there and back
    assert found.cycles is not None and found.cycles > found.flops / 131_072


@pytest.mark.tpu
def test_products_of_parts_of_matrices_are_seen() -> None:
    params = {"up": {"kernel": kernel(128, 512, axes={"fsdp": 4}, spec=("fsdp",))}}
    found = optkit.preflight(optax.contrib.muon(1e-3), params, topology="v5e:2x2")
    assert {row["kind"] for row in found.exchanges()} & {"all-gather", "all-reduce"}
    # Each of five iterations needs at least the Gram matrix of the others.
    assert found.wire_bytes(between_slices=False) > 5 * 128 * 128 * 2 * 3 / 4


@pytest.mark.tpu
def test_what_leaves_a_slice_is_found() -> None:
    axes = {"slice": 2, "fsdp": 4}
    target = find_target("2xv5e:2x2")
    mesh = target.mesh(axes)
    spec = jax.sharding.PartitionSpec(None, "fsdp")

    def step(params: Any) -> Any:
        def mean(x: jax.Array) -> jax.Array:
            return jax.lax.pmean(jax.lax.psum(x, "fsdp"), "slice")

        return jax.shard_map(
            mean, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec()
        )(params)

    found = optkit.preflight(step, kernel(256, 1024, axes=axes, spec=tuple(spec)), topology=target)
    told = {(row["kind"], row["link"], tuple(row["axes"])) for row in found.exchanges()}
    assert ("all-reduce", "DCN", ("slice",)) in told
    local = 256 * 256 * 4
    # At least a ring's share for the network: the compiler may send parts that devices hold.
    assert 0 < found.wire_bytes(between_slices=True) <= local
    assert found.wire_bytes(between_slices=False) > 0
    copies = optkit.preflight(optkit.lion(1e-3), matrices(axes), topology=target)
    assert copies.collectives == ()


@pytest.mark.tpu
def test_loops_count_with_their_trips() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

    found = optkit.preflight(
        run, jax.ShapeDtypeStruct((256, 256), jnp.bfloat16), topology="v5e:1x1"
    )
    assert found.flops == 5 * 2 * 256**3
    assert not found.unknown_trips


@pytest.mark.tpu
def test_what_does_not_fit_is_told() -> None:
    def step(x: jax.Array) -> jax.Array:
        return x @ x.T  # 40 GB

    found = optkit.preflight(
        step, jax.ShapeDtypeStruct((100_000, 128), jnp.float32), topology="v5e:1x1"
    )
    assert not found.compiles and not found.fits
    assert "memory" in str(found.error)


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"))
def test_every_kind_of_tpu_compiles(topology: str) -> None:
    target = find_target(topology)
    assert len(target.devices) == target.size
    params = matrices({"fsdp": target.size})
    found = optkit.preflight(optkit.lion(1e-3), params, topology=target)
    assert found.fits and found.cycles


@pytest.mark.tpu
def test_the_command_answers_beside_another_process() -> None:
    _ = find_target("v5e:2x2").devices  # this process has the compiler
    done = subprocess.run(
        [
            *(sys.executable, "-m", "optkit", "preflight", "--model=tiny", "--topology=v5e:1x1"),
            *("--method=muon", "-p", "implementation=pallas", "--kernel-cycles", "--json"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"] and told["collectives"] == [] and told["estimated_cycles"] > 0
    # Matrices of 128 x 128 in one call, one in each point of its grid, and those of 128 x 512.
    bundles = {kernel["grid"]: kernel["bundles"] for kernel in told["kernels"]}
    assert len(bundles) >= 2 and all(bundles)
    assert all(kernel["loops"] and kernel["cycles"] > 0 for kernel in told["kernels"])
    assert told["advice"] == []


@pytest.mark.gpu
def test_muon_on_a_host_with_gpus() -> None:
    found = optkit.preflight(optkit.muon(), matrices({"fsdp": 4}), topology="h100:4")
    check_whole_matrices_move(found, 3)  # XLA sends gradient and momentum, and adds them there
    assert found.cycles is None
    assert {row["link"] for row in found.exchanges()} == {"NVLink"}


@pytest.mark.gpu
def test_what_leaves_a_host_is_found() -> None:
    axes = {"slice": 2, "fsdp": 4}
    target = find_target("2xh100:4")

    def step(params: Any, batch: Any) -> Any:
        return jnp.mean(batch @ params)

    params = kernel(128, 64, axes=axes, spec=())
    batch = kernel(64, 128, axes=axes, spec=(("slice", "fsdp"),))
    found = optkit.preflight(step, params, batch, topology=target)
    (row,) = found.exchanges()
    assert (row["kind"], row["link"], row["axes"]) == ("all-reduce", "network", ["slice", "fsdp"])


@pytest.mark.gpu
def test_a_model_on_one_gpu() -> None:
    params = model_shapes("tiny", dtype=jnp.bfloat16)
    found = optkit.preflight(optkit.adamw(1e-3), params, topology="h100")
    assert found.fits and found.axes == {}
    text = compile_for("h100", lambda x: x + 1, jax.ShapeDtypeStruct((8,), jnp.float32)).as_text()
    assert "fusion" in text


@pytest.mark.tpu
def test_several_axes_and_layers_apart() -> None:
    axes = {"fsdp": 2, "tensor": 2}
    params = place_model(model_shapes("tiny", stacked=False), axes, "fsdp+tensor")
    found = optkit.preflight(optkit.muon(), params, topology="v5e:2x2")
    assert found.fits
    assert {axis for row in found.exchanges() for axis in row["axes"]} == {"fsdp", "tensor"}
