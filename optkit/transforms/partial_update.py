"""Runs a transformation on some layers of a model and keeps updates and state of the others."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit.transforms.base import Transformation, dtypes_of_updates, keep_dtypes
from optkit.tree import LayerOrder, PyTree
from optkit.tree.paths import full_path_string


def only(tree: PyTree, keep: Sequence[bool]) -> PyTree:
    """Returns the tree with masked nodes in place of the leaves that are not kept."""
    leaves = jax.tree.leaves(tree)
    kept = [leaf if stays else optax.MaskedNode() for leaf, stays in zip(leaves, keep, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


class PartialUpdate:
    """An update of the layers from a cut on: the function that runs for each cut.

    With the shared clock, the inner transformation is given the trained leaves and that part of its
    state which it would have had for them alone; counters are in every such part.
    """

    def __init__(
        self,
        inner: Transformation,
        clock: str,
        layers: LayerOrder,
        updates: PyTree,
        state: PyTree,
        params: PyTree | None,
        extras: dict[str, Any],
    ) -> None:
        self.inner, self.layers = inner, layers
        self.updates, self.state, self.params, self.extras = updates, state, params, extras
        self.leaves: list[jax.Array] = jax.tree.leaves(updates)
        self.structure: Any = jax.tree.structure(updates)
        self.numbers = list(layers.layer_of.values())
        if clock == "global":
            self.run = self._with_shared_clock
            self.dtypes = self._dtypes([True] * len(self.leaves), state)
        else:
            self.run = self._with_own_clocks
            self.dtypes = {}
            for name, keep in self._layers():
                self.dtypes |= self._dtypes(keep, state[name])

    def branch(self, cut: int) -> Callable[[], tuple[PyTree, PyTree]]:
        """Returns the function that trains the layers from a cut on."""
        return lambda: self.run(cut)

    def _with_shared_clock(self, cut: int) -> tuple[PyTree, PyTree]:
        keep = [number >= cut for number in self.numbers]
        if all(keep):
            out, new = self._update(keep, self.state)
            return self._whole(out), new
        given = self.updates if self.params is None else self.params
        like = jax.eval_shape(lambda tree: self.inner.init(tree), only(given, keep))
        out, new = self._update(keep, _state_part(self.state, like, self.updates, keep))
        return self._whole(out), _put_back(self.state, new)

    def _with_own_clocks(self, cut: int) -> tuple[PyTree, PyTree]:
        out: dict[int, jax.Array] = {}
        states = dict(self.state)
        for number, (name, keep) in enumerate(self._layers(), 1):
            if number >= cut and any(keep):
                some, states[name] = self._update(keep, states[name])
                out |= some
        return self._whole(out), states

    def _layers(self) -> list[tuple[str, list[bool]]]:
        return [
            (name, [number == n for number in self.numbers])
            for n, name in enumerate(self.layers.names, 1)
        ]

    def _arguments(self, keep: Sequence[bool]) -> tuple[PyTree, PyTree | None, dict[str, Any]]:
        if all(keep):
            return self.updates, self.params, self.extras

        bare = jax.tree_util.treedef_is_leaf(self.structure)

        def part(tree: PyTree) -> PyTree:
            same = jax.tree.structure(tree) == self.structure
            # A bare array has the structure of every scalar: there the shape tells.
            if same and bare:
                same = getattr(tree, "shape", None) == self.updates.shape
            return only(tree, keep) if same else tree

        extras = {name: part(value) for name, value in self.extras.items()}
        params = None if self.params is None else part(self.params)
        return only(self.updates, keep), params, extras

    def _dtypes(self, keep: Sequence[bool], state: PyTree) -> dict[int, Any]:
        given, params, extras = self._arguments(keep)
        found = jax.tree.leaves(dtypes_of_updates(self.inner, given, state, params, extras))
        return dict(zip(_indices(keep), found, strict=True))

    def _update(self, keep: Sequence[bool], state: PyTree) -> tuple[dict[int, jax.Array], PyTree]:
        given, params, extras = self._arguments(keep)
        out, new = self.inner.update(given, state, params, **extras)
        found = zip(_indices(keep), jax.tree.leaves(out), strict=True)
        return {i: u.astype(self.dtypes[i]) for i, u in found}, keep_dtypes(new, state)

    def _whole(self, out: dict[int, jax.Array]) -> PyTree:
        leaves = [
            out[i] if i in out else jnp.zeros_like(u, self.dtypes[i])
            for i, u in enumerate(self.leaves)
        ]
        return self.structure.unflatten(leaves)


def _indices(keep: Sequence[bool]) -> list[int]:
    return [i for i, stays in enumerate(keep) if stays]


def _by_key_path(tree: PyTree) -> dict[tuple[Any, ...], Any]:
    return {tuple(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _state_part(state: PyTree, like: PyTree, updates: PyTree, keep: Sequence[bool]) -> PyTree:
    """Returns the part of a state that a transformation has for some leaves only.

    Raises:
      ValueError: the state of the whole is not that of the parts side by side.
    """
    held, wanted = _by_key_path(state), _by_key_path(like)
    frozen = [path for path, stays in zip(_by_key_path(updates), keep, strict=True) if not stays]
    odd = [
        path
        for path, leaf in wanted.items()
        if path not in held or jnp.shape(held[path]) != jnp.shape(leaf)
    ]
    odd += [
        path for path in held if path not in wanted and not any(_inside(p, path) for p in frozen)
    ]
    if odd:
        raise ValueError(
            f"drop_layers cannot freeze a part of the inner state: {full_path_string(odd[0])!r} is "
            "not kept leaf by leaf; put drop_layers inside of this transformation, or use "
            "clock='layer', which gives each layer a state of its own"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [held[path] for path in wanted])


def _inside(path: tuple[Any, ...], longer: tuple[Any, ...]) -> bool:
    """Whether a key path is part of a longer one."""
    starts = range(len(longer) - len(path) + 1)
    return any(longer[start : start + len(path)] == path for start in starts)


def _put_back(state: PyTree, part: PyTree) -> PyTree:
    """Returns a state with the leaves of a part of it replaced."""
    whole = _by_key_path(state) | _by_key_path(part)
    return jax.tree.unflatten(jax.tree.structure(state), list(whole.values()))
