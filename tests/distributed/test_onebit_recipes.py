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


def test_momentum_is_equal_on_all_workers_and_loses_nothing() -> None:
    grads = gradients(1, 6, 3, SHAPES)
    tx = optkit.onebit_adam(RATE, axis_name=AXIS, warmup_steps=2)
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
                own = np.float64(node.error.of_worker["worker"][leaf]).mean(0)[0]
                return (own + np.float64(node.error.of_worker["server"][leaf]).reshape(-1))[:size]

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


@pytest.mark.parametrize("name", ["onebit_adam", "onebit_lamb"])
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


def lamb_oracle(
    grads: list, start: dict[str, np.ndarray], hyper: dict[str, Any], warmup: int
) -> list[dict[str, np.ndarray]]:
    """DeepSpeed's steps in float64, read off its code; one flat array of all leaves by name."""
    b1, b2, eps, lr, wd = (hyper[k] for k in ("b1", "b2", "eps", "lr", "wd"))
    names, count = sorted(SHAPES), len(grads[0]["w"])
    p = {k: np.float64(v) for k, v in start.items()}
    m, v = ({k: np.zeros(SHAPES[k]) for k in names} for _ in range(2))
    total = sum(x.size for x in m.values())
    unit = count * int(np.lcm(count, 8))
    length = -(-total // unit) * unit
    here, there = np.zeros((count, length)), np.zeros((count, length // count))
    c, last, s, f, out = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0), {}, {}, []
    norm = np.linalg.norm
    for t, g in enumerate(grads):
        if t < warmup:
            for k in names:
                mean = np.float64(g[k]).mean(0)
                m[k], v[k] = b1 * m[k] + (1 - b1) * mean, b2 * v[k] + (1 - b2) * mean**2
                u = m[k] / (np.sqrt(v[k]) + eps) + wd * p[k]
                ratio = float(np.clip(norm(p[k]) / norm(u), 0.01, 10.0))
                c[k] = 0.9 * c[k] + 0.1 * ratio
                p[k] = p[k] - lr * ratio * u
        else:
            if t == warmup:
                size = {k: norm(m[k]) / np.sqrt(m[k].size) for k in names}
                s = {k: np.mean(list(size.values())) / size[k] for k in names}
                f = {k: np.array(v[k]) for k in names}
            rows = [(b1 * m[k] + (1 - b1) * g[k]) * s[k] for k in names]
            y = np.concatenate([r.reshape(count, -1) for r in rows], 1)
            y = np.pad(y, ((0, 0), (0, length - total))) + here
            sent = norm(y, axis=1, keepdims=True) / np.sqrt(length) * np.where(y >= 0, 1, -1)
            here = y - sent
            z = sent.mean(0).reshape(count, -1) + there
            back = norm(z, axis=1, keepdims=True) / np.sqrt(z.shape[1]) * np.where(z >= 0, 1, -1)
            there, flat, at = z - back, back.reshape(-1), 0
            for k in names:
                new = flat[at : at + m[k].size].reshape(SHAPES[k]) / s[k]
                at += m[k].size
                read = (new - b1 * m[k]) / (1 - b1)
                m[k], f[k] = new, b2 * f[k] + (1 - b2) * read**2
                plain = m[k] / (np.sqrt(v[k]) + eps)
                u = plain + wd * p[k]
                factor = np.max((np.sqrt(v[k]) + eps) / (np.sqrt(f[k]) + eps))
                if wd:
                    share = min(1.0, norm(plain) / norm(u))
                    factor = factor * share + 1 - share
                factor = np.clip(np.clip(factor, 0.5, 4.0), 0.9 * last[k], 1.1 * last[k])
                last[k] = factor
                p[k] = p[k] - lr * c[k] * factor * u
        out.append({k: np.array(x) for k, x in p.items()})
    return out


@pytest.mark.parametrize("wd", [0.0, 0.3])
def test_lamb_is_what_the_code_of_the_reference_says(wd: float) -> None:
    hyper = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "lr": 0.05, "wd": wd}
    grads, at = gradients(5, 7, 3, SHAPES), params()
    want = lamb_oracle(grads, at, hyper, warmup=3)
    tx = optkit.onebit_lamb(
        0.05, axis_name=AXIS, warmup_steps=3, b1=0.8, b2=0.9, eps=1e-3, weight_decay=wd
    )
    state = None
    for g, expected in zip(grads, want, strict=True):
        (u,), (state,) = follow(tx, [g], state, at)
        at = {k: at[k] + u[k][0] for k in SHAPES}
        assert all(np.all(u[k] == u[k][:1]) for k in SHAPES)
        for k in SHAPES:
            np.testing.assert_allclose(at[k], expected[k], atol=5e-5)


def test_lambs_ratio_stands_still_where_a_norm_is_zero() -> None:
    grads = gradients(6, 3, 2, SHAPES)
    zero = {k: np.zeros(s, np.float32) for k, s in SHAPES.items()}
    tx = optkit.onebit_lamb(RATE, axis_name=AXIS, warmup_steps=2)
    adam = optkit.onebit_adam(RATE, axis_name=AXIS, warmup_steps=2)
    out, states = follow(tx, grads, params=zero)
    plain, _ = follow(adam, grads, params=zero)
    np.testing.assert_allclose(out[0]["w"], plain[0]["w"], rtol=1e-5)  # a ratio of 1
    assert held(states[1], "ratio").ratio["w"].tolist() == [0.0, 0.0]  # which is not averaged
    with pytest.raises(ValueError, match=r"ratio_bounds=\(2.0, 1.0\) must be two numbers"):
        optkit.onebit_lamb(ratio_bounds=(2.0, 1.0))
    with pytest.raises(ValueError, match="warmup_steps=0"):
        optkit.onebit_lamb(warmup_steps=0)
