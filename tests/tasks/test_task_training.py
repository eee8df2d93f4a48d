"""The training step's buffers and the training loop's records."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optkit import tasks
from optkit.tasks import training


@pytest.fixture(scope="module")
def task() -> tasks.Task:
    return tasks.get("digits", width=16, batch=32)


@pytest.fixture(scope="module")
def small() -> tasks.Task:
    return tasks.get("regression", inputs=8, outputs=6, batch=16)


def copies(compiled: Any, argument: str) -> int:
    """Counts the copies of whole input buffers of one argument in the compiled program."""
    return len(re.findall(rf" copy\(%{argument}_", compiled.as_text()))


def test_step_updates_every_donated_buffer_in_place(task: tasks.Task) -> None:
    tx = optax.adamw(1e-3)
    step = tasks.train_step(task, tx)
    state, params = tasks.start(task, tx, 0)
    batch = task.batch(0, 0)
    compiled = step.lower(batch, state, params).compile()
    donated = sum(leaf.nbytes for leaf in jax.tree.leaves((state, params)))
    assert compiled.memory_analysis().alias_size_in_bytes == donated
    # Sharing bytes is not enough: in the wrong order they are shared too, after a copy of each.
    assert copies(compiled, "state") == 0

    def swapped(batch: Any, state: Any, params: Any) -> Any:
        state, params, metrics = step.__wrapped__(batch, state, params)
        return params, state, metrics

    wrong = jax.jit(swapped, donate_argnums=(1, 2)).lower(batch, state, params).compile()
    assert wrong.memory_analysis().alias_size_in_bytes == donated
    assert copies(wrong, "state") > 0


def test_step_consumes_state_and_params(small: tasks.Task) -> None:
    tx = optax.adamw(1e-3)
    state, params = tasks.start(small, tx, 0)
    tasks.train_step(small, tx)(small.batch(0, 0), state, params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(jax.tree.leaves(state)[0])


def test_step_reports_loss_and_gradient_norm(task: tasks.Task) -> None:
    tx = optax.adamw(1e-3)
    state, params = tasks.start(task, tx, 0)
    batch = task.batch(0, 0)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch)[0]))(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    metrics = tasks.train_step(task, tx)(batch, state, params)[2]
    assert set(metrics) == {"loss", "gradient_norm", "gradient_norm_l1", "error"}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    sizes = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics["gradient_norm_l1"], sizes, rtol=1e-5)


def keeps_params() -> optax.GradientTransformation:
    """A state that holds the very parameters twice, as slow weights do."""

    def init(params: Any) -> Any:
        return {"slow": params, "slower": params, "key": jax.random.key(0), "nothing": None}

    return optax.GradientTransformation(init, lambda grads, state, params=None: (grads, state))


def line_search() -> optax.GradientTransformation:
    return optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5))


def plateau() -> optax.GradientTransformation:
    return optax.chain(optax.sgd(0.01), optax.contrib.reduce_on_plateau())


@pytest.mark.parametrize("make", [keeps_params, line_search, plateau, optax.set_to_zero])
def test_any_transformation_trains(
    small: tasks.Task, make: Callable[[], optax.GradientTransformation]
) -> None:
    assert len(tasks.run(small, make(), steps=2, seed=0)) == 1


def test_run_records_each_evaluation_and_the_last_step(small: tasks.Task) -> None:
    heard: list[tasks.Record] = []
    records = tasks.run(
        small, optax.adamw(1e-2), steps=7, seed=0, eval_every=3, callback=heard.append
    )
    assert [record.step for record in records] == [3, 6, 7]
    assert heard == records
    seconds = [record.seconds for record in records]
    assert seconds == sorted(seconds) and seconds[0] > 0.0
    assert all(small.metric in record.held_out for record in records)


def test_run_repeats_and_depends_on_the_seed(small: tasks.Task) -> None:
    def losses(seed: int) -> list[float]:
        records = tasks.run(small, optax.adamw(1e-2), steps=4, seed=seed, eval_every=1)
        return [record.loss for record in records]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_run_matches_a_plain_loop(small: tasks.Task) -> None:
    tx = optax.adamw(1e-2)
    params = small.init(jax.random.key(3))
    state, losses = tx.init(params), []
    for index in range(4):
        batch = small.batch(3, index)
        loss, gradient = jax.value_and_grad(lambda p, b=batch: small.loss(p, b)[0])(params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    record = tasks.run(small, tx, steps=4, seed=3)[0]
    np.testing.assert_allclose(record.loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(record.held_out["loss"], small.evaluate(params)["loss"], rtol=1e-5)


def test_clock_stops_for_compilation_evaluation_and_callbacks(
    small: tasks.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            clock[0] += seconds
            return function(*args)

        return slow

    slow = replace(
        small,
        loss=taking(1000.0, small.loss),  # called while tracing only, as a part of compilation
        evaluate=taking(1000.0, small.evaluate),
        batch=taking(1.0, small.batch),
    )
    callback = taking(1000.0, lambda record: None)
    records = tasks.run(slow, optax.adamw(1e-2), steps=3, seed=0, eval_every=1, callback=callback)
    assert clock[0] > 7000.0
    assert [record.seconds for record in records] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("sizes", [{"steps": 0}, {"steps": 3, "eval_every": 0}])
def test_run_refuses_empty_work(small: tasks.Task, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 or above"):
        tasks.run(small, optax.adamw(1e-2), **sizes)
