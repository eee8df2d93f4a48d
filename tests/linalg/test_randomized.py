"""The randomized polar factor against float64 and its laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit import linalg
from optkit.linalg import draw_sketch, randomized_factor, sketch_size
from tests.linalg import oracle

SOLVER = {"coefficients": "quintic_2", "steps": 7}
ROWS = linalg.get_coefficients("quintic_2", 7)
SHAPES = [(6, 9), (9, 6)]
KINDS = ["gaussian", "kaczmarz"]
STATIC = (
    "rank", "oversampling", "power_iterations", "sketch", "side", "coefficients", "steps",
)  # fmt: skip
factor = jax.jit(randomized_factor, static_argnames=STATIC)
with_sketch = jax.jit(
    lambda x, sketch, power_iterations, side: randomized_factor(
        x, sketch=sketch, rank=1, power_iterations=power_iterations, side=side, **SOLVER
    ),
    static_argnums=(2, 3),
)


def matrix(shape, rank, seed, smallest=0.3):
    """A matrix of this rank with singular values between ``smallest`` and 1."""
    sigma = np.zeros(min(shape))
    sigma[:rank] = np.linspace(1.0, smallest, rank)
    return oracle.with_spectrum(sigma, *shape, seed=seed).astype(np.float32)


def slow(x, sketch, powers, side):
    """Term by term in float64."""
    m = np.float64(x)
    turned = side == "rows" or (side == "auto" and m.shape[1] > m.shape[0])
    m = m.T if turned else m
    if np.issubdtype(sketch.dtype, np.integer):
        p = np.square(m).sum(0) / np.square(m).sum()
        y = m[:, sketch] / np.sqrt(len(sketch) * p[sketch])
    else:
        y = m @ np.float64(sketch)
    for _ in range(powers):
        y = m @ (m.T @ y)
    q = np.linalg.qr(y)[0]
    out = q @ oracle.newton_schulz(q.T @ m, ROWS)
    return out.T if turned else out


@pytest.mark.sweep
@pytest.mark.parametrize("side", ["columns", "rows", "auto"])
@pytest.mark.parametrize("powers", [0, 2])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 6)])
def test_a_given_sketch_gives_what_the_algorithm_says(shape, powers, side):
    x = matrix(shape, 6, 3)
    random = np.random.default_rng(0)
    turned = side == "rows" or (side == "auto" and shape[1] > shape[0])
    columns = shape[0] if turned else shape[1]
    for sketch in (
        random.standard_normal((columns, 3)).astype(np.float32),
        random.permutation(columns)[:4].astype(np.int32),
    ):
        got = with_sketch(x, sketch, powers, side)
        np.testing.assert_allclose(got, slow(x, sketch, powers, side), atol=1e-5)


@given(
    shape=st.sampled_from(SHAPES),
    rank=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    side=st.sampled_from(["columns", "rows"]),
    powers=st.sampled_from([0, 1]),
    seed=st.integers(0, 10**6),
)
def test_a_sketch_of_the_whole_range_gives_the_whole_factor(shape, rank, kind, side, powers, seed):
    x = matrix(shape, rank, seed)
    got = factor(
        x, seed, rank=4, oversampling=1, sketch=kind, side=side, power_iterations=powers, **SOLVER
    )
    np.testing.assert_allclose(got, oracle.newton_schulz(x, ROWS), atol=2e-4)


@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(KINDS),
    side=st.sampled_from(["columns", "rows", "auto"]),
    seed=st.integers(0, 10**6),
)
def test_rank_and_range(shape, kind, side, seed):
    x = matrix(shape, 5, seed)
    got = np.float64(factor(x, seed, rank=2, oversampling=1, sketch=kind, side=side, **SOLVER))
    sigma = np.linalg.svd(got, compute_uv=False)
    assert sigma[3] < 1e-5 and sigma[2] > 0.1
    u, s, vt = np.linalg.svd(np.float64(x))
    assert s[4] > 0.2 and s[5] < 1e-6
    np.testing.assert_allclose(u[:, 5:].T @ got, 0.0, atol=1e-5)
    np.testing.assert_allclose(got @ vt[5:].T, 0.0, atol=1e-5)
    # It ascends: <update, M> is the sum of p(s) s of the projected matrix.
    assert np.sum(got * x) > 0


@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES))
def test_only_the_span_of_the_sketch_matters(seed, shape):
    """Signs, order and scale of the sketch's columns change the QR's basis and not the factor."""
    x, random = matrix(shape, 6, seed), np.random.default_rng(seed)
    omega = random.standard_normal((shape[1], 3)).astype(np.float32)
    other = omega @ (random.standard_normal((3, 3)) + 3 * np.diag([1, -1, 1]))
    cond = np.linalg.cond(other) / np.linalg.cond(omega)
    got = with_sketch(x, other.astype(np.float32), 1, "columns")
    want = with_sketch(x, omega, 1, "columns")
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, cond))
    flipped = with_sketch(x, -omega[:, ::-1], 1, "columns")
    np.testing.assert_allclose(flipped, want, atol=1e-5)


def test_a_power_iteration_points_the_basis_at_large_singular_values():
    x = oracle.with_spectrum([1.0, 0.9, 0.1, 0.1, 0.1, 0.1], 6, 9).astype(np.float32)
    u = np.linalg.svd(np.float64(x))[0][:, :2]
    lost = []
    for powers in (0, 1, 3):
        got = factor(
            x, 5, rank=2, oversampling=0, side="columns", power_iterations=powers, **SOLVER
        )
        lost.append(2 - np.sum(np.square(u.T @ np.linalg.svd(np.float64(got))[0][:, :2])))
    assert lost[0] > 10 * lost[1] > 100 * lost[2]


def test_small_singular_values_survive_many_powers():
    """sigma^(2h+1) of the smallest is 1e-21 here: without a QR in between it would be noise."""
    x = oracle.with_spectrum([1.0, 1e-1, 1e-3, 0.0, 0.0, 0.0], 6, 9).astype(np.float32)
    options = {"coefficients": "deepseek_v4", "steps": 10}
    got = factor(x, 0, rank=3, oversampling=0, power_iterations=3, side="columns", **options)
    u, _, vt = np.linalg.svd(np.float64(x))
    np.testing.assert_allclose(got, u[:, :3] @ vt[:3], atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_keys(kind):
    x = np.stack([matrix((6, 9), 6, 1)] * 3)
    options = {"rank": 2, "oversampling": 0, "sketch": kind, **SOLVER}
    run = partial(factor, **options)
    first = run(x, jax.random.key(7))
    np.testing.assert_array_equal(run(x, 7), first)
    assert np.max(np.abs(run(x, 8) - first)) > 1e-3
    # Equal matrices of a batch have different sketches, and each is that of its own key.
    assert np.max(np.abs(first[0] - first[1])) > 1e-3
    keys = jax.random.split(jax.random.key(7), 3)
    np.testing.assert_array_equal(run(x, keys), first)
    np.testing.assert_allclose(run(x[1], keys[1]), first[1], atol=1e-6)
    drawn = draw_sketch(x, 7, 2, kind)
    np.testing.assert_allclose(
        randomized_factor(x, sketch=drawn, **{k: v for k, v in options.items() if k != "sketch"}),
        first,
        atol=1e-6,
    )


@given(seed=st.integers(0, 10**6), size=st.integers(1, 6))
def test_kaczmarz_takes_each_column_once_and_zero_columns_last(seed, size):
    x = np.random.default_rng(seed).standard_normal((2, 4, 9)).astype(np.float32)
    x[0, :, [1, 4, 6, 8]] = 0.0  # five columns are left
    drawn = np.asarray(draw_sketch(x, seed, size, "kaczmarz", "columns"))
    assert drawn.shape == (2, size)
    for own in drawn:
        assert len(set(own.tolist())) == size and own.min() >= 0 and own.max() < 9
    assert set(drawn[0, :5]) <= {0, 2, 3, 5, 7}
    zero = np.asarray(draw_sketch(np.zeros((4, 9), np.float32), seed, size, "kaczmarz", "columns"))
    assert len(set(zero.tolist())) == size


def test_kaczmarz_draws_by_squared_length():
    x = jnp.eye(4) * jnp.sqrt(jnp.array([1.0, 2.0, 3.0, 4.0]))[None] * 1e-20
    keys = jax.random.split(jax.random.key(0), 4000)
    pairs = np.asarray(jax.vmap(lambda key: draw_sketch(x, key, 2, "kaczmarz"))(keys))
    p = np.arange(1, 5) / 10
    found = np.bincount(pairs[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(found, p, atol=5 * np.sqrt(0.25 / 4000))
    # The second among those that are left: P(j second) = sum_i p_i p_j / (1 - p_i).
    second = np.array([sum(p[i] * p[j] / (1 - p[i]) for i in range(4) if i != j) for j in range(4)])
    found = np.bincount(pairs[:, 1], minlength=4) / 4000
    np.testing.assert_allclose(found, second, atol=5 * np.sqrt(0.25 / 4000))
    uniform = jax.vmap(lambda key: draw_sketch(0 * x, key, 1, "kaczmarz"))(keys)
    found = np.bincount(np.asarray(uniform)[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(found, 0.25, atol=5 * np.sqrt(0.25 / 4000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_any_scale(kind, scale):
    x = matrix((6, 9), 6, 2)
    options = {"rank": 3, "oversampling": 0, "sketch": kind, "power_iterations": 3, **SOLVER}
    want = factor(x, 0, **options)
    np.testing.assert_allclose(factor(x * np.float32(scale), 0, **options), want, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_empty_and_16_bits(kind):
    run = partial(factor, rank=2, oversampling=0, sketch=kind, **SOLVER)
    both = np.stack([np.zeros((6, 9)), matrix((6, 9), 6, 2)]).astype(np.float32)
    got = run(both, 0)
    assert not np.any(got[0]) and np.any(got[1])
    assert run(np.zeros((0, 3), np.float32), 0).shape == (0, 3)
    low = run(jnp.asarray(both, jnp.bfloat16), 0)
    assert low.dtype == jnp.bfloat16
    exact = run(jnp.asarray(both, jnp.bfloat16).astype(np.float32), 0)
    np.testing.assert_allclose(np.float32(low), exact, atol=4e-3)


def test_a_sketch_as_large_as_the_matrix_is_the_whole_factor():
    x = matrix((6, 9), 6, 2)
    whole = linalg.orthogonal_factor(x, **SOLVER)
    for kind in KINDS:
        for rank in (1.0, 3):
            options = {"rank": rank, "sketch": kind, **SOLVER}
            # Nothing is drawn: the difference is rounding in a program of its own.
            assert "random" not in str(jax.make_jaxpr(partial(randomized_factor, **options))(x, 0))
            np.testing.assert_allclose(factor(x, 0, **options), whole, rtol=0, atol=1e-6)


def test_sizes():
    assert sketch_size(768, 768, 200, 10) == 210
    assert sketch_size(6, 9, 5, 10) == sketch_size(6, 9, 6, 0) == sketch_size(9, 6, 1.0) == 6
    assert sketch_size(100, 40, 0.25, 0) == 10 and sketch_size(1, 9, 0.25, 0) == 1
    assert sketch_size(0, 9, 3, 1) == 0


@pytest.mark.parametrize("method", ["cqr", "rcqr"])
def test_other_ways_to_a_basis_give_the_same(method):
    run = jax.jit(randomized_factor, static_argnames=(*STATIC, "qr_method"))
    for rank, kind in ((2, "gaussian"), (6, "kaczmarz")):
        x = np.stack([matrix((6, 9), rank, 4), matrix((6, 9), rank, 5), np.zeros((6, 9))])
        options = {"rank": 3, "oversampling": 0, "sketch": kind, "side": "columns", **SOLVER}
        x = x.astype(np.float32)
        got = run(x, 0, qr_method=method, **options)
        np.testing.assert_allclose(got, run(x, 0, **options), atol=2e-5)


def test_errors():
    x = jnp.ones((4, 6))
    with pytest.raises(ValueError, match=r"rank=5 is larger than the matrix of shape \(4, 6\)"):
        randomized_factor(x, rank=5)
    for bad in ({"rank": 0}, {"rank": 1.5}, {"oversampling": -1}, {"power_iterations": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            randomized_factor(x, **bad)
    with pytest.raises(ValueError, match=r"side must be one of .* 'left'"):
        randomized_factor(x, rank=1, side="left")
    with pytest.raises(ValueError, match=r"qr_method must be one of .* 'lu'"):
        randomized_factor(x, rank=1, qr_method="lu")
    for rank in (1, 1.0):
        with pytest.raises(ValueError, match=r"sketch must be one of .* 'srht'"):
            randomized_factor(x, rank=rank, oversampling=0, sketch="srht")
    with pytest.raises(ValueError, match=r"\(6, 'l'\), or \('l',\) .* got \(4, 2\)"):
        randomized_factor(x, sketch=jnp.ones((4, 2)), side="columns", rank=1)
    with pytest.raises(ValueError, match=r"got \(6, 2\) of int32"):
        randomized_factor(x, sketch=jnp.ones((6, 2), jnp.int32), side="columns", rank=1)
    with pytest.raises(ValueError, match=r"one for each matrix in an array of shape \(\)"):
        randomized_factor(x, jax.random.split(jax.random.key(0), 2), rank=1, oversampling=0)
    with pytest.raises(ValueError, match="works on matrices"):
        randomized_factor(jnp.ones(3))
