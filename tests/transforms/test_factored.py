"""Laws of factored second moments."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import directions, gradients

SHAPES = {"w": (5, 3), "stack": (2, 3, 4), "bias": (3,)}
seeds = st.integers(0, 2**32 - 1)
TX = optkit.scale_by_factored_rms()


def factored(squares):
    rows, columns = squares.mean(-1, keepdims=True), squares.mean(-2, keepdims=True)
    return rows * columns / rows.mean(-2, keepdims=True)


@given(seeds)
def test_moments_are_weighted_means_of_rows_and_columns(seed):
    grads = gradients(seed, 3, SHAPES)
    out = directions(TX, grads)
    for name in SHAPES:
        mean = np.zeros(SHAPES[name])
        for t, g in enumerate(np.float64(tree[name]) for tree in grads):
            weight = (t + 1.0) ** -0.8
            mean = (1 - weight) * mean + weight * g**2
            second = factored(mean) if name != "bias" else mean
            np.testing.assert_allclose(out[name][t], g / np.sqrt(second), rtol=2e-5)


@given(seeds)
def test_squares_of_rank_one_are_exact(seed):
    random = np.random.default_rng(seed)
    rows, columns = random.uniform(0.5, 2.0, (5, 1)), random.uniform(0.5, 2.0, (1, 3))
    g = {"w": np.float32(rows * columns * random.choice([-1, 1], (5, 3)))}
    u, _ = TX.update(g, TX.init(g))
    np.testing.assert_allclose(u["w"], np.sign(g["w"]), rtol=1e-5)


def test_sides_follow_the_dimension_numbers():
    (g,) = gradients(0, 1, {"w": (4, 2, 3)})
    tx = optkit.scale_by_factored_rms(dims=optkit.MatrixDims((0, 1), 2))
    u, state = tx.update(g, tx.init(g))
    assert [x.shape for x in (state.rows["w"], state.columns["w"])] == [(3,), (8,)]
    flat = np.float64(g["w"]).reshape(8, 3)
    np.testing.assert_allclose(u["w"].reshape(8, 3), flat / np.sqrt(factored(flat**2)), rtol=2e-5)


def test_nothing_is_divided_by_nothing():
    g = jax.tree.map(np.zeros_like, gradients(0, 1, SHAPES)[0])
    for dialect in ("hf", "torch"):
        tx = optkit.scale_by_factored_rms(eps=0.0, dialect=dialect)
        u, _ = tx.update(g, tx.init(g))
        assert all(np.all(np.asarray(x) == 0) for x in u.values())


SM3 = optkit.scale_by_sm3(eps=0.0)


@given(seeds)
def test_sm3_bounds_the_sum_of_squares(seed):
    grads = gradients(seed, 3, SHAPES)
    out = directions(SM3, grads)
    for name in SHAPES:
        g = np.stack([np.float64(tree[name]) for tree in grads])
        bound = (g / np.float64(out[name])) ** 2
        total = np.cumsum(g**2, axis=0)
        assert np.all(bound >= total * (1 - 1e-5))
        if name == "bias":
            np.testing.assert_allclose(bound, total, rtol=1e-5)


def test_sm3_with_an_average_never_forgets_a_row():
    g = {"w": np.ones((2, 3), np.float32)}
    tx = optkit.scale_by_sm3(0.5, eps=0.0)
    state = tx.init(g)
    for scale, want in ((4.0, 8.0), (0.0, 8.0), (4.0, 12.0)):
        _, state = tx.update({"w": scale * g["w"]}, state)
        np.testing.assert_allclose(state.rows["w"], want)


def test_came_is_its_definition():
    """Two steps of a matrix and of a vector in NumPy."""
    b1, b2, b3, eps2 = 0.8, 0.9, 0.95, 1e-3
    grads = gradients(7, 2, {"w": (4, 3), "bias": (3,)})
    tx = optkit.scale_by_came(b1, b2, b3, eps2=eps2, clip_threshold=0.5)
    out = directions(tx, grads)
    q, m, v, far = np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(3), np.zeros((4, 3))
    average = np.zeros(3)
    for t, tree in enumerate(grads):
        g, bias = np.float64(tree["w"]), np.float64(tree["bias"])
        q = b2 * q + (1 - b2) * g**2
        u = g / np.sqrt(factored(q))
        u /= max(1.0, np.sqrt(np.mean(u**2)) / 0.5)
        m = b1 * m + (1 - b1) * u
        far = b3 * far + (1 - b3) * ((u - m) ** 2 + eps2)
        np.testing.assert_allclose(out["w"][t], m / np.sqrt(factored(far)), rtol=1e-4)
        v = b2 * v + (1 - b2) * bias**2
        u = bias / np.sqrt(v)
        average = b1 * average + (1 - b1) * u / max(1.0, np.sqrt(np.mean(u**2)) / 0.5)
        np.testing.assert_allclose(out["bias"][t], average, rtol=1e-4)
