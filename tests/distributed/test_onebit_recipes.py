"""1-bit Adam and 1-bit LAMB: warm-up, equal moments, conservation, zeros, both execution forms."""

import itertools
from typing import Any

import jax
import numpy as np
import optax
import pytest

import optkit
from tests.distributed.workers import AXIS, follow, gradients, on_devices

SHAPES = {"w": (3, 8), "b": (8,)}
RATE = 0.1


def held(state: Any, field: str) -> Any:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, field))
    return next(node for node in nodes if hasattr(node, field))


def params() -> dict[str, np.ndarray]:
    return {name: g[0] for name, g in gradients(99, 1, 1, SHAPES)[0].items()}


def test_the_warm_up_is_adam_without_correction_on_the_mean() -> None:
    grads = gradients(0, 3, 4, SHAPES)
    out, _ = follow(optkit.onebit_adam(RATE, axis_name=AXIS, warmup_steps=3), grads)
    plain = optax.chain(optkit.scale_by_adam(debias=False), optax.scale(-RATE))
    state = plain.init(params())
    for u, g in zip(out, grads, strict=True):
        want, state = plain.update(jax.tree.map(lambda x: x.mean(0), g), state)
        for name in SHAPES:
            np.testing.assert_allclose(u[name][0], want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["onebit_adam"])
def test_momentum_is_equal_on_all_workers_and_loses_nothing(name: str) -> None:
    grads = gradients(1, 6, 3, SHAPES)
    tx = getattr(optkit, name)(RATE, axis_name=AXIS, warmup_steps=2)
    _, states = follow(tx, grads, params=params())
    for t, (before, after) in enumerate(itertools.pairwise(states), 1):
        old, new = held(before, "mu"), held(after, "mu")
        for leaf, shape in SHAPES.items():
            assert np.all(new.mu[leaf] == new.mu[leaf][:1])
            if t < 2:
                continue
            np.testing.assert_array_equal(new.nu[leaf], old.nu[leaf])
            size = int(np.prod(shape))

            def lost(node: Any, leaf: str = leaf, size: int = size) -> np.ndarray:
                own = np.float64(node.error.value["worker"][leaf]).mean(0)[0]
                return (own + np.float64(node.error.value["server"][leaf]).reshape(-1))[:size]

            whole = (0.9 * np.float64(old.mu[leaf]) + 0.1 * grads[t][leaf]).mean(0).reshape(-1)
            sent = np.float64(new.mu[leaf][0]).reshape(-1)
            np.testing.assert_allclose(sent + lost(new), whole + lost(old), atol=1e-6)


def test_entries_that_are_always_zero_run_away_unless_they_are_named() -> None:
    """Their second moment is 0: a bit that cannot say 0 is divided by eps."""
    grads = gradients(2, 4, 2, SHAPES)
    for g in grads:
        g["w"][:, 2] = 0.0
    active = {"w": np.float32([[1.0], [1.0], [0.0]]), "b": np.float32(1.0)}
    ends = []
    for given in (None, active):
        tx = optkit.onebit_adam(RATE, axis_name=AXIS, warmup_steps=2, active=given)
        out, _ = follow(tx, grads)
        ends.append([np.abs(u["w"][0]).max(1) for u in out])
    assert all(row[2] == 0.0 for row in ends[1]) and ends[0][1][2] == 0.0
    assert ends[0][2][2] > 1e4
    # Entries beside them are the same at first; then what ran away fills the norm of its leaf.
    np.testing.assert_array_equal(ends[0][2][:2], ends[1][2][:2])
    assert np.all(ends[1][3][:2] < 30 * RATE)


@pytest.mark.parametrize("name", ["onebit_adam"])
def test_eight_devices_do_what_a_vmapped_axis_does(name: str) -> None:
    grads = gradients(3, 3, 8, SHAPES)
    tx = getattr(optkit, name)(RATE, axis_name=AXIS, warmup_steps=1, weight_decay=0.1)
    want, _ = follow(tx, grads, params=params())
    got, _, _ = on_devices(tx, grads, params())
    for u, v in zip(got, want, strict=True):
        for leaf in SHAPES:
            np.testing.assert_allclose(u[leaf], v[leaf][0], rtol=1e-4, atol=1e-5)


def test_two_bits_an_entry_instead_of_64() -> None:
    shapes = {"w": jax.ShapeDtypeStruct((256, 256), np.float32)}
    sent = optkit.wire_bytes(optkit.onebit_adam(axis_name="data"), shapes, workers=8)
    assert sent.most == pytest.approx(sent.plain)
    assert sent.plain / sent.least == pytest.approx(32, rel=0.01)


def test_a_workers_problem_is_solved_together() -> None:
    """Four workers see one quadratic through their own noise; signs end near the target, too."""
    random = np.random.default_rng(4)
    target, steps = random.standard_normal(16), 300
    noise = np.float32(0.5 * random.standard_normal((steps, 4, 16)))
    schedule = optax.cosine_decay_schedule(0.03, steps)
    ends = {}
    for warmup in (20, steps):
        tx = optkit.onebit_adam(schedule, axis_name=AXIS, warmup_steps=warmup, b2=0.9)

        def run(noise: Any, tx: Any = tx) -> Any:
            def body(carry: Any, own: Any) -> Any:
                state, p = carry
                u, state = tx.update(p - np.float32(target) + own, state, p)
                return (state, p + u), None

            start = np.zeros(16, np.float32)
            return jax.lax.scan(body, (tx.init(start), start), noise)[0][1]

        end = jax.jit(jax.vmap(run, in_axes=1, axis_name=AXIS))(noise)[0]
        ends[warmup] = np.linalg.norm(end - target) / np.linalg.norm(target)
    assert ends[steps] < 0.1 and ends[20] < 0.1
