"""What an outer step sends from one slice of TPUs to another, by their compiler; none is needed."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit import aot

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("optimizing")]

TOPOLOGY, SIZES = "2xv5e:2x2", {"slice": 2, "fsdp": 4}
OWN = 256 * 512 * 4 / 4  # bytes of a replica that a chip has


def sent(step: Any, mesh: Any) -> tuple[float, float]:
    """Bytes that a chip sends to the other slice, and within its own, in a step of one matrix."""
    place = NamedSharding(mesh, P("slice", "fsdp"))
    params = jax.ShapeDtypeStruct((2, 256, 512), jnp.float32, sharding=place)
    compiled = aot.compile_for(TOPOLOGY, step, params, mesh=mesh, out_shardings=place)
    found = aot.find_collectives(
        compiled.as_text() or "", 8, axes=SIZES, slice_of=[0] * 4 + [1] * 4
    )
    return tuple(
        sum(each.wire_bytes * each.times for each in found if each.between_slices == between)
        for between in (True, False)
    )


@pytest.mark.parametrize(("wire", "share"), [(None, 1.0), ("bfloat16", 0.5)])
@pytest.mark.parametrize("axis", [None, "slice"])
def test_diloco_sends_a_replicas_share_of_each_chip(
    wire: str | None, share: float, axis: str | None
) -> None:
    mesh = aot.find_target(TOPOLOGY).mesh(SIZES)
    outer = optkit.diloco(wire_dtype=wire, axis_name=axis)
    like = jax.eval_shape(optkit.diloco().init, jnp.zeros((1, 256, 512)))

    def step(params: Any) -> Any:
        # A state that costs no exchange: init's, which tells all of the first replica, would.
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return outer.step(params, state)[0]

    run = step if axis is None else optkit.on_replicas(step, axis, mesh)
    between, within = sent(run, mesh)
    assert between == pytest.approx(share * OWN, rel=0.01)
    assert within == 0.0


def test_noloco_sends_a_chips_share_once() -> None:
    mesh = aot.find_target(TOPOLOGY).mesh(SIZES)
    outer = optkit.noloco()
    for groups in (((0, 1),), None):

        def step(params: Any, groups: Any = groups) -> Any:
            return outer.step(params, outer.init(params), groups=groups)[0]

        assert sent(step, mesh) == (OWN, 0.0)
