"""Collectives of compiled programs: counted once, with their bytes, groups, axes and links."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from optkit.aot import Collective, find_collectives, sent_bytes
from optkit.aot.device_groups import axes_of, is_between, read_groups

P = PartitionSpec


def program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{before}\nENTRY %main (a: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def kinds(found: list[Collective]) -> list[str]:
    return [each.kind for each in found]


# --- counting -------------------------------------------------------------------------------------

GATHER = (
    "%{name} = bf16[4,256]{{1,0:T(8,128)(2,1)}} all-gather(%p), channel_id={channel}, "
    "replica_groups=mesh['axis_0'=4,'axis_1'=1] {{'axis_0'}}, dimensions={{0}}{chain}"
)


def gather(name: str, channel: int, chain: int | None = None) -> str:
    told = "" if chain is None else f', frontend_attributes={{chain_id="{chain}"}}'
    return GATHER.format(name=name, channel=channel, chain=told)


def test_an_asynchronous_collective_is_one_however_often_it_is_written() -> None:
    fused = "".join(
        f"%async_collective_fusion.{n} (p: f32[8]) -> f32[8] {{\n  {gather(f'g{n}', 7, 0)}\n}}\n"
        for n in range(5)
    )
    calls = [
        f"%f{n} = f32[8]{{0}} fusion(%a), calls=%async_collective_fusion.{n}" for n in range(5)
    ]
    (found,) = find_collectives(program(*calls, before=fused), 4)
    assert (found.kind, found.times, found.bytes) == ("all-gather", 1, 4 * 256 * 2)


def test_copies_of_an_unrolled_loop_share_a_channel_and_all_count() -> None:
    chains = program(gather("a", 7, 0), gather("b", 7, 0), gather("c", 7, 1), gather("d", 7, 2))
    assert len(find_collectives(chains, 4)) == 3
    assert len(find_collectives(program(gather("a", 7), gather("b", 7)), 4)) == 2
    # One chain number in two channels is two chains.
    assert len(find_collectives(program(gather("a", 7, 0), gather("b", 8, 0)), 4)) == 2


def test_loops_multiply() -> None:
    body = f"%body (p: f32[8]) -> f32[8] {{\n  {gather('g', 1)}\n}}\n"
    loop = '%w = f32[8]{0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"12"}}'
    (found,) = find_collectives(program(loop, before=body), 4)
    assert found.times == 12


def test_starts_count_and_ends_do_not() -> None:
    text = program(
        "%s = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%a), "
        "replica_groups=[1,4]<=[4], dimensions={0}",
        "%d = bf16[8,8]{1,0} all-gather-done(%s)",
        "%p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), "
        "source_target_pairs={{0,1},{1,0}}",
        "%q = f32[8]{0} collective-permute-done(%p)",
        "%r = (f32[8]{0}, f32[2]{0}) all-reduce-start(%a, %b), replica_groups={}, to_apply=%add",
        "%t = (f32[8]{0}, f32[2]{0}) all-reduce-done(%r)",
        "%u = ((f32[2]{0}, f32[1]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%a, %b), "
        "replica_groups={{0,1,2,3}}, dimensions={0}",
        "%v = ((f32[8,2]{1,0}), f32[8,2]{1,0}) all-to-all-start(%a), dimensions={0}",
        "%w = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%a), dimensions={0}",
    )
    found = find_collectives(text, 4)
    assert kinds(found) == [
        "all-gather",
        "collective-permute",
        "all-reduce",
        "all-gather",
        "all-to-all",
        "reduce-scatter",
    ]
    assert [each.bytes for each in found] == [128, 32, 40, 48, 64, 8]


def test_a_scatter_written_as_a_reduction_counts_as_it_is_written() -> None:
    text = program(
        "%r = f32[16]{0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add",
        "%s = f32[4]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={4}",
    )
    (found,) = find_collectives(text, 4)
    assert (found.kind, found.wire_bytes) == ("all-reduce", 2 * 64 * 3 / 4)


def test_a_tuple_is_the_sum_of_its_parts() -> None:
    text = program(
        "%t = (f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}) all-to-all(%a, %b, %c, %d), "
        "replica_groups={{0,1,2,3}}"
    )
    (found,) = find_collectives(text, 4)
    assert (found.bytes, found.wire_bytes) == (32, 24.0)


@pytest.mark.parametrize("members", (2, 4, 16))
def test_ring_formulas(members: int) -> None:
    # An all-reduce is a reduce-scatter and an all-gather of what that left.
    size = 4096.0
    scatter = sent_bytes("reduce-scatter", size / members, members)
    assert sent_bytes("all-reduce", size, members) == scatter + sent_bytes(
        "all-gather", size, members
    )
    assert sent_bytes("all-to-all", size, members) == size - size / members
    assert sent_bytes("all-reduce", size, 1) == 0


# --- groups ---------------------------------------------------------------------------------------

ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", ROWS),
        ("replica_groups={}, to_apply=%add", (tuple(range(8)),)),
        ("to_apply=%add", (tuple(range(8)),)),
        ("replica_groups=[2,4]<=[8], dimensions={0}", ROWS),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}", ROWS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={1}", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={1}", (tuple(range(8)),)),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=1], device_ids=([2,4]T(1,0)) {'b'}, x=1", COLUMNS),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}, x=1", COLUMNS),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x=1", ROWS),
        ("replica_groups=mesh['a'=8] {'a':(1)2}, x=1", COLUMNS),
        ("channel_id=3, source_target_pairs={{0,1},{1,0}}, x=1", ((0, 1), (1, 0))),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(
    text: str, groups: tuple[tuple[int, ...], ...]
) -> None:
    assert read_groups(text, 8) == groups


def test_a_new_way_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown form"):
        read_groups("replica_groups=torus[3], dimensions={0}", 8)


def test_axes_are_those_along_which_members_differ() -> None:
    axes = {"data": 2, "model": 4}
    assert axes_of(ROWS, axes) == ("model",)
    assert axes_of(COLUMNS, axes) == ("data",)
    assert axes_of((tuple(range(8)),), axes) == ("data", "model")
    assert axes_of(((0, 0), (5, 5)), axes) == ()
    assert axes_of(ROWS, {}) == ()
    assert is_between(COLUMNS, [0] * 4 + [1] * 4)
    assert not is_between(ROWS, [0] * 4 + [1] * 4)


def test_devices_that_keep_their_own_send_nothing() -> None:
    text = program("%p = f32[8]{0} collective-permute(%a), source_target_pairs={{0,0},{1,1}}")
    (found,) = find_collectives(text, 2)
    assert (found.group_size, found.wire_bytes) == (1, 0.0)


# --- slices ---------------------------------------------------------------------------------------


def send(name: str, kind: str, targets: str, shape: str = "f32[1,128]") -> str:
    return (
        f"%{name} = ({shape}{{1,0:T(8,128)}}, u32[], token[]) send(%a, %t), channel_id=5, "
        "is_host_transfer=true, frontend_attributes={"
        '_xla_host_transfer_handler_name="xla_megascale_runtime",'
        f'_xla_host_transfer_rendezvous="{name}_0",_xla_megascale_target={{{targets}}},'
        f'_xla_megascale_transfer_type="{kind}"}}'
    )


def test_what_goes_between_slices_is_written_as_a_send() -> None:
    pairs = "{100000->200000},{200000->100000}"
    text = program(
        send("permute", "ONE_TO_ONE", pairs),
        "%d = token[] send-done(%permute), channel_id=5, is_host_transfer=true",
        send("reduce", "ALL_REDUCE", "{100000,200000},{100001,200001}"),
        send("gather", "ALL_GATHER", "{100000,200000},{100001,200001}"),
        send("swap", "ALL_TO_ALL", "{100000,200000},{100001,200001}", "bf16[2,128]"),
        before="HloModule jit_f, num_partitions=2",
    )
    found = find_collectives(text, 4, axes={"slice": 2, "data": 2}, slice_of=[0, 0, 1, 1])
    assert kinds(found) == ["collective-permute", "all-reduce", "all-gather", "all-to-all"]
    assert all(each.between_slices and each.axes == ("slice",) for each in found)
    assert [each.wire_bytes for each in found] == [512.0, 512.0, 512.0, 256.0]


def test_inside_a_slice_devices_are_numbered_from_0() -> None:
    text = program(
        "%r = f32[8]{0} all-reduce(%a), replica_groups={}, to_apply=%add",
        before="HloModule jit_f, is_scheduled=true, num_partitions=2",
    )
    (found,) = find_collectives(text, 4, axes={"slice": 2, "data": 2}, slice_of=[0, 0, 1, 1])
    assert (found.group_size, found.axes, found.between_slices) == (2, ("data",), False)


def test_a_send_to_the_host_is_no_exchange() -> None:
    text = program("%s = (f32[8]{0}, u32[], token[]) send(%a, %t), is_host_transfer=true")
    assert find_collectives(text, 2) == []


# --- a real program -------------------------------------------------------------------------------


def test_a_real_program_is_read() -> None:
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))

    def inside(x: jax.Array) -> jax.Array:
        def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.psum(x, "data"), None

        x = jax.lax.scan(body, x, None, length=3)[0]
        return jax.lax.all_gather(x, "model")

    mapped = jax.shard_map(
        inside, mesh=mesh, in_specs=P("data", "model"), out_specs=P(), check_vma=False
    )
    shape = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    text = jax.jit(mapped).lower(shape).compile().as_text()
    found = find_collectives(text, 8, axes=dict(mesh.shape))
    told = {each.kind: (each.axes, each.group_size, each.times, each.bytes) for each in found}
    assert told == {
        "all-reduce": (("data",), 4, 3, 4 * 4 * 4),
        "all-gather": (("model",), 2, 1, 2 * 4 * 4 * 4),
    }
