"""What every part is built from: the constructor and the maps over leaves."""

import itertools
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import entries
from optkit.tree import PyTree, leaves_with_paths, match_state, upcast
from optkit.tree.paths import full_path_string

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


def prng_key(key: int | jax.Array | None) -> jax.Array:
    """Returns a PRNG key for a seed, 0 if None, or the key that was given, typed or of old."""
    if not isinstance(key, jax.Array):
        return jax.random.key(0 if key is None else int(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.ndim:
        return key
    return jax.random.key(key.astype(jnp.uint32))  # a seed that optax.inject_hyperparams injects


def _called(factory: Callable[..., Any]) -> str:
    """How a user writes the call of a factory: by the shortest public name that is known."""
    name = getattr(factory, "__name__", "")
    if not name.isidentifier():
        return ""
    modules = (getattr(factory, "__module__", None) or "").split(".")
    public = itertools.takewhile(lambda part: not part.startswith("_"), modules)
    short = getattr(sys.modules.get(modules[0]), name, None) is factory
    return ".".join([*([modules[0]] if short else public), f"{name}()"])


def _is_transformation(value: Any) -> bool:
    pair = callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    return pair and not isinstance(value, type)


def check_transformation(name: str, value: Any, *, swapped_with: Any = None) -> Transformation:
    """Returns a transformation that takes extra arguments, or raises TypeError with the remedy.

    Args:
      name: what the caller calls it, for the message.
      value: what was given; a ``GradientTransformation`` or anything with ``init`` and ``update``.
      swapped_with: the argument beside it, which may be the transformation.

    Raises:
      TypeError: a factory that was not called, a name, a list, or something else.
    """
    if _is_transformation(value):
        return optax.with_extra_args_support(value)
    if _is_transformation(swapped_with):
        what = f"of type {type(value).__name__}, whereas its neighbour is one"
        remedy = "give the arguments in the other order"
    elif isinstance(value, str):
        known = value in {entry.name for entry in entries(kind="recipe")}
        what = f"the text {value!r}"
        remedy = f"build it: optkit.{value}()" if known else "build one, such as optax.adam(1e-3)"
    elif callable(value):
        call = _called(value)
        what = f"the function {call[:-2]}" if call else f"{value!r}"
        remedy = f"call it: {call}" if call else "call it, and give what it returns"
    elif isinstance(value, list | tuple) and value:
        what, remedy = f"a {type(value).__name__} of {len(value)}", "join them: optax.chain(*parts)"
    else:
        what = "None" if value is None else f"of type {type(value).__name__}"
        remedy = "give what a factory such as optax.adam(1e-3) returns"
    raise TypeError(f"{name} must be an optax.GradientTransformation and is {what}; {remedy}")


def check_state(state: Any, kind: type, arguments: str = "params, state") -> None:
    """Raises TypeError for what init did not return, such as swapped arguments.

    Args:
      state: what was given.
      kind: the type of what init returns.
      arguments: in what order they are given, for the message.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be what init returned, a {kind.__name__}, and is of type "
            f"{type(state).__name__}; arguments are ({arguments})"
        )


def _containers(updates: PyTree, other: PyTree, what: str, path: str = "") -> str | None:
    """Where two trees of the same paths differ first; None where they do not."""
    parts: list[Any] = [
        jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x, node=node: x is not node)
        for node in (updates, other)
    ]
    if type(updates) is not type(other) or len(parts[0]) != len(parts[1]):
        mine, theirs = (
            f"{type(node).__name__} of {len(inside)}"
            for node, inside in zip((updates, other), parts, strict=True)
        )
        return f"  {path or 'the whole tree'}: a {mine} in the updates, a {theirs} in the {what}"
    for (key, mine), (_, theirs) in zip(*parts, strict=True):
        if not key:
            return None  # a leaf
        below = "/".join(part for part in (path, full_path_string(key)) if part)
        found = _containers(mine, theirs, what, below)
        if found is not None:
            return found
    return None


def _mismatch(updates: PyTree, other: PyTree, what: str) -> str:
    given = {path or "(root)": leaf for path, leaf in leaves_with_paths(updates)}
    held = {path or "(root)": leaf for path, leaf in leaves_with_paths(other)}
    lines = [f"  {path}: in the updates, not in the {what}" for path in given if path not in held]
    lines += [f"  {path}: in the {what}, not in the updates" for path in held if path not in given]
    if lines:
        return "\n".join(lines)
    return _containers(updates, other, what) or "  same paths; a container's own data differs"


def _shape_mismatch(updates: PyTree, other: PyTree, what: str) -> list[str]:
    pairs = zip(leaves_with_paths(updates), jax.tree.leaves(other), strict=True)
    return [
        f"  {path or '(root)'}: shape {jnp.shape(u)} in the updates, {jnp.shape(x)} in the {what}"
        for (path, u), x in pairs
        if jnp.shape(u) != jnp.shape(x)
    ]


_UNFIT = (
    "the updates do not have the leaves that this transformation holds or was given:\n{}\n"
    "give gradients of the same tree as the parameters passed to init"
)


def _refuse(lines: list[str], what: str = "", remedy: str = "") -> None:
    if lines and remedy:
        rows = "\n".join(lines)
        raise ValueError(f"the {what} does not have the leaves of the updates:\n{rows}\n{remedy}")
    if lines:
        raise ValueError(_UNFIT.format("\n".join(lines)))


def check_same_leaves(
    updates: PyTree, other: PyTree, what: str, *, shapes: bool = False, remedy: str = ""
) -> None:
    """Raises ValueError with the paths that differ unless a tree has the leaves of the updates.

    Args:
      updates: what was given to update.
      other: parameters or state.
      what: what the other tree is, for the message.
      shapes: the leaves must have the shapes of the updates too.
      remedy: what to do where the other tree, an argument of its own, is at fault.
    """
    structure: Any = jax.tree.structure(updates)
    if structure != jax.tree.structure(other):
        _refuse([_mismatch(updates, other, what)], what, remedy)
    elif shapes:
        _refuse(_shape_mismatch(updates, other, what), what, remedy)


def check_gradients(updates: PyTree, params: PyTree | None) -> None:
    """Raises ValueError with the paths if updates have other leaves or shapes than the parameters.

    Other containers of the same paths pass, and so do updates without parameters.
    """
    if params is None:
        return
    paths, held = ([path for path, _ in leaves_with_paths(tree)] for tree in (updates, params))
    if paths == held:
        _refuse(_shape_mismatch(updates, params, "parameters"))
    elif sorted(paths) != sorted(held):
        _refuse([_mismatch(updates, params, "parameters")])


def update_inner(
    inner: Transformation,
    updates: PyTree,
    state: PyTree,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """Calls a wrapped transformation; gradients that do not fit raise ValueError with the paths.

    A foreign transformation answers them with an error that names none. Without parameters the
    paths are compared with those that the state ends with, once the call has failed.
    """
    check_gradients(updates, params)
    try:
        return inner.update(updates, state, params, **extra_args)
    except (TypeError, ValueError) as error:
        held = {match.param_path for match in match_state(state, updates)}
        lost = [path for path, _ in leaves_with_paths(updates) if path not in held]
        if lost and any(jnp.ndim(leaf) for leaf in jax.tree.leaves(state)):
            lines = [f"  {path or '(root)'}: in the updates, not in the state" for path in lost]
            raise ValueError(f"{_UNFIT.format(chr(10).join(lines))}\n({error})") from error
        raise


def map_leaves(function: Callable[..., Any], updates: PyTree, *rest: PyTree) -> PyTree:
    """Maps a function over updates and trees of the same structure.

    ``None`` and masked nodes are passed over.

    Raises:
      ValueError: a tree has other leaves than the updates, or of shapes that the function cannot
        take; lists their paths.
    """
    for tree in rest:
        check_same_leaves(updates, tree, "other tree")
    try:
        return jax.tree.map(function, updates, *rest)
    except (TypeError, ValueError):
        # Leaves of another shape may be what a method keeps; where they do not fit, say which.
        for tree in rest:
            check_same_leaves(updates, tree, "other tree", shapes=True)
        raise


def map_updates(function: Callable[..., jax.Array], updates: PyTree, *rest: PyTree) -> PyTree:
    """Like ``map_leaves``, computing in float32 or better and keeping the dtype of the updates."""

    def leaf(u: jax.Array, *others: jax.Array) -> jax.Array:
        return function(upcast(u), *map(upcast, others)).astype(u.dtype)

    return map_leaves(leaf, updates, *rest)


def need_params(params: PyTree | None, name: str) -> PyTree:
    """Returns params, or raises ValueError with the remedy if the caller left them out."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call tx.update(updates, state, params)")
    return params


def unzip(structure_of: PyTree, pairs: PyTree, count: int) -> tuple[PyTree, ...]:
    """Splits a tree whose leaves are ``count``-tuples into that many trees."""
    structure: Any = jax.tree.structure(structure_of)
    flat = structure.flatten_up_to(pairs)
    return tuple(structure.unflatten([pair[i] for pair in flat]) for i in range(count))


def branch(
    due: jax.Array | bool, then: Callable[..., Any], otherwise: Callable[..., Any], *of: Any
) -> Any:
    """``lax.cond`` that runs as Python where the answer is known: an eager one compiles anew."""
    if isinstance(due, jax.core.Tracer):
        return jax.lax.cond(due, then, otherwise, *of)
    return then(*of) if bool(due) else otherwise(*of)


def keep_dtypes(new: PyTree, old: PyTree) -> PyTree:
    """Returns a new state in the dtypes of the old one.

    A foreign transformation that was initialised on 16-bit parameters promotes its statistics once
    it is given float32 updates: the next step would compile anew, and a scan or cond refuse it.
    """

    def leaf(a: Any, b: Any) -> Any:
        same = getattr(a, "dtype", None) == getattr(b, "dtype", None)
        return a if same else jnp.asarray(a, jnp.asarray(b).dtype)

    return jax.tree.map(leaf, new, old)


def dtypes_of_updates(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: PyTree,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> PyTree:
    """Returns the dtypes in which a wrapper that feeds float32 to ``inner`` hands on its updates.

    They are those of the updates, but for 16-bit parameters those that ``inner`` itself gives:
    ``master_weights`` and ``stochastic_round`` answer 16-bit gradients with float32 updates, which
    must not be rounded again.
    """
    own = jax.tree.map(lambda g: g.dtype, updates)
    if params is None or not any(g.dtype.itemsize < 4 for g in jax.tree.leaves(updates)):
        return own
    given, _ = jax.eval_shape(lambda g: inner.update(g, state, params, **extra_args), updates)
    return jax.tree.map(
        lambda g, p, u: u.dtype if p.dtype.itemsize < 4 else g.dtype, updates, params, given
    )


def stateless(update: Callable[[PyTree, PyTree | None], PyTree]) -> Transformation:
    """Builds a transformation without state from a function of (updates, params)."""

    def init_fn(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        return update(updates, params), state

    return Transformation(init_fn, update_fn)
