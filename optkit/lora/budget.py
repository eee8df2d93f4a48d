"""What AdaLoRA needs beside its scores: the budget of singular values, and the penalty."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.lora.find import AdapterTree
from optkit.lora.naming import AdapterLayout, Naming, Patterns
from optkit.tree import PyTree, upcast


class Plan(NamedTuple):
    """How many singular values there may be, and when."""

    total_steps: int
    init_warmup: int
    final_warmup: int
    interval: int

    def value(self, whole: int, target: int, step: int) -> int:
        """The budget at a step, counted from 1."""
        if step <= self.init_warmup:
            return whole
        middle = self.total_steps - self.final_warmup - self.init_warmup
        if step > self.total_steps - self.final_warmup:
            return target
        left = 1 - (step - self.init_warmup) / middle
        return int(target + (whole - target) * left**3)

    def falls(self, whole: int, target: int) -> np.ndarray:
        """The steps at which the budget falls below ``whole``, ``whole - 1``, ..., in order.

        A program then counts how many are past: exactly what the formula gives in Python's floats.
        """
        out = []
        for value in range(whole - 1, target - 1, -1):
            low, high = 0, self.total_steps + 1  # the budget is above `value` at low only
            while high - low > 1:
                middle = (low + high) // 2
                if self.value(whole, target, middle) > value:
                    low = middle
                else:
                    high = middle
            out.append(high)
        return np.asarray(out, np.int32)

    def budget(self, whole: int, target: int, step: jax.Array) -> jax.Array:
        """The budget at a traced step."""
        past = jnp.asarray(self.falls(whole, target)) <= step[None]
        return whole - jnp.sum(past, dtype=jnp.int32)

    def is_masking(self, step: jax.Array) -> jax.Array:
        """Whether singular values are masked after this step."""
        final = step > self.total_steps - self.final_warmup
        return final | ((step > self.init_warmup) & (step % self.interval == 0))


def adalora_budget(
    step: int,
    *,
    whole: int,
    target: int,
    total_steps: int,
    init_warmup: int = 0,
    final_warmup: int = 0,
) -> int:
    """Returns how many singular values ``optkit.adalora`` keeps at a step.

    ``whole`` up to step ``init_warmup``, then ``target + (whole-target)*(1-x)**3`` with x rising
    from 0 to 1, rounded down, and ``target`` in the last ``final_warmup`` steps.

    Args:
      step: number of the update, from 1.
      whole: singular values of all adapters together.
      target: how many are to remain.
      total_steps: of the training.
      init_warmup: steps before the budget falls.
      final_warmup: steps after it has fallen.

    Returns:
      The budget.

    Example:
      >>> import optkit
      >>> options = dict(whole=12, target=6, total_steps=10, init_warmup=2, final_warmup=2)
      >>> [optkit.lora.adalora_budget(step, **options) for step in range(1, 11)]
      [12, 12, 9, 7, 6, 6, 6, 6, 6, 6]

    Reference:
      Zhang et al., AdaLoRA, arXiv 2303.10512.
    """
    return Plan(total_steps, init_warmup, final_warmup, 1).value(whole, target, step)


def orthogonality_penalty(
    params: PyTree,
    weight: float = 0.1,
    *,
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
) -> jax.Array:
    """Returns AdaLoRA's penalty on factors that are not orthonormal, to be added to a loss.

    ``weight`` times the mean over all A and B of ``norm(A A^T - I)`` and ``norm(B^T B - I)``, which
    are not squared. Its gradient at an orthonormal factor is 0.

    Args:
      params: parameters.
      weight: of the mean.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".

    Returns:
      A scalar.

    Raises:
      ValueError: as ``optkit.lora.adapters``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.eye(4, 2), "lora_b": 2.0 * jnp.eye(2, 3)}
      >>> round(float(optkit.lora.orthogonality_penalty(params)), 4)  # 0.1 * (0 + 3 sqrt(2)) / 2
      0.2121

    Reference:
      Zhang et al., AdaLoRA, arXiv 2303.10512.
    """
    tree = AdapterTree(Naming(a, b, None, layout), params)
    norms = []
    for factors, turned in zip(tree.split(params), (False, True), strict=True):
        for x in map(upcast, factors):
            rows = x.mT if turned else x
            gram = jnp.matmul(rows, rows.mT, precision="highest")
            off = gram - jnp.broadcast_to(jnp.eye(gram.shape[-1]), gram.shape)
            square = jnp.sum(jnp.square(off), axis=(-2, -1))
            safe = jnp.where(square > 0.0, square, 1.0)
            norms.append(jnp.where(square > 0.0, jnp.sqrt(safe), 0.0).reshape(-1))
    return weight * jnp.mean(jnp.concatenate(norms)) if norms else jnp.zeros(())
