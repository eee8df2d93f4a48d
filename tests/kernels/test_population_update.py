"""A population's update: both kernels equal the sum of its members' noise in float64."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
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
from tests.kernels.base import few

# (pairs, n, m, rank): less than a register; several runs, ragged; more pairs than live together.
SHAPES = ((3, 5, 4, 1), (5, 130, 300, 2), (130, 260, 9, 1), (33, 9, 70, 3))


def counters(rank: int = 1, first: int = 3) -> Counters:
    return Counters(jax.random.key_data(jax.random.key(7)), first, rank)


def weights(pairs: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(pairs).standard_normal(pairs), jnp.float32)


@partial(jax.jit, static_argnums=(1, 2, 3))
def drawn_factors(noise: Counters, pairs: int, n: int, m: int) -> tuple[jax.Array, jax.Array]:
    return noise.factor("a", pairs, m), noise.factor("b", pairs, n)


def assert_sums(found: jax.Array, shape: tuple[int, ...], signs: bool = False) -> None:
    """Roundings of a sum add up as the root of its length."""
    pairs, n, m, rank = shape
    a, b = (np.asarray(x, np.float64) for x in drawn_factors(counters(rank), pairs, n, m))
    if signs:
        a, b = np.sign(a), np.sign(b)
    given = np.asarray(weights(pairs), np.float64)
    wanted = np.einsum("k,knr,kmr->nm", given, b, a)
    sizes = np.einsum("k,knr,kmr->nm", np.abs(given), np.abs(b), np.abs(a))
    assert found.dtype == jnp.float32 and found.shape == (n, m)
    bound = 2 * math.sqrt(pairs * rank) * np.finfo(np.float32).eps * sizes
    assert (np.abs(np.asarray(found, np.float64) - wanted) <= bound).all()


def by(kernel: Any, shape: tuple[int, ...], signs: bool = False, **options: Any) -> jax.Array:
    pairs, n, m, rank = shape
    words = counters(rank).words()
    call = jax.jit(
        lambda weights, words: kernel.population_update(
            weights, words, shape=(n, m), rank=rank, signs=signs, interpret=True, **options
        )
    )
    return call(weights(pairs), words)


@few
@drawn(shape=st.sampled_from(SHAPES), kernel=st.sampled_from([tpu, gpu]), signs=st.booleans())
@pytest.mark.slow
def test_the_kernels_equal_the_sum(shape: Any, kernel: Any, signs: bool) -> None:
    assert_sums(by(kernel, shape, signs), shape, signs)


@pytest.mark.parametrize("kernel", [tpu, gpu], ids=["tpu", "gpu"])
def test_a_small_sum_of_ragged_sides(kernel: Any) -> None:
    assert_sums(by(kernel, (3, 5, 4, 2)), (3, 5, 4, 2))


def test_several_tiles_of_everything_are_put_together() -> None:
    shape = (130, 300, 260, 1)
    small = tpu.Tiles(rows=256, columns=256, pairs=128)
    assert small.grid(*shape) == (2, 2, 2, 1)
    assert_sums(by(tpu, shape, tiles=small), shape)


@settings(max_examples=4)
@drawn(shape=st.sampled_from(SHAPES[:2]), chunk=st.integers(1, 6), signs=st.booleans())
def test_the_meaning_in_chunks_is_the_sum(shape: Any, chunk: int, signs: bool) -> None:
    pairs, n, m, rank = shape
    call = jax.jit(partial(base.population_update, shape=(n, m), signs=signs, chunk=chunk))
    assert_sums(call(weights(pairs), counters(rank)), shape, signs)


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
    wanted = population_update(weights(4), counters(), (3, 4))
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
        by(tpu, (2, 4, 600, 1), tiles=tpu.Tiles(rows=128, columns=384, pairs=128))
    with pytest.raises(ValueError, match=r"Tiles\(pairs=64\): not a positive multiple of 128"):
        tpu.Tiles(rows=256, columns=256, pairs=64)
    with pytest.raises(ValueError, match="bytes on the chip, and there are"):
        by(tpu, (2, 4096, 4096, 1), tiles=tpu.Tiles(4096, 4096, 128))
    with pytest.raises(ValueError, match="4,294,967,296 entries are more than 32-bit"):
        by(gpu, (2, 2**16, 2**16, 1))


def test_on_the_cpu_the_kernel_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotImplementedError, match="give implementation='xla'"):
        jax.jit(lambda w: population_update(w, counters(), (3, 4), implementation="pallas"))(
            weights(2)
        )
    with pytest.raises(ValueError, match="implementation='cuda' is none of"):
        population_update(weights(2), counters(), (3, 4), implementation="cuda")  # type: ignore[arg-type]
