"""Progressive gradient flow: how a mask closes, by its factor or by its pattern."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

Kind = Literal["linear", "exponential", "step"]
Patterns = Literal["sparsify", "fine", "densify"]


def mask_decay(
    kind: Kind = "exponential",
    rate: float = 1e-3,
    *,
    dense_steps: int = 0,
    binary_from: int | None = None,
) -> Callable[[int | jax.Array], jax.Array]:
    """Returns the factor of masked weights over the steps, from 1 (dense) to 0 (sparse).

    With ``t`` the finished updates: ``"linear"`` ``max(0, 1 - rate*t)``, ``"exponential"``
    ``exp(-rate*t)``, ``"step"`` 0; 1 before ``dense_steps`` and 0 from ``binary_from`` on, while
    ``t`` counts from the first step whatever these are.

    Args:
      kind: see above.
      rate: how fast it falls, a step.
      dense_steps: steps at first in which nothing is masked.
      binary_from: step from which masked weights are 0; None for never.

    Returns:
      A function of the step to a float32 scalar, for ``optkit.decayed_mask``.

    Raises:
      ValueError: an unknown kind or a negative number.

    Example:
      >>> import optkit
      >>> d = optkit.schedules.mask_decay("linear", 0.25, dense_steps=1, binary_from=3)
      >>> [float(d(t)) for t in range(5)]
      [1.0, 0.75, 0.5, 0.0, 0.0]

    Reference:
      Progressive Gradient Flow, arXiv 2402.04744: MdGf.
    """
    if kind not in ("linear", "exponential", "step"):
        raise ValueError(f"kind={kind!r} is not one of 'linear', 'exponential', 'step'")
    if not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"rate={rate!r} must be a finite number of at least 0")
    for name, value in (("dense_steps", dense_steps), ("binary_from", binary_from)):
        if value is not None and value < 0:
            raise ValueError(f"{name}={value!r} must be at least 0")

    def factor(step: int | jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        if kind == "linear":
            d = jnp.maximum(0.0, 1.0 - rate * t)
        elif kind == "exponential":
            d = jnp.exp(-rate * t)
        else:
            d = jnp.zeros_like(t)
        d = jnp.where(t < dense_steps, 1.0, d)
        return d if binary_from is None else jnp.where(t >= binary_from, 0.0, d)

    return factor


def mask_patterns(n: int, m: int, kind: Patterns = "sparsify") -> tuple[tuple[int, int], ...]:
    """Returns the N:M patterns that lead to a last one, for equal shares of a training run.

    * ``"sparsify"``: ``(M-1):M, M/2:M, M/4:M, ..., N:M``, log2(M/N) + 1 of them;
    * ``"fine"``: ``8N:8M, 4N:4M, 2N:2M, N:M``, the same share of ever smaller groups;
    * ``"densify"``: ``N:8M, N:4M, N:2M, N:M``, as the reference codes it.

    Args:
      n: N of the last pattern.
      m: M of the last pattern.
      kind: see above.

    Returns:
      ``((N, M), ...)`` in order. A pattern decides the program: give ``decayed_mask`` each in a
      program of its own, or as the branches of ``jax.lax.switch`` with ``frame_of`` for an index.

    Raises:
      ValueError: an unknown kind, or M/N no power of two for "sparsify".

    Example:
      >>> import optkit
      >>> optkit.schedules.mask_patterns(1, 8)
      ((7, 8), (4, 8), (2, 8), (1, 8))

    Reference:
      Progressive Gradient Flow, arXiv 2402.04744: SdGf.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n={n} and m={m} are no pattern; give 1 <= n <= m")
    if kind == "fine":
        return tuple((n * f, m * f) for f in (8, 4, 2, 1))
    if kind == "densify":
        return tuple((n, m * f) for f in (8, 4, 2, 1))
    if kind != "sparsify":
        raise ValueError(f"kind={kind!r} is not one of 'sparsify', 'fine', 'densify'")
    halvings = round(math.log2(m / n))
    if n * 2**halvings != m:
        raise ValueError(f"'sparsify' halves M={m} until N={n}: give M/N as a power of two")
    first = [(m - 1, m)] if halvings else []
    return (*first, *((m >> i, m) for i in range(1, halvings)), (n, m))


def frame_of(
    step: int | jax.Array, patterns: Sequence[tuple[int, int]], total_steps: int
) -> jax.Array:
    """Returns which of several patterns is in force at a step: each for an equal share of all.

    Args:
      step: finished updates.
      patterns: what ``mask_patterns`` returned.
      total_steps: length of the run; the last pattern stays.

    Returns:
      An int32 index.

    Raises:
      ValueError: no patterns, or a run without steps.

    Example:
      >>> import optkit
      >>> frames = optkit.schedules.mask_patterns(1, 4)
      >>> [int(optkit.schedules.frame_of(t, frames, 6)) for t in range(7)]
      [0, 0, 1, 1, 2, 2, 2]
    """
    if not patterns or total_steps < 1:
        raise ValueError(
            f"frame_of needs patterns and steps, got {len(patterns)} and total_steps={total_steps}"
        )
    index = jnp.asarray(step, jnp.int32) * len(patterns) // total_steps
    return jnp.minimum(index, len(patterns) - 1)
