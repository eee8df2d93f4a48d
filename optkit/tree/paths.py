"""Names of leaves: one spelling of a tree path for every message, rule and file."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any
KeyPath = tuple[Any, ...]


def path_string(key_path: KeyPath) -> str:
    """Returns the leaf's path as ``a/b/0/kernel``.

    The ``.value`` that an nnx ``Variable`` adds at the end is left out, so that a module and its
    pure state give the same names.

    Args:
      key_path: key path as ``jax.tree_util.tree_flatten_with_path`` gives it.

    Returns:
      Components joined by ``/``; ``""`` for a tree that is a single leaf.

    Example:
      >>> import jax, optkit
      >>> tree = {"dense": {"kernel": 1}, "blocks": [2]}
      >>> [optkit.tree.path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
      ['blocks/0', 'dense/kernel']
    """
    keys = list(key_path)
    if keys and _is_value(keys[-1]):
        keys.pop()
    return "/".join(_component(key) for key in keys)


def _component(key: Any) -> str:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
        case GetAttrKey(name=name):
            return name
        case _:
            return str(key).strip(".[]'\"")


def leaves_with_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns ``[(path, leaf), ...]`` in flattening order; ``None`` and masked nodes are no leaves.

    A field called ``value`` that has siblings is part of the path, unlike that of an nnx
    ``Variable``.

    Args:
      tree: any pytree.

    Returns:
      One pair a leaf.

    Example:
      >>> import optkit
      >>> optkit.tree.leaves_with_paths({"a": 1, "b": None, "c": (2,)})
      [('a', 1), ('c/0', 2)]
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    parents = {path[:-1] for path, _ in flat if path and _is_value(path[-1])}
    if not parents:
        return [(path_string(path), leaf) for path, leaf in flat]
    # Masked siblings count, so that a leaf has one name in the whole tree and in a part of it.
    children: dict[KeyPath, set[Any]] = {parent: set() for parent in parents}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_empty):
        for depth in range(len(path)):
            if path[:depth] in children:
                children[path[:depth]].add(path[depth])
    return [
        ((full_path_string if len(children.get(path[:-1], ())) > 1 else path_string)(path), leaf)
        for path, leaf in flat
    ]


def full_path_string(key_path: KeyPath) -> str:
    """Returns all components joined by ``/``, a last ``value`` too."""
    return "/".join(_component(key) for key in key_path)


def values_by_path(
    tree: PyTree, values: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Returns the value that a tree, or a prefix of one, holds for each leaf of another tree.

    Masked-out parts of ``tree`` have no leaves, so ``values`` may name more than ``tree`` holds.

    Args:
      tree: gives the paths.
      values: values, at the leaves or anywhere above them.
      is_leaf: tells what is a value, where a value is a container or None.

    Returns:
      A dict; leaves without a value are not in it.

    Example:
      >>> import optkit
      >>> optkit.tree.values_by_path({"a": [1, 2], "b": 3}, {"a": True, "c": False})
      {'a/0': True, 'a/1': True}
    """
    named = jax.tree_util.tree_leaves_with_path(values, is_leaf=is_leaf)
    held = {tuple(path): value for path, value in named}
    out = {}
    flat = jax.tree_util.tree_leaves_with_path(tree)
    for (key_path, _), (path, _) in zip(flat, leaves_with_paths(tree), strict=True):
        above = [tuple(key_path[:depth]) for depth in range(len(key_path) + 1)]
        found = next((prefix for prefix in above if prefix in held), None)
        if found is not None:
            out[path] = held[found]
    return out


def _is_value(key: Any) -> bool:
    return isinstance(key, GetAttrKey) and key.name in ("value", "raw_value")


def _is_empty(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps ``function(path, leaf, *other_leaves)`` over trees of one structure.

    Args:
      function: called with the path string first.
      tree: the tree that gives structure and paths.
      *rest: further trees that have ``tree`` as a prefix.

    Returns:
      A tree of the results.

    Example:
      >>> import optkit
      >>> optkit.tree.map_with_path(lambda path, x: f"{path}={x}", {"a": [1, 2]})
      {'a': ['a/0=1', 'a/1=2']}
    """
    paths = jax.tree.unflatten(
        jax.tree.structure(tree), [path for path, _ in leaves_with_paths(tree)]
    )
    return jax.tree.map(
        lambda leaf, path, *others: function(path, leaf, *others), tree, paths, *rest
    )


def matches(pattern: str, path: str) -> bool:
    """Tells whether a rule's pattern names a path.

    * ``re:EXPR`` is a regular expression searched in the whole path.
    * A glob with a ``/`` must match the whole path; ``*`` and ``?`` stay inside one component and
      ``**`` spans any number of them.
    * A glob without a ``/`` must match one component, wherever it stands.

    Args:
      pattern: the rule.
      path: a path string.

    Returns:
      True if the pattern names the path.

    Raises:
      ValueError: the expression behind ``re:`` is not a valid regular expression.

    Example:
      >>> import optkit
      >>> [optkit.tree.matches(p, "blocks/0/mlp/kernel") for p in ("mlp", "**/kernel", "re:^bl")]
      [True, True, True]
      >>> optkit.tree.matches("blocks/kernel", "blocks/0/mlp/kernel")
      False
    """
    if pattern.startswith("re:"):
        return _regex(pattern[3:]).search(path) is not None
    if "/" in pattern:
        return _glob(pattern).fullmatch(path) is not None
    return any(_glob(pattern).fullmatch(part) for part in path.split("/"))


@functools.lru_cache(maxsize=1024)
def _regex(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"rule 're:{expression}' is not a valid regular expression: {error}; "
            "leave out 're:' for a glob"
        ) from error


def wildcards(pattern: str, path: str) -> tuple[str, ...] | None:
    """Returns what a pattern leaves open in a path that it names: what tells such paths apart.

    Args:
      pattern: as ``matches`` takes it.
      path: a path string.

    Returns:
      What stands for each wildcard of a glob or group of an expression, between what stands before
      and behind the pattern; None if the pattern does not name the path.

    Example:
      >>> from optkit.tree.paths import wildcards
      >>> wildcards("lora_?", "blocks/0/lora_a"), wildcards("blocks/*/kernel", "blocks/0/kernel")
      (('blocks/0', 'a', ''), ('', '0', ''))
    """
    if pattern.startswith("re:"):
        found = _regex(pattern[3:]).search(path)
        if found is None:
            return None
        groups = tuple(part or "" for part in found.groups())
        return path[: found.start()], *groups, path[found.end() :]
    if "/" in pattern:
        whole = _glob(pattern).fullmatch(path)
        return None if whole is None else ("", *whole.groups(), "")
    parts = path.split("/")
    for at, part in enumerate(parts):
        if one := _glob(pattern).fullmatch(part):
            return "/".join(parts[:at]), *one.groups(), "/".join(parts[at + 1 :])
    return None


_GLOB_TOKENS: Sequence[tuple[str, str]] = (
    ("**/", "((?:.*/)?)"),
    ("/**", "((?:/.*)?)"),
    ("**", "(.*)"),
    ("*", "([^/]*)"),
    ("?", "([^/])"),
)


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    out, at = "", 0
    while at < len(pattern):
        for token, expression in _GLOB_TOKENS:
            if pattern.startswith(token, at):
                out, at = out + expression, at + len(token)
                break
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return re.compile(out)
