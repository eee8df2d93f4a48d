"""The two usual routes: everything but what is frozen, and matrices apart from the rest."""

from collections.abc import Collection, Mapping, Sequence

import optax

from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.recording import RouteRecord
from optkit.transforms.route import FROZEN, RouteState, Rules, assign, build_route, only
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    MatrixView,
    PyTree,
    RuleLike,
    Selector,
    dims_by_path,
    matrix_views,
)
from optkit.tree.dims import is_dims
from optkit.tree.selection import check_selects, names_a_role


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

    Raises:
      ValueError: at init a selector that names no leaf, or has a pattern that matches none.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.freeze(("embedding", "encoder/**"), optax.adam(1e-3))
      >>> state = tx.init({"encoder": {"w": jnp.ones((99, 99))}, "out": jnp.ones(2)})
      >>> optkit.tree.tree_bytes(state)
      20
    """
    inner = check_transformation("inner", inner, swapped_with=selector)
    rules = [(selector, FROZEN), ("**", "train")]

    def record(params: PyTree) -> RouteRecord:
        by_role = bool(roles) or names_a_role(selector)
        return RouteRecord(assign(params, rules, roles), tuple(roles), by_role)

    tx = build_route({"train": inner}, rules, roles, record)

    def init_fn(params: PyTree) -> RouteState:
        check_selects("selector", selector, params, roles)
        return tx.init(params)

    return Transformation(init_fn, tx.update)


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

    Raises:
      TypeError: one of the two is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.split_matrices(optkit.orthogonalize(), optax.identity())
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> tx.update(params, tx.init(params))[0]["dense"]["bias"].tolist()
      [1.0, 1.0]
    """
    inner = {
        name: check_transformation(name, tx) for name, tx in zip(names, (matrix, rest), strict=True)
    }
    rules = [(MATRIX_ROLES, names[0]), ("**", names[1])]
    return route_matrices(inner, rules, matrices=names[:1], dims=dims, roles=roles)


def rules_for(tree: PyTree, rules: Rules, dims: Dims) -> Rules:
    """Returns rules in which ``MATRIX_ROLES`` means what a tree of dimension numbers says."""
    if dims is None or is_dims(dims):
        return rules
    named = dims_by_path(tree, dims) or {}
    paths = frozenset(path for path, value in named.items() if value is not None)
    chosen: Selector = lambda path, leaf: path in paths  # noqa: E731
    return [(chosen if choose is MATRIX_ROLES else choose, name) for choose, name in rules]


def route_matrices(
    inner: Mapping[str, Transformation],
    rules: Rules,
    *,
    matrices: Collection[str],
    dims: Dims,
    roles: Sequence[RuleLike],
) -> Transformation:
    """Routes where a tree of dimension numbers, if given, says what is a hidden matrix.

    Args:
      inner: name -> transformation, checked.
      rules: ``(selector, name)`` in order; the selector ``MATRIX_ROLES`` means hidden matrices.
      matrices: names of the routes whose leaves are read as matrices; a plan shows how.
      dims: dimension numbers as ``optkit.orthogonalize`` takes them.
      roles: the user's role rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.
    """

    def build(tree: PyTree) -> Transformation:
        own = rules_for(tree, rules, dims)

        def record(params: PyTree) -> RouteRecord:
            routes = assign(params, own, roles)
            views: dict[str, tuple[MatrixView, ...]] = {}
            unread: tuple[str, ...] = ()
            for name in matrices:
                part = only(params, list(routes.values()), name)
                try:
                    for path, view in matrix_views(part, dims, roles):
                        views[path] = (*views.get(path, ()), view)
                except ValueError as error:
                    unread = (*unread, str(error))
            return RouteRecord(routes, tuple(roles), True, (), views, unread)

        return build_route(inner, own, roles, record)

    return Transformation(
        lambda params: build(params).init(params),
        lambda updates, state, params=None, **extra: build(updates).update(
            updates, state, params, **extra
        ),
    )
