"""Cycles of Pallas kernels with loops inside: schedules that were written, and traced trips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

import optkit
from optkit.aot import kernels, schedules
from optkit.aot.schedules import Schedule, Span
from optkit.kernels.blocks import RARE

# As libtpu writes it: a loop over the grid, in it one that holds another. What is read from memory
# before a branch is taken stands behind it.
LISTING = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s15 = smov 0 }
   0x1 LB: > { %s10 = sadd.s32 4294967295, %s9 /* iteration index, stage = 1 */ }
   0x2   : > { %95 = sbr.rel (%p92_p9) target = $region24 }
   0x3   : > { %v1 = vld [vmem:[%s1] sm:$0xff] }
   0x4 LB: >> { %s27 = sshll.u32 %s26, 3 }
   0x5   : >> { %v126 = vld [vmem:[%s125_s28] sm:$0xff] }
   0x6 LB: >>> { %311 = vtanh.f32 %v399 }
   0x7   : >> { %131 = sbr.rel (!%p129_p11) target = $region75 }
   0x8   :  {}
   0x9   :  {}
   0xa   : >>> { %v312 = vpop.eup %311 }
   0xb   : >>> { %v398 = vmov %v312 /* copy for cssa */ }
   0xc   : > { %122 = sbr.rel (!%p120_p12) target = $region86 }
   0xd   : > { %s149 = scalar_lea.hbm (%p120_p12), %s513 }
   0xe   : > { %s152 = sshll.u32 (%p120_p12), %s149 }
   0xf   : > { %s329 = sshra.s32 (%p120_p12), %s153 }
  0x10   : > { %s331 = scalar_lea.hbm (%p120_p12), %s330 }
  0x11 PF: > { %p252 = scmp.ge.s32.totalorder %s391, 2 }
  0x12   : > { %13 = sbr.rel (!%p11_p11) target = $region97 }
  0x13   :  { %280 = vsyncpa [#allocation3], 1 }
  0x14   :  { %281 = vsyncpa [#allocation4], 1 }
  0x15   :  { %282 = vsyncpa [#allocation5], 1 }
  0x16   :  { %283 = vsyncpa [#allocation6], 1 }
  0x17   :  { %284 = vsyncpa [#allocation6 + $0x1], 1 } /* exit bundle */
"""
NESTED = Schedule(24, (Span(9, (Span(7, (Span(6),)),)),))
PROGRAM = """
ENTRY %main (a: f32[24,128]) -> f32[24,128] {
  %k.1 = f32[24,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
}"""


def read(body: Any, schedule: Schedule, grid: int = 3, *tables: Any) -> kernels.KernelCall:
    """Returns the one kernel of a program, traced with a body and scheduled as given."""
    from jax.experimental.pallas import tpu

    specs = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(tables),
        grid=(grid,),
        in_specs=[pl.BlockSpec((8, 128), lambda i, *_: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i, *_: (i, 0)),
    )
    shape = jax.ShapeDtypeStruct((24, 128), jnp.float32)
    call = pl.pallas_call(body, grid_spec=specs, out_shape=shape)
    constants = [np.asarray(table, np.int32) for table in tables]
    # The compiled program of a jitted function holds them; so does its trace.
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: call(*constants, x)))(shape)
    (found,) = kernels.find_kernels(optkit.aot.read_hlo(PROGRAM), jaxpr, {"k.1": schedule})
    return found


def loop(out: Any, length: Any, body: Any = lambda i: None, **options: Any) -> None:
    def trip(i: jax.Array, _: None) -> None:
        out[...] += 1.0
        body(i)

    lax.fori_loop(0, length, trip, None, **options)


def test_loops_of_a_schedule_are_read_with_what_stands_behind_their_branches() -> None:
    assert schedules.read_schedule(LISTING) == NESTED
    straight = LISTING.replace(" LB", "   ").replace(">", " ")
    assert schedules.read_schedule(straight) == Schedule(24)


def test_schedules_are_read_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(schedules, "_folder", None)
    assert schedules.schedules(["k.1"]) == {}
    folder = schedules.write_schedules()
    for name, text in (
        ("1-k.1-71", LISTING),
        ("2-k.1-71", "     0   :  {}\n"),
        ("1-a-71", LISTING),
    ):
        (folder / f"{name}-final_bundles.txt").write_text(text)
    assert schedules.schedules(["k.1", "k.2"]) == {"k.1": NESTED}
    schedules.forget_schedules()
    assert schedules.schedules(["k.1"]) == {} and schedules._folder is not None
    schedules._folder.cleanup()


def test_each_loop_counts_with_its_trips() -> None:
    def body(x: Any, out: Any) -> None:
        loop(out, 16, lambda i: loop(out, 20))
        out[...] = x[...] @ x[...].T @ x[...]

    found = read(body, NESTED)
    # Around the grid 2; in it 9; 16 times 7, each with 20 times 6.
    assert found.cycles == found.weighed == 2 + 3 * (9 + 16 * (7 + 20 * 6))
    assert (found.bundles, found.loops, found.reason) == (24, True, "")
    assert found.flops == 3 * 2 * (2 * 8 * 8 * 128)


def test_loops_that_the_compiler_writes_out_are_none_of_its_schedule() -> None:
    def body(x: Any, out: Any) -> None:
        loop(out, 1, lambda i: loop(out, 7))
        loop(out, 2, lambda i: loop(out, 5), unroll=True)
        loop(out, 8, unroll=2)
        loop(out, 0)

    found = read(body, Schedule(100, (Span(60, tuple(map(Span, (2, 3, 4, 5)))),)))
    assert found.cycles == 26 + 3 * (60 + 7 * 2 + 5 * 3 + 5 * 4 + 4 * 5)


def test_what_is_known_beforehand_decides_branches_and_lengths() -> None:
    """Tables in the program, numbers that count up, points of the grid."""

    def body(table: Any, x: Any, out: Any) -> None:
        def task(i: jax.Array) -> None:
            for kind in range(2):
                pl.when(table[2 * i] == kind)(lambda kind=kind: loop(out, 10 + kind))
            loop(out, table[2 * i + 1])

        loop(out, 3, task)
        pl.when(pl.program_id(0) == 2)(lambda: loop(out, 4))

    inside = Span(20, (Span(2), Span(3), Span(5)))
    found = read(body, Schedule(100, (Span(60, (inside, Span(7))),)), 3, [0, 2, 1, 0, 1, 6])
    per_point = 60 + 3 * 20 + 1 * 10 * 2 + 2 * 11 * 3 + (2 + 0 + 6) * 5
    assert found.cycles == (100 - 60 - 20 - 10 - 7) + 3 * per_point + 4 * 7


@pytest.mark.parametrize(("scope", "counted"), [("", 3 * 20 * 7), (RARE, 0)], ids=("any", "rare"))
def test_a_branch_by_data_counts_as_taken_unless_it_is_rare(scope: str, counted: int) -> None:
    def body(x: Any, out: Any) -> None:
        with jax.named_scope(scope or "often"):
            pl.when(x[0, 0] > 0)(lambda: loop(out, 20))

    assert read(body, Schedule(40, (Span(30, (Span(7),)),))).cycles == 3 + 3 * 30 + counted


def test_what_is_not_known_says_why() -> None:
    def by_data(x: Any, out: Any) -> None:
        loop(out, 16, lambda i: loop(out, x[0, 0].astype(jnp.int32)))

    def once(x: Any, out: Any) -> None:
        loop(out, 16)

    for body, schedule, words in (
        (by_data, NESTED, "depends on data"),
        (once, NESTED, "written with 1 loops inside and scheduled with 2"),
        (once, Schedule(24), "0 loops stand where the grid's should"),
    ):
        found = read(body, schedule)
        assert found.cycles is None and words in found.reason


@pytest.mark.tpu
def test_the_compiler_lays_loops_out_as_they_are_read() -> None:
    """Of two kernels that differ in the trips of a loop, cycles differ by those trips alone."""
    optkit.aot.write_schedules()  # of no use if the compiler was loaded before
    optkit.aot.forget_schedules()
    optkit.aot.find_target("v5e:1x1")

    def call(x: jax.Array, outer: int, inner: int) -> Any:
        def body(x: Any, out: Any) -> None:
            def row(i: jax.Array) -> None:
                at = pl.ds(pl.multiple_of(i * 8, 8), 8)
                out[at, :] = lax.fori_loop(0, inner, lambda _, y: jnp.tanh(y), x[at, :])

            loop(out, outer, row)

        block = pl.BlockSpec((128, 128), lambda i: (i, 0))
        return pl.pallas_call(
            body, out_shape=jax.ShapeDtypeStruct((384, 128), jnp.float32), grid=(3,),
            in_specs=[block], out_specs=block, name=f"k{outer}x{inner}",
        )(x)  # fmt: skip

    def step(x: jax.Array) -> Any:
        return [call(x, outer, inner) for outer, inner in ((16, 20), (16, 30), (8, 20))]

    shape = jax.ShapeDtypeStruct((384, 128), jnp.float32)
    found = optkit.preflight(step, shape, topology="v5e:1x1")
    if any(each.bundles is None for each in found.kernels):
        pytest.skip("the compiler was loaded before it could be told to write schedules")
    known = {each.name.partition(".")[0]: each for each in found.kernels}
    base, longer, fewer = (known[name] for name in ("k16x20", "k16x30", "k8x20"))
    assert base.bundles == longer.bundles == fewer.bundles
    assert base.cycles and longer.cycles and fewer.cycles
    per_trip, rest = divmod(longer.cycles - base.cycles, 3 * 16 * 10)
    assert 1 < per_trip < base.bundles and rest == 0
    per_row, rest = divmod(base.cycles - fewer.cycles, 3 * 8)
    assert 20 * per_trip < per_row < 20 * per_trip + base.bundles and rest == 0
    assert found.kernel_cycles == sum(each.cycles or 0 for each in found.kernels)
