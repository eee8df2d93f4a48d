"""A population's update: both kernels equal the sum of its members' noise in float64."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.kernels.blocks import ON_CHIP
from optkit.kernels.perturbed_matmul import perturbed_rows
from optkit.kernels.population_update import (
    Counters,
    base,
    gpu,
    population_update,
    tpu,
    why_not,
)
from tests.kernels.base import ChoiceTests, KernelTests, sides


def counters(rank: int = 1, first: int = 3) -> Counters:
    return Counters(jax.random.key_data(jax.random.key(7)), first, rank)


def weights(pairs: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(pairs).standard_normal(pairs), jnp.float32)


@functools.cache
def numbers(side: str) -> np.ndarray:
    """Draws to cut the factors of a case from: each depends on its number alone."""
    return np.asarray(jax.jit(lambda: counters(3).factor(side, 130, 300))(), np.float64)


def by(kernel: Any, shape: tuple[int, ...], signs: bool = False, **options: Any) -> Any:
    _, n, m, rank = shape

    def call(weights: jax.Array) -> jax.Array:
        return kernel.population_update(
            weights, counters(rank).words(), shape=(n, m), rank=rank, signs=signs, interpret=True,
            **options,
        )  # fmt: skip

    return call


class Sums(KernelTests):
    """``sum_k w_k B_k A_k^T``; a case is (pairs, n, m, rank, signs)."""

    # More pairs than live together, and fewer; several runs of columns.
    cases = st.tuples(sides(8, 128), sides(128), sides(128), st.integers(1, 2), st.booleans())
    example = (33, 130, 260, 2, False)

    @classmethod
    def operands(cls, case: Any, seed: int) -> Any:
        """Weights."""
        return (np.random.default_rng(seed).standard_normal(case[0]).astype(np.float32),)

    @classmethod
    def meaning(cls, case: Any, weights: Any) -> Any:
        """In float64."""
        pairs, n, m, rank, signs = case
        a, b = (numbers(side)[:pairs, :size, :rank] for side, size in (("a", m), ("b", n)))
        if signs:
            a, b = np.sign(a), np.sign(b)
        given = [np.asarray(v, np.float64) for v in (weights, b, a)]
        total, sizes = (
            np.tensordot(w[:, None, None] * b, a, ((0, 2), (0, 2)))
            for w, b, a in (given, map(np.abs, given))
        )
        return [(total, sizes, pairs * rank, "float32")]


class TestOnTpu(Sums):
    """The TPU's kernel, interpreted."""

    @classmethod
    def program(cls, case: Any) -> Any:
        """By the module."""
        return by(tpu, case[:4], case[4])


class TestOnGpu(Sums):
    """The GPU's kernel, interpreted."""

    @classmethod
    def program(cls, case: Any) -> Any:
        """By the module."""
        return by(gpu, case[:4], case[4])


class TestMeaning(Sums):
    """What XLA is given, in chunks of some pairs."""

    cases = st.tuples(sides(8), sides(8), sides(8), st.integers(1, 2), st.booleans())
    example = (7, 5, 4, 2, True)

    @classmethod
    def program(cls, case: Any) -> Any:
        """By the module."""
        _, n, m, rank, signs = case
        return lambda weights: base.population_update(
            weights, counters(rank), shape=(n, m), signs=signs, chunk=3
        )


def assert_sums(found: Any, shape: tuple[int, ...]) -> None:
    Sums.check((*shape, False), [np.asarray(found)], np.asarray(weights(shape[0])))


class TestChoice(ChoiceTests):
    """By name."""

    name = "population_update"

    @staticmethod
    def call(implementation: Any) -> Any:
        """Of two pairs."""
        run = partial(
            population_update, noise=counters(), shape=(3, 4), implementation=implementation
        )
        return jax.jit(run)(weights(2))


def test_several_tiles_of_everything_are_put_together() -> None:
    shape = (130, 300, 260, 1)
    small = tpu.Tiles(rows=256, columns=256, pairs=128)
    assert small.grid(*shape) == (2, 2, 2, 1)
    assert_sums(jax.jit(by(tpu, shape, tiles=small))(weights(130)), shape)


@pytest.mark.slow
def test_it_sums_what_the_forward_adds_member_by_member() -> None:
    pairs, n, m, rank = shape = (3, 5, 7, 2)
    rows = jnp.broadcast_to(jnp.eye(n)[None], (pairs, n, n))
    scale = jnp.broadcast_to(weights(pairs)[:, None], (pairs, n))
    moved = perturbed_rows(
        rows, jnp.zeros((n, m)), counters(rank), scale, implementation="interpret"
    )
    found = population_update(weights(pairs), counters(rank), (n, m), implementation="interpret")
    np.testing.assert_allclose(found, moved.sum(axis=0), rtol=1e-5, atol=1e-5)
    assert_sums(found, shape)


def test_tiles_cover_the_sum_and_fit() -> None:
    for pairs, n, m in ((1, 1, 1), (64, 4096, 300), (4096, 128, 129), (9, 50257, 768)):
        tiles = tpu.Tiles.of(pairs, n, m)
        tiles.check(n, m)
        grid = tiles.grid(pairs, n, m, rank=2)
        assert grid[0] * tiles.rows >= n and grid[1] * tiles.columns >= m
        assert grid[2] * tiles.pairs >= pairs and grid[3] == 2
        assert tiles.on_chip() <= ON_CHIP["tpu"]
    # Square ones of the most that fit: fewest numbers are made again.
    assert tpu.Tiles.of(512, 4096, 4096) == tpu.Tiles(2048, 2048, 256)


def test_nothing_to_sum_is_zero() -> None:
    for pairs, shape in ((0, (3, 4)), (2, (0, 4))):
        found = population_update(weights(pairs), counters(), shape, implementation="interpret")
        assert found.shape == shape and not np.asarray(found).any()


# ---- memory


def test_by_xla_the_noise_of_all_members_is_never_there() -> None:
    pairs, size, chunk = 512, 256, 8

    def run(weights: Any, key: Any) -> jax.Array:
        return base.population_update(weights, Counters(key, 0), (size, size), chunk=chunk)

    shapes = jax.ShapeDtypeStruct((pairs,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    compiled = jax.jit(run).lower(*shapes).compile()
    whole = 4 * pairs * 2 * size
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


# ---- meshes and what is refused


def test_all_devices_of_an_explicit_mesh_sum_the_same() -> None:
    wanted = jax.jit(lambda w: population_update(w, counters(), (3, 4)))(weights(4))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        given = jax.device_put(weights(4), NamedSharding(mesh, P("x")))
        run = jax.jit(
            lambda w: population_update(w, counters(), (3, 4), implementation="interpret")
        )
        found = run(given)
        assert jax.typeof(found).sharding.spec == P(None, None)
    np.testing.assert_allclose(jax.device_get(found), wanted, rtol=1e-5, atol=1e-5)


def test_auto_axes_are_refused() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="Auto axes"):
        jax.jit(lambda w: population_update(w, counters(), (3, 4), implementation="interpret"))(
            jax.device_put(weights(8), NamedSharding(mesh, P("x")))
        )


def test_what_no_kernel_serves_is_refused() -> None:
    found = why_not(counters(), (2, 2**25 + 1))
    assert found == "33554433 columns are more than 33554432 that counters tell apart"
    with pytest.raises(ValueError, match="no kernel serves this: 33554433 columns"):
        population_update(weights(2), counters(), (2**25 + 1, 2), implementation="interpret")
    with pytest.raises(ValueError, match=r"weights of shape \(2, 1\)"):
        population_update(weights(2)[:, None], counters(), (2, 2))
    with pytest.raises(ValueError, match="an axis of 600 in tiles of 384"):
        by(tpu, (2, 4, 600, 1), tiles=tpu.Tiles(rows=128, columns=384, pairs=128))(weights(2))
    with pytest.raises(ValueError, match=r"Tiles\(pairs=64\): not a positive multiple of 128"):
        tpu.Tiles(rows=256, columns=256, pairs=64)
    with pytest.raises(ValueError, match="bytes on the chip, and there are"):
        by(tpu, (2, 4096, 4096, 1), tiles=tpu.Tiles(4096, 4096, 128))(weights(2))
    with pytest.raises(ValueError, match="4,294,967,296 entries are more than 32-bit"):
        by(gpu, (2, 2**16, 2**16, 1))(weights(2))
