"""Tensors in blocks: what they are, and that they come together again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit.tree import BlockLayout, merge_dims
from tests.conformance.trees import LEAN, filled


@pytest.mark.parametrize("dims", [None, "tensor"])
@pytest.mark.parametrize("limit", [2, 3, 100])
def test_blocks_come_together_again(limit: int, dims: str | None) -> None:
    params = filled(LEAN, 0)
    for merging in ("last", "first", "none"):
        layout = BlockLayout(params, limit, dims=dims, merging=merging, merge_limit=9)
        blocks = layout.split(params)
        jax.tree.map(np.testing.assert_array_equal, layout.merge(blocks, params), params)
        for x, (batch, sizes) in zip(blocks, layout.blocks, strict=True):
            assert x.shape == (*batch, *sizes)
            assert max(sizes) <= limit


def test_a_matrix_is_cut_in_order_and_remainders_stay_apart() -> None:
    x = jnp.arange(35.0).reshape(5, 7)
    first, right, below, corner = BlockLayout({"w": x}, 4).split({"w": x})
    assert [b.shape for b in (first, right, below, corner)] == [(4, 4), (4, 3), (1, 4), (1, 3)]
    np.testing.assert_array_equal(corner, x[4:, 4:])
    (grid,) = BlockLayout({"w": x[:4, :6]}, 2).split({"w": x[:4, :6]})
    places = itertools.product((0, 2), (0, 2, 4))
    for block, (i, j) in zip(grid, places, strict=True):
        np.testing.assert_array_equal(block, x[i : i + 2, j : j + 2])


def test_layers_are_a_batch_and_state_has_the_paths_of_its_parameters() -> None:
    params = filled({"layers/up/kernel": (3, 4, 6), "up/bias": (6,)}, 0)
    layout = BlockLayout(params, 4)
    assert layout.blocks == (((3,), (4, 4)), ((3,), (4, 2)), ((), (4,)), ((), (2,)))
    values = [[jnp.zeros((*b, n, n)) for n in sizes] for b, sizes in layout.blocks]
    packed = layout.pack(values)
    found = optkit.tree.match_state({"kronecker": packed}, params)
    assert {m.param_path for m in found} == {"layers/up/kernel", "up/bias"}
    back = layout.unpack(packed, [len(sizes) for _, sizes in layout.blocks])
    assert [[x.shape for x in own] for own in back] == [[x.shape for x in own] for own in values]


def test_merging_follows_both_references() -> None:
    assert merge_dims((8, 12), 1024) == (96,)  # the trap: a matrix becomes a vector
    assert merge_dims((8, 12), 1024, keep=2) == (8, 12)
    assert merge_dims((1, 3, 1, 5), 4) == (3, 5)
    assert merge_dims((2, 3, 4, 5), 24) == (6, 20)
    assert merge_dims((2, 3, 4, 5), 24, order="first") == (24, 5)
    assert merge_dims((1, 1), 4, order="first") == merge_dims((), 4) == (1,)
