"""Drop-Muon: Muon where every layer is trained, the paper's equations, the sharp operator."""

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"dense_0": (4, 6), "dense_1": (6, 6), "dense_2": (6, 3)}
PARAMS = gradients(0, 1, SHAPES)[0]
GRADS = gradients(1, 6, SHAPES)


def trajectory(tx):
    """Parameters after each step."""
    update = jax.jit(tx.update)
    params, state, out = PARAMS, tx.init(PARAMS), []
    for g in GRADS:
        u, state = update(g, state, params)
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


def exact(nuclear):
    """Updates, parameters and momenta of the paper's method for drawn numbers and cuts."""

    @jax.jit
    def go(start, grads, cuts, rate, b1):
        options = {"nesterov": False, "scale": "none", "method": "svd", "nuclear": nuclear}
        tx = optkit.drop_muon(rate, b1=b1, **options)

        def step(carry, now):
            params, state = carry
            g, cut = now
            u, state = tx.update(g, state, params, cut=cut)
            params = optax.apply_updates(params, u)
            return (params, state), (u, params, optax.tree.get(state, "momentum"))

        return jax.lax.scan(step, (start, tx.init(start)), (grads, cuts))[1]

    def call(start, grads, cuts, rate, b1):
        stacked = jax.tree.map(lambda *g: np.stack(g), *grads)
        return jax.tree.map(np.asarray, go(start, stacked, np.int32(cuts), rate, b1))

    return call


PAPER = {nuclear: exact(nuclear) for nuclear in (False, True)}
FEW = settings(max_examples=8)
DRAWN = {
    "seed": st.integers(0, 2**32 - 1),
    "cuts": st.lists(st.integers(1, 3), min_size=4, max_size=4),
    "rate": st.floats(0.01, 0.2),
    "b1": st.floats(0.0, 0.95),
}


@pytest.mark.parametrize("nuclear", [False, True])
@FEW
@given(**DRAWN)
def test_the_papers_update_written_out(nuclear, seed, cuts, rate, b1):
    """From the cut on ``M <- b1 M + (1-b1) G`` and ``W <- W - lr sharp(M)``, by exact factors.

    Before it weights and momenta stay bit for bit what they were.
    """
    start, *grads = gradients(seed, 5, SHAPES)
    _, params, momenta = PAPER[nuclear](start, grads, cuts, rate, b1)
    for layer, path in enumerate(SHAPES, 1):
        w, m = np.float64(start[path]), np.zeros(SHAPES[path])
        before = start[path], np.float32(m)
        for t, cut in enumerate(cuts):
            now = params[path][t], momenta[path][t]
            if layer < cut:
                jax.tree.map(np.testing.assert_array_equal, now, before)
            else:
                m = b1 * m + (1 - b1) * grads[t][path]
                left, values, right = np.linalg.svd(m, full_matrices=False)
                w = w - rate * (values.sum() if nuclear else 1.0) * (left @ right)
                np.testing.assert_allclose(now[0], w, rtol=1e-5, atol=1e-5)
            before = now


@FEW
@given(exponent=st.integers(-20, 20), **DRAWN)
def test_the_nuclear_norm_makes_the_step_follow_the_gradient(exponent, seed, cuts, rate, b1):
    start, *grads = gradients(seed, 5, SHAPES)
    scale = np.float32(2.0**exponent)
    scaled = jax.tree.map(lambda g: scale * g, grads)
    for nuclear, factor in ((True, scale), (False, np.float32(1.0))):
        want = PAPER[nuclear](start, grads, cuts, rate, b1)[0]
        got = PAPER[nuclear](start, scaled, cuts, rate, b1)[0]
        for path in SHAPES:
            size = factor * np.abs(want[path]).max()
            np.testing.assert_allclose(got[path], factor * want[path], rtol=1e-5, atol=1e-6 * size)


def test_names_that_do_not_tell_the_order_are_refused():
    params = {"up": {"kernel": PARAMS["dense_0"]}, "down": {"kernel": PARAMS["dense_1"]}}
    with pytest.raises(ValueError, match=r"'down', 'up' .*order=\["):
        optkit.drop_muon().init(params)
    state = optkit.drop_muon(order=["up", "down"]).init(params)
    assert int(optkit.next_cut(state)) in (1, 2)
