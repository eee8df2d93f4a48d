"""A policy's word on a tree, checked: what each leaf stores, and how it goes in and out."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.masks.compact import Slot, indices
from optkit.masks.policy import Active, Policy
from optkit.tree import PyTree, leaves_with_paths, match_state
from optkit.tree.sharding import place_stack, spec_of, zeros_beside

State = Literal["hold", "zero", "drop"]


class Plan:
    """What a policy says about a tree: one entry a leaf, in flattening order."""

    def __init__(self, policy: Policy, state: State, tree: PyTree) -> None:
        self.policy, self.state, self.tree = policy, state, tree
        self.structure: Any = jax.tree.structure(tree)
        self.leaves: list[Any] = jax.tree.leaves(tree)
        self.paths = [path for path, _ in leaves_with_paths(tree)]
        self.active = policy.active(tree)
        structure: Any = self.structure
        self.slots: list[Any] = structure.flatten_up_to(self.active)
        self.drops = state == "drop"
        if self.slots and not any(slot is not False and _some(slot) for slot in self.slots):
            raise ValueError(
                f"the policy {policy.name} trains nothing: it masks out every leaf "
                f"({', '.join(map(repr, self.paths[:6]))}); let it choose some, or freeze them "
                'with optkit.route(..., [("**", "frozen")])'
            )
        for path, leaf, slot in zip(self.paths, self.leaves, self.slots, strict=True):
            if isinstance(slot, Active):
                self._check(path, np.shape(leaf), slot)

    def _check(self, path: str, shape: tuple[int, ...], slot: Active) -> None:
        fits = len(slot.shape) == len(shape) and all(
            n in (1, m) for n, m in zip(slot.shape, shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"the policy {self.policy.name} has a mask of shape {slot.shape} for leaf {path!r} "
                f"of shape {shape}; give the leaf's shape, with 1 for axes that are taken whole"
            )
        if slot.count is not None and slot.count > math.prod(slot.shape):
            raise ValueError(
                f"the policy {self.policy.name} keeps {slot.count} of leaf {path!r}, whose mask "
                f"has {math.prod(slot.shape)} entries; keep fewer"
            )
        by_leaf = math.prod(slot.shape) == 1 < math.prod(shape)
        if self.drops and (slot.count is None or by_leaf):
            raise ValueError(
                f"state='drop' needs arrays of a fixed size, but how much of leaf {path!r} is "
                f"active differs from step to step with the policy {self.policy.name}; use "
                "state='hold' or 'zero'"
            )

    def slot(self, at: int) -> Slot:
        """Returns how a leaf is stored that is masked in part."""
        return Slot(tuple(np.shape(self.leaves[at])), self.slots[at])

    @property
    def partial(self) -> list[int]:
        """Leaves that are masked in part."""
        return [i for i, slot in enumerate(self.slots) if isinstance(slot, Active)]

    def tree_of(self, values: Sequence[Any]) -> PyTree:
        """Returns a tree with a value at each leaf that is masked in part, and None elsewhere."""
        out: list[Any] = [None] * len(self.slots)
        for at, value in zip(self.partial, values, strict=True):
            out[at] = value
        return self.structure.unflatten(out)

    def values(self, tree: PyTree) -> list[Any]:
        """Undoes ``tree_of``."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaves[at] for at in self.partial]

    def begin(self) -> list[jax.Array]:
        """Returns masks, or indices, to begin with where none can be chosen yet."""
        out = []
        for at in self.partial:
            leaf, shape = self.leaves[at], self.slots[at].shape
            if self.drops:
                out.append(self.slot(at).placeholder())
            elif shape == np.shape(leaf):
                out.append(jnp.zeros_like(leaf, jnp.bool_))
            else:
                out.append(zeros_beside(leaf, shape, jnp.bool_))
        return out

    def kept(self, masks: PyTree) -> list[jax.Array]:
        """Returns what is kept of the masks that a policy gave: themselves, or indices."""
        checked = self.checked(masks)
        if not self.drops:
            return checked
        return indices(checked, [self.slots[at].count for at in self.partial])

    def is_like(self, tree: PyTree) -> bool:
        """Tells whether a tree has the leaves and shapes of this one."""
        if jax.tree.structure(tree) != self.structure:
            return False
        pairs = zip(jax.tree.leaves(tree), self.leaves, strict=True)
        return all(np.shape(x) == np.shape(leaf) for x, leaf in pairs)

    def checked(self, masks: PyTree) -> list[jax.Array]:
        """Returns the masks that a policy gave."""
        given = self.structure.flatten_up_to(masks)
        out = []
        for at in self.partial:
            mask, slot, leaf = given[at], self.slots[at], self.leaves[at]
            if np.shape(mask) != slot.shape or getattr(mask, "dtype", None) != jnp.bool_:
                raise ValueError(
                    f"the policy {self.policy.name} gave {jnp.asarray(mask).dtype} of shape "
                    f"{np.shape(mask)} for leaf {self.paths[at]!r}; a bool array of shape "
                    f"{slot.shape} is needed"
                )
            out.append(_beside(mask, leaf) if slot.shape == np.shape(leaf) else mask)
        return out

    def stored(self, kept: Sequence[jax.Array], tree: PyTree) -> PyTree:
        """Returns a tree as the inner transformation sees it: active entries only, or whole."""
        leaves = self.structure.flatten_up_to(tree)
        out: list[Any] = [
            optax.MaskedNode() if slot is False else leaf
            for leaf, slot in zip(leaves, self.slots, strict=True)
        ]
        if self.drops:
            for at, index in zip(self.partial, kept, strict=True):
                out[at] = self.slot(at).take(leaves[at], index)
        return self.structure.unflatten(out)

    def full(self, kept: Sequence[jax.Array], tree: PyTree) -> PyTree:
        """Returns updates of the whole tree: nothing moves where nothing trains."""
        given = self.structure.flatten_up_to(tree)
        out = []
        masks = dict(zip(self.partial, kept, strict=True))
        for at, (u, leaf, slot) in enumerate(zip(given, self.leaves, self.slots, strict=True)):
            if slot is False:
                out.append(jnp.zeros_like(leaf))
            elif slot is True:
                out.append(u)
            elif self.drops:
                out.append(self.slot(at).put(u, masks[at], leaf))
            else:
                out.append(jnp.where(masks[at], u, jnp.zeros((), u.dtype)))
        return self.structure.unflatten(out)

    def held(self, kept: Sequence[jax.Array], new: PyTree, old: PyTree) -> PyTree:
        """Returns the new state, with the old one's numbers for entries that do not train."""
        masks = {self.paths[at]: mask for at, mask in zip(self.partial, kept, strict=True)}
        shapes = {self.paths[at]: np.shape(self.leaves[at]) for at in self.partial}
        out = []
        for match, before in zip(match_state(new, self.tree), jax.tree.leaves(old), strict=True):
            mask = None if match.param_path is None else masks.get(match.param_path)
            # Of a tree that is one scalar, a counter has the same path and shape.
            counts = not jnp.issubdtype(match.leaf.dtype, jnp.inexact)
            if mask is None or counts or match.leaf.shape != shapes[match.param_path or ""]:
                out.append(match.leaf)
            else:
                out.append(jnp.where(mask, match.leaf, before))
        return jax.tree.unflatten(jax.tree.structure(new), out)


def _beside(mask: jax.Array, leaf: Any) -> jax.Array:
    """A mask that lies like its leaf, as far as that is said anywhere."""
    spec = spec_of(leaf)
    if isinstance(leaf, jax.core.Tracer):
        if spec is None or spec_of(mask) == spec:
            return mask
        return place_stack(mask[None], jax.typeof(leaf).sharding.mesh, spec)[0]
    placed = getattr(leaf, "sharding", None)
    if placed is None or isinstance(mask, jax.core.Tracer) or mask.sharding == placed:
        return mask
    return jax.device_put(mask, placed)


def _some(slot: bool | Active) -> bool:
    return slot is True or (isinstance(slot, Active) and slot.count != 0)
