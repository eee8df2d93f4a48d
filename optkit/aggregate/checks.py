"""What is refused of a round's reports, and who counts as absent where nothing can be refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optkit.distributed.workers import AxisName, as_varying, axes_of
from optkit.tree import PyTree, leaves_with_paths


def finite_clients(displacement: PyTree, coordinates_axis: AxisName = None) -> jax.Array:
    """Returns whose reports are finite in every entry.

    For ``present=`` of rules that would add a NaN to the rest, such as ``mean``, ``fedau`` and
    ``fedbuff``: ``present=here & optkit.aggregate.finite_clients(displacement)``.

    Args:
      displacement: tree of arrays (C, ...), a client each.
      coordinates_axis: a mesh axis inside ``jax.shard_map`` that leaves are cut along, or several,
        so that all devices say the same of a client; by default a device asks of what it has.

    Returns:
      bool (C,).

    Raises:
      ValueError: no arrays.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> sent = {"w": jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]), "b": jnp.array([3.0, 4.0])}
      >>> optkit.aggregate.finite_clients(sent).tolist()
      [True, False]
    """
    leaves = jax.tree.leaves(displacement)
    if not leaves:
        raise ValueError("displacement has no arrays: give one client's along each leading entry")
    first, *others = (jnp.all(jnp.isfinite(x), axis=tuple(range(1, jnp.ndim(x)))) for x in leaves)
    for other in others:
        first = first & other
    names = axes_of(coordinates_axis)
    if not names:
        return first
    return lax.psum(as_varying((~first).astype(jnp.int32), names), names) == 0


def in_range(client: jax.Array, clients: int) -> jax.Array:
    """Returns which ids are those of clients, bool (C,)."""
    return (client >= 0) & (client < clients)


def sound(weight: jax.Array) -> jax.Array:
    """Returns which weights are finite and not negative, bool (C,)."""
    return jnp.isfinite(weight) & (weight >= 0)


def known(value: Any) -> np.ndarray | None:
    """Returns the entries as NumPy's, or None where they are not known yet or not all here."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    if isinstance(value, list | tuple) and any(isinstance(x, jax.core.Tracer) for x in value):
        return None
    return np.asarray(value)


def _of_present(name: str, value: Any, present: Any, count: int) -> Any:
    """The entries (C,), those of absent ones masked; None where either is not known."""
    if value is None:
        return None
    entries, here = known(value), known(True if present is None else present)
    if entries is None or here is None or entries.shape != (count,):
        return None  # another shape is refused elsewhere
    if entries.dtype.kind not in "iufb" and not jnp.issubdtype(entries.dtype, jnp.floating):
        raise ValueError(f"{name}={value!r} must be numbers, one a client")
    return np.ma.masked_array(entries, mask=~np.broadcast_to(here.astype(bool), (count,)))


def _refuse(name: str, entries: Any, wrong: Any, why: str) -> None:
    places = np.flatnonzero(np.ma.filled(wrong, False))
    if places.size:
        raise ValueError(f"{name}[{places[0]}]={entries[places[0]]} {why}")


def _refuse_fractions(name: str, entries: Any) -> None:
    if entries.dtype.kind == "b":
        raise ValueError(f"{name} must be integers and is bool; who is there goes to present=")
    if entries.dtype.kind not in "iu":
        wide = entries.astype(np.float64)
        _refuse(name, entries, ~(np.floor(wide) == wide), "must be an integer")


def check_numbers(weight: Any, present: Any, staleness: Any, count: int) -> None:
    """Raises ValueError at a weight or staleness of a present client that can be none.

    Traced values pass, and so does everything where who is present is traced.
    """
    weights = _of_present("weight", weight, present, count)
    if weights is not None:
        wide = weights.astype(np.float64)
        good = np.isfinite(wide) & (wide >= 0)
        why = "must be finite and at least 0; mark a client that should not count in present="
        _refuse("weight", weights, ~good, why)
    late = _of_present("staleness", staleness, present, count)
    if late is not None:
        _refuse_fractions("staleness", late)
        _refuse("staleness", late, late < 0, "must be a number of rounds of at least 0")


def check_ids(client: Any, present: Any, count: int, clients: int | None) -> None:
    """Raises ValueError at ids that can be none, or that a rule with a memory must be told.

    Args:
      client: ids as they were given, or None.
      present: who is there as it was given, or None.
      count: reports of this round.
      clients: of how many clients the rule keeps something; None if of none.
    """
    if clients is not None and count != clients and client is None:
        raise ValueError(
            f"displacement has {count} clients and the state keeps something of {clients}: give "
            f"client=, int ({count},), who they are; without, they would be 0 to {count - 1}"
        )
    if clients is not None and count > clients and present is None:
        raise ValueError(
            f"displacement has {count} clients and the state keeps something of {clients}: give "
            "one report a client at most, and init the number of all clients"
        )
    ids = _of_present("client", client, present, count)
    if ids is None:
        return
    _refuse_fractions("client", ids)
    if clients is None:
        _refuse("client", ids, ids < 0, "must be at least 0: clients count from 0")
        return
    why = f"is none of the {clients} clients that the state knows, 0 to {clients - 1}"
    _refuse("client", ids, (ids < 0) | (ids >= clients), why)
    each, times = np.unique(ids.compressed(), return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"client={each[times > 1][0]} is there {times.max()} times: give one report a client, "
            "such as the sum of its own"
        )


def check_leaves(
    sent: PyTree, like: PyTree, what: str, *, name: str = "displacement", leading: bool = True
) -> None:
    """Raises ValueError unless reports have the leaves of a tree, with an axis of clients before.

    Without it a report would be added to every row of the parameters.

    Args:
      sent: tree of arrays (C, ...), or without ``leading`` of one client's shapes.
      like: parameters, or what a state holds of them.
      what: what that is, for the message.
      name: of what was sent.
      leading: whether there is an axis of clients.
    """
    structures: list[Any] = [jax.tree.structure(tree) for tree in (sent, like)]
    given, held = (leaves_with_paths(tree) for tree in (sent, like))
    if structures[0] != structures[1]:
        odd = sorted({path for path, _ in given} ^ {path for path, _ in held})
        where = f"at leaf {odd[0]!r}" if odd else "in a container"
        raise ValueError(
            f"{name} and the {what} differ {where}: give reports of the parameters' tree, each "
            "leaf with a leading axis of clients"
        )
    for (path, leaf), (_, one) in zip(given, held, strict=True):
        got, want = np.shape(leaf), np.shape(one)
        if (got[1:] if leading and got else got) != want or (leading and not got):
            whole = "".join(f", {n}" for n in want) or ","
            raise ValueError(
                f"{name} has shape {got} at leaf {path or '(root)'!r} and the {what} {want}: give "
                f"reports a leading axis of clients, shape (C{whole})"
            )
