"""What Muon sends on TPU pods, by their compiler, which needs no TPU: ``make test-tpu``."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree.costs import Batch, layer_bytes

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("optimizing")]

LAYERS, WIDTH = 4, 256
SQUARES = Batch(4 * LAYERS, WIDTH, WIDTH, 2)
WIDE = Batch(2 * LAYERS, WIDTH, 4 * WIDTH, 2)


def model(axes: dict[str, int], kind: AxisType = AxisType.Auto, stacked: bool = True) -> Any:
    """4 layers of 6 kernels, cut along the model's width, and along the other side if there is a
    second axis for it."""
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))
    other = "tensor" if "tensor" in axes else None
    lead = (LAYERS,) if stacked else ()

    def kernel(fan_in: int, fan_out: int, *spec: str | None) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, P(*(None,) * len(lead), *spec))
        return jax.ShapeDtypeStruct((*lead, fan_in, fan_out), jnp.float32, sharding=place)

    def block() -> dict[str, Any]:
        return {
            **{name: kernel(WIDTH, WIDTH, "fsdp", other) for name in ("query", "key", "value")},
            "out_proj": kernel(WIDTH, WIDTH, other, "fsdp"),
            "up": kernel(WIDTH, 4 * WIDTH, "fsdp", other),
            "down": kernel(4 * WIDTH, WIDTH, other, "fsdp"),
        }

    return {"blocks": block()} if stacked else {f"block_{i}": block() for i in range(LAYERS)}


def compiled(topology: str, params: Any) -> optkit.aot.Preflight:
    tx = optkit.muon(0.02, dtype=jnp.bfloat16)
    found = optkit.aot.preflight(tx, params, topology=topology)
    assert found.compiles, found.error
    assert {each.kind for each in found.collectives} == {"all-to-all"}  # and nothing is gathered
    assert found.wire_bytes(between_slices=False) > 0
    return found


@pytest.mark.parametrize(
    ("kind", "stacked"),
    [(AxisType.Auto, True), (AxisType.Auto, False), (AxisType.Explicit, True)],
)
def test_whole_matrices_go_to_single_chips_in_16_bits_and_back(kind, stacked):
    found = compiled("v5e:4x4", model({"fsdp": 16}, kind, stacked))
    assert Counter(each.times for each in found.collectives) == {1: 4}
    sent = layer_bytes(SQUARES, 16) + layer_bytes(WIDE, 16)
    assert found.wire_bytes(between_slices=False) == sent
    # Gathered anywhere, all matrices would take more.
    gathered = SQUARES.count * SQUARES.matrix_bytes + WIDE.count * WIDE.matrix_bytes
    assert found.memory.temporaries < gathered


def test_two_axes_are_crossed_one_after_the_other():
    found = compiled("v5e:4x4", model({"fsdp": 4, "tensor": 4}))
    share = 3 / 4 * (1 * SQUARES.matrix_bytes + 1 * WIDE.matrix_bytes)
    # Both ways over each axis.
    assert found.wire_bytes(between_slices=False) == 2 * 2 * share
    assert all(len(each.axes) == 1 for each in found.collectives)


def test_nothing_leaves_a_slice():
    found = compiled("2xv5e:2x2", model({"slice": 2, "fsdp": 4}))
    assert found.wire_bytes(between_slices=True) == 0
    sent = layer_bytes(SQUARES, 4) + layer_bytes(WIDE, 4)
    assert found.wire_bytes(between_slices=False) == sent
