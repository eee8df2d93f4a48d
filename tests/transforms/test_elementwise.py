"""What is found to work entry by entry gives the same on cuts, and nothing else is found."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.transforms.elementwise import Elementwise
from optkit.transforms.lazily import Lazily

RNG = np.random.default_rng(0)
G = jnp.asarray(RNG.standard_normal((4, 6)), jnp.float32)
STEP = jnp.int32(3)


def found(function: Callable[[list[Any]], Any], inputs: int = 1) -> Elementwise | None:
    def never(index: int) -> jax.Array:
        raise AssertionError(f"input {index} was made")

    shapes = [jax.ShapeDtypeStruct(G.shape, jnp.float32)] * 2
    return Lazily(function, shapes, never).elementwise([0], list(range(inputs)))


@pytest.mark.parametrize(
    "function",
    [
        lambda m: [0.9 * m[0] + 0.1 * G],
        # Counters, and norms of what is given, are numbers; rows are arrays that were computed.
        lambda m: [m[0] / (1 - 0.9**STEP) / jnp.linalg.norm(G)],
        lambda m: [m[0] * jnp.broadcast_to(jnp.mean(G, axis=0), G.shape)],
        lambda m: [jnp.where(jnp.abs(m[0]) > 1, jnp.sign(m[0]), jax.nn.relu(G) ** 2)],
        lambda m: [jnp.full(G.shape, 2.0) * m[0] + jnp.clip(m[0], -STEP, 0.5)],
        lambda m: [m[0].astype(jnp.bfloat16).astype(jnp.float32)],
        lambda m: [m[0]],
    ],
    ids=("sum", "numbers", "rows", "choice", "constants", "dtypes", "itself"),
)
def test_cuts_give_what_the_whole_gives(function: Callable[[list[Any]], Any]) -> None:
    piece = found(function)
    assert piece is not None
    m = jnp.asarray(RNG.standard_normal(G.shape), jnp.float32)
    (wanted,) = function([m, m])
    for cut in (np.s_[:, :3], np.s_[1:, 3:]):
        (part,) = piece([m[cut]], [x[cut] for x in piece.arrays], piece.scalars)
        np.testing.assert_allclose(part, wanted[cut], rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda m: [m[0] / jnp.linalg.norm(m[0])],
        lambda m: [jnp.cumsum(m[0], axis=0)],
        lambda m: [m[0][::-1]],
        lambda m: [m[0] + jax.random.normal(jax.random.key(0), G.shape) * m[0].sum()],
        lambda m: [m[0] + m[1]],
        lambda m: [m[0].T],
        lambda m: [jnp.zeros(())],
    ],
    ids=("norm", "cumsum", "reverse", "noise", "another moment", "transpose", "a number"),
)
def test_what_looks_at_other_entries_is_not_found(function: Callable[[list[Any]], Any]) -> None:
    assert found(function) is None


def test_two_moments_may_depend_on_each_other() -> None:
    piece = found(lambda m: [m[0] * m[1] + G], inputs=2)
    assert piece is not None
    ones = jnp.ones((2, 2))
    (out,) = piece([2 * ones, 3 * ones], [ones], [])
    np.testing.assert_array_equal(out, 7 * ones)


def test_one_jitted_call_of_two_leaves_does_not_couple_them() -> None:
    halve = jax.jit(lambda tree: jax.tree.map(lambda x: x / 2, tree))

    def function(m: list[Any]) -> list[Any]:
        a, b = halve(halve(m))
        return [a, a + b]

    piece = found(function, inputs=1)
    assert piece is not None
    np.testing.assert_allclose(piece([G], piece.arrays, piece.scalars)[0], G / 4)
