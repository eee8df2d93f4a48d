"""What breadcrumbs keep of a task vector, and what of a leaf is a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit

SHARES = [(0.5, 0.25), (0.25, 0.0), (1.0, 0.125), (0.0, 0.5)]


@given(shares=st.sampled_from(SHARES), seed=st.integers(0, 99))
def test_the_entries_of_known_places_stay(shares, seed):
    """The magnitudes are 1..8 in some order, so that a place is known from the entry."""
    beta, gamma = shares
    random = np.random.default_rng(seed)
    rows = np.array([random.permutation(8) + 1.0 for _ in range(3)])
    d = (rows * random.choice([-1, 1], rows.shape)).astype(np.float32)
    got = optkit.mask_task_vector({"kernel": jnp.asarray(d.T)}, beta, gamma)["kernel"].T
    top = 8 - int(8 * gamma)
    np.testing.assert_array_equal(got, np.where((rows <= top) & (rows > top - 8 * beta), d, 0))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_exact_counts_of_ties_and_dtypes():
    delta = {"kernel": jnp.ones((10, 2), jnp.bfloat16), "scale": jnp.float32(3.0)}
    got = optkit.mask_task_vector(delta, 0.35, 0.2)
    assert got["kernel"].dtype == jnp.bfloat16 and got["scale"] == 3.0
    # int(10*0.2) are outliers, the next int(10*0.35) stay
    np.testing.assert_array_equal(
        got["kernel"][:, 1], np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 0], np.float32)
    )


def test_a_row_is_what_the_leaf_says():
    x = normal(0, 4, 6)
    rows = lambda y: np.array([mask(row) for row in y])  # noqa: E731
    mask = lambda d: optkit.mask_task_vector({"x": d}, 0.5, 0.25)["x"]  # noqa: E731
    tree = {
        "kernel": x,
        "torch": x,
        "no": x,
        "embed": {"embedding": x},
        "layers": {"norm": {"scale": x}},
    }
    shares = (0.5, 0.25)
    got = optkit.mask_task_vector(tree, *shares)
    np.testing.assert_array_equal(got["kernel"], rows(x.T).T)
    for name in ("embed", "layers"):
        np.testing.assert_array_equal(jax.tree.leaves(got[name])[0], rows(x))
    dims = {"kernel": optkit.MatrixDims(0, 1), "torch": optkit.MatrixDims(1, 0), "no": None}
    named = optkit.mask_task_vector({k: tree[k] for k in dims}, *shares, dims=dims)
    np.testing.assert_array_equal(named["kernel"], got["kernel"])
    np.testing.assert_array_equal(named["torch"], rows(x))
    np.testing.assert_array_equal(named["no"], mask(x.reshape(-1)).reshape(x.shape))
    whole = optkit.mask_task_vector({"kernel": x}, *shares, over="leaf")["kernel"]
    np.testing.assert_array_equal(whole, named["no"])


def test_without_a_mask_it_is_task_arithmetic():
    shapes = {"kernel": (5, 3), "bias": (4,), "gain": (), "empty": (0, 3), "conv": (2, 2, 3, 4)}
    trees = [{k: normal(i, *shape) for k, shape in shapes.items()} for i in range(4)]
    start, *tuned = trees
    merge = jax.jit(lambda p, t, a: optkit.breadcrumbs(p, t, a, beta=1.0, gamma=0.0))
    got = merge(start, tuned, 0.3)
    for k, p in start.items():
        want = np.float64(p) + 0.3 * sum(np.float64(t[k]) - np.float64(p) for t in tuned)
        np.testing.assert_allclose(got[k], want, atol=2e-6)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), start)
    assert {x.dtype for x in jax.tree.leaves(merge(low, tuned, 0.3))} == {jnp.dtype("bfloat16")}


def test_what_does_not_fit_is_named():
    p = {"w": jnp.ones(3)}
    for bad, match in (
        (lambda: optkit.breadcrumbs(p, []), "finetuned is empty"),
        (lambda: optkit.breadcrumbs(p, [p, {"v": p["w"]}]), r"w: .*finetuned\[1\]"),
        (lambda: optkit.breadcrumbs(p, [p], beta=1.5), "beta=1.5"),
        (lambda: optkit.breadcrumbs(p, [p], float("nan")), "alpha=nan"),
        (lambda: optkit.mask_task_vector(p, gamma=-0.1), "gamma=-0.1"),
        (lambda: optkit.mask_task_vector(p, over="leave"), "did you mean 'leaf'"),
    ):
        with pytest.raises(ValueError, match=match):
            bad()
