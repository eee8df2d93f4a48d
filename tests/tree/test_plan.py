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


def test_a_plan_of_workers_is_of_one_of_them():
    tx = optkit.onebit_adam(axis_name="data")
    params = {"w": jnp.zeros((16, 8)), "b": jnp.zeros(64)}
    plan = optkit.plan(tx, params, axis_sizes={"data": 8})
    of_leaves = {row.path: row.state_bytes for row in plan.rows}
    assert of_leaves == {"w": 128 * 12 + 128 // 8 * 4, "b": 64 * 12 + 64 // 8 * 4}
    with pytest.raises(NameError, match=r"axis 'data', which is not there.*axis_sizes=\{'data': 8"):
        optkit.plan(tx, params)
    alone = optkit.plan(optkit.onebit_adam(), params)
    assert alone.state_bytes > plan.state_bytes == sum(of_leaves.values()) + plan.shared_bytes


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


def _row(tx, path, **options):
    return next(row for row in optkit.plan(tx, PARAMS, **options).rows if row.path == path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), optkit.skip_nonfinite(tx)),
        lambda tx: optkit.freeze("embed/**", tx),
        lambda tx: optkit.route({"muon": tx}, [("**", "muon")]),
    ],
    ids=["bare", "wrapped", "frozen", "routed"],
)
def test_a_plan_shows_the_roles_that_the_recipe_saw(wrap):
    tx = wrap(optkit.muon(roles=[("frozen", "head")]))
    row = _row(tx, "frozen/kernel")
    assert (str(row.role), row.method.rsplit("/")[-1]) == ("head", "adamw")
    explicit = _row(tx, "frozen/kernel", roles=(("frozen", "expert"),))
    assert (str(explicit.role), explicit.method) == ("expert", row.method)


def test_the_innermost_route_with_roles_decides_the_role():
    inner = optkit.muon(roles=[("frozen", "norm")])
    tx = optkit.route(
        {"a": inner}, [("head", "frozen"), ("**", "a")], roles=[("up/kernel", "head")]
    )
    assert [str(_row(tx, path).role) for path in ("up/kernel", "frozen/kernel")] == ["head", "norm"]


def test_nested_routes_of_one_name_show_it_once():
    tx = optkit.route({"muon": optkit.muon()}, [("**", "muon")])
    assert [row.method for row in optkit.plan(tx, PARAMS).rows] == [
        "muon/adamw", "muon", "muon/adamw", "muon",
    ]  # fmt: skip


def test_a_plan_tells_how_matrices_are_read():
    params = {
        "layers": {"mlp": {"kernel": jnp.zeros((4, 8, 16))}},
        "attn": {"query": {"kernel": jnp.zeros((16, 4, 2))}},
        "qkv": {"kernel": jnp.zeros((8, 12))},
        "conv": {"kernel": jnp.zeros((3, 3, 2, 5))},
        "embedding": jnp.zeros((9, 4)),
    }
    fused = optkit.MatrixDims(0, 1, output_blocks=(8, 2, 2))
    tx = optkit.muon(roles=[("qkv/kernel", "matrix", fused)])
    for wrapped in (tx, optkit.freeze("conv", tx)):
        read = {row.path: row.matrices for row in optkit.plan(wrapped, params).rows}
        assert read == {
            "layers/mlp/kernel": "4 x (8 -> 16)",
            "attn/query/kernel": "16 -> 8",
            "qkv/kernel": "8 -> 8 + 2 x (8 -> 2)",
            "conv/kernel": "18 -> 5" if wrapped is tx else "-",
            "embedding": "-",
        }
    assert "fan_in -> fan_out" not in str(optkit.plan(optkit.adamw(), params))
    turned = optax.contrib.MuonDimensionNumbers(1, 0)
    (row,) = optkit.plan(optkit.muon(dims=turned), {"w": jnp.zeros((2, 3))}).rows
    assert row.matrices == "3 -> 2"
    plan = optkit.plan(
        optkit.muon(dims={"w": optax.contrib.MuonDimensionNumbers(0, 5)}), {"w": jnp.zeros((2, 3))}
    )
    assert plan.rows[0].matrices == "-" and "leaf 'w' of rank 2 has no axis 5" in str(plan)


def test_wrappers_show_around_what_they_wrap_and_not_inside_recipes():
    guarded = optkit.skip_spikes(
        optkit.route(
            {"adam": optkit.cautious(optax.adam(0.1)), "muon": optkit.cautious_muon()},
            [("embed/**", "adam"), ("frozen", "frozen"), ("**", "muon")],
        )
    )
    plan = optkit.plan(optax.chain(optkit.master_weights(guarded)), PARAMS)
    around = ("master_weights", "skip_spikes")
    assert {row.path: row.wrappers for row in plan.rows} == {
        "embed/embedding": (*around, "cautious"),
        "frozen/kernel": around,
        "up/bias": around,
        "up/kernel": around,
    }
    assert "master_weights > skip_spikes > cautious" in str(plan)
    assert "wrapped by" not in str(optkit.plan(optkit.cautious_adamw(), PARAMS))


def test_rules_that_serve_no_leaf_stand_below_the_table():
    rules = [("encoder/**", "frozen"), ("up", "a"), ("up/kernel", "b"), ("bias", "b"), ("**", "a")]
    tx = optkit.route(
        {"a": optkit.muon(roles=[("blocks/**/gate", "head")]), "b": optax.sgd(0.1)}, rules
    )
    plan = optkit.plan(optax.chain(tx), PARAMS, roles=[("gate", "norm")])
    earlier = "serves no leaf: earlier rules take all it matches"
    assert plan.notes == (
        "rule 'encoder/**' -> frozen matches no leaf",
        f"rule 'up/kernel' -> b {earlier}",
        f"rule 'bias' -> b {earlier}",
        "role rule 'gate' -> norm matches no leaf",
        "role rule 'blocks/**/gate' -> head matches no leaf",
    )
    assert str(plan).endswith("\n".join(plan.notes))


def test_rules_for_leaves_of_other_routes_and_those_of_recipes_are_no_mistakes():
    inner = optkit.route(
        {"x": optkit.muon(), "y": optax.sgd(0.1)}, [("embed/**", "y"), ("**", "x")]
    )
    tx = optkit.route({"a": inner, "b": optax.sgd(0.1)}, [("up", "a"), ("**", "b")])
    assert optkit.plan(tx, PARAMS).notes == ()
    assert optkit.plan(optkit.muon(), {"bias": jnp.ones(3)}).notes == ()
    assert optkit.plan(optkit.freeze("**", optkit.muon()), PARAMS).notes == ()


def test_swapped_arguments_are_told():
    for call in (
        lambda: optkit.plan(PARAMS, optkit.muon()),
        lambda: optkit.freeze(optkit.muon(), "frozen/**"),
    ):
        with pytest.raises(TypeError, match="give the arguments in the other order"):
            call()


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
