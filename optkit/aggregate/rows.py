"""A memory of what each client sent last: a row a client."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.aggregate.base import Reports, known_only
from optkit.aggregate.checks import check_leaves, finite_clients
from optkit.aggregate.participation import rows_of
from optkit.distributed.workers import AxisName, check_uncut
from optkit.tree import PyTree, accumulator_dtype
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
    why = f"{who} leaves out who is not finite"
    check_uncut(given.displacement, axis_name, coordinates_axis, why, "clients", "a server")
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
