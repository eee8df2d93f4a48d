"""Parameters cut into fragments by whole leaves."""

from typing import Any, TypeAlias

import jax
import numpy as np

from optkit.tree import PyTree, leaves_with_paths, map_with_path, matches

Fragments: TypeAlias = int | tuple[tuple[str, ...], ...]


def _even(sizes: list[int], count: int) -> list[int]:
    """Returns the fragment of each leaf: in order, about equally large, none of them empty."""
    if len(sizes) < count:
        raise ValueError(
            f"fragments={count} are more than the {len(sizes)} leaves, which stay whole; give "
            "fewer, or keep layers in leaves of their own"
        )
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    wanted = np.minimum(middles * count / max(sum(sizes), 1), count - 1).astype(int)
    out, last = [], -1
    for index, want in enumerate(wanted):
        least = count - (len(sizes) - index)  # or the leaves that are left would not suffice
        last = min(max(want, last, least, 0), last + 1)
        out.append(int(last))
    return out


def assign(anchor: PyTree, fragments: Fragments) -> PyTree:
    """Returns the index of each leaf's fragment, or raises ValueError where it has none or two."""
    named = leaves_with_paths(anchor)
    if isinstance(fragments, int):
        places = dict(
            zip(
                (path for path, _ in named),
                _even([leaf.size for _, leaf in named], fragments),
                strict=True,
            )
        )
        return map_with_path(lambda path, _: places[path], anchor)

    def place(path: str, leaf: Any) -> int:
        del leaf
        found = [
            index
            for index, globs in enumerate(fragments)
            if any(matches(glob, path) for glob in globs)
        ]
        if len(found) != 1:
            which = f"fragments {found} do" if found else "none does"
            raise ValueError(f"leaf {path!r} must be named by one of fragments, and {which}")
        return found[0]

    places = map_with_path(place, anchor)
    empty = sorted(set(range(len(fragments))) - set(jax.tree.leaves(places)))
    if empty:
        raise ValueError(
            f"fragments[{empty[0]}]={list(fragments[empty[0]])!r} names no leaf; there are "
            f"{', '.join(path for path, _ in named)}"
        )
    return places


def part(tree: PyTree, places: PyTree, fragment: int) -> PyTree:
    """Returns the leaves of a fragment, None in place of the others."""
    return jax.tree.map(lambda place, leaf: leaf if place == fragment else None, places, tree)


def put(tree: PyTree, new: PyTree, places: PyTree, fragment: int) -> PyTree:
    """Returns a tree with the leaves of a fragment in place of its own."""
    found = iter(jax.tree.leaves(new))
    return jax.tree.map(
        lambda place, leaf: next(found) if place == fragment else leaf, places, tree
    )
