"""Muon in a random sketch: files of other hyperparameters, its sphere, its layouts."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit import linalg
from tests.golden.replay import replay
from tests.linalg import oracle
from tests.transforms.driver import gradients, run

SHAPES = {"wide": (8, 12), "tall": (12, 8), "square": (8, 8), "conv": (6, 4, 3, 3)}
POLAR_EXPRESS = linalg.COEFFICIENTS["polar_express"].rows
SOLVERS = {
    "quintic_ns_theoretical": (((2.0, -1.5, 0.5),) * 12, 1.0),
    "quintic_ns_empirical": (((3.4445, -4.7750, 2.0315),) * 12, 1.0),
    "cubic_ns_theoretical": (((1.5, -0.5, 0.0),) * 12, 1.0),
    "polar_express": (
        (
            *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[:-1]),
            *(POLAR_EXPRESS[-1],) * 4,
        ),
        1.01,
    ),
}
HYPER = {
    "lr": 0.1, "momentum": 0.7, "nesterov": True, "orth_method": "quintic_ns_theoretical",
    "orth_steps": 7, "randomized": True, "projection_method": "gaussian", "rank": 3,
    "oversampling": 2, "power_iters": 1,
}  # fmt: skip
VARIANTS = {
    "kaczmarz": {"projection_method": "kaczmarz", "nesterov": False, "momentum": 0.9},
    "kaczmarz_polar_express": {
        "projection_method": "kaczmarz", "rank": 4, "oversampling": 0, "power_iters": 2,
        "orth_method": "polar_express", "orth_steps": 11,
    },
    "no_powers_jordan": {"orth_method": "quintic_ns_empirical", "orth_steps": 5, "power_iters": 0},
    "full": {"randomized": False, "orth_method": "cubic_ns_theoretical", "orth_steps": 3},
    "more_directions_than_rows": {"rank": 7, "oversampling": 3, "lr": 0.02},
}  # fmt: skip


def sketch(m, hyper, random):
    """What the script draws, in the form in which files record it."""
    size = hyper["rank"] + hyper["oversampling"]
    if hyper["projection_method"] == "gaussian":
        return "omega", random.standard_normal((m.shape[1], size)).astype(np.float32)
    p = np.square(m).sum(0) / np.square(m).sum()
    while len(set(drawn := random.choice(m.shape[1], size, p=p))) < size:
        pass  # a draw with a repeated index is drawn again
    return "idx", drawn


def direction(m, hyper, kind, drawn):
    rows, margin = SOLVERS[hyper["orth_method"]]
    rows = rows[: hyper["orth_steps"]]
    if not hyper["randomized"]:
        return oracle.newton_schulz(m, rows, eps=1e-7, margin=margin)
    if kind == "omega":
        y = m @ drawn
    else:
        p = np.square(m).sum(0) / np.square(m).sum()
        y = m[:, drawn] / np.sqrt(drawn.size * p[drawn])
    for _ in range(hyper["power_iters"]):
        y = m @ (m.T @ y)
    q = np.linalg.qr(y)[0]
    return q @ oracle.newton_schulz(q.T @ m, rows, eps=1e-7, margin=margin)


def write(file, hyper, steps):
    random, arrays = np.random.default_rng(5), {}
    params = {k: np.float32(0.1 * random.standard_normal(s)) for k, s in SHAPES.items()}
    arrays.update({f"p0/{k}": p for k, p in params.items()})
    params = {k: np.float64(p) for k, p in params.items()}
    state = {k: 0.0 for k in SHAPES}
    for t in range(steps):
        for k, p in params.items():
            g = np.float32(random.standard_normal(p.shape)) * (t != 4 or k != "square")
            arrays[f"g/{t}/{k}"] = g.astype(np.float32)
            state[k] = hyper["momentum"] * state[k] + np.float64(g)
            m = g + hyper["momentum"] * state[k] if hyper["nesterov"] else state[k]
            m = m.reshape(len(m), -1)
            kind, drawn = sketch(m, hyper, random)
            if hyper["randomized"]:
                arrays[f"h/{t}/{k}/{kind}"] = drawn
            p = p * np.sqrt(len(p)) / np.linalg.norm(p)
            params[k] = p - hyper["lr"] * direction(m, hyper, kind, drawn).reshape(p.shape)
            arrays[f"p/{t}/{k}"] = np.float32(params[k])
    meta = json.dumps({"method": "muon_randomized", "hyperparameters": hyper})
    np.savez(file, meta=meta, **arrays)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_file_with_other_hyperparameters_replays(name, tmp_path):
    file = tmp_path / f"{name}.npz"
    write(file, HYPER | VARIANTS[name], 7)
    result = replay(file)
    assert (result.steps, result.verdict) == (7, "PASS"), str(result)


def test_a_file_of_another_sketch_fails(tmp_path):
    write(tmp_path / "a.npz", HYPER, 3)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored)
    arrays["h/2/conv/omega"] = arrays["h/2/conv/omega"] + np.eye(36, 5, dtype=np.float32)
    np.savez(tmp_path / "b.npz", **arrays)
    assert replay(tmp_path / "b.npz").verdict == "FAIL"


LEAVES = {"wide": (5, 8), "tall": (8, 5), "square": (6, 6), "stack": (2, 5, 8)}
PARAMS, GRADS = gradients(1, 1, LEAVES)[0], gradients(2, 3, LEAVES)
LOW = {"rank": 2, "oversampling": 1}


def turned(tree):
    return jax.tree.map(lambda x: np.swapaxes(x, -1, -2), tree)


@pytest.mark.parametrize("sketch", ["gaussian", "kaczmarz"])
@pytest.mark.slow
def test_steps_have_the_rank_of_the_sketch_and_the_other_layout_is_the_same_run(sketch):
    options = {"sketch": sketch, "weight_decay": 0.1, "sphere": True, **LOW}
    moved = run(optkit.muon_randomized(0.1, **options), PARAMS, GRADS)[1]
    tx = optkit.muon_randomized(0.1, dims=MuonDimensionNumbers(-1, -2), **options)
    back = turned(run(tx, turned(PARAMS), [turned(g) for g in GRADS])[1])
    chex.assert_trees_all_close(back, moved, atol=2e-5)
    plain = run(optkit.muon_randomized(0.1, sketch=sketch, **LOW), PARAMS, GRADS)[0]
    for name, x in plain.items():
        assert np.all(np.linalg.matrix_rank(x, tol=1e-5) == 3), name
        top = np.linalg.norm(np.asarray(x), 2, axis=(-2, -1))
        assert np.all(top < 0.1 * 1.01) and np.all(top > 0.05), name


@pytest.mark.slow
def test_two_runs_of_a_key_are_equal_and_of_two_keys_are_not():
    runs = [
        run(optkit.muon_randomized(0.1, key=key, **LOW), PARAMS, GRADS)[1] for key in (3, None, 0)
    ]
    again = run(optkit.muon_randomized(0.1, key=jax.random.key(3), **LOW), PARAMS, GRADS)[1]
    chex.assert_trees_all_equal(again, runs[0])
    chex.assert_trees_all_equal(runs[1], runs[2])
    assert all(np.max(np.abs(runs[0][name] - runs[1][name])) > 1e-3 for name in LEAVES)


@pytest.mark.slow
def test_the_sphere_comes_before_the_step():
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    params = {**PARAMS, "Conv_0": {"kernel": gradients(3, 1, {"k": (2, 2, 3, 7)})[0]["k"]}}
    params["dead"] = np.zeros((4, 4), np.float32)
    grads = {**zeros, "Conv_0": {"kernel": np.zeros((2, 2, 3, 7))}, "dead": params["dead"]}
    tx = optkit.muon_randomized(0.1, sphere=True, **LOW)
    moved = jax.tree.map(lambda x: x[0], run(tx, params, [grads])[1])
    for name, (axes, fan_out) in {
        "wide": (None, 8), "tall": (None, 5), "stack": ((-2, -1), 8), "Conv_0": (None, 7),
    }.items():  # fmt: skip
        x = jax.tree.leaves(moved[name])[0]
        np.testing.assert_allclose(np.sqrt(np.sum(x * x, axis=axes)), np.sqrt(fan_out), rtol=1e-5)
    cosine = np.sum(moved["wide"] * PARAMS["wide"]) / np.linalg.norm(PARAMS["wide"])
    np.testing.assert_allclose(cosine, np.sqrt(8), rtol=1e-5)
    assert not np.any(moved["dead"])
    # With a gradient: the same direction as without the sphere, from the rescaled weight.
    with_step = run(tx, PARAMS, GRADS[:1])[1]
    direction = run(optkit.muon_randomized(0.1, **LOW), PARAMS, GRADS[:1])[0]
    for name in PARAMS:
        np.testing.assert_allclose(with_step[name][0] - direction[name][0], moved[name], atol=1e-5)


def test_the_full_variant_is_a_heavy_ball_muon():
    tx = optkit.muon_randomized(0.1, b1=0.8, method="ns", steps=5, weight_decay=0.2)
    same = optkit.muon_dion(
        0.1, b1=0.8, nesterov=True, coefficients="quintic_2", steps=5, method="ns", scale="none",
        weight_decay=0.2,
    )  # fmt: skip
    ours, theirs = (run(x, PARAMS, GRADS)[1] for x in (tx, same))
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    whole = optkit.muon_randomized(0.1, b1=0.8, rank=1.0, method="randomized", weight_decay=0.2)
    seven = optkit.muon_randomized(0.1, b1=0.8, method="ns", steps=7, weight_decay=0.2)
    chex.assert_trees_all_close(
        run(whole, PARAMS, GRADS)[1], run(seven, PARAMS, GRADS)[1], atol=1e-5
    )


def test_a_rank_larger_than_a_matrix_names_the_leaf():
    params = {"block": {"up": {"kernel": jnp.ones((4, 9))}, "bias": jnp.ones(4)}}
    tx = optkit.muon_randomized(0.1, rank=5)
    with pytest.raises(ValueError, match=r"leaf 'block/up/kernel': rank=5 is larger"):
        tx.init(params)
    with pytest.raises(ValueError, match="rank=5 is for method='randomized', not for 'ns'"):
        optkit.muon_randomized(0.1, rank=5, method="ns")
