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
