"""Which bases are in force at a step: drawn ones, kept ones, and those anew from the gradient."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.bases import leading_basis, random_basis, randomized_basis, tracked_basis
from optkit.transforms.base import branch
from optkit.transforms.low_rank.lazy import refreshed_memory
from optkit.transforms.low_rank.projection import Projector, sides_of
from optkit.transforms.low_rank.stored import write_basis
from optkit.transforms.low_rank.subspace import Bases, Held, Subspaces
from optkit.transforms.stored_leaves import renewed
from optkit.tree import PyTree, map_groups
from optkit.tree.sharding import place_statistic


class InForce(NamedTuple):
    """The subspaces of one step."""

    bases: Bases  # those that gradients are projected with
    held: list[Held]  # what is kept of them; nothing of drawn ones
    before: Callable[[], Bases]  # gives those of the last step
    dues: list[jax.Array]  # bool () or (*batch,), whose basis is a new one
    unset: list[jax.Array]  # bool (*batch,), who had none before; of bases from gradients


def in_force(
    spaces: Subspaces,
    stored: tuple[PyTree, ...],
    lazy: PyTree,
    matrices: Sequence[jax.Array],
    count: jax.Array,
) -> InForce:
    """Returns the bases of this step."""
    asked = spaces.asked
    dues = [spaces.due(i, count) for i in range(len(spaces.parts))]
    old = spaces.unpack(stored, lazy)
    if not asked.stored:
        last = lambda: spaces.drawn_at(matrices, jnp.maximum(count - 1, 0))  # noqa: E731
        return InForce(spaces.drawn_at(matrices, count), old, last, dues, [])
    if asked.kind == "randk":
        held = _redrawn(spaces, old, dues, count)
        return InForce(spaces.read(held, matrices), held, lambda: spaces.read(old, []), dues, [])
    unset = _unset(spaces, old, matrices)
    held = _refreshed(spaces, old, matrices, unset, count)
    if asked.lazy is not None:
        pairs = [(own.memory, was.memory) for own, was in zip(held, old, strict=True)]
        dues = [a.refreshes != b.refreshes for a, b in pairs if a is not None and b is not None]
    before = lambda: spaces.read(old, matrices)  # noqa: E731
    return InForce(spaces.read(held, matrices), held, before, dues, unset)


def _redrawn(
    spaces: Subspaces, old: Sequence[Held], dues: Sequence[jax.Array], count: jax.Array
) -> list[Held]:
    new = []
    for index, (own, due) in enumerate(zip(old, dues, strict=True)):
        again = lambda _, index=index: spaces.drawn(index, spaces.period(index, count))  # noqa: E731
        new.append(Held(branch(due, again, lambda basis: basis, own.basis), None))
    return new


def _unset(
    spaces: Subspaces, old: Sequence[Held], matrices: Sequence[jax.Array]
) -> list[jax.Array]:
    """Whether a basis waits for its first gradient; one that is set has a column that is not 0."""
    if spaces.asked.lazy is not None and not spaces.asked.stagger:
        return [own.memory.refreshes == 0 for own in old if own.memory is not None]
    bases = [own[0] for own in spaces.read(old, matrices)]
    return [~jnp.any(p[..., :1] != 0, axis=(-2, -1)) & (p.size > 0) for p in bases]


def _refreshed(
    spaces: Subspaces,
    old: list[Held],
    matrices: Sequence[jax.Array],
    unset: Sequence[jax.Array],
    count: jax.Array,
) -> list[Held]:
    """Bases from the gradient, of the parts whose turn it is or that have none yet."""
    if not spaces.parts:
        return old
    dues = [
        jnp.broadcast_to(_due(spaces, i, own, count), part.batch)
        for i, (part, own) in enumerate(zip(spaces.parts, old, strict=True))
    ]
    waiting = _any(unset)

    def ends(_: Any) -> jax.Array:
        pairs = zip(unset, matrices, strict=True)
        return _any([u & jnp.any(x != 0, axis=(-2, -1)) for u, x in pairs])

    ready = branch(waiting, ends, lambda _: jnp.zeros((), bool), waiting)
    takes = [due | missing for due, missing in zip(dues, unset, strict=True)]
    key = jax.random.fold_in(spaces.asked.random, count)
    if not spaces.asked.stagger:
        work = lambda xs, held, takes: _work(spaces, spaces.parts, xs, held, takes, key)  # noqa: E731
        keep = lambda xs, held, takes: held  # noqa: E731
        return branch(_any(dues) | ready, work, keep, list(matrices), old, takes)
    out = []
    for part, x, own, take in zip(spaces.parts, matrices, old, takes, strict=True):
        alone = lambda x, own, take, part=part: _work(spaces, [part], [x], [own], [take], key)[0]  # noqa: E731
        out.append(branch(jnp.any(take), alone, lambda x, own, take: own, x, own, take))
    return out


def _due(spaces: Subspaces, index: int, own: Held, count: jax.Array) -> jax.Array:
    if spaces.asked.online:
        return jnp.zeros((), bool)
    return spaces.due(index, count, None if own.memory is None else own.memory.interval)


def _work(
    spaces: Subspaces,
    parts: Sequence[Projector],
    matrices: Sequence[jax.Array],
    held: Sequence[Held],
    takes: Sequence[jax.Array],
    key: jax.Array,
) -> list[Held]:
    """New bases of the matrices whose turn it is."""
    asked = spaces.asked
    old = spaces.read(held, matrices, parts)
    # Of zeros there is no subspace: the old one stays.
    uses = [take & jnp.any(x != 0, axis=(-2, -1)) for take, x in zip(takes, matrices, strict=True)]
    wide = [tuple(b.astype(x.dtype) for b in own) for own, x in zip(old, matrices, strict=True)]
    columns = [list(column) for column in zip(*wide, strict=True)]

    def function(x: jax.Array, use: jax.Array, *bases: jax.Array) -> tuple[jax.Array, ...]:
        sides = sides_of(asked.side, x.shape[-1], x.shape[-2])
        pairs = zip(sides, bases, strict=True)
        chosen = use[..., None, None]
        return tuple(jnp.where(chosen, _computed(asked.kind, x, s, b, key), b) for s, b in pairs)

    done = map_groups(function, matrices, uses, *columns, group_bytes=asked.group_bytes)
    out = []
    for part, x, use, own, was, new in zip(parts, matrices, uses, held, wide, done, strict=True):
        nodes = [
            _kept(spaces, part, side, use, basis, node, x)
            for side, basis, node in zip(part.sides, new, own.basis, strict=True)
        ]
        memory = own.memory
        if asked.lazy is not None and memory is not None and part.rank:
            first = was[0][..., 0] if memory.first is None else memory.first
            memory = refreshed_memory(asked.lazy, memory, first, new[0][..., 0], use, x)
        out.append(Held(tuple(nodes), memory))
    return out


def _kept(
    spaces: Subspaces,
    part: Projector,
    side: str,
    use: jax.Array,
    basis: jax.Array,
    node: Any,
    like: jax.Array,
) -> Any:
    """What is kept of a new basis: codes, where there is a codec, of none but new ones."""
    codec = spaces.asked.codec
    if codec is None:
        return place_statistic(basis.astype(node.dtype), like)
    new = write_basis(codec, part, side, place_statistic(basis, like))

    def chosen(name: str) -> jax.Array:
        flags = use.reshape(use.shape + (1,) * (node[name].ndim - use.ndim))
        return place_statistic(jnp.where(flags, new[name], node[name]), like)

    return renewed(node, {name: chosen(name) for name in new})


def _computed(kind: str, x: jax.Array, side: str, held: jax.Array, key: jax.Array) -> jax.Array:
    if x.size == 0 or held.size == 0:
        return held
    x, rank = (x if side == "right" else x.mT), held.shape[-1]
    if kind == "randomized_svd":
        return randomized_basis(x, rank, key).astype(held.dtype)
    if kind == "power_iteration":
        # A column of zeros would stay one.
        lost = jnp.all(held == 0, axis=-2, keepdims=True)
        start = jnp.where(lost, random_basis(key, held.shape).astype(held.dtype), held)
        return tracked_basis(x, start).astype(held.dtype)
    return leading_basis(x, rank).astype(held.dtype)


def _any(flags: Sequence[jax.Array]) -> jax.Array:
    out = jnp.zeros((), bool)
    for flag in flags:
        out = out | jnp.any(flag)
    return out
