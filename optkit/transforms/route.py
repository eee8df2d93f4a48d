"""Which transformation serves which leaf: routing by role and path."""

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, check_transformation
from optkit.transforms.recording import RouteRecord, present
from optkit.tree import (
    PyTree,
    RuleLike,
    Selector,
    leaves_with_paths,
    selects,
)
from optkit.tree.selection import names_a_role, names_none

FROZEN = "frozen"
# Extra arguments that are functions of all parameters.
OF_PARAMETERS = frozenset({"value_fn", "logits_fn", "curvature", "statistics", "prev_grad"})


class RouteState(NamedTuple):
    """State of ``route``."""

    routes: dict[str, PyTree]  # state of each route's transformation over its own leaves


Rules = Sequence[tuple[Selector, str]]


def _check(transformations: Mapping[str, Any], rules: Rules) -> dict[str, Transformation]:
    if not isinstance(transformations, Mapping):
        raise TypeError(
            f"transformations must map names to transformations and is {transformations!r}; write "
            'route({"a": tx}, [("**", "a")])'
        )
    if FROZEN in transformations:
        raise ValueError(f"the name {FROZEN!r} is built in; give this transformation another one")
    inner = {
        name: check_transformation(f"transformations[{name!r}]", tx)
        for name, tx in transformations.items()
    }
    if not rules:
        raise ValueError('route has no rules; add at least ("**", NAME), which takes every leaf')
    for selector, name in rules:
        if name not in inner and name != FROZEN:
            close = difflib.get_close_matches(str(name), [*inner, FROZEN], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"rule {selector!r} sends leaves to {name!r}, which is not one of "
                f"{', '.join(map(repr, [*inner, FROZEN]))}{hint}"
            )
    unused = [name for name in inner if name not in {to for _, to in rules}]
    if unused:
        raise ValueError(
            f"no rule sends leaves to {unused[0]!r}; add a rule for it or leave it out"
        )
    return inner


def assign(tree: PyTree, rules: Rules, roles: Sequence[RuleLike]) -> dict[str, str]:
    """Returns path -> route; raises ValueError with the leaf that no rule names."""
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


def _idle(tree: PyTree, rules: Rules, roles: Sequence[RuleLike]) -> Iterator[str]:
    """Says which rules serve no leaf: legitimate in a general configuration, or a misspelt one."""
    leaves = leaves_with_paths(tree)
    served: set[str] = set()
    for index, (selector, name) in enumerate(rules):
        mine = {path for path, leaf in leaves if selects(selector, path, leaf, roles)}
        if not mine and names_none(selector, tree, roles):
            yield f"rule {selector!r} -> {name} matches no leaf"
        elif mine and mine <= served and index < len(rules) - 1:
            yield f"rule {selector!r} -> {name} serves no leaf: earlier rules take all it matches"
        served |= mine


def only(tree: PyTree, labels: Sequence[str], name: str) -> PyTree:
    """Returns the tree with masked nodes in place of the leaves of other routes."""
    leaves = jax.tree.leaves(tree)
    kept = [
        leaf if label == name else optax.MaskedNode()
        for leaf, label in zip(leaves, labels, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


def _of_all(
    function: Callable[..., Any], params: PyTree | None, labels: Sequence[str], name: str
) -> Callable[..., Any]:
    """Makes a function of all parameters one of a route's: the others are as they are."""
    if params is None:
        return function
    structure: Any = jax.tree.structure(params)

    def of_part(mine: PyTree, *rest: Any) -> Any:
        if jax.tree.structure(mine) == structure:
            return function(mine, *rest)
        own = iter(jax.tree.leaves(mine))
        pairs = zip(jax.tree.leaves(params), labels, strict=True)
        whole = [next(own) if label == name else leaf for leaf, label in pairs]
        out = function(structure.unflatten(whole), *rest)
        like = jax.tree.structure(out) == structure and not jax.tree_util.treedef_is_leaf(structure)
        return only(out, labels, name) if like else out

    return of_part


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
      arguments that are trees like the updates reach each route with its leaves only; functions of
      the parameters (``value_fn``, ``logits_fn``, ``curvature``, ``statistics``, ``prev_grad``) can
      be called with those leaves, and compute with all; all others are passed on.
      ``print(optkit.plan(tx, params))`` shows who serves what.

    Raises:
      ValueError: no rules, a rule that names an unknown transformation, a transformation that no
        rule names; at init a leaf that no rule names. A rule may match no leaf: the plan says so.
      TypeError: a value that is no transformation.

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

    def record(params: PyTree) -> RouteRecord:
        by_role = bool(roles) or any(names_a_role(selector) for selector, _ in rules)
        idle = tuple(_idle(params, rules, roles))
        return RouteRecord(assign(params, rules, roles), tuple(roles), by_role, idle)

    return build_route(_check(transformations, rules), rules, roles, record)


def build_route(
    inner: Mapping[str, Transformation],
    rules: Rules,
    roles: Sequence[RuleLike],
    record: Callable[[PyTree], RouteRecord],
) -> Transformation:
    """``route`` of what has been checked; ``record`` tells a plan about it."""

    def labels_of(tree: PyTree) -> list[str]:
        return list(assign(tree, rules, roles).values())

    def init_fn(params: PyTree) -> RouteState:
        labels = labels_of(params)
        plan = present()
        if plan is not None:
            plan.routes.append(record(params))
        return RouteState({k: tx.init(only(params, labels, k)) for k, tx in inner.items()})

    def update_fn(
        updates: PyTree, state: RouteState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RouteState]:
        if params is not None:
            check_same_leaves(updates, params, "parameters", shapes=True)
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
                return only(tree, labels, name) if same else tree

            bind = functools.partial(_of_all, params=params, labels=labels, name=name)
            extras = {
                key: bind(value) if key in OF_PARAMETERS and callable(value) else part(value)
                for key, value in extra_args.items()
            }
            own = None if params is None else only(params, labels, name)
            given = only(updates, labels, name)
            result, states[name] = tx.update(given, state.routes[name], own, **extras)
            for index, leaf in zip(mine, jax.tree.leaves(result), strict=True):
                out[index] = leaf
        return structure.unflatten(out), RouteState(states)

    return Transformation(init_fn, update_fn)
