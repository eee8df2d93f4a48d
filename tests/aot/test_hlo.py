"""Compiled programs are read right: what misleads in their text stands here in small."""

import jax
import jax.numpy as jnp
import pytest

from optkit.aot import Typed, estimated_cycles, kernel_calls, matmul_flops, read_hlo
from optkit.aot.hlo import typed_shapes

LOOPS = """
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %deep = f32[8]{0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"100"}}
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %in_fusion = f32[8]{0} negate(%p)
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w2 = (s32[], f32[8]{0}) while(%t), condition=%c, body=%inner, \
backend_config={"known_trip_count":{"n":"3"}}
  %copy = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"7"}
}

%unused (p: f32[8]) -> f32[8] {
  %never = f32[8]{0} fusion(%x), backend_config={"estimated_cycles":"999"}
}

%left (p: f32[8]) -> f32[8] {
  %l = f32[8]{0} copy(%p)
}

%right (p: f32[8]) -> f32[8] {
  %r = f32[8]{0} copy(%p)
}

%open (p: f32[8]) -> f32[8] {
  %o = f32[8]{0} copy(%p)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w1 = (s32[], f32[8]{0}) while(%t), condition=%c, body=%outer, \
backend_config={"known_trip_count":{"n":"5"}}
  %once = (f32[8]{0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)}, token[]) fusion(%a), \
kind=kOutput, calls=%other, backend_config={"estimated_cycles":"11"}
  %unknown = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"1152921504606846976"}
  %if = f32[8]{0} conditional(%i, %a, %a), branch_computations={%left, %right}
  %w3 = (s32[], f32[8]{0}) while(%t), condition=%c, body=%open
  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={}
  %not = f32[8]{0} custom-call(%a), custom_call_target="Sharding"
}
"""


def test_loops_multiply_and_what_nothing_calls_does_not_count() -> None:
    program = {line.name: line for line in read_hlo(LOOPS)}
    assert program["copy"].times == 5
    assert program["deep"].times == program["in_fusion"].times == 15
    assert program["once"].times == 1
    assert "never" not in program


def test_branches_and_loops_of_unknown_length_say_so() -> None:
    program = {line.name: line for line in read_hlo(LOOPS)}
    told = {name: (line.times, line.conditional, line.endless) for name, line in program.items()}
    assert told["l"] == told["r"] == (1, True, False)
    assert told["o"] == (1, False, True)
    assert told["deep"] == (15, False, False)


def test_estimates_leave_out_what_stands_for_unknown() -> None:
    assert estimated_cycles(read_hlo(LOOPS)) == 15 * 100 + 5 * 7 + 11


def test_kernels_are_found_by_their_target() -> None:
    assert [line.name for line in kernel_calls(read_hlo(LOOPS))] == ["k"]


def test_results_are_read_past_layouts_and_remarks() -> None:
    once = next(line for line in read_hlo(LOOPS) if line.name == "once")
    assert once.opcode == "fusion"
    assert once.result == (Typed("f32", (8,)), Typed("u32", ()), Typed("token", ()))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[2,3]", 24),
        ("bf16[5]{0:T(256)}", 10),
        ("pred[7]", 7),
        ("s4[3]", 2),  # four bits each, whole bytes together
        ("f8e4m3fn[16]", 16),
        ("u64[]", 8),
        ("c64[2]", 16),
        ("token[]", 0),
        ("f32[0,4]", 0),
    ],
)
def test_bytes_of_a_type(text: str, size: int) -> None:
    (found,) = typed_shapes(text)
    assert found.bytes == size


def test_a_computation_called_from_two_places_runs_for_both() -> None:
    text = """
%shared (p: f32[8]) -> f32[8] {
  %inside = f32[8]{0} copy(%p)
}
%body (p: f32[8]) -> f32[8] {
  %c1 = f32[8]{0} call(%p), to_apply=%shared
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %c2 = f32[8]{0} call(%a), to_apply=%shared
}"""
    assert [line.times for line in read_hlo(text) if line.name == "inside"] == [5]


COUNTING = """
%body (t: (s32[], f32[8], /*index=5*/s32[])) -> (s32[], f32[8], s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %t = (s32[]{:T(128)}, f32[8]{0}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %copied = s32[]{:T(128)S(6)} copy(%i), backend_config={}
  %next = s32[]{:T(128)} add(%copied, %one), backend_config={}
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %inside = f32[8]{0} negate(%x)
  ROOT %r = (s32[], f32[8]{0}, s32[]) tuple(%next, %inside, /*index=5*/%i)
}
%condition (t2: (s32[], f32[8], s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %t2 = (s32[], f32[8]{0}, s32[]) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%t2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %zero = s32[]{:T(128)} constant(2)
  %start = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[], f32[8]{0}, s32[]) tuple(%start, %a, %zero)
  %while = (s32[], f32[8]{0}, s32[]) while(%tuple), condition=%condition, body=%body
}"""


@pytest.mark.parametrize(
    ("text", "times", "endless"),
    [
        (COUNTING.replace("LIMIT", "9"), 7, False),
        (COUNTING.replace("LIMIT", "1"), 0, False),
        (COUNTING.replace("LIMIT", "9").replace("constant(1)", "constant(2)"), 1, True),
        (COUNTING.replace("LIMIT", "9").replace("direction=LT", "direction=GT"), 1, True),
        (COUNTING.replace("constant(LIMIT)", "parameter(1)"), 1, True),
    ],
)
def test_trips_that_the_tpu_compiler_leaves_out(text: str, times: int, endless: bool) -> None:
    (inside,) = [line for line in read_hlo(text) if line.name == "inside"]
    assert (inside.times, inside.endless) == (times, endless)


def convolution(attributes: str, left: str, right: str, out: str) -> str:
    return f"""
ENTRY %main (a: f32[8]) -> f32[8] {{
  %l = {left} parameter(0)
  %r = {right} parameter(1)
  %c = {out} convolution(%l, %r), {attributes}
}}"""


def test_products_are_counted_as_the_tpu_writes_them() -> None:
    plain = convolution("dim_labels=bf_io->bf", "f32[16,32]", "f32[32,64]", "f32[16,64]")
    assert matmul_flops(read_hlo(plain)) == 2 * 16 * 32 * 64
    transposed = convolution("dim_labels=bf_oi->bf", "f32[16,32]", "f32[64,32]", "f32[16,64]")
    assert matmul_flops(read_hlo(transposed)) == 2 * 16 * 32 * 64
    # A batch of 6 as a spatial dimension with gaps: place i meets kernel i only.
    window = "window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf"
    batch = convolution(window, "f32[6,16,32]", "f32[6,32,64]", "f32[6,16,64]")
    assert matmul_flops(read_hlo(batch)) == 6 * 2 * 16 * 32 * 64
    # A convolution of 8 places by 3, padded: the ends meet 2 of the 3.
    same = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    real = convolution(same, "f32[2,8,4]", "f32[3,4,5]", "f32[2,8,5]")
    assert matmul_flops(read_hlo(real)) == 2 * 2 * 4 * 5 * (8 * 3 - 2)


def test_products_are_counted_as_a_gpu_writes_them() -> None:
    text = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %l = f32[4,16,32]{2,1,0} parameter(0)
  %r = f32[4,32,8]{2,1,0} parameter(1)
  %d = f32[4,16,8]{2,1,0} dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}, \
rhs_batch_dims={0}, rhs_contracting_dims={1}
  %g = f32[4,16,8]{2,1,0} custom-call(%l, %r), custom_call_target="__cublas$gemm", \
backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}
}"""
    assert matmul_flops(read_hlo(text)) == 2 * (2 * 4 * 16 * 32 * 8)


def test_a_real_loop_is_read() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 6, lambda _, x: jnp.dot(x, x), x)

    text = jax.jit(run).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile().as_text()
    assert any(line.opcode == "while" for line in read_hlo(text))
    assert max(line.times for line in read_hlo(text) if line.opcode in ("dot", "fusion")) == 6
