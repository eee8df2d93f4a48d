"""A population's products with shared weights: both kernels equal the sum in float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.kernels.counters import threefry
from optkit.kernels.perturbed_matmul import (
    Counters,
    gpu,
    perturbed_matmul,
    perturbed_rows,
    tpu,
)

# (groups, rows, n, m, rank): fewer columns than a register has; several tiles and runs; ragged.
SHAPES = (
    (3, 2, 17, 5, 1),
    (2, 20, 130, 40, 2),
    (18, 1, 300, 3, 1),
    (1, 33, 8, 260, 1),
)


def counters(rank: int = 1, first: int = 0) -> Counters:
    return Counters(jax.random.key_data(jax.random.key(7)), first, rank)


def operands(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    groups, rows, n, m, rank = shape
    rng = np.random.default_rng(seed)
    sizes = ((groups, rows, n), (n, m), (groups, m, rank), (groups, n, rank), (groups, rows))
    x, w, a, b, scale = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), a, b, scale


def oracle(x: Any, w: Any, a: Any, b: Any, scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """The products in float64, and the sums of the magnitudes of what is summed."""
    x, w, a, b, scale = (np.asarray(v, np.float64) for v in (x, w, a, b, scale))

    def total(x: Any, w: Any, a: Any, b: Any, scale: Any) -> np.ndarray:
        thin = np.einsum("grn,gnk->grk", x, b) * scale[..., None]
        return x @ w + np.einsum("grk,gmk->grm", thin, a)

    return total(x, w, a, b, scale), total(*map(np.abs, (x, w, a, b, scale)))


def assert_close(found: jax.Array, x: Any, w: Any, a: Any, b: Any, scale: Any) -> None:
    """Roundings of a sum add up as the root of its length; the result is rounded once."""
    wanted, sizes = oracle(x, w, a, b, scale)
    assert found.dtype == x.dtype and found.shape == wanted.shape
    summed = 2 * math.sqrt(x.shape[2]) * np.finfo(np.float32).eps
    bound = summed * sizes + float(jnp.finfo(x.dtype).eps) * np.abs(wanted)
    assert (np.abs(np.asarray(found, np.float64) - wanted) <= bound).all()


# Interpreting is slow: a failing example is shown as it was found.
@settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@drawn(
    shape=st.sampled_from(SHAPES),
    kernel=st.sampled_from([tpu, gpu]),
    generated=st.booleans(),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
@pytest.mark.slow
def test_the_kernels_equal_the_sum(shape: Any, kernel: Any, generated: bool, dtype: Any) -> None:
    x, w, a, b, scale = operands(shape, dtype)
    noise: Any = (jnp.asarray(a), jnp.asarray(b))
    if generated:
        noise = counters(shape[-1], first=3)
        a, b = (noise.factor(*of) for of in (("a", *a.shape[:2]), ("b", *b.shape[:2])))
    found = kernel.perturbed_matmul(x, w, noise, jnp.asarray(scale), interpret=True)
    assert_close(found, x, w, a, b, scale)


def test_several_tiles_of_everything_are_put_together() -> None:
    tiles = tpu.Tiles.of(2, 40, 128, 300, 4)
    small = tpu.Tiles(groups=1, rows=16, columns=256)
    assert (tiles.rows, tiles.columns) == (48, 512)
    shape = (2, 40, 20, 300, 1)
    x, w, _, _, scale = operands(shape)
    noise = counters()
    found = tpu.perturbed_matmul(x, w, noise, jnp.asarray(scale), interpret=True, tiles=small)
    assert_close(found, x, w, noise.factor("a", 2, 300), noise.factor("b", 2, 20), scale)


def test_members_of_a_pair_share_their_factors() -> None:
    x, w, a, b, _ = operands((2, 6, 8, 3, 2))
    scale = np.array([0.5, -0.5, 2.0, 1.0], np.float32)
    found = perturbed_matmul(x.reshape(4, 3, 8), w, (jnp.asarray(a), jnp.asarray(b)), scale)
    assert_close(found.reshape(2, 6, 3), x, w, a, b, np.repeat(scale.reshape(2, 2), 3, axis=1))
    own = perturbed_matmul(x.reshape(4, 3, 8), w, counters(2), scale)
    a, b = counters(2).factor("a", 4, 3), counters(2).factor("b", 4, 8)
    assert_close(own, x.reshape(4, 3, 8), w, a, b, np.repeat(scale[:, None], 3, axis=1))


# ---- noise by counters


def test_the_bits_are_those_of_threefry() -> None:
    key, words = jnp.array([3, 2**31 + 5], jnp.uint32), jnp.arange(12, dtype=jnp.uint32)
    found = jnp.concatenate(threefry(key[0], key[1], words[:6], words[6:]))
    np.testing.assert_array_equal(found, threefry_2x32(key, words))


def test_the_numbers_are_normal_and_independent() -> None:
    drawn = counters(rank=2).factor("a", 400, 512)
    z = np.asarray(drawn, np.float64)
    count = z.size
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / count)
        assert abs((z**power).mean() - moment) < 4 * spread, power
    # Distance from the law, in units of 1/sqrt(count): above 1.95 once in a thousand.
    law = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in np.sort(z.reshape(-1))])
    assert np.abs(law - np.arange(count) / count).max() * math.sqrt(count) < 1.95
    near, far = z[:, :128], z[:, 128:256]  # of the same words
    other = np.asarray(counters(rank=2).factor("b", 400, 512), np.float64)
    for one, two in ((near, far), (z[..., 0], z[..., 1]), (z, other), (z[:-1], z[1:])):
        for f in (np.copy, np.square):
            assert abs(np.corrcoef(f(one).ravel(), f(two).ravel())[0, 1]) < 5 / math.sqrt(one.size)


def test_a_draw_depends_on_its_number_alone() -> None:
    whole = counters().factor("b", 8, 300)
    np.testing.assert_array_equal(counters(first=5).factor("b", 2, 40), whole[5:7, :40])


# ---- what is refused


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [((1, 1, 4, 4, 9), jnp.float32, "rank 9 is above 8"), (SHAPES[0], jnp.float16, "float16")],
)
def test_what_no_kernel_serves_is_refused(shape: Any, dtype: Any, text: str) -> None:
    x, w, a, b, scale = operands(shape, dtype)
    with pytest.raises(ValueError, match=f"no kernel serves this: .*{text}"):
        perturbed_rows(x, w, (a, b), scale, implementation="interpret")


@pytest.mark.parametrize("generated", [False, True])
def test_each_device_works_on_its_own_groups(generated: bool) -> None:
    x, w, a, b, scale = operands((8, 2, 4, 4, 1))
    noise: Any = counters(first=2) if generated else (jnp.asarray(a), jnp.asarray(b))
    wanted = perturbed_rows(x, w, noise, jnp.asarray(scale))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("x")))
        run = jax.jit(lambda *given: perturbed_rows(*given, implementation="interpret"))
        found = run(x, w, noise, jnp.asarray(scale))
        assert jax.typeof(found).sharding.spec[0] == "x"
    np.testing.assert_allclose(jax.device_get(found), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [(P(None, "x"), AxisType.Explicit, "groups alone may"), (P("x"), AxisType.Auto, "Auto axes")],
)
def test_other_partitions_are_refused(spec: P, kind: AxisType, text: str) -> None:
    x, w, a, b, scale = operands((8, 8, 4, 4, 1))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=text):
        jax.jit(lambda x: perturbed_rows(x, w, (a, b), scale, implementation="interpret"))(
            jax.device_put(x, NamedSharding(mesh, spec))
        )


def test_factors_of_other_members_are_refused() -> None:
    x, w, a, b, _ = operands((4, 2, 4, 3, 1))
    for factors in ((a[:3], b[:3]), (a, b[:2]), (b, a)):
        with pytest.raises(ValueError, match="do not fit 4 members and weights"):
            perturbed_matmul(x, w, factors, 1.0)  # type: ignore[arg-type]


def test_on_the_cpu_the_kernel_is_refused_with_the_remedy() -> None:
    x, w, a, b, scale = operands(SHAPES[0])
    with pytest.raises(NotImplementedError, match="give implementation='xla'"):
        jax.jit(
            lambda x: perturbed_rows(
                x, w, (jnp.asarray(a), jnp.asarray(b)), scale, implementation="pallas"
            )
        )(x)
    with pytest.raises(ValueError, match="implementation='cuda' is none of"):
        perturbed_rows(x, w, (a, b), scale, implementation="cuda")  # type: ignore[arg-type]
