"""What every task promises, checked on tiny sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit import tasks

TINY = {
    "bytelm": {"width": 16, "layers": 1, "heads": 2, "context": 16, "held_out_windows": 8},
    "digits": {"width": 16, "channels": 2, "batch": 32},
    "digits_linen": {"width": 16, "batch": 32},
    "regression": {"inputs": 8, "outputs": 6, "batch": 16},
}
LEARNING = {"bytelm": 1e-2, "digits": 1e-2, "digits_linen": 1e-2, "regression": 3e-2}


@pytest.fixture(scope="module", params=tasks.names())
def task(request: pytest.FixtureRequest) -> tasks.Task:
    return tasks.get(request.param, **TINY[request.param])


@pytest.fixture(scope="module")
def params(task: tasks.Task) -> tasks.Params:
    return task.init(jax.random.key(0))


def test_every_task_is_covered() -> None:
    assert sorted(TINY) == tasks.names()


def test_params_are_nested_dicts_of_float32_with_string_keys(
    task: tasks.Task, params: tasks.Params
) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert all(isinstance(key, jax.tree_util.DictKey) and type(key.key) is str for key in path)
        assert leaf.dtype == jnp.float32
    assert task.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_init_is_a_function_of_the_key(task: tasks.Task, params: tasks.Params) -> None:
    again, other = task.init(jax.random.key(0)), task.init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), other, params)
    assert any(jax.tree.leaves(moved))


def test_init_works_without_making_arrays(task: tasks.Task, params: tasks.Params) -> None:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_batch_is_a_function_of_seed_and_step(task: tasks.Task) -> None:
    later_first = task.batch(3, 7)
    for step in range(3):
        task.batch(3, step)
    jax.tree.map(np.testing.assert_array_equal, task.batch(3, 7), later_first)
    for seed, step in ((3, 8), (4, 7)):
        other = task.batch(seed, step)
        same = [np.array_equal(other[field], later_first[field]) for field in other]
        assert not all(same)
    with pytest.raises(ValueError, match="step=-1"):
        task.batch(0, -1)


def test_loss_is_a_scalar_with_scalar_metrics(task: tasks.Task, params: tasks.Params) -> None:
    value, metrics = jax.jit(task.loss)(params, task.batch(0, 0))
    assert value.shape == () and value.dtype == jnp.float32 and bool(jnp.isfinite(value))
    assert all(metric.shape == () for metric in metrics.values())


def test_the_loss_is_the_cross_entropy_of_the_logits(
    task: tasks.Task, params: tasks.Params
) -> None:
    if task.logits is None:
        assert task.name == "regression"
        return
    batch = task.batch(0, 0)
    labels = batch["targets" if "targets" in batch else "labels"]
    likely = np.asarray(jax.nn.log_softmax(task.logits(params, batch)), np.float64)
    want = -np.take_along_axis(likely, np.asarray(labels)[..., None], axis=-1).mean()
    np.testing.assert_allclose(task.loss(params, batch)[0], want, rtol=1e-4)


def test_loss_works_under_vmap_over_a_population(task: tasks.Task, params: tasks.Params) -> None:
    batch = task.batch(0, 0)
    members = [jax.tree.map(lambda x, k=scale: k * x, params) for scale in (1.0, 0.5, -1.0)]
    population = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    together = jax.jit(jax.vmap(lambda p: task.loss(p, batch)[0]))(population)
    alone = [jax.jit(task.loss)(member, batch)[0] for member in members]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5)


def test_init_works_under_vmap_over_keys(task: tasks.Task, params: tasks.Params) -> None:
    shapes = jax.eval_shape(jax.vmap(task.init), jax.random.split(jax.random.key(0), 3))
    expected = jax.tree.map(lambda leaf: (3, *leaf.shape), params)
    assert jax.tree.map(jnp.shape, shapes) == expected


def test_loss_under_strict_promotion(task: tasks.Task, params: tasks.Params) -> None:
    with jax.numpy_dtype_promotion("strict"):
        value, _ = jax.eval_shape(task.loss, params, task.batch(0, 0))
    assert (value.shape, value.dtype) == ((), jnp.float32)


def test_loss_stays_float32_for_bfloat16_params(task: tasks.Task, params: tasks.Params) -> None:
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    batch = task.batch(0, 0)
    value = jax.jit(task.loss)(low, batch)[0]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, jax.jit(task.loss)(params, batch)[0], rtol=0.05)


def test_evaluate_returns_floats_and_repeats(task: tasks.Task, params: tasks.Params) -> None:
    first = task.evaluate(params)
    assert task.metric in first and all(type(value) is float for value in first.values())
    assert task.evaluate(params) == first


def test_training_lowers_both_losses(task: tasks.Task) -> None:
    tx = optax.adamw(LEARNING[task.name])
    records = tasks.run(task, tx, steps=60, seed=0, eval_every=20)
    assert records[-1].loss < 0.8 * records[0].loss
    before = task.evaluate(task.init(jax.random.key(0)))
    assert records[-1].held_out["loss"] < 0.8 * before["loss"]
    assert records[-1].held_out[task.metric] < before[task.metric]


def columns(mesh: Mesh, leaf: jax.Array) -> NamedSharding:
    split = leaf.ndim > 1 and leaf.shape[-1] % 2 == 0
    return NamedSharding(mesh, P(*(None,) * (leaf.ndim - 1), "model") if split else P())


# Explicit axes carry data only: splitting a kernel there asks a model to name its shardings.
@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "split"), [(AxisType.Auto, True), (AxisType.Explicit, False)])
def test_sharded_gradients_equal_unsharded_ones(
    task: tasks.Task, params: tasks.Params, kind: AxisType, split: bool
) -> None:
    batch = task.batch(0, 0)
    gradient = jax.jit(jax.grad(lambda p, b: task.loss(p, b)[0]))
    alone = gradient(params, batch)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(kind, kind), devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
        everywhere = NamedSharding(mesh, P())
        placed = jax.tree.map(
            lambda x: jax.device_put(x, columns(mesh, x) if split else everywhere), params
        )
        together = gradient(placed, jax.device_put(batch, NamedSharding(mesh, P("data"))))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), alone, together
    )
