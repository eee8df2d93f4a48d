"""Which rows are chosen, what becomes of them and of the others, and the normalised variant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit.transforms.submatrix import choose
from tests.transforms.driver import directions, gradients, run

SHAPES = {"tall": (9, 4), "wide": (4, 9), "square": (6, 6), "stack": (2, 4, 8)}
ROWS_OUT = MuonDimensionNumbers(1, 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_rows_of_largest_norm_are_chosen_and_of_equal_ones_the_first(seed, count, scale):
    # Small integers: many equal norms, and sums without rounding.
    x = np.random.default_rng(seed).integers(-1, 2, (2, 7, 3))
    index, chosen, place = choose(jnp.asarray(x * scale, jnp.float32), count)
    for i, matrix in enumerate(x):
        want = sorted(np.argsort(-np.abs(matrix).sum(1), kind="stable")[:count])
        assert index[i].tolist() == want
        assert np.flatnonzero(chosen[i]).tolist() == want
        assert place[i][np.asarray(want)].tolist() == list(range(count))


def slices(name, x, along):
    """A kernel (..., fan_in, fan_out) in float64 with the slices to choose from first."""
    x = np.float64(x)
    out_first = np.swapaxes(x, -1, -2)
    wide = x.shape[-1] > x.shape[-2]
    return x if along == "short" and wide else out_first


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.01, 0.3, 0.5]),
    st.sampled_from(["short", "rows"]),
    st.sampled_from([0.0, 0.7, 1.0]),
)
@pytest.mark.slow
def test_chosen_slices_move_and_decay_and_the_others_wait(seed, fraction, along, kept):
    grads = gradients(seed, 3, SHAPES)
    tx = optkit.select_submatrix(fraction, ef_decay=kept, slices=along, method="svd")
    state, held = tx.init(grads[0]), jax.tree.map(np.zeros_like, grads[0])
    update = jax.jit(tx.update)
    for g in grads:
        u, state = update(g, state)
        for name in SHAPES:
            m = slices(name, held[name] + g[name], along)
            size = m.shape[-2]
            k = max(1, int(np.ceil(fraction * size)))
            order = np.argsort(-np.abs(m).sum(-1), axis=-1, kind="stable")
            chosen = np.argsort(order, axis=-1) < k
            moved = slices(name, u[name], along)
            assert not np.any(moved[~chosen])
            block = m[chosen].reshape(*m.shape[:-2], k, -1)
            left, _, right = np.linalg.svd(block, full_matrices=False)
            np.testing.assert_allclose(moved[chosen].reshape(block.shape), left @ right, atol=1e-4)
            after = slices(name, state.momentum[name], along)
            np.testing.assert_allclose(
                after, np.where(chosen[..., None], kept, 1.0) * m, rtol=1e-5, atol=1e-6
            )
        held = jax.tree.map(np.asarray, state.momentum)


def test_equal_rows_take_turns():
    """With nothing kept, rows of one and the same gradient are chosen round robin."""
    g = {"w": jnp.ones((6, 4))}  # four rows of outputs
    tx = optkit.select_submatrix(0.25, ef_decay=0.0, slices="rows", method="svd")
    u = np.asarray(directions(tx, [g] * 8)["w"])
    turns = [np.flatnonzero(np.any(x, axis=0)).tolist() for x in u]
    assert turns == [[0], [1], [2], [3]] * 2


@pytest.mark.parametrize("b1", [0.5, 0.95])
def test_all_of_it_is_a_heavy_ball_that_decays_after_it_was_read(b1):
    grads = gradients(5, 4, SHAPES)
    tx = optkit.select_submatrix(1.0, ef_decay=b1)
    ball = optax.chain(
        optkit.momentum(b1, kind="heavy_ball"),
        optkit.orthogonalize(coefficients="polar_express_1p02"),
    )
    got, want = directions(tx, grads), directions(ball, grads)
    for name in SHAPES:
        np.testing.assert_allclose(got[name], want[name], atol=2e-4)
    state, held = tx.init(grads[0]), jax.tree.map(np.zeros_like, grads[0])
    for g in grads:
        _, state = tx.update(g, state)
        held = jax.tree.map(lambda m, x: b1 * (m + x), held, g)
    for name in SHAPES:
        np.testing.assert_allclose(state.momentum[name], held[name], rtol=1e-5, atol=1e-6)


def test_normalised_rows_keep_the_norm_of_their_block():
    grads = gradients(6, 5, SHAPES)
    options = {"slices": "rows", "fraction": 0.5, "coefficients": "jordan"}
    plain = directions(optkit.select_submatrix(**options), grads)
    normal = directions(optkit.select_submatrix(**options, normalize_rows=True), grads)
    for name in SHAPES:
        # Both have the same momentum, and so the same choice.
        norms = [np.linalg.norm(x[name], axis=(-2, -1)) for x in (plain, normal)]
        np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)
        # At a row's first time its norm is 1/sqrt(1-b2) everywhere: all rows are equal.
        rows = np.linalg.norm(normal[name][0], axis=-2)
        moved = rows[rows > 0].reshape(*rows.shape[:-1], -1)
        np.testing.assert_allclose(moved / moved[..., :1], 1.0, rtol=1e-5)


def test_moments_of_rows_that_wait_do_not_change():
    grads = gradients(7, 4, {"w": (5, 8)})
    tx = optkit.select_submatrix(0.25, slices="rows", normalize_rows=True, b2=0.5, method="svd")
    state, before = tx.init(grads[0]), np.zeros(8)
    for g in grads:
        u, state = tx.update(g, state)
        after = np.asarray(state.row_moment["w"])
        chosen = np.any(np.asarray(u["w"]), axis=0)
        assert chosen.sum() == 2
        np.testing.assert_array_equal(after[~chosen], before[~chosen])
        # A 2 x 5 polar factor: rows of norm 1, mean square 1/5.
        np.testing.assert_allclose(after[chosen], 0.5 * before[chosen] + 0.5 / 5, rtol=1e-5)
        before = after


def test_unselected_weights_change_by_decay_only():
    params = gradients(8, 1, SHAPES)[0]
    grads = gradients(9, 3, SHAPES)
    for factory in (optkit.dion2, optkit.dion3):
        tx = factory(0.1, weight_decay=0.5, fraction=0.3)
        updates, moved, _ = run(tx, params, grads)
        for name in SHAPES:
            start = np.concatenate([params[name][None], moved[name][:-1]])
            decay = np.float32(0.1) * (np.float32(0.5) * start)
            still = np.isclose(updates[name], -decay, rtol=1e-5, atol=0.0)
            along = "short" if factory is optkit.dion2 else "rows"
            waiting = np.all(slices(name, still, along) > 0, axis=-1)
            size = waiting.shape[-1]
            assert np.all(waiting.sum(-1) == size - int(np.ceil(0.3 * size)))


@pytest.mark.parametrize("factory", [optkit.dion2, optkit.dion3])
@pytest.mark.parametrize(
    ("scale", "law"),
    [
        ("rms_op", lambda out, into: np.sqrt(out / into)),
        ("match_rms", lambda out, into: 0.2 * np.sqrt(max(out, into))),
    ],
)
def test_the_scale_is_that_of_the_whole_matrix(factory, scale, law):
    grads = gradients(10, 1, {"tall": (9, 4), "wide": (4, 9)})
    tx = factory(1.0, weight_decay=0.0, method="svd", scale=scale, fraction=0.5)
    u = run(tx, jax.tree.map(np.zeros_like, grads[0]), grads)[0]
    for name, (into, out) in {"tall": (9, 4), "wide": (4, 9)}.items():
        values = np.linalg.svd(np.asarray(u[name][0]), compute_uv=False)
        count = int(np.ceil(0.5 * (out if factory is optkit.dion3 else 4)))
        size = np.sqrt(np.sum(values**2) / min(count, into))
        assert size == pytest.approx(law(out, into), rel=1e-4)
        if factory is optkit.dion2:
            np.testing.assert_allclose(values[:count], law(out, into), rtol=1e-4)


@pytest.mark.parametrize("name", ["dion2", "dion3"])
def test_the_other_layout_is_the_transposed_run(name):
    factory = optkit.catalogue.get(name).factory
    turn = lambda tree: jax.tree.map(lambda x: np.swapaxes(x, -1, -2), tree)  # noqa: E731
    shapes = {k: v for k, v in SHAPES.items() if k != "stack"}
    params, grads = gradients(11, 1, shapes)[0], gradients(12, 3, shapes)
    moved = run(factory(0.1, weight_decay=0.2, method="svd"), params, grads)[1]
    tx = factory(0.1, weight_decay=0.2, method="svd", dims=ROWS_OUT)
    turned = run(tx, turn(params), [turn(g) for g in grads])[1]
    for key in shapes:
        np.testing.assert_allclose(np.swapaxes(turned[key], -1, -2), moved[key], atol=1e-5)


def test_wrong_options_are_named():
    for options, said in (
        ({"fraction": 0.0}, "chooses nothing"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"slices": "column"}, "slices='column'"),
        ({"normalize_rows": True}, 'slices="rows"'),
        ({"ef_decay": -0.1}, "ef_decay=-0.1"),
        ({"row_eps": -1.0}, "row_eps=-1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            optkit.select_submatrix(**options)
