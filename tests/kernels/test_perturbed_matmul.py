"""A population's products with shared weights: both kernels equal the sum in float64."""

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from tests.kernels.base import ChoiceTests, KernelTests, dtypes, sides

FIRST = 3


def counters(rank: int = 1, first: int = 0) -> Counters:
    return Counters(jax.random.key_data(jax.random.key(7)), first, rank)


def factor(side: str, groups: int, size: int, rank: int) -> np.ndarray:
    """The draws ``FIRST`` and after, cut from more: a draw depends on its number alone."""
    return numbers(side)[:groups, :size, :rank]


@functools.cache
def numbers(side: str) -> np.ndarray:
    return np.asarray(jax.jit(lambda: counters(2, FIRST).factor(side, 20, 300))())


def operands(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    groups, rows, n, m, rank = shape
    rng = np.random.default_rng(seed)
    sizes = ((groups, rows, n), (n, m), (groups, m, rank), (groups, n, rank), (groups, rows))
    x, w, a, b, scale = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    return x.astype(jnp.dtype(dtype)), w.astype(jnp.dtype(dtype)), a, b, scale


class Products(KernelTests):
    """``X W + s (X B) A^T`` of groups of rows; a case is (groups, rows, n, m, rank, given, dtype).

    Few rows lie beside those of other groups in a tile, many in several tiles.
    """

    cases = st.tuples(
        st.integers(1, 4), sides(16), sides(128), sides(128), st.integers(1, 2), st.booleans(),
        dtypes,
    )  # fmt: skip
    example = (18, 3, 300, 130, 2, False, "float32")
    kernel: ClassVar[Any]

    @classmethod
    def operands(cls, case: Any, seed: int) -> Any:
        """Rows, weights, factors and scales."""
        return operands(case[:5], case[6], seed)

    @classmethod
    def program(cls, case: Any) -> Any:
        """The kernel with factors that are given, or that it makes."""

        def run(x: Any, w: Any, a: Any, b: Any, scale: Any) -> Any:
            noise = (a, b) if case[5] else counters(case[4], FIRST)
            return cls.kernel.perturbed_matmul(x, w, noise, scale, interpret=True)

        return run

    @classmethod
    def meaning(cls, case: Any, x: Any, w: Any, a: Any, b: Any, scale: Any) -> Any:
        """In float64."""
        if not case[5]:
            a, b = (factor(of, *v.shape) for of, v in (("a", a), ("b", b)))
        given = [np.asarray(v, np.float64) for v in (x, w, a, b, scale)]

        def total(x: Any, w: Any, a: Any, b: Any, scale: Any) -> np.ndarray:
            thin = np.einsum("grn,gnk->grk", x, b) * scale[..., None]
            return x @ w + np.einsum("grk,gmk->grm", thin, a)

        return [(total(*given), total(*map(np.abs, given)), x.shape[2], str(x.dtype))]


class TestOnTpu(Products):
    """The TPU's kernel, interpreted."""

    kernel = tpu


class TestOnGpu(Products):
    """The GPU's kernel, interpreted."""

    kernel = gpu


def assert_close(found: Any, x: Any, w: Any, a: Any, b: Any, scale: Any) -> None:
    """Of float32, with factors that are given."""
    given = [np.asarray(v) for v in (x, w, a, b, scale)]
    Products.check((*[0] * 5, True, "float32"), [np.asarray(found)], *given)


class TestChoice(ChoiceTests):
    """By name."""

    name = "perturbed_matmul"

    @staticmethod
    def call(implementation: Any) -> Any:
        """Of two members."""
        x, w, a, b, scale = operands((2, 1, 4, 3, 1))
        run = jax.jit(lambda x: perturbed_rows(x, w, (a, b), scale, implementation=implementation))
        return run(x)


def test_several_tiles_of_everything_are_put_together() -> None:
    tiles = tpu.Tiles.of(2, 40, 128, 300, 4)
    small = tpu.Tiles(groups=1, rows=16, columns=256)
    assert (tiles.rows, tiles.columns) == (48, 512)
    shape = (2, 40, 20, 300, 1)
    x, w, _, _, scale = operands(shape)
    run = jax.jit(
        lambda x, w, scale: tpu.perturbed_matmul(
            x, w, counters(first=FIRST), scale, interpret=True, tiles=small
        )
    )
    factors = factor("a", 2, 300, 1), factor("b", 2, 20, 1)
    assert_close(run(x, w, scale), x, w, *factors, scale)


def test_members_of_a_pair_share_their_factors() -> None:
    x, w, a, b, _ = operands((2, 6, 8, 3, 2))
    scale = np.array([0.5, -0.5, 2.0, 1.0], np.float32)
    run = jax.jit(lambda noise: perturbed_matmul(x.reshape(4, 3, 8), w, noise, scale))
    found = run((a, b))
    assert_close(found.reshape(2, 6, 3), x, w, a, b, np.repeat(scale.reshape(2, 2), 3, axis=1))
    own = run(counters(2, FIRST))
    a, b = factor("a", 4, 3, 2), factor("b", 4, 8, 2)
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
    own = jax.jit(lambda: counters(first=FIRST + 2).factor("b", 2, 40))()
    np.testing.assert_array_equal(own, factor("b", 4, 40, 1)[2:])


# ---- what is refused


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((1, 1, 4, 4, 9), jnp.float32, "rank 9 is above 8"),
        ((3, 2, 17, 5, 1), jnp.float16, "float16"),
    ],
)
def test_what_no_kernel_serves_is_refused(shape: Any, dtype: Any, text: str) -> None:
    x, w, a, b, scale = operands(shape, dtype)
    with pytest.raises(ValueError, match=f"no kernel serves this: .*{text}"):
        perturbed_rows(x, w, (a, b), scale, implementation="interpret")


@pytest.mark.parametrize("generated", [False, True])
def test_each_device_works_on_its_own_groups(generated: bool) -> None:
    x, w, a, b, scale = operands((8, 2, 4, 4, 1))
    noise: Any = counters(first=2) if generated else (jnp.asarray(a), jnp.asarray(b))
    wanted = jax.jit(perturbed_rows)(x, w, noise, scale)
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
