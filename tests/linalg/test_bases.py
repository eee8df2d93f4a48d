"""Bases of subspaces, against float64."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optkit.linalg.bases import randomized_basis
from tests.linalg import oracle

# More rows and columns than a sketch of RANK + 8 has: smaller matrices it holds whole.
SHAPE, RANK = (16, 20), 3
BASIS = jax.jit(randomized_basis, static_argnums=1)


@settings(max_examples=12, deadline=None)
@given(
    top=st.lists(st.floats(0.1, 1.0), min_size=RANK, max_size=RANK),
    tail=st.floats(0.0, 1.0),
    decay=st.floats(0.0, 1.0),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    seed=st.integers(0, 10**6),
)
def test_what_a_randomized_basis_misses_is_hardly_more_than_the_best_misses(
    top: list[float],
    tail: float,
    decay: float,
    scale: float,
    seed: int,
) -> None:
    """Any spectrum, gap or none: the worst direction that is missed is 1.2 times the best's."""
    rest = min(top) * tail * decay ** np.arange(min(SHAPE) - RANK)
    x = (scale * oracle.with_spectrum([*sorted(top)[::-1], *rest], *SHAPE, seed=seed)).astype(
        np.float32
    )
    basis = np.float64(BASIS(x, RANK, jax.random.key(seed)))
    np.testing.assert_allclose(basis.T @ basis, np.eye(RANK), atol=1e-5)
    x = np.float64(x)
    sigma = np.linalg.svd(x, compute_uv=False)
    missed = np.linalg.norm(x - basis @ (basis.T @ x), 2)
    assert missed <= 1.2 * sigma[RANK] + 1e-5 * sigma[0]
    # No basis of this size misses less.
    assert missed >= sigma[RANK] * (1 - 1e-5)


@settings(max_examples=10, deadline=None)
@given(gap=st.floats(0.0, 0.1), seed=st.integers(0, 10**6))
def test_behind_a_gap_it_is_the_space_of_the_singular_vectors(gap: float, seed: int) -> None:
    sigma = np.r_[[1.0, 0.9, 0.8], np.full(min(SHAPE) - RANK, 0.8 * gap)]
    x = oracle.with_spectrum(sigma, *SHAPE, seed=seed)
    basis = np.float64(BASIS(x.astype(np.float32), RANK, jax.random.key(seed)))
    u = np.linalg.svd(x)[0][:, :RANK]
    cosines = np.linalg.svd(u.T @ basis, compute_uv=False)
    assert cosines.min() > 1 - 1e-5
