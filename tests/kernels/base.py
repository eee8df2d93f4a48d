"""What every kernel is held to, whichever its operation: shapes are drawn, each kernel says more.

Interpreting a kernel compiles it anew for each shape. Shapes are small, and lie about the edges of
tiles; a program is compiled once a class and shape; a failing example is shown as it was found.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

Array = np.ndarray

few = settings(
    max_examples=max(2, settings().max_examples // 5),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    # Each kernel inherits the drawn test, and draws shapes of its own.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

DTYPES = {"float32": 2.0**-23, "bfloat16": 2.0**-8}
dtypes = st.sampled_from(sorted(DTYPES))


def sides(*edges: int) -> st.SearchStrategy[int]:
    """Lengths of an axis: a few entries, and about as many as there are in some tiles."""
    near = [st.integers(edge - 1, edge + 2) for edge in edges]
    return st.one_of(*near, st.integers(1, 9))


def difference(x: Any, wanted: Any) -> float:
    """The largest one, relative to the largest entry."""
    a, b = (np.asarray(v, np.float64) for v in (x, wanted))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


class KernelTests:
    """A subclass says what is drawn, how its kernel is called and what it means.

    A case is whatever tells one program from another, and can be hashed. Operands are arrays of
    numpy, rounded to the dtype of the case.
    """

    cases: ClassVar[st.SearchStrategy[Any]]
    example: ClassVar[Any]  # a ragged case of several tiles
    degrees: ClassVar[Sequence[int]] = (1,)  # of each result of the example, in other units
    exponents: ClassVar[Sequence[int]] = (-30, 30)  # units that float32 has room for

    @classmethod
    def operands(cls, case: Any, seed: int) -> tuple[Array, ...]:
        """What the program takes."""
        raise NotImplementedError

    @classmethod
    def program(cls, case: Any) -> Callable[..., Any]:
        """The kernel, interpreted: operands to a tree of arrays."""
        raise NotImplementedError

    @classmethod
    def meaning(cls, case: Any, *operands: Array) -> Sequence[tuple[Array, Array, int, str]]:
        """For each result: it in float64, the sum of what its terms weigh, their number, dtype."""
        raise NotImplementedError

    @classmethod
    def scaled(cls, operands: tuple[Array, ...], factor: float) -> tuple[Array, ...]:
        """The operands in other units; 0 takes all away."""
        return (operands[0] * np.asarray(factor, operands[0].dtype), *operands[1:])

    @classmethod
    @functools.lru_cache(8)
    def compiled(cls, case: Any) -> Callable[..., Any]:
        """The program, compiled once."""
        return jax.jit(cls.program(case))

    @classmethod
    def run(cls, case: Any, *operands: Array) -> list[Array]:
        """The results, one after the other."""
        return list(map(np.asarray, jax.tree.leaves(cls.compiled(case)(*operands))))

    @classmethod
    def check(cls, case: Any, found: list[Array], *operands: Array) -> None:
        """Roundings of a sum add up as the root of its length; the result is rounded once."""
        for own, (wanted, sizes, depth, dtype) in zip(
            found, cls.meaning(case, *operands), strict=True
        ):
            assert own.dtype == dtype and own.shape == wanted.shape
            bound = 2 * DTYPES["float32"] * depth**0.5 * sizes + DTYPES[dtype] * np.abs(wanted)
            off = np.abs(own.astype(np.float64) - wanted)
            # What is not a number must be none here, too, and nothing else.
            np.testing.assert_array_equal(np.isnan(off), np.isnan(wanted))
            assert (off <= bound)[~np.isnan(wanted)].all(), (off.max(), bound.max())

    @few
    @drawn(data=st.data())
    def test_drawn_shapes_equal_the_meaning(self, data: st.DataObject) -> None:
        case, seed = data.draw(self.cases), data.draw(st.integers(0, 99))
        operands = self.operands(case, seed)
        self.check(case, self.run(case, *operands), *operands)

    def test_a_case_of_everything_equals_the_meaning(self) -> None:
        operands = self.operands(self.example, 0)
        self.check(self.example, self.run(self.example, *operands), *operands)

    def test_zeros_stay_zeros(self) -> None:
        none = self.scaled(self.operands(self.example, 0), 0.0)
        for x, degree in zip(self.run(self.example, *none), self.degrees, strict=True):
            assert np.isfinite(x).all() and not (degree and x.any())

    def test_units_do_not_matter(self) -> None:
        """Powers of two change no rounding."""
        operands = self.operands(self.example, 0)
        before = self.run(self.example, *operands)
        for exponent in self.exponents:
            found = self.run(self.example, *self.scaled(operands, 2.0**exponent))
            for own, old, degree in zip(found, before, self.degrees, strict=True):
                factor = np.asarray(2.0 ** (degree * exponent), old.dtype)
                np.testing.assert_array_equal(own, old * factor)

    def test_what_is_not_a_number_shows_where_it_goes(self) -> None:
        first, *others = self.operands(self.example, 0)
        first = first.copy()
        first.reshape(-1)[first.size // 2] = np.nan
        found = self.run(self.example, first, *others)
        assert any(np.isnan(x).any() for x in found)
        self.check(self.example, found, first, *others)


class ChoiceTests:
    """What the public function of an operation says of implementations."""

    name: ClassVar[str]  # of the operation, as errors call it

    @staticmethod
    def call(implementation: Any) -> Any:
        """The operation of something small."""
        raise NotImplementedError

    @pytest.mark.parametrize("name", ("triton", "mosaic", "cuda"))
    def test_an_unknown_implementation_is_refused_with_the_known_ones(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"implementation='{name}' is none of xla, pallas, in"):
            self.call(name)

    def test_a_cpu_is_told_what_to_do(self) -> None:
        text = f"{self.name} has kernels for .*, not for cpu; give implementation='xla'"
        with pytest.raises(NotImplementedError, match=text):
            self.call("pallas")
