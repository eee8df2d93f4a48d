"""Whether a selector names anything at all: a misspelt pattern must not pass in silence."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import optax

from optkit.tree.paths import PyTree, leaves_with_paths, matches, path_string
from optkit.tree.roles import Role, RuleLike, Selector, selects

SHOWN = 6


def is_selector(value: Any) -> bool:
    """Tells whether a value is text, or a list of text and functions: not a tree of bools."""
    if isinstance(value, tuple | list):
        return bool(value) and all(is_selector(part) or callable(part) for part in value)
    return isinstance(value, str)


def _words(selector: Selector) -> Iterator[str]:
    """The texts of a selector."""
    if isinstance(selector, str):
        yield selector
    elif isinstance(selector, Sequence):
        for part in selector:
            yield from _words(part)


def _asks_a_function(selector: Selector) -> bool:
    if isinstance(selector, str):
        return False
    return callable(selector) or any(_asks_a_function(part) for part in selector)


def names_a_role(selector: Selector) -> bool:
    """Tells whether a role is among what a selector names."""
    return any(word in set(Role) for word in _words(selector))


def masked_paths(tree: PyTree) -> list[str]:
    """Returns the paths of masked nodes: leaves that another transformation serves."""
    is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked)
    return [path_string(path) for path, leaf in flat if is_masked(leaf)]


def names_none(selector: Selector, tree: PyTree, rules: Iterable[RuleLike] = ()) -> bool:
    """Tells whether a selector can name no leaf: neither one that is here nor a masked one.

    Of masked nodes only the path is known; a role or a function might name them.
    """
    rules = tuple(rules)
    if any(selects(selector, path, leaf, rules) for path, leaf in leaves_with_paths(tree)):
        return False
    masked = masked_paths(tree)
    if masked and (_asks_a_function(selector) or names_a_role(selector)):
        return False
    return not any(matches(word, path) for word in _words(selector) for path in masked)


def check_selects(
    name: str, selector: Selector, tree: PyTree, rules: Iterable[RuleLike] = ()
) -> None:
    """Raises ValueError if a selector, or one of its patterns, names nothing.

    A pattern has to match the path of a leaf, be it one that another route serves; the selector as
    a whole has to choose a leaf that is here. Functions may choose nothing, and so may anything in
    a tree without leaves.

    Args:
      name: what the caller calls the selector, for the message.
      selector: role, glob, ``re:`` expression, function of (path, leaf), or a sequence of those.
      tree: parameters.
      rules: the user's role rules.
    """
    rules = tuple(rules)
    leaves = leaves_with_paths(tree)
    if not leaves:
        return
    masked = masked_paths(tree)
    words = list(_words(selector))
    paths = [path for path, _ in leaves] + masked
    lost = [
        word
        for word in words
        if word not in set(Role) and not any(matches(word, path) for path in paths)
    ]
    void = not _asks_a_function(selector) and not any(
        selects(selector, path, leaf, rules) for path, leaf in leaves
    )
    if not lost and not void:
        return
    what = f"{name}={selector!r}"
    if lost and len(words) > 1:
        what += f": {', '.join(map(repr, lost))}"
    here = ", ".join(repr(path) for path, _ in leaves[:SHOWN])
    more = f" and {len(leaves) - SHOWN} more" if len(leaves) > SHOWN else ""
    others = "; other leaves are not seen here: another route serves them" if masked else ""
    hint = closest(lost, paths)
    asked = f"; did you mean {hint}? The" if hint else "; the"
    raise ValueError(
        f"{what} names no leaf{asked} leaves are {here}{more}{others}. "
        "print(optkit.plan(tx, params)) shows the role of each"
    )


def closest(words: Sequence[str], paths: Sequence[str]) -> str:
    """Returns the closest role, component or path to the first word that has one, or nothing."""
    parts = {part for path in paths for part in path.split("/")}
    for word in words:
        if word.startswith("re:"):
            continue
        for known in ([*Role], sorted(parts), paths):
            close = difflib.get_close_matches(word, [str(x) for x in known], n=1, cutoff=0.7)
            if close:
                kind = "the role " if known == [*Role] else ""
                return f"{kind}{close[0]!r}"
    return ""
