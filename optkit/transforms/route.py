"""Which transformation serves which leaf: routing by role and path, and freezing."""

import contextlib
import contextvars
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    RuleLike,
    Selector,
    dims_by_path,
    leaves_with_paths,
    selects,
)
from optkit.tree.matrices import is_dims

FROZEN = "frozen"

_RECORD: contextvars.ContextVar[list[dict[str, str]] | None] = contextvars.ContextVar(
    "optkit_routes", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[list[dict[str, str]]]:
    """Collects ``{path: route}`` of every ``route`` that is initialised inside the block.

    A route may sit anywhere in a chain; this is how a plan learns of it without new API on
    Optax's pair of functions.
    """
    records: list[dict[str, str]] = []
    token = _RECORD.set(records)
    try:
        yield records
    finally:
        _RECORD.reset(token)


class RouteState(NamedTuple):
    """State of ``route``."""

    routes: dict[str, PyTree]  # state of each route's transformation over its own leaves


def _check(names: Mapping[str, Any], rules: Sequence[tuple[Selector, str]]) -> None:
    for selector, name in rules:
        if name not in names and name != FROZEN:
            close = difflib.get_close_matches(str(name), [*names, FROZEN], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"rule {selector!r} sends leaves to {name!r}, which is not one of "
                f"{', '.join(map(repr, [*names, FROZEN]))}{hint}"
            )


def _assign(
    tree: PyTree, rules: Sequence[tuple[Selector, str]], roles: Sequence[RuleLike]
) -> dict[str, str]:
    out = {}
    for path, leaf in leaves_with_paths(tree):
        name = next((to for choose, to in rules if selects(choose, path, leaf, roles)), None)
        if name is None:
            raise ValueError(
                f"no rule names leaf {path!r} of shape {jnp.shape(leaf)}; add a last rule "
                '("**", NAME), for example ("**", "frozen")'
            )
        out[path] = name
    return out


def _only(tree: PyTree, labels: Sequence[str], name: str) -> PyTree:
    """The tree with masked nodes in place of the leaves of other routes."""
    leaves = jax.tree.leaves(tree)
    kept = [
        leaf if label == name else optax.MaskedNode()
        for leaf, label in zip(leaves, labels, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


@register(
    kind="wrapper",
    family="routing",
    state_bytes={"*": 0},
    tags=("mask", "partition", "freeze"),
    chain="each leaf to the transformation its role or path names",
)
def route(
    transformations: Mapping[str, optax.GradientTransformation],
    rules: Sequence[tuple[Selector, str]],
    *,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Sends every leaf to one of several transformations, first matching rule wins.

    Args:
      transformations: name -> transformation. The name ``"frozen"`` is built in: its leaves get
        zero updates and no state.
      rules: ``(selector, name)`` in order. A selector is a role (``optkit.Role.HEAD``,
        ``"head"``), a glob (``"blocks/**"``; without a slash: any component of that name), a
        ``"re:..."`` expression, a function of (path, leaf), or a tuple of those.
      roles: your own ``(pattern, role)`` rules, tried before the built-in role table.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. A leaf has state in its own route only. Extra
      arguments that are trees like the updates reach each route with its leaves only; all others
      are passed on. ``print(optkit.plan(tx, params))`` shows who serves what.

    Raises:
      ValueError: a rule names an unknown transformation, or no rule names a leaf (names its path).

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> params = {"embed": {"embedding": jnp.ones((4, 2))}, "up": {"kernel": jnp.ones((2, 3))}}
      >>> tx = optkit.route(
      ...   {"sgd": optax.sgd(1.0), "lion": optkit.lion(0.1)},
      ...   [("embedding", "frozen"), ("**/kernel", "lion"), ("**", "sgd")])
      >>> u, state = tx.update(params, tx.init(params), params)
      >>> jax.tree.map(lambda x: float(x[0, 0]), u)["embed"], float(u["up"]["kernel"][0, 0])
      ({'embedding': 0.0}, -0.10000000149011612)
    """
    _check(transformations, rules)
    inner = {k: optax.with_extra_args_support(v) for k, v in transformations.items() if k != FROZEN}

    def labels_of(tree: PyTree) -> list[str]:
        assigned = _assign(tree, rules, roles)
        records = _RECORD.get()
        if records is not None:
            records.append(assigned)
        return list(assigned.values())

    def init_fn(params: PyTree) -> RouteState:
        labels = labels_of(params)
        return RouteState({k: tx.init(_only(params, labels, k)) for k, tx in inner.items()})

    def update_fn(
        updates: PyTree, state: RouteState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RouteState]:
        if params is not None:
            check_same_leaves(updates, params, "parameters")
        leaves = jax.tree.leaves(updates)
        structure: Any = jax.tree.structure(updates)
        labels = labels_of(updates)
        out = [
            jnp.zeros_like(u) if label == FROZEN else u
            for u, label in zip(leaves, labels, strict=True)
        ]
        states = {}
        for name, tx in inner.items():
            mine = [i for i, label in enumerate(labels) if label == name]

            def part(tree: PyTree, name: str = name) -> PyTree:
                same = structure == jax.tree.structure(tree)
                # A bare array has the structure of every scalar: there the shape tells.
                if same and jax.tree_util.treedef_is_leaf(structure):
                    same = jnp.shape(tree) == jnp.shape(updates)
                return _only(tree, labels, name) if same else tree

            extras = {key: part(value) for key, value in extra_args.items()}
            own = None if params is None else _only(params, labels, name)
            given = _only(updates, labels, name)
            result, states[name] = tx.update(given, state.routes[name], own, **extras)
            for index, leaf in zip(mine, jax.tree.leaves(result), strict=True):
                out[index] = leaf
        return structure.unflatten(out), RouteState(states)

    return Transformation(init_fn, update_fn)


def freeze(
    selector: Selector, inner: optax.GradientTransformation, *, roles: Sequence[RuleLike] = ()
) -> Transformation:
    """Trains all leaves but those that a selector names; frozen leaves allocate no state.

    Args:
      selector: role, glob, ``re:`` expression, function of (path, leaf), or a tuple of those.
      inner: the optimizer of the other leaves.
      roles: your own role rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.freeze(("embedding", "encoder/**"), optax.adam(1e-3))
      >>> state = tx.init({"encoder": {"w": jnp.ones((99, 99))}, "out": jnp.ones(2)})
      >>> optkit.tree.tree_bytes(state)
      20
    """
    return route({"train": inner}, [(selector, FROZEN), ("**", "train")], roles=roles)


def split_matrices(
    matrix: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    *,
    names: tuple[str, str] = ("matrix", "rest"),
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Sends hidden matrices to one transformation and all other leaves to another.

    Hidden matrices are the roles ``optkit.MATRIX_ROLES``: embeddings and heads are matrices by
    rank but not by role. A tree of dimension numbers decides itself: None leaves go to the rest.

    Args:
      matrix: transformation of the matrices.
      rest: transformation of everything else.
      names: names of the two routes, in plans and state.
      dims: dimension numbers as ``optkit.orthogonalize`` takes them.
      roles: your own role rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.split_matrices(optkit.orthogonalize(), optax.identity())
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> tx.update(params, tx.init(params))[0]["dense"]["bias"].tolist()
      [1.0, 1.0]
    """

    def build(tree: PyTree) -> Transformation:
        chosen: Selector = MATRIX_ROLES
        if dims is not None and not is_dims(dims):
            named = dims_by_path(tree, dims) or {}
            matrices = frozenset(path for path, value in named.items() if value is not None)
            chosen = lambda path, leaf: path in matrices  # noqa: E731
        return route(
            {names[0]: matrix, names[1]: rest},
            [(chosen, names[0]), ("**", names[1])],
            roles=roles,
        )

    return Transformation(
        lambda params: build(params).init(params),
        lambda updates, state, params=None, **extra: build(updates).update(
            updates, state, params, **extra
        ),
    )
