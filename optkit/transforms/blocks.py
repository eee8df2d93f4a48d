"""Block coordinate descent: a few blocks of leaves train at a time, and only they have state."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_transformation,
    keep_dtypes,
    prng_key,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.tree import PyTree, RuleLike, Selector, leaves_with_paths, selects, upcast

Order = Literal["random", "epochs", "ascending", "descending", "fixed"]
Blocks: TypeAlias = Literal["layers", "leaves"] | Sequence[Selector]
Free = Literal["drop", "sign", "sgd"]
Draw = Callable[[jax.Array], Any]


_FREE: dict[Free, Callable[[jax.Array], jax.Array]] = {
    "drop": jnp.zeros_like,
    "sign": jnp.sign,
    "sgd": lambda g: g,
}


class RotateBlocksState(NamedTuple):
    """State of ``rotate_blocks``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the inner transformation over as many blocks as train at a time
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@dataclass(frozen=True)
class Kind:
    """Blocks of the same shapes, and the ones among them whose place in the state is in use."""

    members: list[int]  # numbers of the blocks
    slots: int


def _layer(path: str) -> str | None:
    """The part of a path up to its first number; None without one."""
    found = re.match(r"^((?:[^/]*/)*?(?:[^/]*?[._])?\d+)(?:/|$)", path)
    return found[1] if found else None


def blocks_of(tree: PyTree, blocks: Blocks, roles: Sequence[RuleLike]) -> list[list[int]]:
    """Returns the leaves of each block, by number; leaves of no block are frozen."""
    named = leaves_with_paths(tree)
    if blocks == "leaves":
        return [[index] for index in range(len(named))]
    out: dict[Any, list[int]] = {}
    if blocks == "layers":
        for index, (path, _) in enumerate(named):
            layer = _layer(path)
            if layer is not None:
                out.setdefault(layer, []).append(index)
        if named and not out:
            raise ValueError(
                f"no path has a number, as in 'layers/0/...'; the first one is {named[0][0]!r}: "
                "name the blocks, such as blocks=('encoder/**', 'decoder/**')"
            )
        return list(out.values())
    for number, selector in enumerate(blocks):
        mine = [i for i, (path, leaf) in enumerate(named) if selects(selector, path, leaf, roles)]
        taken = {i for own in out.values() for i in own}
        both = [i for i in mine if i in taken]
        if both:
            raise ValueError(f"leaf {named[both[0]][0]!r} is in two blocks; change a selector")
        if mine:
            out[number] = mine
    return list(out.values())


def kinds_of(
    tree: PyTree, blocks: list[list[int]], active: int, order: Order, free_choice: bool
) -> list[Kind]:
    """Returns the kinds of blocks, and how many of each may train at a time."""
    leaves = jax.tree.leaves(tree)
    groups: dict[Any, list[int]] = {}
    for number, block in enumerate(blocks):
        shapes = tuple((jnp.shape(leaves[i]), jnp.result_type(leaves[i])) for i in block)
        groups.setdefault(shapes, []).append(number)
    out = []
    for members in groups.values():
        slots = min(active, len(members))
        if order in ("ascending", "descending", "fixed") and not free_choice:
            windows = [
                {(start + i) % len(blocks) for i in range(active)}
                for start in (range(len(blocks)) if order != "fixed" else [0])
            ]
            slots = max(len(window & set(members)) for window in windows)
        out.append(Kind(members, slots))
    return out


@register(
    kind="wrapper",
    family="memory",
    paper=(
        "BAdam: A Memory Efficient Full Parameter Optimization Method for LLMs",
        "2404.02827",
        2024,
    ),
    state_bytes={"*": 0},
    tags=("block coordinate descent", "frugal"),
    chain="inner on the active blocks, signs or nothing on the others",
    example={"blocks": ("**",)},
)
def rotate_blocks(
    inner: optax.GradientTransformation,
    blocks: Blocks = "layers",
    *,
    active: int = 1,
    free: Free = "drop",
    refresh_every: int | jax.Array = 100,
    order: Order = "descending",
    first_short: bool = False,
    full_scale: ScalarOrSchedule = 1.0,
    free_scale: ScalarOrSchedule = 1.0,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Trains a few blocks of leaves at a time, and keeps state for no more of them.

    Every ``refresh_every`` steps other blocks become active and the state of ``inner`` begins anew:

    1. active blocks: ``u = full_scale*inner(g)``;
    2. all others: ``u = free_scale*sign(g)``, or ``free_scale*g``, or 0.

    Blocks of equal shapes take turns in the same state: of L equal layers one by one it is an L-th.
    ``inner`` sees them at the place of their first one, and parameters with them.

    Args:
      inner: any transformation; its learning rate belongs outside, since its state begins anew.
      blocks: "layers" (what has the same path up to its first number), "leaves", or one selector a
        block. Leaves of no block are frozen.
      active: how many blocks train at a time.
      free: what becomes of the others' gradients: "drop", "sign" or "sgd".
      refresh_every: steps from one choice to the next.
      order: "descending" or "ascending" through the blocks, "random" (anew each time), "epochs"
        (random, but each one once before any a second time), or "fixed" (the first ones for ever).
      first_short: the first turn is one step shorter, as in BAdam's code, if turns have several.
      full_scale: factor of the active blocks.
      free_scale: factor of the others.
      key: seed or PRNG key of a random order; None for 0.
      draw: what stands in for the order: ``draw(turn)`` returns one bool a block.
      roles: your own ``(pattern, role)`` rules, for selectors.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: those of ``inner``
      for as many blocks of each kind as may be active together.

    Raises:
      ValueError: an option out of range, a leaf in two blocks, or layers without numbers.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> tx = optkit.rotate_blocks(optax.scale(2.0), refresh_every=1)
      >>> params = {"layers": {str(i): jnp.ones(1) for i in range(2)}}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...   u, state = tx.update(params, state)
      ...   print(jax.tree.leaves(jax.tree.map(float, jax.tree.map(jnp.sum, u))))
      [0.0, 2.0]
      [2.0, 0.0]

    Reference:
      Luo et al., BAdam, arXiv 2404.02827; Zmushko et al., FRUGAL, arXiv 2411.07837.
    """
    inner = check_transformation("inner", inner, swapped_with=blocks)
    check_choice("free", free, get_args(Free))
    check_choice("order", order, get_args(Order))
    check_static_int("active", active)
    if not isinstance(refresh_every, jax.Array):
        check_static_int("refresh_every", refresh_every)
    if isinstance(blocks, str):
        check_choice("blocks", blocks, ("layers", "leaves"))
    check_number("full_scale", full_scale)
    check_number("free_scale", free_scale)
    numbers = {"full_scale": full_scale, "free_scale": free_scale}

    def read(tree: PyTree) -> tuple[list[list[int]], list[Kind]]:
        found = blocks_of(tree, blocks, roles)
        return found, kinds_of(tree, found, active, order, draw is not None)

    def homes(tree: PyTree, found: list[list[int]], kinds: list[Kind], values: Any) -> PyTree:
        """A tree that has leaves at the blocks in whose place others train, too."""
        leaves: list[Any] = [optax.MaskedNode()] * len(jax.tree.leaves(tree))
        for number, kind in enumerate(kinds):
            for slot, home in enumerate(kind.members[: kind.slots]):
                for place, index in enumerate(found[home]):
                    leaves[index] = values(number, slot, place)
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def init_fn(params: PyTree) -> RotateBlocksState:
        found, kinds = read(params)
        leaves = jax.tree.leaves(params)

        def own(number: int, slot: int, place: int) -> jax.Array:
            return leaves[found[kinds[number].members[slot]][place]]

        count = jnp.zeros((), jnp.int32)
        state = inner.init(homes(params, found, kinds, own))
        return RotateBlocksState(count, state, recorded(count, False, **numbers))

    def update_fn(
        updates: PyTree, state: RotateBlocksState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RotateBlocksState]:
        check_gradients(updates, params)
        found, kinds = read(updates)
        # A turn of one step cannot be shorter.
        clock = state.count + jnp.int32(refresh_every > 1) if first_short else state.count
        turn = clock // refresh_every
        on = active_at(turn, len(found), active, order, key) if draw is None else draw(turn)
        on = jnp.asarray(on, bool)
        due = (clock % refresh_every == 0) | (state.count == 0)
        tenants = [_tenants(kind, on) for kind in kinds]

        def moved_in(tree: PyTree) -> PyTree:
            leaves = jax.tree.leaves(tree)

            def at(number: int, slot: int, place: int) -> jax.Array:
                options = [leaves[found[block][place]] for block in kinds[number].members]
                return _pick(options, tenants[number][0][slot])

            return homes(tree, found, kinds, at)

        given, own = moved_in(updates), None if params is None else moved_in(params)
        fresh = inner.init(jax.tree.map(jnp.zeros_like, given) if own is None else own)
        before = jax.tree.map(lambda a, b: jnp.where(due, a, b), fresh, state.inner)
        out, after = inner.update(given, before, own, **extra_args)
        structure: Any = jax.tree.structure(updates)
        trained, grads = structure.flatten_up_to(out), jax.tree.leaves(updates)
        inside, outside = (value_at(v, state.count) for v in (full_scale, free_scale))
        result = [jnp.zeros_like(g) for g in grads]
        for kind, (held, alive) in zip(kinds, tenants, strict=True):
            for member, block in enumerate(kind.members):
                for place, index in enumerate(found[block]):
                    u = outside * _FREE[free](upcast(grads[index]))
                    for slot, home in enumerate(kind.members[: kind.slots]):
                        mine = inside * upcast(trained[found[home][place]])
                        u = jnp.where(alive[slot] & (held[slot] == member), mine, u)
                    result[index] = u.astype(grads[index].dtype)
        record = recorded(state.count, False, **numbers)
        new = RotateBlocksState(state.count + 1, keep_dtypes(after, state.inner), record)
        return structure.unflatten(result), new

    return Transformation(init_fn, update_fn)


def active_at(
    turn: jax.Array, count: int, active: int, order: Order, key: int | jax.Array | None
) -> jax.Array:
    """Returns one bool a block: those that an order has train in a turn."""
    whole = max(count, 1)
    if order in ("random", "epochs"):
        round_, place = (turn, 0) if order == "random" else divmod(turn, whole)
        own = jax.random.fold_in(prng_key(key), round_)
        ranks = jnp.argsort(jax.random.permutation(own, count))
        return (ranks - place) % whole < active
    first = turn * active if order != "fixed" else jnp.zeros_like(turn)
    places = jnp.arange(count)
    places = count - 1 - places if order == "descending" else places
    return (places - first) % whole < active


def _tenants(kind: Kind, on: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which member of a kind has each slot, and whether one has it."""
    mine = jnp.stack([on[block] for block in kind.members])
    order = jnp.argsort(~mine, stable=True)
    return order[: kind.slots], jnp.arange(kind.slots) < jnp.sum(mine)


def _pick(options: list[jax.Array], index: jax.Array) -> jax.Array:
    if len(options) == 1:
        return options[0]
    return jax.lax.switch(index, [lambda x=x: x for x in options])
