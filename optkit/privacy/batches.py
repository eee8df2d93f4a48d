"""Batches as privacy accountants assume them: each example is drawn by itself, at every step."""

import dataclasses
import math
import operator
from typing import Any, NamedTuple

import jax
import numpy as np

from optkit.privacy import accounting
from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.tree import PyTree

# A batch that does not fit ends the run; once in so many batches it may.
_RARE = 1e-12


class Drawn(NamedTuple):
    """A batch.

    Attributes:
      indices: int32 (size,), which examples; 0 where there is none.
      mask: bool (size,), where there is one.
    """

    indices: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class PoissonBatches:
    """Draws each example with the same probability and independently, into arrays of one size.

    Step t draws ``Binomial(examples, rate)`` examples, ``rate = expected_batch/examples``, all
    different; the rest of ``size`` places is padding that the mask leaves out. A step is drawn from
    the seed and its number alone, so that a resumed run draws what the whole one would.

    A batch that does not fit raises: to drop examples silently is another distribution than the
    accountant's. By default that has a probability below 1e-12 a batch.

    Args:
      examples: how many there are.
      expected_batch: how many a batch has on average.
      seed: who knows it knows who was drawn: keep it as secret as the noise.
      size: places in a batch; None for what suffices.

    Raises:
      ValueError: more expected than there are, or a ``size`` below what is expected; in ``batch``,
        a draw that does not fit.

    Example:
      >>> import optkit
      >>> batches = optkit.privacy.PoissonBatches(1000, 20, seed=0)
      >>> drawn = batches.batch(0)
      >>> batches.size, drawn.indices.shape, int(drawn.mask.sum())
      (64, (64,), 21)

    Reference:
      Abadi et al., arXiv 1607.00133; padding to a fixed size: Chua et al., arXiv 2411.04205.
    """

    examples: int
    expected_batch: float
    _: dataclasses.KW_ONLY
    seed: int
    size: int | None = None

    def __post_init__(self) -> None:
        """Checks, and chooses the size."""
        check_static_int("examples", self.examples)
        check_static_int("seed", self.seed, low=0)
        check_number(
            "expected_batch", self.expected_batch, low=0.0, high=self.examples, open_low=True
        )
        if self.size is None:
            object.__setattr__(self, "size", self._enough())
        check_static_int("size", self.size, low=math.ceil(self.expected_batch))

    @property
    def rate(self) -> float:
        """The probability of each example in each step."""
        return self.expected_batch / self.examples

    def overflow(self, size: int) -> float:
        """Returns a bound on the probability that a batch does not fit.

        Args:
          size: places.

        Returns:
          Chernoff's bound, ``exp(-n KL((size + 1)/n, rate))``.
        """
        n, k, q = self.examples, size + 1, self.rate
        if k > n:
            return 0.0
        if k <= self.expected_batch:
            return 1.0
        apart = k * math.log(k / (n * q))
        if k < n:
            apart += (n - k) * (math.log1p(-k / n) - math.log1p(-q))
        return math.exp(-apart)

    def _enough(self) -> int:
        size = 8 * math.ceil(self.expected_batch / 8)
        while self.overflow(size) > _RARE:
            size += 8
        return min(size, self.examples)

    def batch(self, step: int) -> Drawn:
        """Returns who is drawn in a step.

        Args:
          step: its number, from 0.

        Returns:
          ``Drawn``.

        Raises:
          TypeError: a step that is no integer.
          ValueError: more than ``size`` were drawn; a negative step.
        """
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(
                f"step is of type {type(step).__name__} and must be an integer, its number from 0"
            ) from None
        if step < 0:
            raise ValueError(f"step={step} must be an integer of at least 0")
        places = self.size or 0
        random = np.random.default_rng((self.seed, step))
        count = int(random.binomial(self.examples, self.rate))
        if count > places:
            raise ValueError(
                f"step {step} drew {count} examples, more than size={places} has places for "
                f"(expected_batch={self.expected_batch}): give a larger size, or None for one that "
                "suffices"
            )
        indices = np.zeros(places, np.int32)
        indices[:count] = random.choice(self.examples, count, replace=False, shuffle=False)
        return Drawn(indices, np.arange(places) < count)

    def take(self, step: int, data: PyTree) -> tuple[PyTree, np.ndarray]:
        """Returns the batch of a step from arrays, and its mask.

        Args:
          step: its number, from 0.
          data: tree of arrays (examples, ...).

        Returns:
          A tree of arrays (size, ...), and bool (size,).

        Raises:
          ValueError: an array of another length.
        """
        drawn = self.batch(step)

        def leaf(x: Any) -> np.ndarray:
            if np.shape(x)[:1] != (self.examples,):
                raise ValueError(
                    f"data has shape {np.shape(x)}: its leading axis must have the "
                    f"{self.examples} examples that are drawn from"
                )
            return np.asarray(x)[drawn.indices]

        return jax.tree.map(leaf, data), drawn.mask

    def epsilon(
        self,
        noise_multiplier: float,
        steps: int,
        delta: float,
        accountant: accounting.Accountant = "rdp",
    ) -> float:
        """Returns epsilon of so many steps on these batches.

        Args:
          noise_multiplier: see ``optkit.privacy.private_gradient``.
          steps: how many.
          delta: probability that the bound may fail with.
          accountant: see ``optkit.privacy.epsilon``.

        Returns:
          Epsilon, that any one example is added or removed.
        """
        return accounting.epsilon(
            noise_multiplier,
            steps=steps,
            delta=delta,
            examples=self.examples,
            batch=self.expected_batch,
            accountant=accountant,
        )
