"""How adapters are named: patterns of paths, and what pairs the leaves that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax

from optkit.tree import PyTree, leaves_with_paths, matches
from optkit.tree.paths import wildcards
from optkit.tree.selection import SHOWN, closest, masked_paths

AdapterLayout = Literal["flax", "peft"]
Patterns = str | Sequence[str]
Scale = float | Mapping[str, float]
LETTERS = {"a": "A", "b": "B", "e": "E"}


@dataclass(frozen=True)
class Naming:
    """How adapters are named and stored; what every method takes as its options of these names.

    Attributes:
      a: pattern of the A leaves, or several.
      b: pattern of the B leaves; what stands for its wildcards pairs it with A.
      e: pattern of singular values, if there are any.
      layout: "flax", A (..., fan_in, r) and B (..., r, fan_out), or "peft", both turned round.
      required: refuse a tree without adapters.
    """

    a: Patterns = "lora_a"
    b: Patterns = "lora_b"
    e: Patterns | None = None
    layout: AdapterLayout = "flax"
    required: bool = True

    def __post_init__(self) -> None:
        """Refuses options that name nothing."""
        if self.layout not in get_args(AdapterLayout):
            raise ValueError(f"layout={self.layout!r} is not one of 'flax', 'peft'")
        counts = set()
        for name in self.fields:
            value = getattr(self, name)
            words = words_of(value)
            if not words or not all(isinstance(word, str) and word for word in words):
                raise ValueError(f"{name}={value!r} must be a pattern of paths, or several")
            counts.add(len(words))
        if len(counts) > 1:
            raise ValueError(
                f"{' and '.join(f'{name}={getattr(self, name)!r}' for name in self.fields)} are "
                "not as many patterns each; the first of one pairs with the first of the others"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The parts that an adapter has: a and b, and maybe e."""
        return ("a", "b") if self.e is None else ("a", "b", "e")

    def paths(self, tree: PyTree) -> list[dict[str, str]]:
        """Returns the paths of each adapter's parts, in the order of A's leaves.

        Raises:
          ValueError: a part is missing, or nothing is named.
        """
        found: dict[tuple[Any, ...], dict[str, str]] = {}
        for path, _ in leaves_with_paths(tree):
            for name in self.fields:
                for number, word in enumerate(words_of(getattr(self, name))):
                    key = wildcards(word, path)
                    if key is not None:
                        self._enter(found.setdefault((number, *key), {}), name, path)
        masked = masked_paths(tree)
        for parts in found.values():
            self._check_whole(parts, masked)
        whole = {leaf for parts in found.values() for leaf in parts.values()}
        if sum(map(len, found.values())) > len(whole):
            raise ValueError(f"{self._said()} name one leaf twice; give patterns that part them")
        if not found and self.required and jax.tree.leaves(tree):
            self._refuse_none(tree, masked)
        order = [path for path, _ in leaves_with_paths(tree)]
        return sorted(found.values(), key=lambda parts: order.index(parts["a"]))

    def _said(self) -> str:
        return " and ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)

    def _enter(self, parts: dict[str, str], name: str, path: str) -> None:
        if name in parts:
            raise ValueError(
                f"{parts[name]!r} and {path!r} are both the {LETTERS[name]} of one adapter by "
                f"{name}={getattr(self, name)!r}; give a pattern that tells them apart"
            )
        parts[name] = path

    def _check_whole(self, parts: dict[str, str], masked: list[str]) -> None:
        missing = [name for name in self.fields if name not in parts]
        if not missing:
            return
        lone, path = next(iter(parts.items()))
        lost = missing[0]
        hidden = any(matches(word, p) for word in words_of(getattr(self, lost)) for p in masked)
        if missing == ["e"] and not hidden:
            raise ValueError(
                f"{parts['a']!r} and {parts['b']!r} are an adapter without singular values: "
                f"e={self.e!r} names no leaf beside them. The model has to be W + s B diag(E) A; "
                "add a leaf of r numbers to it, or name the one that it has by e="
            )
        why = (
            "a mask or route hides it: an adapter has to go to one transformation whole"
            if hidden
            else f"name it by {lost}=, or leave {path!r} out by a narrower {lone}="
        )
        raise ValueError(
            f"{path!r} is the {LETTERS[lone]} of an adapter whose {LETTERS[lost]} is not in the "
            f"tree: {lost}={getattr(self, lost)!r} names no leaf beside it; {why}"
        )

    def _refuse_none(self, tree: PyTree, masked: list[str]) -> None:
        words = [word for name in self.fields for word in words_of(getattr(self, name))]
        if any(matches(word, path) for word in words for path in masked):
            return
        here = [path for path, _ in leaves_with_paths(tree)]
        more = f" and {len(here) - SHOWN} more" if len(here) > SHOWN else ""
        raise ValueError(
            f"{self._said()} name no adapter; the leaves are "
            f"{', '.join(map(repr, here[:SHOWN]))}{more}. Give the patterns of your own names, or "
            "required=False if a tree may have none"
        )


def check_scale_names(scale: Scale, naming: Naming, found: Sequence[str], tree: PyTree) -> None:
    """Raises ValueError if a pattern of a mapping of scales names no A, be it a masked one.

    Args:
      scale: s, or a mapping of patterns to it.
      naming: how adapters are named.
      found: paths of A.
      tree: parameters.
    """
    if not isinstance(scale, Mapping):
        return
    masked = [p for p in masked_paths(tree) if any(matches(w, p) for w in words_of(naming.a))]
    paths = [*found, *masked]
    lost = [word for word in scale if not any(matches(word, path) for path in paths)]
    if lost and paths:
        parts = [part for word in lost for part in (word, *word.split("/"))]
        hint = closest(parts, paths)
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        raise ValueError(
            f"scale={dict(scale)!r}: {', '.join(map(repr, lost))} names no adapter"
            f"{f'; did you mean {hint}? The' if hint else '; the'} A of the adapters are "
            f"{', '.join(map(repr, paths[:SHOWN]))}{more}"
        )


def words_of(value: Patterns | None) -> tuple[str, ...]:
    """Returns the patterns of an option that may be one, several or None."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
