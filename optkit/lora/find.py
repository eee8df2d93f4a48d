"""Which leaves are adapters: found by path, paired, and read as the A and B of ``W + s B A``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.lora.naming import (
    LETTERS,
    AdapterLayout,
    Naming,
    Patterns,
    Scale,
    check_scale_names,
)
from optkit.tree import PyTree, leaves_with_paths, map_groups, matches
from optkit.tree.sharding import spec_of


@dataclass(frozen=True)
class Adapter:
    """One adapter, or a stack of them: ``W + s B A`` with A (rank, fan_in) and B (fan_out, rank).

    Attributes:
      a: path of A.
      b: path of B.
      e: path of the singular values between them; None where there are none.
      batch: sizes of the leading axes, one adapter each.
      rank: r.
      fan_in: inputs of W.
      fan_out: outputs of W.
    """

    a: str
    b: str
    e: str | None
    batch: tuple[int, ...]
    rank: int
    fan_in: int
    fan_out: int


def _read(naming: Naming, parts: dict[str, str], leaves: Mapping[str, Any]) -> Adapter:
    """The sizes of one adapter; raises ValueError where they do not fit each other."""
    shapes = {name: tuple(np.shape(leaves[path])) for name, path in parts.items()}
    a, b = shapes["a"], shapes["b"]
    for name in ("a", "b"):
        if len(shapes[name]) < 2:
            raise ValueError(
                f"{parts[name]!r} of shape {shapes[name]} is no {LETTERS[name]} of an adapter, "
                f"which has rank 2 or more; leave it out by a narrower {name}="
            )
    turned = naming.layout == "peft"
    fan_in, rank = (a[-1], a[-2]) if turned else (a[-2], a[-1])
    fan_out, other = (b[-2], b[-1]) if turned else (b[-1], b[-2])
    if rank != other or a[:-2] != b[:-2]:
        said = "(..., r, fan_in) and (..., fan_out, r)" if turned else "(..., fan_in, r) and (...)"
        said = said.replace("(...)", "(..., r, fan_out)")
        swapped = "flax" if turned else "peft"
        raise ValueError(
            f"{parts['a']!r} of shape {a} and {parts['b']!r} of shape {b} are no {said} of one "
            f"rank and batch; layout={swapped!r} reads them the other way round"
        )
    batch = a[:-2]
    if "e" in shapes:
        own = shapes["e"]
        if own[: len(batch)] != batch or np.prod(own[len(batch) :], dtype=int) != rank:
            raise ValueError(
                f"{parts['e']!r} of shape {own} has not the {rank} singular values of "
                f"{parts['a']!r} for each of the batch {batch}"
            )
    return Adapter(parts["a"], parts["b"], parts.get("e"), batch, rank, fan_in, fan_out)


def adapters(
    params: PyTree,
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    *,
    e: Patterns | None = None,
    layout: AdapterLayout = "flax",
    required: bool = True,
) -> list[Adapter]:
    """Returns the adapters of a tree: which leaves they are, and their sizes.

    An A and a B are one adapter if the patterns leave the same open in their paths: by default
    ``blocks/0/lora_a`` and ``blocks/0/lora_b``. Leading axes are a batch of adapters.

    Args:
      params: parameters (linen or nnx) or their shapes.
      a: pattern of the A leaves: a component's name, a glob with a slash, or ``re:`` and an
        expression whose groups are what is left open; or several patterns.
      b: the same for B, as many.
      e: the same for singular values, r numbers for each adapter; None if there are none.
      layout: "flax" for A (..., fan_in, r) and B (..., r, fan_out) as ``flax.nnx.LoRA`` has them,
        "peft" for (..., r, fan_in) and (..., fan_out, r).
      required: refuse a tree without adapters.

    Returns:
      A list in the order of A's leaves.

    Raises:
      ValueError: an A without its B, sizes that do not fit, a leaf named twice, or no adapter at
        all; names the leaf and what to give.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tree = {"up": {"w": jnp.ones((8, 6)), "A": jnp.ones((8, 2)), "B": jnp.ones((2, 6))}}
      >>> (found,) = optkit.lora.adapters(tree, a="A", b="B")
      >>> found.a, found.rank, found.fan_in, found.fan_out
      ('up/A', 2, 8, 6)
    """
    return AdapterTree(Naming(a, b, e, layout, required), params).adapters


class AdapterTree:
    """A tree whose adapters are read as A (..., r, fan_in) and B (..., fan_out, r).

    Args:
      naming: how they are named.
      tree: parameters, updates or shapes.
    """

    def __init__(self, naming: Naming, tree: PyTree) -> None:
        pairs = leaves_with_paths(tree)
        self.naming = naming
        self.structure: Any = jax.tree.structure(tree)
        self.index = {path: at for at, (path, _) in enumerate(pairs)}
        leaves = dict(pairs)
        self.turned = naming.layout == "flax"
        self.adapters = [_read(naming, parts, leaves) for parts in naming.paths(tree)]

    def turn(self, x: jax.Array) -> jax.Array:
        """Turns a matrix round if the layout has it the other way than the maths."""
        return x.mT if self.turned else x

    def split(self, tree: PyTree, *, turned: bool = True) -> tuple[list[Any], list[Any]]:
        """Returns all A and all B of a tree like the one that was read."""
        leaves = self.structure.flatten_up_to(tree)
        turn = self.turn if turned else lambda x: x
        return (
            [turn(leaves[self.index[adapter.a]]) for adapter in self.adapters],
            [turn(leaves[self.index[adapter.b]]) for adapter in self.adapters],
        )

    def stored(self, tree: PyTree) -> list[Any]:
        """Returns all A as they are stored."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaves[self.index[adapter.a]] for adapter in self.adapters]

    def merge(self, tree: PyTree, a: Sequence[jax.Array], b: Sequence[jax.Array]) -> PyTree:
        """Returns a tree with other A and B, in the dtypes of its own."""
        leaves = list(self.structure.flatten_up_to(tree))
        for adapter, *new in zip(self.adapters, a, b, strict=True):
            for path, value in zip((adapter.a, adapter.b), new, strict=True):
                at = self.index[path]
                leaves[at] = self.turn(value).astype(leaves[at].dtype)
        return self.structure.unflatten(leaves)

    def singular(self, tree: PyTree) -> list[jax.Array]:
        """Returns the singular values, (..., r) of each adapter."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaves[self.index[str(x.e)]].reshape(*x.batch, x.rank) for x in self.adapters]

    def only(self, tree: PyTree) -> PyTree:
        """Returns a tree of the adapters' leaves, all others masked."""
        mine = {self.index[path] for x in self.adapters for path in (x.a, x.b, x.e) if path}
        leaves = self.structure.flatten_up_to(tree)
        return self.structure.unflatten(
            [leaf if at in mine else optax.MaskedNode() for at, leaf in enumerate(leaves)]
        )

    def silenced(self, updates: PyTree, params: PyTree, masked: Sequence[jax.Array]) -> PyTree:
        """Returns updates that lead masked singular values, (..., r) each, to 0 exactly."""
        leaves = list(self.structure.flatten_up_to(updates))
        held = self.structure.flatten_up_to(params)
        for adapter, mask in zip(self.adapters, masked, strict=True):
            at = self.index[str(adapter.e)]
            own = mask.reshape(leaves[at].shape)
            leaves[at] = jnp.where(own, -held[at].astype(leaves[at].dtype), leaves[at])
        return self.structure.unflatten(leaves)

    def pack(self, values: Sequence[Any]) -> PyTree:
        """Returns a tree with one value an adapter at the place of its A, and nothing else."""
        leaves: list[Any] = [optax.MaskedNode()] * len(self.index)
        for adapter, value in zip(self.adapters, values, strict=True):
            leaves[self.index[adapter.a]] = value
        return self.structure.unflatten(leaves)

    def unpack(self, tree: PyTree) -> list[Any]:
        """Undoes ``pack``."""
        return self.stored(tree)


def check_scale(scale: Scale) -> None:
    """Raises ValueError unless a scale, or each of a mapping, is a number that is not 0."""
    numbers = scale.values() if isinstance(scale, Mapping) else [scale]
    for value in numbers:
        known = isinstance(value, jax.Array)
        if not known and (
            isinstance(value, bool) or not isinstance(value, int | float | np.number)
        ):
            raise ValueError(f"scale must be a number or a mapping of patterns, not {scale!r}")
        if not known and (not np.isfinite(value) or value == 0):
            raise ValueError(f"scale={value!r} must be finite and not 0: W + s B A is trained")


def scale_of(scale: Scale, adapter: Adapter) -> Any:
    """Returns s of an adapter; a mapping gives it by the first pattern that names A's path.

    Raises:
      ValueError: the mapping names it nowhere.
    """
    if not isinstance(scale, Mapping):
        return scale
    for pattern, value in scale.items():
        if matches(pattern, adapter.a):
            return value
    raise ValueError(
        f"scale={dict(scale)!r} has no pattern for the adapter {adapter.a!r}; add one, such as '**'"
    )


def check_served(scale: Scale, tree: AdapterTree, params: PyTree) -> None:
    """Raises ValueError if a pattern of a scale names no adapter, or an adapter has no pattern."""
    check_scale_names(scale, tree.naming, [adapter.a for adapter in tree.adapters], params)
    for adapter in tree.adapters:
        scale_of(scale, adapter)


def by_scale(
    tree: AdapterTree,
    scale: Scale,
    function: Callable[[Any], Callable[..., Any]],
    *columns: list[jax.Array],
    group_bytes: int | None,
    move: bool = True,
) -> list[Any]:
    """Applies ``function(s)`` to the adapters of each s, those of one shape together.

    Without ``move`` factors stay where they are, where the compiler decides how products are split
    over devices: what travels are (r, r) matrices. Explicit axes have to be whole for them.
    """
    groups: dict[Any, list[int]] = {}
    for index, adapter in enumerate(tree.adapters):
        own = scale_of(scale, adapter)
        groups.setdefault(id(own) if isinstance(own, jax.Array) else float(own), []).append(index)
    out: list[Any] = [None] * len(tree.adapters)
    for indices in groups.values():
        own = scale_of(scale, tree.adapters[indices[0]])
        given = [[column[i] for i in indices] for column in columns]
        explicit = any(spec_of(x) is not None for column in given for x in column)
        done = map_groups(function(own), *given, group_bytes=group_bytes, move=move or explicit)
        for index, result in zip(indices, done, strict=True):
            out[index] = result
    return out


def delta(
    params: PyTree,
    scale: Scale = 1.0,
    *,
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
) -> dict[str, jax.Array]:
    """Returns ``s B A`` of each adapter.

    Args:
      params: parameters.
      scale: s, a number or a mapping of patterns of A's paths to numbers.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".

    Returns:
      ``{path of A: array}``, (..., fan_in, fan_out) in the layout "flax", else turned round.

    Raises:
      ValueError: as ``optkit.lora.adapters``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tree = {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3))}
      >>> optkit.lora.delta(tree, 0.5)["lora_a"].tolist()[0]
      [1.0, 1.0, 1.0]
    """
    check_scale(scale)
    tree = AdapterTree(Naming(a, b, None, layout), params)
    check_served(scale, tree, params)
    left, right = tree.split(params)
    return {
        x.a: tree.turn(scale_of(scale, x) * jnp.matmul(bb, aa, precision="highest"))
        for x, aa, bb in zip(tree.adapters, left, right, strict=True)
    }
