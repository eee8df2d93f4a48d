"""What a mask policy is: which entries may train, how many, and when they are chosen anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from optkit.linalg.largest import MOST
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import MATRIX_ROLES, PyTree, RuleLike, Selector, leaves_with_paths, selects
from optkit.tree.selection import check_selects

Rest = Literal["train", "freeze"]
Keep: TypeAlias = float | int


@dataclass(frozen=True)
class Active:
    """How a leaf is masked.

    Attributes:
      shape: shape of its mask: the leaf's, with 1 for axes along which all or nothing trains.
      count: how many entries of the mask are True; None if that differs from step to step.
    """

    shape: tuple[int, ...]
    count: int | None


class Look(NamedTuple):
    """What a policy sees when it chooses."""

    step: jax.Array  # int32 scalar, finished updates
    params: PyTree  # parameters before the step
    grads: PyTree  # gradients; None where masks are chosen by init
    kept: PyTree  # masks so far; None with state="drop" and at init
    extra: dict[str, Any]  # extra arguments of update that the policy names


@dataclass(frozen=True, eq=False)
class Policy:
    """Says which entries train; the parts of it are functions.

    Attributes:
      name: what messages call it.
      active: params -> a tree like params of True (all of the leaf trains), False (nothing of it
        does, it has no state) or ``Active``. It may look at paths, shapes and dtypes only.
      mask: (policy state, ``Look``) -> (tree of masks, policy state). A mask is a bool array of the
        ``Active``'s shape; at other leaves anything.
      init: params -> policy state.
      due: False if masks are chosen once, by init; True if they are at every step; or a function of
        the finished updates to a bool.
      needs_gradients: masks cannot be chosen by init; nothing is masked in before the first step.
      extra: names of extra arguments of ``update`` that are for the policy.
    """

    name: str
    active: Callable[[PyTree], PyTree]
    mask: Callable[[PyTree, Look], tuple[PyTree, PyTree]]
    init: Callable[[PyTree], PyTree] = lambda params: ()
    due: bool | Callable[[jax.Array], jax.Array] = False
    needs_gradients: bool = False
    extra: tuple[str, ...] = ()


class Scope(NamedTuple):
    """Which leaves a policy masks, and what becomes of the others."""

    where: Selector
    rest: Rest
    roles: tuple[RuleLike, ...]

    def check(self) -> None:
        """Raises ValueError for an unknown word."""
        check_choice("rest", self.rest, ("train", "freeze"))

    def masked(self, params: PyTree) -> list[bool]:
        """Tells of each leaf whether the policy masks it; an empty one has nothing to mask."""
        if self.where is not MATRIX_ROLES:  # the default may find nothing in a part of a model
            check_selects("where", self.where, params, self.roles)
        return [
            np.size(leaf) > 0 and selects(self.where, path, leaf, self.roles)
            for path, leaf in leaves_with_paths(params)
        ]

    def active(self, params: PyTree, choose: Callable[[str, Any], bool | Active]) -> PyTree:
        """Returns the tree of what is active, by a function of (path, leaf) where it is masked."""
        pairs = zip(leaves_with_paths(params), self.masked(params), strict=True)
        out = [choose(*pair) if on else self.rest == "train" for pair, on in pairs]
        return jax.tree.unflatten(jax.tree.structure(params), out)


def scope(where: Selector, rest: Rest, roles: Sequence[RuleLike]) -> Scope:
    """Returns a checked scope."""
    out = Scope(where, rest, tuple(roles))
    out.check()
    return out


def check_keep(name: str, keep: Keep) -> None:
    """Raises unless a value is a share in (0, 1] or a number of at least 1."""
    if isinstance(keep, float):
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"{name}={keep!r} is a share and must be in (0, 1]; an integer counts")
        return
    check_static_int(name, keep)


def count_of(name: str, keep: Keep, size: int, path: str, what: str = "entries") -> int:
    """Returns how many of ``size`` a share or a number means, at least 1.

    Raises:
      ValueError: more than there are; names the leaf.
    """
    if isinstance(keep, float):
        return min(size, max(1, round(keep * size)))
    if keep > size:
        raise ValueError(
            f"{name}={keep} is more than the {size} {what} of leaf {path!r}; give at most {size}, "
            "or a share such as 0.05, or leave the leaf out of `where`"
        )
    if keep > MOST:
        raise ValueError(f"{name}={keep} is more than {MOST}, the most that can be counted")
    return keep


def at_masked(params: PyTree, active: PyTree, masks: Sequence[jax.Array]) -> PyTree:
    """Returns a tree with one mask for each leaf that has an ``Active``, and None elsewhere."""
    structure: Any = jax.tree.structure(params)
    given = iter(masks)
    slots = structure.flatten_up_to(active)
    return structure.unflatten(
        [next(given) if isinstance(slot, Active) else None for slot in slots]
    )


def masked_leaves(active: PyTree, params: PyTree, *trees: PyTree) -> list[list[Any]]:
    """Returns of each tree the leaves that are masked entry by entry or in part."""
    structure: Any = jax.tree.structure(params)
    on = [isinstance(slot, Active) for slot in structure.flatten_up_to(active)]
    return [
        [x for x, own in zip(structure.flatten_up_to(tree), on, strict=True) if own]
        for tree in (params, *trees)
    ]


def masked_paths_of(active: PyTree, params: PyTree) -> list[str]:
    """Returns the paths of the leaves that are masked in part."""
    slots = jax.tree.structure(params).flatten_up_to(active)  # type: ignore[attr-defined]
    pairs = zip(leaves_with_paths(params), slots, strict=True)
    return [path for (path, _), slot in pairs if isinstance(slot, Active)]


def every(interval: int | None) -> bool | Callable[[jax.Array], jax.Array]:
    """Returns when masks are due that are drawn anew at every ``interval``-th step."""
    if interval is None:
        return False
    check_static_int("interval", interval)
    if interval == 1:
        return True
    return lambda step: (step > 0) & (step % interval == 0)


__all__ = [
    "Active",
    "Keep",
    "Look",
    "Policy",
    "Rest",
    "Scope",
    "at_masked",
    "check_keep",
    "count_of",
    "every",
    "masked_leaves",
    "masked_paths_of",
    "scope",
]
