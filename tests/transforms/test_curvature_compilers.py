"""What a step of curvature methods costs each chip, by the TPU's compiler: ``make test-tpu``."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.methods import unit_statistics

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("optimizing")]

CHIPS, SIDE = 4, 128
METHODS = {
    "shampoo": lambda: optkit.shampoo(
        1e-3, b1=0.0, graft="sgd", refresh_every=2, method="newton_schulz"
    ),
    "soap": lambda: optkit.soap(1e-3, refresh_every=2),
    "psgd_kron": lambda: optkit.psgd_kron(1e-3),
    "mkor": lambda: optkit.mkor(optax.sgd(1e-3, 0.9), statistics=unit_statistics, every=2),
}


def step(name: str, spread: bool) -> optkit.aot.Preflight:
    """As many square matrices as chips, whole on one chip or each cut by rows over all."""
    where = None
    if spread:
        mesh = AbstractMesh((CHIPS,), ("fsdp",), axis_types=(AxisType.Auto,))
        where = NamedSharding(mesh, P("fsdp", None))
    kernel = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32, sharding=where)
    params: Any = {f"layer{i}": {"kernel": kernel} for i in range(CHIPS)}
    found = optkit.aot.preflight(METHODS[name](), params, topology="v5e:2x2")
    assert found.compiles, found.error
    return found


@pytest.mark.parametrize("name", METHODS)
def test_chips_share_the_work_and_send_matrices_to_their_owners(name: str) -> None:
    alone, parts = step(name, False), step(name, True)
    assert not alone.collectives
    assert 0 < parts.flops <= 1.25 * alone.flops / CHIPS
    assert {"all-to-all"} <= {each.kind for each in parts.collectives}
