"""Anchors and miners: what they reduce to, and who is which."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

RNG = np.random.default_rng(0)
# Quadratics of several curvatures, a client each: gradient h*(x - target).
CURVATURE = np.float32(1 + RNG.random((4, 1)))
TARGET = RNG.standard_normal((4, 2)).astype(np.float32)
LARGE = {"h": CURVATURE, "target": TARGET}


def gradient(x: Any, batch: Any) -> Any:
    return batch["h"] * (x - batch["target"])


def small(batches: Any, steps: int) -> Any:
    return jax.tree.map(lambda b: jnp.repeat(jnp.asarray(b)[:, None], steps, axis=1), batches)


def mean_gradient(x: Any) -> np.ndarray:
    return np.mean(CURVATURE * (np.asarray(x) - TARGET), axis=0)


def test_one_step_of_miners_is_along_the_anchors() -> None:
    method = optkit.fedamd(gradient, 0.3)
    params = jnp.ones(2)
    state = method.init(params, LARGE)
    after, _ = method.round(params, state, LARGE, small(LARGE, 1), anchor=[False] * 4)
    np.testing.assert_allclose(after, params - 0.3 * mean_gradient(params), rtol=1e-5)


def test_equal_clients_with_large_batches_are_gradient_descent() -> None:
    same = jax.tree.map(lambda b: np.repeat(b[:1], 4, axis=0), LARGE)
    method = optkit.fedamd(gradient, 0.1)
    params, want = jnp.ones(2), np.ones(2)
    anchor = [True, False, False, True]  # miners are equal too: how many there are is the same
    after, _ = method.round(params, method.init(params, same), same, small(same, 3), anchor=anchor)
    for _ in range(3):
        want = want - 0.1 * CURVATURE[0] * (want - TARGET[0])
    np.testing.assert_allclose(after, want, rtol=1e-5)


def test_a_miner_is_its_equation() -> None:
    """d <- d - grad(y_prev) + grad(y), from an anchor of another time."""
    method = optkit.fedamd(gradient, 0.1)
    first = jnp.ones(2)
    state = method.init(first, LARGE)
    now = jnp.array([0.5, -2.0])
    mask = {"present": [False, False, True, False], "anchor": [False] * 4}
    after, _ = method.round(now, state, LARGE, small(LARGE, 3), **mask)
    d = mean_gradient(first).astype(np.float64)
    before = y = np.array(now, np.float64)
    for _ in range(3):
        d = d - CURVATURE[2] * (before - TARGET[2]) + CURVATURE[2] * (y - TARGET[2])
        before, y = y, y - 0.1 * d
    np.testing.assert_allclose(after, y, rtol=1e-5)


def test_without_miners_the_server_stays_and_anchors_are_kept() -> None:
    method = optkit.fedamd(gradient, 0.1)
    state = method.init(jnp.ones(2), LARGE)
    now = jnp.zeros(2)
    mask = {"present": [True, False, True, False], "anchor": [True] * 4}
    after, new = method.round(now, state, LARGE, small(LARGE, 2), **mask)
    chex.assert_trees_all_equal(after, now)
    want = np.where(np.array(mask["present"])[:, None], -CURVATURE * TARGET, state.anchors)
    np.testing.assert_allclose(new.anchors, want, rtol=1e-6)


def test_some_clients_by_name_are_the_others_absent() -> None:
    method = optkit.fedamd(gradient, 0.1, chunk=1)
    params = jnp.ones(2)
    state = method.init(params, LARGE)
    who = np.array([3, 1])
    part = jax.tree.map(lambda b: b[who], LARGE)
    few = method.round(
        params, state, part, small(part, 2), client=who, anchor=jnp.array([True, False])
    )
    mask = {"present": [False, True, False, True], "anchor": [False, False, False, True]}
    all_of_them = method.round(params, state, LARGE, small(LARGE, 2), **mask)
    chex.assert_trees_all_close(few, all_of_them, rtol=1e-6)


def test_anchors_are_drawn_or_take_turns() -> None:
    drawn = optkit.fedamd(gradient, anchor_probability=0.3)
    share = drawn.draw_anchors(jax.random.key(0), 0, 4000)
    assert abs(float(jnp.mean(share)) - 0.3) < 0.03
    turns = optkit.fedamd(gradient, anchor_probability=3)
    assert [bool(turns.draw_anchors(None, t, 2).all()) for t in range(4)] == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="give key="):
        drawn.draw_anchors(None, 0, 2)


def test_anchors_help_where_few_come() -> None:
    """With half of the clients the noise of who comes ends; that of FedAvg does not."""
    large, mini = LARGE, small(LARGE, 2)
    method = optkit.fedamd(gradient, 0.1, anchor_probability=0.3)
    optimum = np.sum(CURVATURE * TARGET, axis=0) / np.sum(CURVATURE)
    params = average = jnp.zeros(2)
    state, step = method.init(params, large), jax.jit(method.round)
    server = optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))
    held, plain = server.init(average, 4), jax.jit(server.step)
    rng = np.random.default_rng(1)
    errors = []
    for t in range(150):
        present = jnp.asarray(rng.permutation(4) < 2)
        params, state = step(params, state, large, mini, present=present, key=jax.random.key(t))
        end = jnp.repeat(average[None], 4, axis=0)
        for _ in range(2):
            end = end - 0.1 * CURVATURE * (end - TARGET)
        average, held = plain(average, held, average[None] - end, present=present)
        errors.append([float(np.sum((np.asarray(x) - optimum) ** 2)) for x in (params, average)])
    tail = np.mean(errors[100:], axis=0)
    assert tail[0] < 1e-6 < 1e-4 < tail[1]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"anchor_probability=1\.5 must be"):
        optkit.fedamd(gradient, anchor_probability=1.5)
    wrong: Any = optax.sgd(1.0)
    with pytest.raises(TypeError, match="server="):
        optkit.fedamd(gradient, server=wrong)
    method = optkit.fedamd(lambda x, batch: {"w": x})
    with pytest.raises(ValueError, match="gradients that grad_fn returns"):
        method.init(jnp.ones(2), LARGE)


def test_a_seed_is_a_key() -> None:
    method = optkit.fedamd(gradient, 0.1, anchor_probability=0.5)
    state = method.init(jnp.ones(2), LARGE)
    got, want = (
        method.round(jnp.ones(2), state, LARGE, small(LARGE, 1), key=key)
        for key in (0, jax.random.key(0))
    )
    chex.assert_trees_all_equal(got, want)
    drawn = [method.draw_anchors(key, 0, 8) for key in (0, np.array(jax.random.PRNGKey(0)))]
    np.testing.assert_array_equal(*drawn)


def test_a_round_of_some_names_them() -> None:
    method = optkit.fedamd(gradient, 0.1)
    now = jnp.ones(2)
    state = method.init(now, LARGE)
    two = jax.tree.map(lambda b: b[:2], LARGE)
    kind = {"anchor": [True, False]}
    with pytest.raises(ValueError, match="keeps something of 4: give client="):
        method.round(now, state, two, small(two, 1), **kind)
    with pytest.raises(ValueError, match=r"client\[1\]=4 is none of the 4 clients"):
        method.round(now, state, two, small(two, 1), client=[0, 4], **kind)
    got = jax.jit(lambda who: method.round(now, state, two, small(two, 1), client=who, **kind))(
        jnp.array([-1, 4])
    )
    want = method.round(now, state, two, small(two, 1), client=[0, 1], present=[False] * 2, **kind)
    chex.assert_trees_all_equal(got, want)


def test_what_has_no_axis_of_its_own_is_said() -> None:
    method = optkit.fedamd(gradient, 0.1)
    now = jnp.ones(2)
    state = method.init(now, LARGE)
    with pytest.raises(ValueError, match=r"anchor has shape \(1,\) and 4 clients are there"):
        method.round(now, state, LARGE, small(LARGE, 1), anchor=[False])
    with pytest.raises(ValueError, match=r"small needs leading axes \(C, K\)"):
        method.round(now, state, LARGE, LARGE, anchor=[False] * 4)
    swapped: Any = (state, now)
    with pytest.raises(TypeError, match=r"FedAmdState.*arguments are \(params, state, large, s"):
        method.round(*swapped, LARGE, small(LARGE, 1), anchor=[False] * 4)
