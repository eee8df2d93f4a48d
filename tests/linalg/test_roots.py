"""Inverse roots against eigenvalues in float64, on spectra that are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit import linalg


def symmetric(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with these eigenvalues, and their eigenvectors."""
    n = len(values)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * values) @ q.T, q


METHODS = ("eigh", "coupled_newton", "newton_schulz", "higher_order")


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_roots_are_those_of_the_eigenvalues(method: str, p: int) -> None:
    spectra = [np.logspace(-3, 0, 6), np.linspace(1.0, 2.0, 6), np.full(6, 7.0)]
    parts = [symmetric(values, seed) for seed, values in enumerate(spectra)]
    a = np.stack([part for part, _ in parts])
    want = np.stack(
        [
            (q * (values + 1e-2) ** (-1 / p)) @ q.T
            for (_, q), values in zip(parts, spectra, strict=True)
        ]
    )
    # Squares of 1e25 and of 1e-30 leave float32.
    for scale in (1.0, 1e25, 1e-30):
        done = linalg.inverse_root(
            jnp.asarray(a * scale, jnp.float32), p, method=method, eps=1e-2 * scale
        )
        np.testing.assert_allclose(np.asarray(done.root) * scale ** (1 / p), want, atol=1e-4)
        assert not done.failed.any()
        assert float(done.error.max()) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_the_root_undoes_the_matrix(method: str) -> None:
    a, _ = symmetric(np.logspace(-2, 0, 8))
    x = np.float64(linalg.inverse_root(jnp.float32(a), 4, method=method).root)
    np.testing.assert_allclose(np.linalg.matrix_power(x, 4) @ a, np.eye(8), atol=1e-4)


def test_negative_eigenvalues_move_all_up() -> None:
    a, q = symmetric(np.array([-0.25, 0.75, 2.0]))
    want = (q * np.array([0.5, 1.5, 2.75]) ** -0.5) @ q.T  # by 0.25, and eps
    done = linalg.inverse_root(jnp.float32(a), 2, method="eigh", eps=0.5)
    np.testing.assert_allclose(done.root, want, atol=1e-5)


def test_a_relative_ridge_is_a_share_of_the_largest_eigenvalue() -> None:
    values = np.array([0.0, 1.0, 4.0])
    a, q = symmetric(values)
    want = (q * (values + 0.4) ** -0.25) @ q.T
    for method in ("eigh", "coupled_newton"):
        done = linalg.inverse_root(jnp.float32(a), 4, method=method, ridge=0.1)
        np.testing.assert_allclose(done.root, want, atol=1e-4)
    assert linalg.largest_eigenvalue(jnp.float32(a)) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_matrix_of_a_batch_fails_by_itself(method: str) -> None:
    good, _ = symmetric(np.linspace(1.0, 2.0, 4))
    bad = np.full((4, 4), np.nan)
    a = jnp.asarray(np.stack([good, bad, 0.0 * good]), jnp.float32)
    done = linalg.inverse_root(a, 4, method=method, eps=1e-6)
    assert done.failed.tolist() == [False, True, False]
    alone = linalg.inverse_root(a[0], 4, method=method, eps=1e-6).root
    np.testing.assert_allclose(done.root[0], alone, rtol=1e-5)
    np.testing.assert_allclose(done.root[2], np.eye(4) * 1e-6**-0.25, rtol=1e-3)


def test_google_gives_up_a_matrix_of_rank_1_and_tries_again() -> None:
    ones = jnp.ones((5, 5))
    once = linalg.inverse_root(ones, 4, method="coupled_newton", ridge=1e-6, growth=1.2)
    assert bool(once.failed)
    assert not linalg.inverse_root(ones, 4, method="coupled_newton", ridge=1e-6).failed
    # Ten times the ridge, until the first step no longer makes it worse.
    more = linalg.inverse_root(ones, 4, method="coupled_newton", ridge=0.5, growth=1.2, tries=6)
    assert not more.failed


def test_wrong_arguments_say_so() -> None:
    with pytest.raises(ValueError, match="square"):
        linalg.inverse_root(jnp.ones((2, 3)), 4)
    with pytest.raises(ValueError, match="is not one of"):
        linalg.inverse_root(jnp.eye(2), 4, method="svd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs method='eigh'"):
        linalg.inverse_root(jnp.eye(2), 2.5, method="coupled_newton")


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_grams_and_products_are_those_of_the_unfolded_tensor(axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    got = linalg.tensor_gram(jnp.float32(x), axis, order=3)
    flat = np.moveaxis(x, axis, 1).reshape(2, x.shape[axis], -1)
    np.testing.assert_allclose(got, flat @ flat.transpose(0, 2, 1), atol=1e-4)
    m = np.random.default_rng(1).standard_normal((2, 6, x.shape[axis]))
    want = np.moveaxis(np.einsum("brd,bd...->br...", m, np.moveaxis(x, axis, 1)), 1, axis)
    done = linalg.apply_along(jnp.float32(x), jnp.float32(m), axis, order=3)
    np.testing.assert_allclose(done, want, atol=1e-4)
    assert jax.eval_shape(lambda x: linalg.tensor_gram(x, -1, order=3), x).shape == (2, 5, 5)
