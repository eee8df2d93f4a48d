"""What every solver is, and means over the nodes that share a problem."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optkit.distributed.workers import AxisName, as_varying, axes_of
from optkit.tree import PyTree, leaves_with_paths, upcast

Operator = Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A method for many nodes, each with an operator of its own; what its factory says holds.

    Attributes:
      init: a tree of arrays (nodes, ...), equal on all nodes as a rule -> state, which has it as
        ``z`` or ``x``.
      step: (state, operator, what the method draws) -> state; jit it, or scan over it.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]


def starting(z: PyTree) -> PyTree:
    """Returns points in float32 or better, or raises ValueError unless all have the same nodes."""
    named = leaves_with_paths(z)
    sizes = {jnp.shape(leaf)[:1] for _, leaf in named}
    if len(sizes) != 1 or () in sizes:
        shapes = {path: jnp.shape(leaf) for path, leaf in named}
        raise ValueError(
            f"z has shapes {shapes}: every array needs the same leading axis of nodes; see "
            "optkit.games.on_nodes"
        )
    return jax.tree.map(upcast, z)


def on_nodes(z: PyTree, nodes: int) -> PyTree:
    """Repeats a point for each node.

    Args:
      z: a tree of arrays.
      nodes: how many.

    Returns:
      Arrays (nodes, ...).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.games.on_nodes(jnp.ones(2), 3).shape
      (3, 2)
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (nodes, *jnp.shape(x))), z)


def average(z: PyTree, axis_name: AxisName = None) -> PyTree:
    """Averages over nodes.

    Args:
      z: tree of arrays (nodes, ...).
      axis_name: a mesh axis that nodes are laid along, equally many on each device.

    Returns:
      A tree without the nodes' axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.games.average(jnp.array([[1.0], [3.0]])).tolist()
      [2.0]
    """
    names = axes_of(axis_name)
    one = jax.tree.map(lambda x: jnp.mean(x, axis=0), z)
    return lax.pmean(one, names) if names else one


def shared(one: PyTree, like: PyTree, axis_name: AxisName) -> PyTree:
    """Gives a point to all nodes of a tree of arrays (nodes, ...)."""
    whole = jax.tree.map(lambda m, x: jnp.broadcast_to(m[None].astype(x.dtype), x.shape), one, like)
    return as_varying(whole, axis_name)


def zeros_of(z: PyTree, axis_name: AxisName) -> PyTree:
    """Returns zeros for the nodes."""
    return as_varying(jax.tree.map(jnp.zeros_like, z), axis_name)


def less(z: PyTree, step: Any, direction: PyTree) -> PyTree:
    """Returns ``z - step * direction``."""
    return jax.tree.map(lambda x, d: x - step * d, z, direction)


def alike(function: Callable[..., PyTree], name: str, like: int = 0) -> Callable[..., PyTree]:
    """A function whose value has to have the tree and the shapes of one of its arguments.

    Otherwise it raises ValueError, where broadcasting would go on with numbers of another problem.
    """

    def call(*args: Any) -> PyTree:
        out = function(*args)
        given: Any = jax.tree.structure(args[like])
        got: Any = jax.tree.structure(out)
        if got != given:
            raise ValueError(f"{name} returned a tree {got} of one {given}: return one like it")
        pairs = zip(leaves_with_paths(args[like]), jax.tree.leaves(out), strict=True)
        for (path, point), value in pairs:
            if jnp.shape(value) != jnp.shape(point):
                raise ValueError(
                    f"{name} returned shape {jnp.shape(value)} of one {jnp.shape(point)} at leaf "
                    f"{path!r}: return arrays of the shapes that it is given"
                )
        return out

    return call


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless a value is a boolean scalar, or 0 or 1 as an integer."""
    kind = jnp.result_type(value)
    whole = jnp.issubdtype(kind, jnp.bool_) or jnp.issubdtype(kind, jnp.integer)
    if jnp.shape(value) or not whole:
        raise ValueError(
            f"{name} must be a boolean scalar, not {kind} of shape {jnp.shape(value)}: draw it, "
            "such as by jax.random.bernoulli(key, probability), or scan over an array of them"
        )
    if not isinstance(value, jax.core.Tracer) and int(value) not in (0, 1):
        raise ValueError(f"{name}={value!r} must be True or False")
