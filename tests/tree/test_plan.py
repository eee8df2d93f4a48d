"""Plans, byte counts and shardings of the state of any Optax optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optkit
from optkit.tree import leaves_with_paths, match_state, state_sharding, tree_bytes

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 4), jnp.bfloat16)},
    "up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "frozen": {"kernel": jnp.ones((6, 6))},
}
LABELS = {"embed": "a", "up": "b", "frozen": "c"}
OPTIMIZERS = {
    "muon": lambda: optkit.muon(),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.1), "b": optkit.lion(0.1), "c": optax.set_to_zero()}, LABELS
    ),
    "masked": lambda: optax.masked(optkit.muon(), {"embed": False, "up": True, "frozen": False}),
    "multisteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "rounded": lambda: optax.chain(
        optkit.master_weights(optkit.muon()), optkit.stochastic_round(0)
    ),
    "freeze": lambda: optkit.freeze("frozen/**", optkit.accumulate_gradients(optkit.adamw(), 2)),
    "stateless": lambda: optax.sgd(0.1),
}


def nnx_params():
    module = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    return nnx.state(module, nnx.Param)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bytes_of_a_plan_are_those_of_the_state(name):
    tx = OPTIMIZERS[name]()
    state = tx.init(PARAMS)
    plan = optkit.plan(tx, PARAMS)
    assert plan.state_bytes == sum(np.asarray(_plain(x)).nbytes for x in jax.tree.leaves(state))
    assert plan.parameter_bytes == 20 * 2 + (24 + 6 + 36) * 4
    assert [row.path for row in plan.rows] == [path for path, _ in leaves_with_paths(PARAMS)]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert optkit.plan(tx, shapes) == plan
    assert f"state {plan.state_bytes:,} bytes" in str(plan)


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize(
    "params", [nnx_params(), jnp.ones((3, 4)), (jnp.ones((3, 4)),)], ids=["nnx", "array", "tuple"]
)
def test_plans_of_other_containers(params):
    tx = optkit.muon()
    plan = optkit.plan(tx, params)
    assert plan.state_bytes == tree_bytes(tx.init(params))
    for row in plan.rows:
        size = int(np.prod(row.shape))
        assert (row.method, row.state_bytes) == (
            ("muon", 4 * size) if row.role == "matrix" else ("adamw", 8 * size)
        )


def test_rows_tell_role_route_and_dtype():
    tx = optkit.route(
        {"low": optkit.lion(0.1, state_dtype=jnp.bfloat16), "rest": optkit.muon()},
        [("frozen/**", "frozen"), ("embedding", "low"), ("**", "rest")],
    )
    rows = {row.path: row for row in optkit.plan(optax.chain(optax.clip(1.0), tx), PARAMS).rows}
    frozen, embedding = rows["frozen/kernel"], rows["embed/embedding"]
    assert (frozen.method, frozen.state_bytes, frozen.state_dtype) == ("frozen", 0, "-")
    assert (embedding.role, embedding.method) == ("embedding", "low")
    assert (embedding.state_dtype, embedding.state_bytes) == ("bfloat16", 40)
    assert rows["up/kernel"].method == "rest/muon" and rows["up/bias"].method == "rest/adamw"
    assert optkit.plan(optkit.adamw(), PARAMS).rows[0].method == "mu+nu"


def test_user_roles_show_in_the_plan():
    rows = optkit.plan(optkit.muon(), PARAMS, roles=(("frozen", "head"),)).rows
    assert {row.path: str(row.role) for row in rows}["frozen/kernel"] == "head"


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), tx)])
def test_frozen_leaves_allocate_nothing(wrap):
    for inner in (optax.adam(0.1), optkit.muon(), optkit.accumulate_gradients(optkit.lion(), 4)):
        state = wrap(optkit.freeze("frozen/**", inner)).init(PARAMS)
        rest = {name: value for name, value in PARAMS.items() if name != "frozen"}
        assert tree_bytes(state) == tree_bytes(inner.init(rest))


def test_match_state_takes_the_longest_path_and_leaves_counters_alone():
    params = {"w": jnp.ones(2), "a": {"w": jnp.ones(2)}}
    found = match_state(optax.adam(0.1).init(params), params)
    assert [match.param_path for match in found] == [None, "a/w", "w", "a/w", "w"]
    assert [match.owner.rsplit("/", 1)[-1] for match in found] == ["count", "mu", "mu", "nu", "nu"]


def test_state_is_sharded_like_its_parameters_and_the_rest_replicated():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("x"), PartitionSpec()))
    params = {
        "up": {"kernel": jax.device_put(PARAMS["up"]["kernel"], rows), "bias": jnp.ones(6)},
    }
    params["up"]["bias"] = jax.device_put(params["up"]["bias"], whole)
    tx = optkit.muon()
    shardings = state_sharding(jax.eval_shape(tx.init, params), params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    kernel = next(m.leaf for m in match_state(state, params) if m.param_path == "up/kernel")
    assert kernel.sharding == rows and kernel.shape == (4, 6)
    assert all(
        m.leaf.sharding == whole for m in match_state(state, params) if m.param_path != "up/kernel"
    )
    with pytest.raises(ValueError, match="no parameter has a sharding"):
        state_sharding(state, jax.eval_shape(lambda: PARAMS))
