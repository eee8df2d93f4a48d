"""Work of curvature methods on a mesh: divided among devices, factors spread, few exchanges."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree import leaves_with_paths
from tests.conformance.hlo import collectives
from tests.conformance.methods import unit_statistics
from tests.conformance.test_sharding import mesh_of, place
from tests.conformance.trees import nested

# Matrices wide enough that products are the work, and not what is done entry by entry.
SIDE, DEVICES = 128, 8
METHODS = {
    # Roots by products, which the compiler counts; two of each layer, half of them have a turn.
    "shampoo": lambda: optkit.shampoo(
        1e-3, refresh_every=2, method="newton_schulz", graft="sgd", b1=0.0
    ),
    "soap": lambda: optkit.soap(1e-3, refresh_every=2),
    "shampoo_google": lambda: optkit.shampoo_google(
        1e-3, refresh_every=2, method="newton_schulz", b1=0.0
    ),
    "psgd_kron": lambda: optkit.psgd_kron(1e-3),
    "mkor": lambda: optkit.mkor(optax.sgd(1e-3, 0.9), statistics=unit_statistics, every=2),
    "natural_fisher": lambda: optkit.scale_by_natural_fisher(),
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


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_layers_with_biases_step_on_a_mesh_as_on_one_device(kind: str) -> None:
    specs = {"up/kernel": P("x", None), "up/bias": P("x"), "down/kernel": P("x"), "down/bias": P()}
    sizes = {"up/kernel": (8, 16), "up/bias": (16,), "down/kernel": (8, 3, 2), "down/bias": (8, 2)}
    tx = optkit.mkor(optax.identity(), statistics=_means, every=1)
    keys = dict(zip(sizes, jax.random.split(jax.random.key(0), len(sizes)), strict=True))
    params = nested({path: jax.random.normal(keys[path], size) for path, size in sizes.items()})
    step = jax.jit(tx.update)

    def run(params: Any) -> Any:
        state = tx.init(params)
        for _ in range(3):
            updates, state = step(params, state, params)
        return updates, state

    want, _ = run(params)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        got, state = run(place(params, specs, mesh))
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-6)
    assert state.kronecker.right["down"]["kernel"].sharding.spec[0] == "x"


def _means(params: Any, key: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    mean = lambda p: (jnp.mean(p, -1), jnp.mean(p, -2))  # noqa: E731
    kernels = {path: p for path, p in leaves_with_paths(params) if path.endswith("kernel")}
    return {path: mean(jnp.asarray(p)) for path, p in kernels.items()}
