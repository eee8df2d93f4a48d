"""Checkpoints, state by name, state bytes."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint
import pytest

import optkit
from tests.conformance.methods import BASES, Method
from tests.conformance.trees import ZOO, assert_same, described

SHARED_BYTES = 512  # counters, keys, scheduled values, a guard's history


def _next_updates(method: Method, state: Any) -> Any:
    return method.update(method.tx, method.grads(2), state, method.params())


@pytest.mark.sweep
def test_orbax_round_trip_is_bit_for_bit(method: Method, tmp_path: Path) -> None:
    state, _, _ = method.compiled[1]
    held = {"params": method.params(), "state": state}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", held)
        checkpointer.wait_until_finished()
        fresh = {"params": method.params(), "state": method.tx.init(method.params())}
        restored = checkpointer.restore(tmp_path / "one", fresh)
    assert_same(restored, held)
    assert described(restored["state"]) == described(state)


@pytest.mark.sweep
def test_export_by_name_is_bit_for_bit(method: Method) -> None:
    state, _, _ = method.compiled[1]
    exported = optkit.export_state(state)
    restored = optkit.restore_state(method.tx.init(method.params()), exported)
    assert_same(restored, state)
    assert_same(_next_updates(method, restored), _next_updates(method, state))
    assert len(exported) == 1 + len(jax.tree.leaves(state))


@pytest.mark.sweep
@pytest.mark.parametrize("state_dtype", ["bfloat16", "float32"])
def test_export_keeps_state_dtypes(recipe: Method, state_dtype: str) -> None:
    if "state_dtype" not in recipe.hyperparameters:
        return
    tx = recipe.build(state_dtype=jnp.dtype(state_dtype))
    _, state = recipe.run(tx, steps=1)
    assert_same(optkit.restore_state(tx.init(recipe.params()), optkit.export_state(state)), state)


def _bytes_of_own(method: Method, row: Any, size: int, matrices: list) -> float:
    """State bytes that the catalogue gives a leaf, be it part of an adapter."""
    if not method.takes_adapters:
        return method.entry.bytes_of_leaf(row.role, size, matrices)
    shapes = method.shapes(ZOO)
    parts = (
        "down/kernel",
        "up/kernel",
        *(("norm/scale",) if "e" in method.hyperparameters else ()),
    )
    if row.path in parts:
        adapted = (1, shapes["up/kernel"][1], shapes["down/kernel"][0])
        return method.entry.bytes_of_leaf(
            "adapter", size, [adapted] if row.path == "down/kernel" else []
        )
    if "other" in method.hyperparameters:
        return optkit.catalogue.get("adamw").bytes_of_leaf(row.role, size)
    return method.entry.bytes_of_leaf(row.role, size, matrices)


def test_state_bytes_are_those_of_the_catalogue(method: Method) -> None:
    base = None
    if method.entry.kind == "wrapper":
        base = optkit.catalogue.get("adamw")
    params = method.params(ZOO)
    plan = optkit.plan(method.tx, params)
    for row in plan.rows:
        size = math.prod(row.shape)
        matrices = []
        if len(row.shape) >= 2:  # heads may have numbers of whole matrices, too
            leaf = dict(optkit.tree.leaves_with_paths(params))[row.path]
            views = optkit.tree.matrix_views({row.path: leaf})
            matrices = [(math.prod(v.batch_shape), v.fan_out, v.fan_in) for _, v in views]
        want = _bytes_of_own(method, row, size, matrices)
        if base is not None:
            want += base.bytes_of_leaf(row.role, size, matrices)
        assert row.state_bytes == want, row
    assert plan.shared_bytes <= SHARED_BYTES
    assert plan.state_bytes == optkit.tree.tree_bytes(jax.eval_shape(method.tx.init, params))
    assert plan.parameter_bytes == optkit.tree.tree_bytes(params)


def test_state_of_frozen_leaves_costs_nothing(method: Method) -> None:
    params = method.params()
    tx = optkit.freeze(("down", *method.whole("down/kernel")), method.tx)
    row = next(row for row in optkit.plan(tx, params).rows if row.path == "down/kernel")
    assert (row.method, row.state_bytes) == ("frozen", 0)
    updates, _ = tx.update(method.grads(0), tx.init(params), params)
    assert not jnp.any(updates["down"]["kernel"])


def test_master_weights_count_16_bit_parameters_only() -> None:
    tx = optkit.master_weights(BASES["adaptive"]())
    for dtype, each in ((jnp.float32, 8), (jnp.bfloat16, 12), (jnp.float16, 12)):
        (row,) = optkit.plan(tx, {"w": jnp.zeros(10, dtype)}).rows
        assert row.state_bytes == 10 * each


def test_a_changed_tree_of_parameters_is_reported() -> None:
    tx = optkit.adamw(0.1)
    state = tx.init({"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"w: has shape \(3,\), needed is \(4,\)"):
        optkit.restore_state(tx.init({"w": jnp.zeros(4)}), optkit.export_state(state))
    with pytest.raises(ValueError, match="v: missing"):
        optkit.restore_state(tx.init({"v": jnp.zeros(3)}), optkit.export_state(state))
