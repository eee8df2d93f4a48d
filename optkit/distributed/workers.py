"""Workers along an axis: of a mesh inside ``jax.shard_map``, or of ``jax.vmap(axis_name=...)``."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import lax
from jax.sharding import PartitionSpec

from optkit.spmd import varying
from optkit.tree import PyTree, leaves_with_paths

AxisName: TypeAlias = str | tuple[str, ...] | None
Branch: TypeAlias = Callable[[], Any]


class PerWorker(NamedTuple):
    """A part of a state of which every worker has its own; all other parts are equal."""

    of_worker: PyTree  # arrays of one worker; optkit.tree.state_sharding knows them by this name


def axes_of(axis_name: AxisName) -> tuple[str, ...]:
    """Returns the names of the axes; none for None and ()."""
    if axis_name is None:
        return ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def check_axis_name(axis_name: Any, what: str = "axis_name") -> None:
    """Raises TypeError unless a value is a name, a tuple of names, or None."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if axis_name is not None and not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{what}={axis_name!r} must be the name of a mesh axis, a tuple of names, or None "
            "for one worker"
        )


def check_axes(axis_name: Any, coordinates_axis: Any, members: str = "clients") -> None:
    """Raises for what names no axes, or one axis for two things: members, and parts of leaves."""
    check_axis_name(axis_name)
    check_axis_name(coordinates_axis, "coordinates_axis")
    if both := sorted(set(axes_of(axis_name)) & set(axes_of(coordinates_axis))):
        raise ValueError(
            f"coordinates_axis={coordinates_axis!r} and axis_name={axis_name!r} both have "
            f"{both[0]!r}: along an axis lie either {members} or parts of each leaf"
        )


def check_uncut(
    tree: PyTree,
    axis_name: AxisName,
    coordinates_axis: AxisName,
    why: str,
    members: str,
    own: str,
) -> None:
    """Raises ValueError where a device would decide by its part of a leaf, as far as types tell.

    Without types (``check_vma=False``) parts look like whole leaves.

    Args:
      tree: what is decided by.
      axis_name: axes of members.
      coordinates_axis: axes that leaves are cut along; None where nobody has said.
      why: who decides, and by what.
      members: what lies along ``axis_name``.
      own: what each device has by itself if axes are neither.
    """
    if coordinates_axis is not None:
        return
    for path, leaf in leaves_with_paths(tree):
        if others := sorted(varying(leaf) - set(axes_of(axis_name))):
            name = others[0]
            raise ValueError(
                f"{why}, but leaf {path!r} varies along the mesh axis {name!r}: give "
                f"coordinates_axis={name!r} if leaves are cut along it, axis_name={name!r} if "
                f"{members} are laid along it, or coordinates_axis=() if each device has {own} of "
                "its own"
            )


def check_local(updates: PyTree, axis_name: AxisName, who: str) -> None:
    """Raises ValueError unless gradients are those of one worker, as far as types can tell."""
    named = leaves_with_paths(updates)
    check_bound(axis_name, who)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if axis_name is None and manual:
        # Without types that keep track of it, gradients of several workers look like those of one.
        found = ((path, sorted(varying(leaf))) for path, leaf in named)
        path, axes = next((pair for pair in found if pair[1]), ("", sorted(manual)))
        why = f"; the gradient of leaf {path!r} differs along {axes}" if path else ""
        raise ValueError(
            f"{who} has axis_name=None, one worker, inside a shard_map over the mesh axes "
            f"{sorted(manual)}{why}: give axis_name={axes[0]!r} to average along it, or "
            "axis_name=() to treat each device on its own, such as where axes split a model"
        )
    for name in axes_of(axis_name):
        if not named or name not in manual or not varying(lax.axis_index(name)):
            continue  # nothing keeps track of what varies
        if all(name not in varying(leaf) for _, leaf in named):
            raise ValueError(
                f"{who} averages over {name!r}, but all gradients are equal along it: JAX has "
                "summed them already, as it does for parameters that do not vary; differentiate "
                f"at jax.lax.pcast(params, {name!r}, to='varying')"
            )


def check_bound(axis_name: AxisName, who: str) -> None:
    """Raises NameError with the remedy unless the axes are there."""
    try:
        count_workers(axis_name)
    except NameError as error:
        raise unbound(error, axis_name, who) from error


def count_workers(axis_name: AxisName) -> int:
    """Returns how many workers there are."""
    names = axes_of(axis_name)
    return int(lax.axis_size(names)) if names else 1


def mean(arrays: Sequence[jax.Array], axis_name: AxisName) -> list[jax.Array]:
    """Averages over workers: one exchange for the whole list."""
    names = axes_of(axis_name)
    return list(lax.pmean(list(arrays), names)) if names and arrays else list(arrays)


def total(arrays: Sequence[jax.Array], axis_name: AxisName) -> list[jax.Array]:
    """Sums over workers: one exchange for the whole list."""
    names = axes_of(axis_name)
    return list(lax.psum(list(arrays), names)) if names and arrays else list(arrays)


def as_varying(tree: PyTree, axis_name: AxisName) -> PyTree:
    """Says of arrays that are still equal on all workers that they will not stay so."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = [name for name in axes_of(axis_name) if name in mesh.manual_axes]

    def leaf(x: jax.Array) -> jax.Array:
        missing = tuple(name for name in manual if name not in varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(leaf, tree) if manual else tree


def cond(when: Any, one: Branch, other: Branch, axis_name: AxisName) -> Any:
    """``lax.cond`` of branches of which, without communication, one may vary where the other not.

    That is so of manual axes besides those of the workers, of which nothing else here knows.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if set(manual) <= set(axes_of(axis_name)):
        return lax.cond(when, one, other)
    types = [jax.make_jaxpr(branch)().out_avals for branch in (one, other)]
    both = [varying(x) | varying(y) for x, y in zip(*types, strict=True)]

    def alike(branch: Branch) -> Branch:
        def run() -> Any:
            leaves, structure = jax.tree.flatten(branch())
            cast = [as_varying(x, tuple(sorted(own))) for x, own in zip(leaves, both, strict=True)]
            return jax.tree.unflatten(structure, cast)

        return run

    return lax.cond(when, alike(one), alike(other))


def exchange(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sends row i of (workers, ...) to worker i; returns the rows that came, by sender."""
    names = axes_of(axis_name)
    return lax.all_to_all(rows, names, 0, 0) if names else rows


def gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Returns the arrays of all workers, (workers, ...), which is equal on all of them."""
    names = axes_of(axis_name)
    if not names:
        return x[None]
    # Where types keep track of what varies, they have to be told that this does not.
    return lax.all_gather(x, names, to="invarying" if varying(x) else "varying")


def worker_specs(state: PyTree, axis_name: str | tuple[str, ...]) -> PyTree:
    """Returns where the parts of a state lie, for the ``in_specs``, ``out_specs`` of ``shard_map``.

    What every worker has of its own (errors of compression) is laid along the axis; anything else
    is equal on all workers.

    Args:
      state: an optimizer state or its shapes.
      axis_name: the mesh axis or axes of the workers.

    Returns:
      A tree like ``state`` of ``jax.sharding.PartitionSpec``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.powersgd_mean(rank=1)
      >>> specs = optkit.worker_specs(tx.init({"w": jnp.zeros((8, 8))}), "data")
      >>> tuple(specs.error.of_worker["w"]), tuple(specs.basis["w"])
      (('data',), ())
    """

    def spec(node: Any) -> Any:
        where = PartitionSpec(axis_name) if isinstance(node, PerWorker) else PartitionSpec()
        return jax.tree.map(lambda _: where, node)

    return jax.tree.map(spec, state, is_leaf=lambda node: isinstance(node, PerWorker))


def init_workers(
    tx: Any, params: PyTree, mesh: jax.sharding.Mesh, axis_name: str | tuple[str, ...]
) -> tuple[PyTree, PyTree]:
    """Initialises a transformation whose state is partly of each worker.

    Args:
      tx: anything with ``init``, such as a chain that ``optkit.powersgd_mean`` is in.
      params: the parameters, equal on all workers.
      mesh: the mesh.
      axis_name: its axis or axes that the workers are along.

    Returns:
      The state, and its ``optkit.worker_specs``. An error of shape (m, n) is kept for all workers
      as (workers*m, n).

    Raises:
      ValueError: an axis that the mesh does not have.
      NameError: the transformation averages over another axis.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params = {"w": jnp.zeros((8, 8))}
      >>> tx = optkit.powersgd_mean("data", rank=1)
      >>> state, specs = optkit.init_workers(tx, params, mesh, "data")
      >>> state.error.of_worker["w"].shape, tuple(specs.error.of_worker["w"])
      ((8, 8), ('data',))
    """
    init: Callable[[PyTree], PyTree] = tx.init
    if missing := [name for name in axes_of(axis_name) if name not in mesh.axis_names]:
        raise ValueError(
            f"axis_name={axis_name!r}: the mesh has no axis {missing[0]!r}, only "
            f"{list(mesh.axis_names)}"
        )
    nested = init
    for name in reversed(axes_of(axis_name)):
        size = mesh.shape[name]
        nested = jax.vmap(nested, in_axes=None, axis_name=name, axis_size=size)
    specs = worker_specs(jax.eval_shape(nested, params), axis_name)
    whole = jax.shard_map(init, mesh=mesh, in_specs=PartitionSpec(), out_specs=specs)
    return jax.jit(whole)(params), specs


def unbound(error: NameError, axis_name: AxisName, who: str) -> NameError:
    """The error of a transformation that is used outside of its axis, with the remedy."""
    return NameError(
        f"{who} averages over the axis {axis_name!r}, which is not there ({error}); call init and "
        "update inside jax.shard_map over that axis (see optkit.init_workers), inside "
        "jax.vmap(axis_name=...), or give axis_name=None for one worker"
    )
