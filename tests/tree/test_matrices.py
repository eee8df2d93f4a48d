"""Leaves as batches of matrices, and functions mapped over stacks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers
from optax.contrib._muon import _compute_muon_reshape

import optkit
from optkit.tree import (
    MatrixDims,
    MatrixLayout,
    dims_by_path,
    map_groups,
    matrix_view,
    matrix_views,
)


@st.composite
def shapes_and_dims(draw):
    rank = draw(st.integers(2, 5))
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    axes = draw(st.permutations(range(rank)))
    first = draw(st.integers(1, rank - 1))
    second = draw(st.integers(first + 1, rank))
    sign = draw(st.sampled_from([0, rank]))
    reduction, output = (
        [axis - sign for axis in part] for part in (axes[:first], axes[first:second])
    )
    as_int = draw(st.booleans())
    return sizes, MuonDimensionNumbers(
        reduction[0] if as_int and len(reduction) == 1 else tuple(reduction), tuple(output)
    )


@given(shapes_and_dims())
def test_split_is_optax_reshape_up_to_the_short_side_and_merge_undoes_it(case):
    sizes, dims = case
    leaf = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    view = matrix_view(leaf, dims)
    split = np.asarray(view.split(leaf))
    # Optax sorts nothing: (batch, input, output), batch flattened.
    reshape, _ = _compute_muon_reshape(jnp.asarray(leaf), dims)
    theirs = np.asarray(reshape(jnp.asarray(leaf)))
    assert theirs.shape[-2:] == (view.fan_in, view.fan_out)
    assert split.shape == (*view.batch_shape, min(theirs.shape[-2:]), max(theirs.shape[-2:]))
    ours = split.reshape(-1, *split.shape[-2:])
    theirs = theirs.reshape(-1, view.fan_in, view.fan_out)
    turned = theirs.swapaxes(-1, -2)
    # A square matrix may stand either way; the others have their short side first.
    assert any(x.shape == ours.shape and np.array_equal(x, ours) for x in (theirs, turned))
    np.testing.assert_array_equal(view.merge(split), leaf)
    assert split.size == leaf.size
    # As it lies in memory, its axes say which sums are over inputs.
    kept = np.asarray(view.split(leaf, "kept"))
    out = np.asarray(view.split(leaf, "out")).sum(-1)
    np.testing.assert_array_equal(np.sort(kept.sum(view.in_axes), None), np.sort(out, None))
    np.testing.assert_array_equal(view.merge(kept, "kept"), leaf)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (MuonDimensionNumbers(0, 2), r"'up'.*rank 2 has no axis 2.*output_axis"),
        (MuonDimensionNumbers(-3, 1), r"'up'.*rank 2 has no axis -3.*reduction_axis"),
        (MuonDimensionNumbers(0, -2), r"'up'.*name an axis twice"),
        (MuonDimensionNumbers((0, 0), 1), r"'up'.*name an axis twice"),
    ],
)
def test_impossible_dimension_numbers_name_the_leaf(dims, message):
    with pytest.raises(ValueError, match=message):
        matrix_view(jnp.zeros((2, 3)), dims, path="up")


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match=r"leaf 'up/bias' of shape \(3,\) is not a matrix"):
        matrix_views({"up": {"bias": jnp.zeros(3)}})


def test_dims_in_all_their_forms():
    one, other = MuonDimensionNumbers(0, 1), MuonDimensionNumbers(1, 0)
    params = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros((2, 3)), "d": jnp.zeros(3)}}
    tree = {"a": other, "b": {"c": one, "d": None}}
    expected = {"a": other, "b/c": one, "b/d": None}
    assert dims_by_path(params, tree) == expected
    assert dims_by_path(
        params, lambda p: jax.tree.map(lambda x: one if x.ndim > 1 else None, p)
    ) == {
        **expected,
        "a": one,
    }
    assert dims_by_path(params, {"a": other, "b": None}) == {"a": other, "b/c": None, "b/d": None}
    assert dims_by_path(params, one) is None and dims_by_path(params, None) is None
    with pytest.raises(ValueError, match=r"no entry for leaf 'b/c'"):
        dims_by_path(params, {"a": one})
    views = dict(matrix_views({"a": params["a"]}, tree))
    assert (views["a"].fan_in, views["a"].fan_out) == (3, 2)


@given(
    sizes=st.lists(
        st.sampled_from([(2, 3), (3, 3), (2, 2, 3), (0, 3), (2, 0, 3)]), min_size=0, max_size=6
    ),
    budget=st.sampled_from([None, 1, 48, 10**6]),
)
def test_map_groups_is_one_call_per_leaf_whatever_the_budget(sizes, budget):
    rng = np.random.default_rng(0)
    leaves = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    called = []

    def function(x):
        if x.size:  # the result of an empty matrix has a shape, which only a trace can tell
            called.append(x.shape)
        return x / (1.0 + jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)))

    out = map_groups(function, [jnp.asarray(x) for x in leaves], group_bytes=budget)
    assert len(out) == len(leaves)
    for x, y in zip(leaves, out, strict=True):
        norm = np.sqrt(np.sum(np.float64(x) ** 2, (-2, -1), keepdims=True))
        np.testing.assert_allclose(y, x / (1 + norm), atol=1e-6)
    full = [size for size in sizes if np.prod(size)]
    calls = {1: len(full), 10**6: len(set(full))}
    assert len(called) == calls.get(budget, len(called))


def test_a_stack_stays_below_its_budget():
    called = []

    def function(x):
        called.append(x.shape)
        return x

    map_groups(function, [jnp.ones((2, 3))] * 5, group_bytes=48)
    assert called == [(2, 2, 3), (2, 2, 3), (2, 3)]


def test_dtypes_are_never_mixed_in_a_stack():
    out = map_groups(lambda x: x, [jnp.ones((2, 3)), jnp.ones((2, 3), jnp.bfloat16)])
    assert [x.dtype for x in out] == [jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_map_groups_takes_arguments_beside_the_matrices_and_returns_several(count):
    rng = np.random.default_rng(1)
    shapes = [(2, 3, 4) if i % 3 else (3, 4) for i in range(count)]
    x = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    y = [rng.standard_normal((*shape[:-2], 5)).astype(np.float32) for shape in shapes]

    def function(x, y):
        return y * jnp.sum(x, (-2, -1))[..., None], -x

    out = map_groups(function, list(map(jnp.asarray, x)), list(map(jnp.asarray, y)))
    for a, b, (scaled, negative) in zip(x, y, out, strict=True):
        np.testing.assert_allclose(scaled, b * a.sum((-2, -1))[..., None], atol=1e-5)
        np.testing.assert_array_equal(negative, -a)


@st.composite
def fused(draw):
    """A kernel with blocks on one side, and the matrices that it was put together from."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    equal = draw(st.booleans())
    sizes = [sizes[0]] * len(sizes) if equal else sizes
    other, batch = draw(st.integers(1, 3)), draw(st.sampled_from([(), (2,)]))
    on_input = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = [(*batch, n, other) if on_input else (*batch, other, n) for n in sizes]
    matrices = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    side = "reduction_blocks" if on_input else "output_blocks"
    blocks = len(sizes) if equal else tuple(sizes)
    kernel = np.concatenate(matrices, -2 if on_input else -1)
    return kernel, matrices, MatrixDims(-2, -1, **{side: blocks})


@given(fused())
def test_a_fused_kernel_is_read_as_the_matrices_it_was_made_of(case):
    kernel, matrices, dims = case
    tree = {"qkv": jnp.asarray(kernel)}
    layout = MatrixLayout(tree, dims)
    for rows in ("short", "out"):
        np.testing.assert_array_equal(layout.merge(layout.split(tree, rows), rows)["qkv"], kernel)
    got = [x.reshape(-1, *x.shape[-2:]) for x in layout.split(tree, "out")]
    want = [x.mT.reshape(-1, *x.mT.shape[-2:]) for x in matrices]
    order = lambda xs: sorted((m.tolist() for x in xs for m in np.asarray(x)), key=str)  # noqa: E731
    assert order(got) == order(want)
    packed = layout.pack(got)
    assert [x is y for x, y in zip(layout.unpack(packed), got, strict=True)] == [True] * len(got)
    factors = [float(view.fan_out) for view in layout.views]
    want_scaled = np.concatenate(
        [m * m.shape[-1] for m in matrices], -2 if dims.reduction_blocks != 1 else -1
    )
    np.testing.assert_allclose(layout.scale(tree, factors)["qkv"], want_scaled, rtol=1e-6)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (MatrixDims(output_blocks=5), r"'qkv' of shape \(4, 6\): blocks 5 do not fill axis 1 of"),
        (MatrixDims(output_blocks=(4, 4)), r"'qkv'.*sizes that sum to it"),
        (MatrixDims(reduction_blocks=0), r"'qkv'.*do not fill axis 0"),
        (MatrixDims(0, 1, 2, 2), r"'qkv': give reduction_blocks or output_blocks, not both"),
    ],
)
def test_impossible_blocks_name_the_leaf(dims, message):
    with pytest.raises(ValueError, match=message):
        MatrixLayout({"qkv": jnp.zeros((4, 6))}, dims)


def test_heads_are_orthogonalized_one_by_one_by_every_recipe_that_takes_roles():
    params = {"qkv": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((6, 12)))}}
    rule = ("qkv/kernel", "matrix", MatrixDims(output_blocks=(4, 4, 2, 2)))
    tx = optkit.muon(1.0, method="svd", scale="none", roles=[rule])
    updates, _ = tx.update(params, tx.init(params), params)
    start = 0
    for width in (4, 4, 2, 2):
        block = np.asarray(updates["qkv"]["kernel"])[:, start : start + width]
        np.testing.assert_allclose(block.T @ block, np.eye(width), atol=1e-5)
        start += width
