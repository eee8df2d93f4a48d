"""Optimizer state by name: survives a change of the chain that a positional checkpoint does not."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optkit.tree.accounting import match_state
from optkit.tree.paths import PyTree, full_path_string, path_string
from optkit.tree.roles import Selector, selects

FORMAT = 1
# Names of what codecs stored hold an @.
_OTHER_CODEC = ", and build the optimizer with the codec that stored its moments to read those"
FORMAT_KEY = "optkit.format"


def _is_chain(node: Any) -> bool:
    """Tells whether a node holds the states of a chain: a plain tuple of states, maybe nested."""
    return type(node) is tuple and all(hasattr(x, "_fields") or _is_chain(x) for x in node)


def _named(node: Any, prefix: str, seen: dict[str, int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (name, leaf) in jax's flattening order.

    States are named by their class, not by their place in a chain: a link that is added or removed
    leaves the names of the others as they were. Two siblings of one class are told apart by #2.
    A chain inside a chain is named as if its links stood in the outer one (``seen`` goes on).
    """
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    if len(children) == 1 and children[0][1] is node:
        yield prefix, node
        return
    seen = {} if seen is None else seen
    for key_path, child in children:
        if type(node) is tuple and _is_chain(child):
            yield from _named(child, prefix, seen)
            continue
        name = full_path_string(key_path) if len(children) > 1 else path_string(key_path)
        if hasattr(node, "_fields"):
            name = f"{type(node).__name__}.{name}"
        elif type(node) in (tuple, list) and hasattr(child, "_fields"):
            name = ""
            kind = type(child).__name__
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] > 1:
                name = f"#{seen[kind]}"
        yield from _named(child, "/".join(part for part in (prefix, name) if part))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _readable(value: Any, wanted: Any) -> Any:
    """Gives back the dtype that ``np.savez`` takes from arrays of a type NumPy does not know."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or dtype.type is not np.void:
        return value
    if dtype.itemsize == 2:
        return value.view(jnp.bfloat16)
    if dtype.itemsize == jnp.dtype(wanted).itemsize:
        return value.view(wanted)
    raise ValueError(
        f"an array of {dtype.itemsize}-byte items without a type cannot become {wanted}; restore "
        "with the state_dtype that was exported"
    )


def export_state(state: PyTree) -> dict[str, np.ndarray]:
    """Returns an optimizer state as a flat dict from names to NumPy arrays.

    Save it with any tool, for example ``np.savez(path, **export_state(state))`` or
    ``flax.serialization.to_bytes(export_state(state))``, which takes no PRNG keys: they are given
    as their words.

    Args:
      state: a concrete optimizer state.

    Returns:
      ``{"MomentumState.momentum/dense/kernel": array, ..., "optkit.format": 1}``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> state = optkit.momentum(0.9).init({"w": jnp.zeros(2)})
      >>> sorted(optkit.export_state(state))
      ['MomentumState.count', 'MomentumState.momentum/w', 'optkit.format']
    """
    out = {FORMAT_KEY: np.asarray(FORMAT)}
    for name, leaf in _named(state, ""):
        leaf = jax.random.key_data(leaf) if _is_key(jnp.asarray(leaf)) else leaf
        out[name] = np.asarray(leaf)
    return out


def restore_state(
    template: PyTree,
    exported: Mapping[str, Any],
    *,
    missing: Literal["error", "keep"] = "error",
) -> PyTree:
    """Fills a freshly initialised state with the values of an exported one, by name.

    Args:
      template: what ``tx.init(params)`` gives now; decides structure, dtypes and placement.
      exported: what ``export_state`` gave, then or in an earlier version.
      missing: "keep" leaves what the export does not hold as the template has it.

    Returns:
      The restored state. Names that only the export holds are ignored: a removed link.

    Raises:
      ValueError: the export is not whole or of a newer format, lacks names, or holds another shape;
        the message lists each. Another word for ``missing``.
      TypeError: ``exported`` is no mapping, such as swapped arguments.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.momentum(0.9)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> optkit.restore_state(state, optkit.export_state(state)).count.dtype
      dtype('int32')
    """
    if missing not in ("error", "keep"):
        raise ValueError(f"missing={missing!r} must be 'error' or 'keep'")
    if not isinstance(exported, Mapping):
        raise TypeError(
            f"exported must be the dict that optkit.export_state returned, and is of type "
            f"{type(exported).__name__}; arguments are (template, exported)"
        )
    if FORMAT_KEY not in exported:
        names = sorted(map(str, exported))
        holds = f"holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise ValueError(
            f"the exported state lacks {FORMAT_KEY!r}: it {holds if names else 'is empty'}; give "
            "all that optkit.export_state returned, and nothing from elsewhere"
        )
    found = int(exported[FORMAT_KEY])
    if not 1 <= found <= FORMAT:
        raise ValueError(f"cannot read state of format {found}; this optkit reads 1 to {FORMAT}")
    problems, leaves = [], []
    for name, leaf in _named(template, ""):
        if name not in exported:
            if missing == "error":
                close = difflib.get_close_matches(name, exported, n=1)
                problems.append(f"  {name}: missing" + (f" (there is {close[0]})" if close else ""))
            leaves.append(leaf)
            continue
        value = exported[name]
        if _is_key(jnp.asarray(leaf)):
            impl = jax.random.key_impl(leaf)
            leaves.append(jax.random.wrap_key_data(jnp.asarray(value), impl=impl))
        elif np.shape(value) != np.shape(leaf):
            problems.append(f"  {name}: has shape {np.shape(value)}, needed is {np.shape(leaf)}")
        else:
            placed = jnp.asarray(_readable(value, leaf.dtype), leaf.dtype)
            committed = getattr(leaf, "committed", False)
            leaves.append(jax.device_put(placed, leaf.sharding) if committed else placed)
    if problems:
        coded = any("@" in text for text in (*problems, *exported))
        raise ValueError(
            "the exported state does not fit:\n"
            + "\n".join(problems)
            + '\npass missing="keep" to start what is missing from the template'
            + (_OTHER_CODEC if coded else "")
        )
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def reset_state(
    state: PyTree, fresh: PyTree, params: PyTree, selector: Selector, *, route: str | None = None
) -> PyTree:
    """Starts the state of some leaves anew and keeps the rest, counters included.

    Args:
      state: the present state.
      fresh: ``tx.init(params)``.
      params: the parameters.
      selector: whose state is reset: role, glob, ``re:`` expression, function of (path, leaf), or a
        tuple of those; ``"**"`` for all leaves.
      route: only the state below this route of ``optkit.route``, with its counters.

    Returns:
      The state with the chosen leaves as in ``fresh``.

    Raises:
      ValueError: nothing fits.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(2)}
      >>> tx = optkit.momentum(0.5)
      >>> _, state = tx.update(params, tx.init(params))
      >>> state = optkit.reset_state(state, tx.init(params), params, "a")
      >>> state.momentum["a"].tolist(), state.momentum["b"].tolist(), int(state.count)
      ([0.0, 0.0], [0.5, 0.5], 1)
    """
    leaves, hit = [], False
    pairs = zip(match_state(state, params), jax.tree.leaves(fresh), strict=True)
    for match, new in pairs:
        inside = route is None or route in match.owner.split("/")
        if match.param_path is None:
            chosen = route is not None and inside
        else:
            chosen = inside and selects(selector, match.param_path, match.param)
        hit = hit or chosen
        leaves.append(new if chosen else match.leaf)
    if not hit:
        raise ValueError(
            f"no state belongs to {selector!r}"
            + (f" below the route {route!r}" if route else "")
            + "; print(optkit.plan(tx, params)) shows paths, roles and routes"
        )
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
