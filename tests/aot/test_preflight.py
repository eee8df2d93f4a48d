"""A preflight tells what its compiler found, and what to change; here the compiler is the CPU's."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import optkit
from optkit.aot import (
    CHIPS,
    LAYOUTS,
    MODELS,
    Collective,
    Memory,
    Preflight,
    Typed,
    compare,
    find_target,
    kernels,
    model_shapes,
    place_model,
    preflight,
)
from optkit.aot.models import parameter_count
from optkit.aot.schedules import Schedule
from optkit.tree import leaves_with_paths

P = PartitionSpec
MESH = AbstractMesh((8,), ("fsdp",))


def shaped(*shape: int, spec: PartitionSpec | None = None) -> jax.ShapeDtypeStruct:
    place = None if spec is None else NamedSharding(MESH, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)


# --- of an optimizer ------------------------------------------------------------------------------


def test_bytes_of_an_optimizer_are_split(fake: str) -> None:
    params = {"w": shaped(64, 32, spec=P("fsdp")), "b": shaped(32, spec=P())}
    found = optkit.preflight(optax.adam(1e-3), params, topology=fake, name="adam")
    weights = 64 * 32 * 4 // 8 + 32 * 4
    assert found.compiles and found.fits and found.error is None
    assert (found.memory.parameters, found.memory.gradients) == (weights, weights)
    assert found.memory.state == 2 * weights + 4  # two moments and the count
    assert found.memory.other == 0
    # State and parameters are donated, and all results take their memory.
    assert found.memory.fresh <= 64
    assert found.axes == {"fsdp": 8}
    assert found.collectives == ()
    assert found.cycles is None  # the CPU's compiler writes none


def test_collectives_and_bounds_of_a_step(fake: str) -> None:
    def step(params: Any, batch: jax.Array) -> jax.Array:
        return jnp.sum((batch @ params["w"]) ** 2)

    params, batch = {"w": shaped(64, 32, spec=P())}, shaped(128, 64, spec=P("fsdp"))
    found = preflight(step, params, batch, topology=fake)
    (one,) = found.collectives
    assert (one.kind, one.axes, one.group_size, one.bytes) == ("all-reduce", ("fsdp",), 8, 4)
    assert found.flops == 2 * 16 * 64 * 32
    assert found.bounds["matrix units"] == found.flops / 1e12
    assert found.bounds["ICI"] == 2 * 4 * 7 / 8 / found.target.chip.link_bandwidth
    assert found.memory.parameters == 64 * 32 * 4
    assert found.memory.other == 16 * 64 * 4


def test_parts_are_guessed_from_names_or_given(fake: str) -> None:
    x = shaped(16, spec=P())

    def step(my_params: Any, opt_state: Any, grads: Any, batch: Any) -> Any:
        return my_params + opt_state + grads + batch

    found = preflight(step, x, x, x, x, topology=fake).memory
    assert (found.parameters, found.state, found.gradients, found.other) == (64, 64, 64, 64)
    parts = ("state", "state", "other", "other")
    given = preflight(step, x, x, x, x, topology=fake, parts=parts).memory
    assert (given.parameters, given.state, given.gradients, given.other) == (0, 128, 0, 128)
    with pytest.raises(ValueError, match="parts has to name one of"):
        preflight(step, x, x, x, x, topology=fake, parts=("weights",) * 4)
    with pytest.raises(ValueError, match="followed by the parameters alone"):
        preflight(optax.sgd(1.0), x, x, topology=fake)


def test_what_the_compiler_refuses_is_reported(fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nin hbm.\n\nLong")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    params = {"w": shaped(64, 32, spec=P("fsdp"))}
    found = preflight(optax.sgd(1.0), params, topology=fake, name="sgd")
    assert not found.compiles and not found.fits
    assert found.error == "RESOURCE_EXHAUSTED: Ran out of memory in hbm."
    assert found.memory.parameters == 64 * 32 * 4 // 8
    assert "sgd" in str(found) and "does not compile: RESOURCE" in str(found)
    assert json.loads(found.json())["compiles"] is False


def test_a_mesh_by_sizes(fake: str) -> None:
    params = {"w": shaped(64, 32)}
    found = preflight(optax.sgd(1.0), params, topology=fake, mesh={"data": 2, "model": 4})
    assert found.axes == {"data": 2, "model": 4}
    assert found.memory.parameters == 64 * 32 * 4  # on each device: no place was named
    assert found.accessed is not None and found.accessed >= 3 * 64 * 32 * 4
    with pytest.raises(ValueError, match="has 4 places"):
        preflight(optax.sgd(1.0), params, topology=fake, mesh={"data": 4})


def test_one_device_needs_no_mesh(fake: str) -> None:
    found = preflight(optax.sgd(1.0), {"w": shaped(4, 4)}, topology="cpu:1x1")
    assert found.axes == {} and found.collectives == ()
    assert "one device" in str(found)


# --- text, JSON, advice ---------------------------------------------------------------------------


def made(**changes: Any) -> Preflight:
    memory = {"parameters": 100 << 20, "gradients": 100 << 20, "state": 200 << 20, "limit": 1 << 34}
    memory |= {"results": 300 << 20, "reused": 300 << 20}
    memory |= changes.pop("memory", {})
    target = find_target("2xv5e:2x2")
    axes = {"slice": 2, "fsdp": 4}
    return Preflight("it", target.name, target, axes, Memory(**memory), **changes)


def exchange(kind: str, mib: int, between: bool = False, **more: Any) -> Collective:
    axes = ("slice",) if between else ("fsdp",)
    return Collective(kind, (Typed("f32", (mib << 18,)),), 4, axes, between, **more)


def test_nothing_to_say_about_a_good_step() -> None:
    found = made(collectives=(exchange("all-to-all", 50),))
    assert found.advice == ()
    assert "nothing to change was found" in str(found)


def test_a_step_that_makes_its_gradients_may_exchange_what_it_needs() -> None:
    found = made(collectives=(exchange("all-reduce", 5000),), memory={"gradients": 0})
    assert found.advice == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"collectives": (exchange("all-gather", 100, times=5),)}, "5 all-gathers over fsdp send"),
        ({"collectives": (exchange("all-reduce", 200),)}, "1 all-reduce over fsdp"),
        ({"collectives": (exchange("all-gather", 10, True),)}, "leave the slice or host over DCN"),
        ({"memory": {"reused": 0}}, "300.0 MiB of results lie beside"),
        ({"memory": {"temporaries": 400 << 20}}, "temporaries of 400.0 MiB"),
        ({"memory": {"replicated_state": 150 << 20}}, "150.0 MiB of optimizer state are whole on"),
        ({"memory": {"state": 1 << 35}}, "does not fit: 32,968.0 MiB are needed"),
        ({"unknown_trips": True}, "does not know"),
        ({"collectives": (exchange("all-to-all", 1, conditional=True),)}, "in a branch"),
        ({"kernels": (kernels.KernelCall("k", 4, None, 1),)}, "write_schedules"),
        ({"kernels": (kernels.KernelCall("k", 4, 10, 1, loops=True),)}, "shows a loop once"),
    ],
)
def test_advice(changes: dict[str, Any], words: str) -> None:
    found = made(**changes)
    assert any(words in line for line in found.advice)
    assert words in str(found)
    assert len(found.advice) == 1 + len(found.kernels)  # products of kernels are not known, too


def test_arguments_that_are_too_large_are_named_when_nothing_compiles() -> None:
    found = made(error="RESOURCE_EXHAUSTED: no", memory={"state": 1 << 35})
    (line,) = found.advice
    assert "32,968.0 MiB are needed for the arguments alone and a device has 16,384.0 MiB" in line
    assert "does not compile: RESOURCE_EXHAUSTED: no" in str(found)
    assert "us" not in str(found).split("at least, memory")[1].splitlines()[0]


def test_bounds_name_what_dominates() -> None:
    assert made(flops=10**15).dominant == "matrix units"
    assert made(collectives=(exchange("all-gather", 10_000),)).dominant == "ICI"
    slow = made(collectives=(exchange("all-gather", 10_000, True),))
    assert slow.dominant == "DCN"
    assert slow.wire_bytes(between_slices=True) == 7500 << 20
    assert made().dominant == "memory"
    # 100 + 100 + 200 MiB read and 300 written, at 819 GB/s.
    assert made().bounds["memory"] == (700 << 20) / 819e9


def test_a_bound_of_an_unpublished_speed_is_unknown() -> None:
    target = find_target("2xv4:2x2x1")
    found = dataclasses.replace(
        made(collectives=(exchange("all-gather", 10, True),)), target=target, topology=target.name
    )
    assert found.bounds["DCN"] is None
    assert "unknown" in str(found)


def test_alike_exchanges_are_one_row_and_json_holds_all() -> None:
    both = exchange("all-gather", 4), exchange("all-gather", 8, times=2), exchange("all-to-all", 4)
    found = made(collectives=both, cycles=123, kernels=(kernels.KernelCall("k", 4, 10, 3),))
    told = json.loads(found.json())
    assert [(row["kind"], row["count"]) for row in told["collectives"]] == [
        ("all-gather", 3),
        ("all-to-all", 1),
    ]
    assert told["collectives"][0]["result_bytes"] == 20 << 20
    assert told["estimated_cycles"] == 123
    assert "static estimate" in told["remark"]
    assert told["kernels"][0]["cycles"] == 40 and found.kernel_cycles == 120
    assert told["bytes"]["total"] == found.memory.total == 400 << 20


def test_side_by_side() -> None:
    text = str(compare(made(flops=10**9), dataclasses.replace(made(cycles=5), name="other")))
    assert "it" in text.splitlines()[2] and "other" in text.splitlines()[2]
    assert text.count("static estimate") == 1
    assert len(json.loads(compare(made(), made()).json())) == 2
    with pytest.raises(ValueError, match="one topology"):
        compare(made(), dataclasses.replace(made(), topology="v5e:2x2"))
    with pytest.raises(ValueError, match="one topology"):
        compare()


def test_a_step_of_nnx_jit_is_answered_with_the_form_that_works() -> None:
    from flax import nnx

    step = nnx.jit(lambda model, x: model(x))
    with pytest.raises(TypeError, match=r"nnx\.split"):
        optkit.preflight(step, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.ones(2), topology="v5e:2x2")


def test_devices_that_nothing_lies_on_are_a_matter_of_advice() -> None:
    (said,) = dataclasses.replace(made(), axes={}).advice
    assert "no argument carries a sharding: one of" in said


# --- kernels --------------------------------------------------------------------------------------


def test_the_grid_of_a_kernel_is_found_in_what_was_traced() -> None:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu, triton

    def call(x: jax.Array, rows: int, params: Any = None, name: str = "double") -> jax.Array:
        def double(x: Any, out: Any) -> None:
            out[...] = 2 * x[...]

        block = pl.BlockSpec((rows, 128), lambda i, j: (i, j))
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return pl.pallas_call(
            double, out_shape=shape, grid=(x.shape[0] // rows, 2), in_specs=[block],
            out_specs=block, compiler_params=params, name=name,
        )(x)  # fmt: skip

    def run(x: jax.Array, y: jax.Array) -> Any:
        x = jax.lax.fori_loop(0, 3, lambda _, x: call(x, 8, tpu.CompilerParams()), x)
        x = call(x, 16, triton.CompilerParams())  # the form for another platform
        return x, call(call(y, 8), 4, name="other"), call(y, 2, name="double_again")

    jaxpr = jax.make_jaxpr(jax.jit(run))(shaped(32, 256), shaped(16, 256))
    told = 'custom-call(%a), custom_call_target="tpu_custom_call", backend_config='
    text = f"""
ENTRY %main (a: f32[32,256]) -> f32[32,256] {{
  %double.1 = f32[32,256]{{1,0:T(8,128)}} {told}{{1}}
  %k.2 = f32[8,8]{{1,0}} {told}{{2}}
  %double.3 = f32[32,256]{{1,0}} {told}{{1}}
  %other.4 = f32[16,256]{{1,0}} {told}{{3}}
  %fusion.5 = f32[16,256]{{1,0}} {told}{{4}}
}}"""
    bundles = {"double.1": 50, "k.2": 7, "other.4": 3, "fusion.5": 1}
    written = {name: Schedule(size) for name, size in bundles.items()}
    found = kernels.find_kernels(optkit.aot.read_hlo(text), jaxpr, written)
    assert [each.grid for each in found] == [8, None, 8, 8, None]
    # Of equal kernels the compiler schedules one; without a grid cycles are not known.
    assert [each.cycles for each in found] == [400, None, 400, 24, None]


# --- models ---------------------------------------------------------------------------------------

PARAMETERS = {"gpt2-small": 124, "gpt2-medium": 355, "gpt2-xl": 1558, "llama-7b": 6738, "tiny": 7}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_their_size(name: str) -> None:
    stacked, single = (model_shapes(name, stacked=yes) for yes in (True, False))
    assert parameter_count(stacked) == parameter_count(single)
    assert round(parameter_count(stacked) / 1e6) == PARAMETERS[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stacked", (True, False))
def test_layouts_split_what_divides(layout: str, stacked: bool) -> None:
    axes = {"slice": 2, "fsdp": 4, "tensor": 4}
    placed = place_model(model_shapes("gpt2-small", stacked=stacked), axes, layout)
    mesh = jax.tree.leaves(placed)[0].sharding.mesh
    assert set(mesh.axis_types) == {AxisType.Auto}  # which not every JAX takes by default
    parts = {"fsdp": 4, "fsdp+tensor": 16, "replicated": 1}[layout]
    for path, leaf in leaves_with_paths(placed):
        local = leaf.sharding.shard_shape(leaf.shape)
        split = parts if path.endswith(("kernel", "embedding")) else 1
        assert leaf.size == split * jnp.prod(jnp.array(local)), path
        if path.endswith("kernel") and layout == "fsdp":
            width = leaf.sharding.spec.index("fsdp") - leaf.ndim
            assert leaf.shape[width] == 768


def test_wrong_models_and_layouts() -> None:
    with pytest.raises(ValueError, match="unknown model 'gpt5'; known: gpt2-small"):
        model_shapes("gpt5")
    with pytest.raises(ValueError, match="unknown layout"):
        place_model(model_shapes("tiny"), {"fsdp": 4}, "zero")
    with pytest.raises(ValueError, match="splits over 2 mesh axes"):
        place_model(model_shapes("tiny"), {"data": 2, "fsdp": 4}, "fsdp+tensor")


def test_chips_have_public_numbers() -> None:
    for chip in CHIPS.values():
        assert chip.flops > 1e14 and chip.memory_bandwidth > 4e11 and chip.memory_bytes > 8e9
        assert chip.link_bandwidth > (chip.network_bandwidth or 0)
        assert chip.source
