"""Drop-Muon: Muon where every layer is trained, the paper's equations, the sharp operator."""

import jax
import numpy as np
import pytest

import optkit
from tests.transforms.driver import gradients

SHAPES = {"dense_0": (4, 6), "dense_1": (6, 6), "dense_2": (6, 3)}
PARAMS = gradients(0, 1, SHAPES)[0]
GRADS = gradients(1, 6, SHAPES)
CUTS = (2, 1, 3, 3, 2, 1)


def trajectory(tx, cuts=None):
    """Parameters after each step."""
    update = jax.jit(tx.update, static_argnames="cut")
    params, state, out = PARAMS, tx.init(PARAMS), []
    for i, g in enumerate(GRADS):
        u, state = update(g, state, params, **({} if cuts is None else {"cut": cuts[i]}))
        params = jax.tree.map(np.add, params, u)
        out.append(params)
    return out


def check(got, want, **tolerance):
    for a, b in zip(got, want, strict=True):
        for path in SHAPES:
            np.testing.assert_allclose(a[path], b[path], **tolerance)


OPTIONS = {"b1": 0.8, "weight_decay": 0.1, "scale": "rms_op", "steps": 3}


@pytest.mark.parametrize("options", [{}, {**OPTIONS, "nesterov": False}])
@pytest.mark.slow
def test_training_everything_is_muon_to_the_bit(options):
    got = trajectory(optkit.drop_muon(0.1, sampling=1, **options))
    check(got, trajectory(optkit.muon(0.1, **options)), rtol=0, atol=0)


def test_it_is_the_wrapper_around_muon_to_the_bit():
    wrapped = optkit.drop_layers(optkit.muon(0.1, **OPTIONS), key=4)
    check(trajectory(optkit.drop_muon(0.1, key=4, **OPTIONS)), trajectory(wrapped), rtol=0, atol=0)


@pytest.mark.parametrize("nuclear", [False, True])
def test_the_papers_update_written_out(nuclear):
    """From the cut on ``M <- b1 M + (1-b1) G`` and ``W <- W - lr sharp(M)``, by exact factors."""
    rate, b1 = 0.1, 0.7
    tx = optkit.drop_muon(rate, b1=b1, nesterov=False, scale="none", method="svd", nuclear=nuclear)
    weights = {path: np.float64(w) for path, w in PARAMS.items()}
    moments = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    want = []
    for cut, g in zip(CUTS, GRADS, strict=True):
        for layer, path in enumerate(SHAPES, 1):
            if layer < cut:
                continue
            moments[path] = b1 * moments[path] + (1 - b1) * g[path]
            left, values, right = np.linalg.svd(moments[path], full_matrices=False)
            norm = values.sum() if nuclear else 1.0
            weights[path] = weights[path] - rate * norm * (left @ right)
        want.append(dict(weights))
    check(trajectory(tx, CUTS), want, rtol=1e-5, atol=1e-5)


def test_the_nuclear_norm_makes_the_step_follow_the_gradient():
    first = {}
    for scale in (1.0, 8.0):
        for nuclear in (False, True):
            tx = optkit.drop_muon(0.1, sampling=1, nuclear=nuclear)
            grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS[0])
            first[scale, nuclear] = tx.update(grads, tx.init(PARAMS), PARAMS)[0]["dense_1"]
    np.testing.assert_allclose(first[8.0, True], 8.0 * first[1.0, True], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(first[8.0, False], first[1.0, False], rtol=1e-5, atol=1e-7)


def test_names_that_do_not_tell_the_order_are_refused():
    params = {"up": {"kernel": PARAMS["dense_0"]}, "down": {"kernel": PARAMS["dense_1"]}}
    with pytest.raises(ValueError, match=r"'down', 'up' .*order=\["):
        optkit.drop_muon().init(params)
    state = optkit.drop_muon(order=["up", "down"]).init(params)
    assert int(optkit.next_cut(state)) in (1, 2)
