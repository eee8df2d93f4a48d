"""What every implementation of the matrix kernels is held to."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from optkit.kernels import symmetric_matmul as meaning

Kernel = Any

# Interpreting is slow: few examples, and a failing one is shown as it was found.
few = settings(max_examples=5, phases=(Phase.explicit, Phase.reuse, Phase.generate))

# Rows and columns that are and are not whole tiles; one of several tiles.
SHAPES = ((1, 3, 7), (2, 17, 33), (1, 150, 40), (2, 64, 64), (1, 129, 129))
DTYPES = {"float32": 2.0**-23, "bfloat16": 2.0**-8}


drawn_products = drawn(
    shape=st.sampled_from(SHAPES), dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 9)
)


def bound(dtype: str, depth: int) -> float:
    """Of the difference of two sums taken in float32 and rounded once, relative to the largest."""
    return 2 * DTYPES[dtype] + 4 * 2.0**-23 * depth**0.5


def difference(x: Any, wanted: Any) -> float:
    """The largest one, relative to the largest entry."""
    a, b = (np.asarray(v, np.float64) for v in (x, wanted))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


class SymmetricMatmulTests:
    """A subclass says how its implementation is called: functions of batches ``(b, m, n)``."""

    @staticmethod
    def symmetric_product(*args: Any) -> Any:
        """Of (left, right, addend, alpha, beta)."""
        raise NotImplementedError

    @staticmethod
    def add_product(*args: Any) -> Any:
        """Of (factor, x, alpha, beta)."""
        raise NotImplementedError

    def check_products(self, shape: tuple[int, ...], dtype: str, seed: int) -> None:
        """Subclasses draw the arguments: one drawn test belongs to one class."""
        b, m, n = shape
        rng = np.random.default_rng(seed)
        x = jax.numpy.asarray(rng.standard_normal(shape), dtype)
        start = rng.standard_normal((b, m, m))
        a = jax.numpy.asarray((start + start.mT) / m**0.5, dtype)
        gram = self.symmetric_product(x, x, None, 1.0, 0.0)
        square = self.symmetric_product(a, a, a, -2.0, 3.0)
        moved = self.add_product(a, x, 0.5, -1.5)
        for found in (gram, square):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(found.mT))
        wide = [np.asarray(v, np.float64) for v in (x, a)]
        x64, a64 = wide
        assert difference(gram, x64 @ x64.mT) < bound(dtype, n)
        assert difference(square, 3 * a64 - 2 * a64 @ a64) < 4 * bound(dtype, m)
        assert difference(moved, 0.5 * a64 @ x64 - 1.5 * x64) < 4 * bound(dtype, m)
        assert difference(gram, meaning.gram(x)) < bound(dtype, n)

    def test_zero_rows_add_nothing(self) -> None:
        x = np.random.default_rng(1).standard_normal((1, 40, 50)).astype(np.float32)
        more = np.pad(x, ((0, 0), (0, 9), (0, 30)))
        alone, padded = (
            np.asarray(
                self.symmetric_product(jax.numpy.asarray(v), jax.numpy.asarray(v), None, 1.0, 0.0)
            )
            for v in (x, more)
        )
        np.testing.assert_array_equal(alone, padded[:, :40, :40])
        assert not padded[:, 40:].any()

    @pytest.mark.parametrize("scale", (1e-18, 1e18))
    def test_numbers_far_from_one_stay(self, scale: float) -> None:
        x = jax.numpy.asarray(scale * np.eye(8, 9, dtype=np.float32)[None])
        found = self.symmetric_product(x, x, None, 1.0, 0.0)
        assert difference(found[0], scale**2 * np.eye(8)) < 1e-6
