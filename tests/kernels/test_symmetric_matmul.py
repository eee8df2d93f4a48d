"""Symmetric products from half of their tiles equal the whole ones."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.kernels import symmetric_matmul
from optkit.kernels.symmetric_matmul import gpu, tpu
from optkit.kernels.symmetric_matmul.blocks import GpuBlocks, TpuBlocks, lower_tiles
from tests.kernels.base import SymmetricMatmulTests, drawn_products, few


class TestOnTpu(SymmetricMatmulTests):
    """The TPU's kernel, interpreted."""

    @staticmethod
    def symmetric_product(left: Any, right: Any, addend: Any, alpha: float, beta: float) -> Any:
        """By the public function."""
        return symmetric_matmul.symmetric_product(
            left, right, addend=addend, alpha=alpha, beta=beta, implementation="interpret"
        )

    @staticmethod
    def add_product(factor: Any, x: Any, alpha: float, beta: float) -> Any:
        """By the public function."""
        return symmetric_matmul.add_product(
            factor, x, alpha=alpha, beta=beta, implementation="interpret"
        )

    @few
    @drawn_products
    def test_products_equal_their_meaning(self, shape: Any, dtype: str, seed: int) -> None:
        self.check_products(shape, dtype, seed)


class TestOnGpu(SymmetricMatmulTests):
    """The GPU's kernel, interpreted, in small blocks."""

    options: ClassVar[dict[str, Any]] = {"blocks": GpuBlocks(32, 16), "interpret": True}

    @classmethod
    def symmetric_product(cls, *args: Any) -> Any:
        """By the kernel."""
        return gpu.symmetric_product(*args, None, **cls.options)

    @classmethod
    def add_product(cls, *args: Any) -> Any:
        """By the kernel."""
        return gpu.add_product(*args, None, **cls.options)

    @few
    @drawn_products
    def test_products_equal_their_meaning(self, shape: Any, dtype: str, seed: int) -> None:
        self.check_products(shape, dtype, seed)


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
        (lambda: symmetric_matmul.gram(X, implementation="cuda"), "implementation='cuda' is none"),
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


def test_a_cpu_is_told_what_to_do_and_accelerators_get_their_kernels() -> None:
    run = jax.jit(partial(symmetric_matmul.gram, implementation="pallas"))
    with pytest.raises(NotImplementedError, match="not for cpu; give implementation='xla'"):
        run(X)
    # (Not for GPUs, here: the newest JAX warns of Triton. See test_matrix_compilers.)
    text = run.trace(X).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1
    # What the TPU's kernel refuses another one may take.
    half = X.astype(jnp.float16)
    with pytest.raises(NotImplementedError, match="float16: it takes float32, bfloat16"):
        run.trace(half).lower(lowering_platforms=("tpu",))


def test_nothing_in_nothing_out() -> None:
    assert symmetric_matmul.gram(X[:0], implementation="interpret").shape == (0, 0)
