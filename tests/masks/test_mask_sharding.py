"""Policies on eight devices: the masks and the steps of one device, on both kinds of mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit import masks
from tests.transforms.driver import gradients

LEAVES = {
    "up": {"kernel": ((8, 16), P(None, "x")), "bias": ((16,), P("x"))},
    "down": {"kernel": ((16, 8), P("x", None))},
}
SHAPES = {"up/kernel": (8, 16), "up/bias": (16,), "down/kernel": (16, 8)}
POLICIES = {
    "magnitude": masks.magnitude(20, interval=1),
    "magnitude of all": masks.magnitude(40, over="all", where="**", interval=1),
    "random": masks.random(0.3, interval=1),
    "lift": masks.lift(1, 2, interval=1),
    "id3": masks.id3(30, 2),
    "greedy rows": masks.greedy_blocks(5, blocks="row"),
    "greedy chunks": masks.greedy_blocks(5, blocks=4),
    "snella": masks.snella(0.4, interval=1, end=2),
    "paca": masks.paca(3),
    "s2ft": masks.s2ft(5, select="weight"),
}
# The other ones are built of the same parts.
QUICK = ("magnitude of all", "greedy rows", "s2ft")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POLICIES]
DROPS = ("magnitude", "random", "lift", "paca", "s2ft")


def nested(flat):
    return {
        "up": {"kernel": flat["up/kernel"], "bias": flat["up/bias"]},
        "down": {"kernel": flat["down/kernel"]},
    }


TREES = [jax.tree.map(jnp.asarray, nested(g)) for g in gradients(0, 3, SHAPES)]


def follow(tx, trees):
    params, state = trees[0], tx.init(trees[0])
    update = jax.jit(tx.update)
    for g in trees[1:]:
        u, state = update(g, state, params)
        params = jax.tree.map(jnp.add, params, u)
    return jax.tree.map(np.asarray, (params, state.kept))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", CASES)
def test_eight_devices_choose_what_one_chooses(name, kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    places = jax.tree.map(lambda x: NamedSharding(mesh, x[1]), LEAVES, is_leaf=is_leaf)
    for state in ("hold", "drop") if name in DROPS else ("hold",):
        inner = optax.chain(optkit.scale_by_adam(eps=1e-3), optax.scale(-0.1))
        tx = optkit.update_mask(inner, POLICIES[name], state=state)
        want = follow(tx, TREES)
        with jax.set_mesh(mesh):
            got = follow(tx, [jax.device_put(tree, places) for tree in TREES])
        jax.tree.map(np.testing.assert_array_equal, got[1], want[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got[0], want[0])
