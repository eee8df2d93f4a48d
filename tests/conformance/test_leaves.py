"""Leaves of every rank and role, None, masked nodes, empty trees and extreme gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from tests.conformance.methods import MATRIX_RECIPES, Method, step, update
from tests.conformance.methods import method as method_named
from tests.conformance.trees import (
    LEAN,
    SMALL,
    ZOO,
    assert_close,
    assert_finite,
    assert_same,
    copy,
    is_matrix,
)

# Their updates depend on the norm of the whole gradient, or on the most useful of all weights.
LOOK_AT_ALL = (
    "clip_by_global_norm",
    "id3",
    "clipup",
    "normalized_momentum",
    "skip_spikes",
    "upgd",
    "upgd_adam",
    "utility_gate",
)
# Compares gradients with a length of its own.
SEES_THE_SCALE = ("adago",)
# Decay and noise move weights whatever the gradient.
MOVE_BY_THEMSELVES = ("weight_decay", "l1_decay", "sigma", "temperature")


def _check_types(updates: Any, params: Any) -> None:
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert (u.shape, u.dtype) == (p.shape, p.dtype)


@pytest.mark.sweep
def test_every_rank_and_role_is_traced(method: Method) -> None:
    params = method.params(ZOO)
    state = jax.eval_shape(method.tx.init, params)
    _check_types(jax.eval_shape(method.tx.update, params, state, params)[0], params)


@pytest.mark.sweep
@pytest.mark.slow
def test_every_rank_and_role_runs(method: Method) -> None:
    params = method.params(ZOO)
    updates, _ = update(method.tx, method.grads(0, ZOO), method.tx.init(params), params)
    _check_types(updates, params)
    assert_finite(updates)


@pytest.mark.sweep
def test_ranks_and_roles_run(method: Method) -> None:
    _check_types(method.lean, method.params(LEAN))
    assert_finite(method.lean)
    for path, u in optkit.tree.leaves_with_paths(method.lean):
        still = method.entry.kind == "wrapper" or not (u.size and is_matrix(path))
        assert still or jnp.any(u), path


@pytest.mark.sweep
def test_leaves_do_not_see_each_other(method: Method) -> None:
    """A leaf's update is the same in a larger model: what the other tests show on small ones."""
    found = dict(optkit.tree.leaves_with_paths(method.lean))
    for path, want in optkit.tree.leaves_with_paths(method.eager[0][0]):
        got = found[path]
        if method.entry.name not in LOOK_AT_ALL:
            assert_close(got, want)


def test_none_leaves_are_passed_over(method: Method) -> None:
    def with_none(tree: Any) -> Any:
        return {**tree, "gone": None, "up": {**tree["up"], "gone": None}}

    params = with_none(method.params())
    updates, _ = method.tx.update(with_none(method.grads(0)), method.tx.init(params), params)
    assert_same(updates, with_none(method.eager[0][0]))


def test_masked_nodes_are_passed_over(method: Method) -> None:
    paths = method.whole("up/kernel")
    _check_masked(method, optax.masked(method.tx, lambda tree: _named(tree, paths)))


def test_masks_nest_with_routes(method: Method) -> None:
    rules = [(("up", *method.whole("up/kernel")), "one"), ("**", "rest")]
    inner = optkit.route({"one": method.tx, "rest": optax.identity()}, rules)
    outer = lambda tree: _named(tree, (*method.whole("up/kernel"), "down/kernel"))  # noqa: E731
    _check_masked(method, optax.masked(inner, outer))


def _named(tree: Any, paths: tuple[str, ...]) -> Any:
    return optkit.tree.map_with_path(lambda path, _: path in paths, tree)


def _check_masked(method: Method, tx: optax.GradientTransformation) -> None:
    params, grads = method.params(), method.grads(0)
    updates, _ = tx.update(grads, tx.init(params), params)
    paths = method.whole("up/kernel")
    assert_close(updates["up"]["kernel"], _alone(method, paths)["up"]["kernel"])
    for part, leaf in (path.split("/") for path in paths):
        updates[part][leaf] = grads[part][leaf]
    assert_same(updates, grads)


def _alone(method: Method, paths: tuple[str, ...]) -> Any:
    """The method's first update of a model that has no other leaves than these."""
    shapes = {path: SMALL[path] for path in paths}
    updates, _ = method.run(method.tx, steps=1, shapes=shapes)
    return updates[0]


@pytest.mark.sweep
def test_partition_by_labels(method: Method) -> None:
    whole = method.whole(*filter(is_matrix, SMALL))
    tx = optax.partition(
        {"one": method.tx, "rest": optax.set_to_zero()},
        lambda tree: optkit.tree.map_with_path(
            lambda path, _: "one" if path in whole else "rest", tree
        ),
    )
    params = method.params()
    updates, _ = tx.update(method.grads(0), tx.init(params), params)
    alone = _alone(method, whole)
    for part in ("up", "down"):
        assert_close(updates[part]["kernel"], alone[part]["kernel"])


@pytest.mark.parametrize("tree", [{}, {"gone": None}, ()], ids=str)
def test_a_tree_without_leaves(method: Method, tree: Any) -> None:
    with jax.disable_jit():
        updates, state = method.tx.update(tree, method.tx.init(tree), tree)
    assert updates == tree
    assert jax.tree.structure(state) == jax.tree.structure(method.tx.init(tree))


def test_a_tree_that_is_one_leaf(method: Method) -> None:
    x = jnp.arange(24.0).reshape(3, 8)
    updates, _ = method.update(method.tx, x, method.tx.init(x), x)
    assert updates.shape == x.shape
    assert_finite(updates)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_extreme_gradients_give_finite_updates(method: Method, scale: float) -> None:
    params = method.params()
    state = method.tx.init(params)
    for size in (scale, scale, 1.0):
        grads = method.grads(0, scale=size)
        state, _, updates = step(method.tx, state, copy(params), grads)
        assert_finite(updates)


@pytest.mark.sweep
def test_zero_gradients_move_nothing(recipe: Method) -> None:
    options = {n: 0.0 for n in recipe.hyperparameters if n.endswith(MOVE_BY_THEMSELVES)}
    if recipe.entry.name == "scion":
        options = {"constrained": False}  # its constraint shrinks weights whatever the gradient
    tx, params = recipe.build(**options), recipe.params()
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    for _ in range(3):
        updates, state = recipe.update(tx, zeros, state, params)
        assert not any(jnp.any(x) for x in jax.tree.leaves(updates))


@pytest.mark.sweep
@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize(
    "name", [n for n in (*MATRIX_RECIPES, "orthogonalize") if n not in SEES_THE_SCALE]
)
def test_matrix_directions_do_not_depend_on_the_scale(name: str, scale: float) -> None:
    method = method_named(name)
    params = method.params()
    got, _ = method.tx.update(method.grads(0, scale=scale), method.tx.init(params), params)
    want = method.eager[0][0]
    for part in ("up", "down"):
        # Five Newton-Schulz steps multiply a rounding of small singular values by up to 3.4**5.
        assert_close(got[part]["kernel"], want[part]["kernel"], units=450)


@pytest.mark.sweep
def test_a_mask_may_be_a_tree_a_function_or_names(recipe: Method) -> None:
    params = recipe.params()
    tree = optkit.tree.map_with_path(lambda path, _: path == "up/kernel", params)
    results = []
    for mask in (tree, lambda p: _named(p, ("up/kernel",)), ("up/kernel",)):
        tx = recipe.build(mask=mask, weight_decay=0.5)
        results.append(tx.update(recipe.grads(0), tx.init(params), params)[0])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.sweep
def test_skip_nonfinite_guards_every_method(method: Method) -> None:
    tx = optkit.skip_nonfinite(method.tx)
    params, good = method.params(), method.grads(0)
    before = tx.init(params)
    bad = {**good, "up": {**good["up"], "kernel": good["up"]["kernel"].at[1, 2].set(jnp.nan)}}
    updates, state = tx.update(bad, before, params)
    assert_same(updates, jax.tree.map(jnp.zeros_like, updates))
    assert_same(state.inner, before.inner)
    assert int(state.skipped) == int(state.consecutive) == 1
    updates, state = tx.update(good, state, params)
    assert_same(updates, method.eager[0][0])
    assert int(state.skipped) == 1 and int(state.consecutive) == 0
