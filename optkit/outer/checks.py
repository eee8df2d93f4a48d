"""What an outer step refuses: an axis that was forgotten, averages that are none, other states."""

from typing import Any

import jax
import numpy as np
from jax import lax

from optkit.distributed.wire import axes_sent_along
from optkit.distributed.workers import AxisName, axes_of, check_axes, count_workers
from optkit.transforms.base import check_same_leaves
from optkit.tree import PyTree, leaves_with_paths

_DEFAULT_AXIS = "replica"  # of optkit.on_replicas


def check_outside(who: str) -> None:
    """Raises ValueError where stacked replicas are expected and one of them is being traced.

    Each would lead itself, and none would meet another. Of the axes of ``jax.vmap`` only the one
    that ``optkit.on_replicas`` names by default is looked for.
    """
    names = sorted(jax.sharding.get_abstract_mesh().manual_axes)
    if names:
        where = f"a shard_map over the mesh axes {names}"
    elif _bound(_DEFAULT_AXIS):
        names, where = [_DEFAULT_AXIS], f"a vmap over the axis {_DEFAULT_AXIS!r}"
    else:
        return
    raise ValueError(
        f"{who} has axis_name=None, replicas stacked along a leading axis, inside {where}: they "
        f"would never meet; give axis_name={names[0]!r}, or call init and step outside of it"
    )


def _bound(name: str) -> bool:
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def check_inside(axis_name: AxisName, who: str) -> None:
    """Raises NameError with the remedy unless the axes of the replicas are there."""
    try:
        count_workers(axis_name)
    except NameError as error:
        raise NameError(
            f"{who} averages over the axis {axis_name!r}, which is not there ({error}); call init "
            f"and step by optkit.on_replicas(..., {axes_of(axis_name)[0]!r}), or inside "
            "jax.shard_map or jax.vmap with that axis; axis_name=None means replicas stacked along "
            "a leading axis"
        ) from error


def check_coordinates(axis_name: Any, coordinates_axis: Any) -> None:
    """Raises for what names no axes, one axis for two things, or parts of stacked replicas."""
    check_axes(axis_name, coordinates_axis, "replicas")
    if axis_name is None and axes_of(coordinates_axis):
        raise ValueError(
            f"coordinates_axis={coordinates_axis!r} is for jax.shard_map, where a device sees its "
            "part of a replica: give axis_name too; stacked replicas are seen whole, however their "
            "leaves are sharded"
        )


def check_leaves(anchor: PyTree, params: PyTree, who: str) -> None:
    """Raises ValueError with the paths that differ unless parameters are those of a state."""
    held, given = ([path for path, _ in leaves_with_paths(tree)] for tree in (anchor, params))
    if held == given:
        check_same_leaves(anchor, params, "parameters")  # containers may differ still
        return
    lines = [f"  {path}: in params, not in the state" for path in given if path not in held]
    lines += [f"  {path}: in the state, not in params" for path in held if path not in given]
    raise ValueError(
        f"params do not have the leaves that the state of {who} was made for:\n"
        + "\n".join(lines)
        + "\ngive parameters of the same tree as init got them, or begin anew with "
        "outer.init(params)"
    )


def check_averages(update: Any, args: tuple[Any, ...], axis_name: AxisName, who: str) -> None:
    """Raises ValueError unless a transformation sends something along each of the axes.

    Its program is looked through, which tells in vmap what types tell in shard_map only.
    """
    if count_workers(axis_name) == 1 or not jax.tree.leaves(args[0]):
        return
    sent = set(axes_sent_along(jax.make_jaxpr(update)(*args).jaxpr))
    for name in axes_of(axis_name):
        if name not in sent:
            raise ValueError(
                f"mean of {who} does not average over {name!r}, which would leave replicas apart: "
                f"give it the axis too, such as optkit.powersgd_mean({axis_name!r})"
            )


def check_due(due: Any, fragments: int) -> None:
    """Raises ValueError for what is no tuple of pairs of a word and the index of a fragment."""
    for pair in due if isinstance(due, tuple | list) else (due,):
        known = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not known or pair[0] not in ("start", "finish"):
            raise ValueError(
                f"due has {pair!r}, which must be ('start', fragment) or ('finish', fragment): "
                "give the tuple that outer.due returns"
            )
        index = pair[1]
        whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not whole or not 0 <= index < fragments:
            raise ValueError(
                f"due has {pair!r}: the {fragments} fragments are integers from 0 to "
                f"{fragments - 1}"
            )
