from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import COEFFICIENTS, get_coefficients, newton_schulz
from tests.linalg import oracle

SETS = [name for name, entry in COEFFICIENTS.items() if entry.requires is None]
LOWS = (1e-3, 5e-3, 1e-2, 1e-1)


@cache
def jitted(name="jordan", **options):
    return jax.jit(partial(newton_schulz, coefficients=name, **options))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spread(low, count):
    """Singular values of unit Frobenius norm, the smallest at `low`."""
    sigma = np.geomspace(low, 1, count)
    sigma[1:] *= np.sqrt((1 - low**2) / np.sum(sigma[1:] ** 2))
    return sigma


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("low", LOWS)
def test_singular_values_are_the_polynomial(name, low):
    entry = COEFFICIENTS[name]
    sigma = spread(low, 6)
    x = oracle.with_spectrum(sigma, 6, 9).astype(np.float32)
    got = np.linalg.svd(np.asarray(jitted(name)(x)), compute_uv=False)
    rows = entry.expand()
    want = np.sort(np.abs(oracle.polynomial(rows, sigma / entry.margin)))[::-1]
    np.testing.assert_allclose(got, want, atol=5e-3)
    grid = np.geomspace(low, 1, 20_001)
    image = oracle.polynomial(rows, grid / entry.margin)
    assert image.min() - 5e-3 <= got.min() <= got.max() <= image.max() + 5e-3


EVERY_SHAPE = [("jordan", shape) for shape in [(5, 8), (8, 5), (6, 6), (1, 7), (2, 4, 3)]]


@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE + [(name, (9, 6)) for name in SETS])
def test_against_the_oracle(name, shape):
    entry = COEFFICIENTS[name]
    x = gaussian(*shape)
    want = oracle.newton_schulz(x, entry.expand(), margin=entry.margin)
    # One row has the singular value 1 exactly, where the fast sets amplify rounding.
    atol = 5e-3 if 1 in shape else 1e-4
    np.testing.assert_allclose(jitted(name)(x), want, atol=atol)


@given(st.integers(-30, 30), st.integers(0, 3), st.sampled_from([(4, 6), (6, 4)]))
def test_scale_invariance(exponent, seed, shape):
    x = gaussian(*shape, seed=seed)
    scaled = (x.astype(np.float64) * 10.0**exponent).astype(np.float32)
    chex.assert_trees_all_close(jitted()(scaled), jitted()(x), atol=2e-5)


@pytest.mark.parametrize("precondition", ["frobenius", "spectral", "schatten", "aol"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_invariance_of_every_precondition(precondition, scale):
    x = gaussian(4, 6)
    run = jitted(precondition=precondition)
    chex.assert_trees_all_close(run(x * np.float32(scale)), run(x), atol=2e-5)


def test_smallest_normal_numbers_and_subnormals():
    x = gaussian(4, 6)
    x = np.sign(x) * np.clip(np.abs(x), 0.5, None)
    chex.assert_trees_all_close(jitted()(x * np.float32(3e-38)), jitted()(x), atol=2e-5)
    chex.assert_tree_all_finite(jitted()(x * np.float32(1e-41)))
    chex.assert_tree_all_finite(jitted()(x * np.float32(1e37)))


@given(st.integers(0, 1000))
def test_equivariance(seed):
    x = gaussian(4, 6, seed=seed)
    left, right = oracle.orthogonal(seed, 4, 4), oracle.orthogonal(seed + 1, 6, 6)
    y = np.asarray(jitted()(x))
    chex.assert_trees_all_close(np.asarray(jitted()(x.T)), y.T, atol=1e-6)
    turned = (left @ x @ right).astype(np.float32)
    chex.assert_trees_all_close(
        np.asarray(jitted()(turned)), (left @ y @ right).astype(np.float32), atol=1e-4
    )
    assert np.sum(x * y) >= 0
    nuclear = np.linalg.svd(x, compute_uv=False).sum()
    assert 0.6 * nuclear <= np.sum(x * y) <= 1.21 * nuclear


@pytest.mark.parametrize("precondition", ["frobenius", "spectral", "schatten", "aol"])
@pytest.mark.parametrize(("eps", "eps_mode"), [(0.0, "add"), (0.0, "clamp"), (1e-7, "add")])
def test_zero_stays_zero(precondition, eps, eps_mode):
    x = np.zeros((2, 3, 4), np.float32)
    x[1] = gaussian(3, 4)
    y = jitted(precondition=precondition, eps=eps, eps_mode=eps_mode, steps=2)(x)
    chex.assert_trees_all_equal(y[0], jnp.zeros((3, 4)))
    assert float(jnp.linalg.norm(y[1])) > 1


@pytest.mark.parametrize("eps", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("margin", [1.0, 1.02])
def test_no_steps_is_the_normalised_matrix(eps, margin):
    x = gaussian(4, 6)
    norm = np.linalg.norm(x)
    run = partial(newton_schulz, x, steps=0, eps=eps, margin=margin)
    chex.assert_trees_all_close(run(), x / (margin * norm + eps), rtol=1e-6)
    chex.assert_trees_all_close(run(eps_mode="clamp"), x / max(margin * norm, eps), rtol=1e-6)


def test_eps_is_in_the_units_of_the_input():
    x = gaussian(4, 6)
    y = newton_schulz(x * 1e-8, steps=0, eps=1e-7)
    norm = np.linalg.norm(x) * 1e-8
    chex.assert_trees_all_close(y, x * 1e-8 / (norm + 1e-7), rtol=1e-5)


def test_preconditions_divide_by_what_they_say():
    x = gaussian(5, 3)
    sigma = np.linalg.svd(x, compute_uv=False)
    run = partial(newton_schulz, x, steps=0)
    chex.assert_trees_all_close(run(precondition="spectral"), x / sigma[0], rtol=1e-5)
    schatten = np.sum(sigma**4) ** 0.25
    chex.assert_trees_all_close(run(precondition="schatten"), x / schatten, rtol=1e-5)
    aol = np.abs(x.T @ x).sum(axis=0) ** -0.5
    chex.assert_trees_all_close(run(precondition="aol"), x * aol, rtol=1e-5)
    for kind in ("spectral", "schatten", "aol"):
        assert np.linalg.norm(run(precondition=kind), 2) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["aol_emerging", "aol_flash"])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5)])
def test_aol_sets(name, shape):
    x = gaussian(*shape)
    y = jitted(name, precondition="aol")(x)
    np.testing.assert_allclose(y, oracle.aol(x, get_coefficients(name)), atol=2e-5)
    with pytest.raises(ValueError, match="precondition='aol'"):
        newton_schulz(x, name)
    # Rows instead of the name take the risk: here the sign of a lone row flips.
    flipped = newton_schulz(gaussian(1, 5), get_coefficients("aol_emerging"))
    assert float(jnp.sum(flipped * gaussian(1, 5))) < 0


@pytest.mark.parametrize("precondition", ["schatten", "aol"])
def test_reused_gram_matrix_changes_nothing(precondition):
    x = gaussian(4, 6)
    once = newton_schulz(x, steps=0, precondition=precondition)
    g = np.asarray(once, np.float64)
    for a, b, c in get_coefficients("jordan"):
        gram = g @ g.T
        g = a * g + (b * gram + c * gram @ gram) @ g
    np.testing.assert_allclose(jitted(precondition=precondition)(x), g, atol=1e-5)


def test_batch_is_per_slice():
    x = gaussian(2, 3, 4, 6)
    y = jitted()(x)
    for index in np.ndindex(2, 3):
        chex.assert_trees_all_close(y[index], jitted()(x[index]), atol=1e-6)
    chex.assert_trees_all_close(jax.vmap(jax.vmap(newton_schulz))(x), y, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 4), (2, 0, 0)])
@pytest.mark.parametrize("precondition", ["frobenius", "spectral", "schatten", "aol"])
def test_zero_size(shape, precondition):
    assert newton_schulz(jnp.zeros(shape), precondition=precondition).shape == shape


@pytest.mark.parametrize("precondition", ["frobenius", "spectral", "schatten", "aol"])
def test_derivative(precondition):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)))
        weight = np.random.default_rng(1).standard_normal((3, 4))

        def loss(x):
            y = newton_schulz(x, "jordan", 1, precondition=precondition)
            return jnp.sum(weight * y)

        loss, gradient = jax.jit(loss), jax.jit(jax.grad(loss))(x)
        direction = np.random.default_rng(2).standard_normal((3, 4))
        slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-6)
        # Scale invariance: the derivative along x vanishes.
        np.testing.assert_allclose(jnp.sum(gradient * x), 0.0, atol=1e-9)


def test_derivative_at_zero_is_finite():
    gradient = jax.grad(lambda x: jnp.sum(newton_schulz(x)))(jnp.zeros((3, 4)))
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    x = jnp.asarray(gaussian(6, 10), dtype)
    y = jitted()(x)
    assert y.dtype == dtype
    want = oracle.newton_schulz(np.asarray(x, np.float64), get_coefficients("jordan"))
    np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=8e-2)
    inside = jitted(compute_dtype=dtype)(x.astype(jnp.float32))
    assert inside.dtype == jnp.float32
    np.testing.assert_allclose(inside, want, atol=8e-2)


def test_norm_is_taken_before_the_cast():
    # 1e-9 is below float16's smallest number.
    x = gaussian(4, 6)
    run = jitted(compute_dtype="float16")
    chex.assert_trees_all_close(run(x * np.float32(1e-9)), run(x), atol=2e-2)


def test_non_finite_input_is_visible():
    x = gaussian(3, 4)
    x[0, 0] = np.nan
    assert np.isnan(np.asarray(jitted()(x))).all()


def test_errors():
    x = jnp.ones((2, 3))
    for options, message in [
        ({"coefficients": "nope"}, "unknown coefficient set 'nope'"),
        ({"coefficients": "cubic5", "steps": 6}, "has 5 rows .* 6 steps"),
        ({"steps": -1}, "got -1"),
        ({"eps_mode": "times"}, "eps_mode must be one of .* 'times'"),
        ({"precondition": "rows"}, "precondition must be one of .* 'rows'"),
    ]:
        with pytest.raises(ValueError, match=message):
            newton_schulz(x, **options)
    with pytest.raises(ValueError, match=r"newton_schulz works on matrices .* \(3,\)"):
        newton_schulz(jnp.ones(3))
    with pytest.raises(TypeError, match="complex64"):
        newton_schulz(jnp.ones((2, 3), jnp.complex64))
