"""Where the leaves of a tree live when each is cut over all devices (FSDP, ZeRO-3)."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optkit.tree import PyTree

__all__ = ["fully_sharded"]


def fully_sharded(
    tree: PyTree, mesh: jax.sharding.Mesh, axis_name: str | tuple[str, ...] | None = None
) -> PyTree:
    """Returns a sharding for each leaf: cut over all devices, as far as they divide it.

    With one mesh axis the longest dimension that divides is cut, of equal ones the last. With
    several, the rows of matrices over the first and their columns over the others: from there the
    matrix methods know the way on Auto axes, too. Where these do not divide, one dimension is cut
    over all; a leaf without any that divides is replicated.

    Args:
      tree: arrays or shapes: parameters, an optimizer state, or a batch of NumPy arrays.
      mesh: the devices.
      axis_name: the mesh axis to cut over, or several; None for all of them.

    Returns:
      A tree of ``NamedSharding``s like ``tree``.

    Raises:
      ValueError: the mesh has no axis of a name.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("fsdp",))
      >>> tuple(optkit.fully_sharded({"w": jnp.ones((4, 6))}, mesh)["w"].spec)
      (None, 'fsdp')

    Reference: Rajbhandari et al., ZeRO, arXiv 1910.02054.
    """
    names = tuple(mesh.axis_names) if axis_name is None else axis_name
    names = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in names if name not in mesh.shape]:
        raise ValueError(f"the mesh has axes {tuple(mesh.axis_names)}, and no {unknown[0]!r}")
    first, *rest = [mesh.shape[name] for name in names]
    size, others = first * math.prod(rest), math.prod(rest)

    def leaf(x: Any) -> NamedSharding:
        shape = tuple(np.shape(x))
        fitting = [(length, i) for i, length in enumerate(shape) if length and length % size == 0]
        parts: list[Any] = [None] * len(shape)
        if rest and len(shape) > 1 and not (shape[-2] % first or shape[-1] % others):
            parts[-2:] = names[0], names[1] if len(rest) == 1 else names[1:]
        elif fitting:
            parts[max(fitting)[1]] = names if rest else names[0]
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree.map(leaf, tree)
