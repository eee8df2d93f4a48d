"""Symmetric products from half of their tiles equal the whole ones."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from optkit.kernels import symmetric_matmul
from optkit.kernels.symmetric_matmul import base, gpu, tpu
from optkit.kernels.symmetric_matmul.blocks import GpuBlocks, TpuBlocks, lower_tiles
from tests.kernels.base import ChoiceTests, KernelTests, dtypes, sides


class Products(KernelTests):
    """``3 C - 2 X X^T``, ``X X^T`` and ``0.5 A X - 1.5 X`` of batches ``(b, m, n)``."""

    cases = st.tuples(st.integers(1, 2), sides(128), sides(16, 128), dtypes)
    example = (2, 129, 40, "float32")
    degrees = (2, 2, 1)
    functions: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {"interpret": True}

    @classmethod
    def operands(cls, case: Any, seed: int) -> Any:
        """X, A and a symmetric C."""
        b, m, n, dtype = case
        rng = np.random.default_rng(seed)
        x, a, c = (rng.standard_normal((b, m, k)) for k in (n, m, m))
        return tuple(v.astype(jnp.dtype(dtype)) for v in (x, a / m**0.5, c + c.mT))

    @classmethod
    def program(cls, case: Any) -> Any:
        """By a module of kernels."""
        square = partial(cls.functions.symmetric_product, **cls.options)
        add = partial(cls.functions.add_product, **cls.options)
        return lambda x, a, c: (
            square(x, x, c, -2.0, 3.0, None),
            square(x, x, None, 1.0, 0.0, None),
            add(a, x, 0.5, -1.5, None),
        )

    @classmethod
    def meaning(cls, case: Any, *operands: Any) -> Any:
        """In float64."""
        _, m, n, dtype = case

        def all_of(x: Any, a: Any, c: Any, minus: float) -> Any:
            gram = x @ x.mT
            return 3 * c + 2 * minus * gram, gram, 0.5 * a @ x + 1.5 * minus * x

        wide = [v.astype(np.float64) for v in operands]
        values, sizes = all_of(*wide, -1.0), all_of(*map(np.abs, wide), 1.0)
        return [(*own, k, dtype) for *own, k in zip(values, sizes, (n, n, m), strict=True)]

    @classmethod
    def scaled(cls, operands: Any, factor: float) -> Any:
        """X in other units, and C in their square."""
        x, a, c = operands
        return x * x.dtype.type(factor), a, c * c.dtype.type(factor**2)

    @classmethod
    def check(cls, case: Any, found: Any, *operands: Any) -> None:
        """Within the bound, and bitwise symmetric."""
        super().check(case, found, *operands)
        for own in found[:2]:
            np.testing.assert_array_equal(own, own.mT)


class TestOnTpu(Products):
    """The TPU's kernels, interpreted."""

    functions = tpu


class TestOnGpu(Products):
    """The GPU's kernels, interpreted, in small blocks."""

    cases = st.tuples(st.integers(1, 2), sides(32, 64), sides(16, 32), dtypes)
    example = (2, 65, 17, "float32")
    functions = gpu
    options: ClassVar[dict[str, Any]] = {"blocks": GpuBlocks(32, 16), "interpret": True}


class TestMeaning(Products):
    """What XLA is given."""

    cases = st.tuples(st.integers(1, 2), sides(16), sides(16), dtypes)
    functions = base
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def check(cls, case: Any, found: Any, *operands: Any) -> None:
        """Within the bound; nothing makes it symmetric."""
        KernelTests.check.__func__(cls, case, found, *operands)  # type: ignore[attr-defined]


class TestChoice(ChoiceTests):
    """By name."""

    name = "symmetric_product"

    @staticmethod
    def call(implementation: Any) -> Any:
        """A Gram matrix."""
        return jax.jit(partial(symmetric_matmul.gram, implementation=implementation))(X)


def test_zero_rows_add_nothing() -> None:
    x = np.random.default_rng(1).standard_normal((1, 40, 50)).astype(np.float32)
    gram = jax.jit(partial(symmetric_matmul.gram, implementation="interpret"))
    padded = np.asarray(gram(np.pad(x, ((0, 0), (0, 9), (0, 30)))))
    np.testing.assert_array_equal(np.asarray(gram(x)), padded[:, :40, :40])
    assert not padded[:, 40:].any()


@pytest.mark.parametrize("count", (1, 2, 5))
def test_each_pair_of_tiles_comes_once(count: int) -> None:
    rows, columns = lower_tiles(count)
    assert len(rows) == count * (count + 1) // 2
    seen = np.zeros((count, count), int)
    seen[rows, columns] += 1
    assert (seen + seen.T - np.diag(np.diag(seen)) == 1).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TpuBlocks(rows=200), "TpuBlocks.rows=200.: not a positive multiple of 128"),
        (lambda: TpuBlocks(depth=0), "TpuBlocks.depth=0."),
        (lambda: GpuBlocks(rows=48), "GpuBlocks.rows=48.: not a power of two"),
    ],
)
def test_blocks_check_themselves(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


X = jnp.zeros((4, 6))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: symmetric_matmul.symmetric_product(X, X[:3]), r"\(4, 6\) and \(3, 6\)"),
        (
            lambda: symmetric_matmul.symmetric_product(X, X, addend=X),
            r"\(4, 6\), addend \(4, 6\)",
        ),
        (lambda: symmetric_matmul.add_product(X, X), r"got \(4, 6\) and \(4, 6\)"),
        (
            lambda: symmetric_matmul.symmetric_product(X, X.astype(jnp.bfloat16)),
            "bfloat16 and float32",
        ),
        (
            lambda: symmetric_matmul.gram(X.astype(jnp.float16), implementation="interpret"),
            "float16: it takes float32, bfloat16",
        ),
        (
            lambda: tpu.symmetric_product(
                X[None], X[None], None, 1.0, 0.0, None, blocks=TpuBlocks(4096, 4096)
            ),
            r"needs [\d,]+ bytes on the chip, and there are 62,914,560",
        ),
        (
            lambda: gpu.symmetric_product(
                X[None], X[None], None, 1.0, 0.0, None, blocks=GpuBlocks(512, 64)
            ),
            "needs 786,432 bytes on the chip, and there are 232,448",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_accelerators_get_their_kernels() -> None:
    run = jax.jit(partial(symmetric_matmul.gram, implementation="pallas"))
    # (Not for GPUs, here: the newest JAX warns of Triton. See test_matrix_compilers.)
    text = run.trace(X).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1
    # What the TPU's kernel refuses another one may take.
    half = X.astype(jnp.float16)
    with pytest.raises(NotImplementedError, match="float16: it takes float32, bfloat16"):
        run.trace(half).lower(lowering_platforms=("tpu",))


def test_nothing_in_nothing_out() -> None:
    assert symmetric_matmul.gram(X[:0], implementation="interpret").shape == (0, 0)
