"""Work of curvature methods on a mesh: divided among devices, factors spread, few exchanges."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.hlo import collectives
from tests.conformance.test_sharding import mesh_of

SIDE, DEVICES = 32, 8
METHODS = {
    # Roots by products, which the compiler counts; two of each layer, half of them have a turn.
    "shampoo": lambda: optkit.shampoo(
        1e-3, refresh_every=2, method="newton_schulz", graft="sgd", b1=0.0
    ),
    "soap": lambda: optkit.soap(1e-3, refresh_every=2),
    "psgd_kron": lambda: optkit.psgd_kron(1e-3),
}


def compiled(name: str, count: int, spread: bool) -> tuple[Any, Any]:
    """A step of so many square matrices, on one device or cut by rows over eight; and its state."""
    tx = METHODS[name]()
    where = NamedSharding(mesh_of("auto"), P("x", None)) if spread else None
    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32, sharding=where)
    params = {f"layer{i}": {"kernel": shape} for i in range(count)}
    state = jax.eval_shape(tx.init, params)
    if spread:
        places = optkit.state_sharding(tx, params)
        state = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, places
        )
    return jax.jit(tx.update).lower(params, state, params).compile(), state


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_no_replica_repeats_the_work_of_another(name: str) -> None:
    # Of all layers one device works on in a loop, whose body the compiler counts once.
    half, _ = compiled(name, DEVICES // 2, spread=False)
    parts, state = compiled(name, DEVICES, spread=True)
    alone, each = (program.cost_analysis()["flops"] for program in (half, parts))
    assert each <= 1.25 * 2 * alone / DEVICES
    for match in optkit.tree.match_state(state, {f"layer{i}": {"kernel": 0} for i in range(8)}):
        if match.is_factor:
            assert match.leaf.sharding.shard_shape(match.leaf.shape)[0] == SIDE // DEVICES


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_more_layers_need_no_more_exchanges(name: str) -> None:
    few, many = (collectives(compiled(name, DEVICES * k, spread=True)[0]) for k in (1, 2))
    assert few == many
