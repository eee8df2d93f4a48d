"""A memory of what each client sent last: a row a client."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.aggregate.base import Reports, known_only
from optkit.aggregate.checks import check_leaves, finite_clients
from optkit.aggregate.participation import rows_of
from optkit.distributed.workers import AxisName, axes_of
from optkit.spmd import varying
from optkit.tree import PyTree, accumulator_dtype, leaves_with_paths
from optkit.tree.sharding import history_spec, zeros_beside


def zeros_of_all(params: PyTree, clients: int) -> PyTree:
    """Returns zeros (clients, ...) for each parameter."""

    def leaf(p: Any) -> jax.Array:
        shape = (clients, *jnp.shape(p))
        return zeros_beside(p, shape, accumulator_dtype(p), lambda *known: history_spec(known[2]))

    return jax.tree.map(leaf, params)


def written(last: PyTree, given: Reports) -> PyTree:
    """Returns the memory with what the present sent."""
    rows = rows_of(given, count_rows(last))
    return jax.tree.map(
        lambda h, d: h.at[rows].set(d.astype(h.dtype), mode="drop"), last, given.displacement
    )


def remembered(
    given: Reports, clients: int, axis_name: AxisName, coordinates_axis: AxisName, who: str
) -> Reports:
    """Returns reports of which those that no memory should keep are absent.

    These are the ones with an id that no client has, and those that are not finite: kept, a NaN
    would be in every later direction. Of leaves that are cut all parts are kept or none.
    """
    for path, leaf in leaves_with_paths(given.displacement):
        others = sorted(varying(leaf) - set(axes_of(axis_name)))
        if others and coordinates_axis is None:
            raise ValueError(
                f"{who} leaves out who is not finite, but what is sent varies at leaf {path!r} "
                f"along the mesh axis {others[0]!r}: give coordinates_axis={others[0]!r} if leaves "
                f"are cut along it, axis_name={others[0]!r} if clients are, or coordinates_axis=() "
                "if each device has a server of its own"
            )
    given = known_only(given, clients)
    return given._replace(
        present=given.present & finite_clients(given.displacement, coordinates_axis)
    )


def check_rows(one: PyTree, last: PyTree) -> None:
    """Raises ValueError unless one client's report has the shapes of a memory's rows."""
    rows = jax.tree.map(lambda h: jax.ShapeDtypeStruct(h.shape[1:], h.dtype), last)
    check_leaves(one, rows, "state", name="one client's displacement", leading=False)


def count_rows(last: PyTree) -> int:
    """Returns of how many clients a memory is."""
    return int(jax.tree.leaves(last)[0].shape[0])
