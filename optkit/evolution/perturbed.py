"""Parameters of one member or of a population, kept as what they share and what sets them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optkit.tree.dtypes import upcast


@partial(jax.tree_util.register_dataclass, data_fields=("key", "number"), meta_fields=())
@dataclass(frozen=True)
class Draw:
    """What factors follow from: see ``optkit.kernels.perturbed_matmul.Counters``.

    Attributes:
      key: uint32 ``(2,)``, of the leaf and the step; the same for all members.
      number: uint32 ``()``, of the member's pair. In a population it has the axis that the factors
        have, and neighbours follow each other.
    """

    key: Any
    number: Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "a", "b", "scale", "draw"),
    meta_fields=("left", "right"),
)
@dataclass(frozen=True)
class Perturbed:
    """A parameter of one member: ``base + scale * sum_r a[..., r] b[..., r]``.

    The axes of ``base`` are of three kinds: those of ``a`` (left), those of ``b`` (right), and
    batch axes (stacked layers, experts), which both factors have. In a population ``a``, ``b`` and
    ``scale`` have a leading axis of members, or of pairs that share their factors, and ``base``
    has none.

    Attributes:
      base: the parameter that all members share; ``shape`` and dtype of the leaf.
      a: ``(*base's shape without the right axes, rank)``, the axes in base's order.
      b: ``(*base's shape without the left axes, rank)``.
      scale: ``()``, with the member's sign.
      left: axes of ``base`` that only ``a`` has.
      right: axes of ``base`` that only ``b`` has.
      draw: what ``a`` and ``b`` follow from, float32 both; None if nothing but they are known.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import Perturbed
      >>> a, b = jnp.ones((3, 1)), jnp.ones((2, 1))
      >>> w = Perturbed(jnp.zeros((2, 3)), a, b, jnp.array(0.5), left=(1,), right=(0,))
      >>> w.materialize()
      Array([[0.5, 0.5, 0.5],
             [0.5, 0.5, 0.5]], dtype=float32)
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    left: tuple[int, ...]
    right: tuple[int, ...]
    draw: Draw | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the parameter."""
        return self.base.dtype

    def materialize(self) -> jax.Array:
        """Returns the member's parameter in full; shape and dtype of ``base``."""
        delta = outer(self.a, self.b, self.left, self.right)
        return (upcast(self.base) + self.scale * delta).astype(self.base.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclass(frozen=True)
class Varied:
    """A parameter of which each member of a population has its own.

    Attributes:
      value: ``(members, *shape)``.
    """

    value: Any


def is_perturbed(x: Any) -> bool:
    """Tells whether something is a ``Perturbed`` leaf."""
    return isinstance(x, Perturbed)


def outer(a: jax.Array, b: jax.Array, left: Sequence[int], right: Sequence[int]) -> jax.Array:
    """Returns ``sum_r a_r b_r`` on the axes of the parameter that the factors are of."""
    ndim = a.ndim - 1 + len(right)
    a_axes = [axis for axis in range(ndim) if axis not in right]
    b_axes = [axis for axis in range(ndim) if axis not in left]
    return jnp.einsum(a, [*a_axes, ndim], b, [*b_axes, ndim], list(range(ndim)))
