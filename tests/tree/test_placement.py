"""State shardings of Optax's transformations, of strategies, and of what does not fit a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree import match_state, state_sharding

SPECS = {"a": P("x"), "b": {"kernel": P(None, "x")}}  # one for both leaves of a layer
PARAMS = {
    "a": {"kernel": np.ones((128, 256), np.float32), "bias": np.ones(256, np.float32)},
    "b": {"kernel": np.ones((256, 128), np.float32)},
}
DIMENSIONS = optax.contrib.MuonDimensionNumbers(0, 1)
# Where optax.tree_map_params fails or answers wrongly, and what is plainly like the parameters.
OPTAX = {
    "masked": lambda: optax.masked(optax.adam(0.1), {"a": True, "b": False}),
    "partition": lambda: optax.partition(
        {"x": optax.adam(0.1), "y": optax.sgd(0.1, 0.9)}, {"a": "x", "b": {"kernel": "y"}}
    ),
    "sm3": lambda: optax.sm3(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "muon": lambda: optax.contrib.muon(
        0.1,
        muon_weight_dimension_numbers={
            "a": {"kernel": DIMENSIONS, "bias": None},
            "b": {"kernel": DIMENSIONS},
        },
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "lbfgs": lambda: optax.lbfgs(0.1, memory_size=3, linesearch=None),
}


def mesh_of() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("name", OPTAX)
def test_each_array_of_an_optax_state_lies_with_its_parameter(name: str) -> None:
    tx = OPTAX[name]()
    shapes = jax.eval_shape(tx.init, PARAMS)
    specs = state_sharding(tx, PARAMS, SPECS)
    assert jax.tree.structure(specs) == jax.tree.structure(shapes)
    of = {"a/kernel": P("x"), "a/bias": P("x"), "b/kernel": P(None, "x")}
    seen = set()
    for match, spec in zip(match_state(shapes, PARAMS), jax.tree.leaves(specs), strict=True):
        shape = match.leaf.shape
        if match.param is not None and shape == match.param.shape:
            assert spec == of[match.param_path]
            seen.add(match.param_path)
        elif match.param is not None and shape[1:] == match.param.shape:
            assert spec == P(None, *of[match.param_path])  # the history of L-BFGS
        else:
            assert spec == P() and np.prod(shape) <= 256
    assert seen or name in ("sm3", "adafactor")


@pytest.mark.parametrize("name", ["partition", "lbfgs"])
def test_a_compiled_init_makes_the_state_there_and_a_step_leaves_it(name: str) -> None:
    tx, mesh = OPTAX[name](), mesh_of()
    wanted = state_sharding(tx, PARAMS, SPECS, mesh=mesh)
    placed = jax.device_put(
        PARAMS,
        jax.tree.map(lambda spec: NamedSharding(mesh, spec), jax.tree.broadcast(SPECS, PARAMS)),
    )
    state = jax.jit(tx.init, out_shardings=wanted)(placed)
    after = jax.jit(tx.update, out_shardings=(None, wanted))(placed, state, placed)[1]
    for tree in (state, after):
        jax.tree.map(lambda x, place: None if x.sharding == place else pytest.fail(), tree, wanted)
    assert state_sharding(tx, placed) == wanted


@pytest.mark.parametrize("entry", optkit.catalogue.entries(kind="strategy"), ids=lambda e: e.name)
def test_the_state_of_a_strategy_lies_with_its_parameters(entry: optkit.catalogue.Entry) -> None:
    dtype = jnp.int8 if "integer" in entry.tags or entry.name == "egg" else jnp.float32
    params = {"w": jax.ShapeDtypeStruct((8, 64), dtype), "v": jax.ShapeDtypeStruct((64,), dtype)}
    tx = entry.factory(**entry.example)
    shapes = jax.eval_shape(tx.init, params)
    specs = state_sharding(tx, params, {"w": P("x"), "v": P()})
    for match, spec in zip(match_state(shapes, params), jax.tree.leaves(specs), strict=True):
        if match.param_path == "w" and match.leaf.size >= 512:
            assert "x" in spec
        elif match.param_path is None:
            assert spec == P()


def test_a_dimension_that_devices_do_not_divide_is_named() -> None:
    params = {"w": jnp.ones((8, 10))}
    message = (
        r"leaf 'w' of shape \(8, 10\) .* dimension 1 has 10 entries .* 'x' has 8; pad it to 16"
    )
    with pytest.raises(ValueError, match=message):
        state_sharding(optax.adam(0.1), params, P(None, "x"), mesh=mesh_of())
    with pytest.raises(ValueError, match=r"leaf 'w' of shape \(8, 10\) has fewer dimensions than"):
        state_sharding(optax.adam(0.1), params, P(None, None, "x"), mesh=mesh_of())


def test_a_stored_state_needs_the_number_of_devices() -> None:
    tx, params = optkit.adamw_8bit(), {"w": np.ones((128, 256), np.float32)}
    with pytest.raises(ValueError, match="'w' is stored in fewer bytes"):
        state_sharding(tx, params, P("x"))
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        specs = state_sharding(tx, params, P("x"))
    known = state_sharding(tx, params, P("x"), mesh=mesh)
    assert jax.tree.map(lambda place: place.spec, known) == specs


def test_a_plan_counts_the_bytes_of_one_device() -> None:
    params = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32), "b": jnp.ones(8)}
    rows = NamedSharding(mesh_of(), P("x"))
    plan = optkit.plan(optax.adam(0.1), params, shardings={"w": rows, "b": rows.update(spec=P())})
    assert [(row.path, row.state_bytes, row.device_bytes) for row in plan.rows] == [
        ("b", 64, 64),
        ("w", 1024, 128),
    ]
    assert plan.device_bytes == 64 + 128 + 4
    assert "on a device" in str(plan) and str(plan).endswith("on a device 196")
    assert "on a device" not in str(optkit.plan(optax.adam(0.1), params))
