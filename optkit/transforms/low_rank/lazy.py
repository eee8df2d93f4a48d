"""Bases that are refreshed less and less often once they stop turning (Q-GaLore)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.transforms.low_rank.projection import Projector
from optkit.tree import PyTree
from optkit.tree.sharding import place_statistic, zeros_beside

# So long an interval is never over; its float32 is exact.
_FOREVER = 2.0**30


@dataclass(frozen=True)
class LazyRefresh:
    """When a matrix's basis has turned so little that the next refreshes can wait longer.

    At each refresh, with p and p' the first singular vectors of the last basis and of the new one,
    T the interval of the matrix:

    1. ``c = |p . p'|`` joins the last ``window`` of its kind;
    2. if there are ``window`` of them and their mean is at least ``threshold``:
       ``T <- floor(growth*T)``.

    Each matrix, of a stack too, has an interval of its own, which begins at ``refresh_every`` and
    never shrinks. It is state: no program is compiled anew, and steps without refresh pay nothing.

    Attributes:
      threshold: mean cosine from which on a basis is quiet; above 1 no interval grows.
      growth: factor of the interval, at least 1.
      window: cosines that are averaged.
      signed: take ``p . p'`` as it is, as the reference does; the sign of a singular vector, whose
        largest entry is positive here, then counts.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> lazy = optkit.LazyRefresh(threshold=0.9, growth=2.0, window=1)
      >>> tx = optkit.low_rank(optax.identity(), 1, refresh_every=2, lazy=lazy)
      >>> g = {"w": jnp.outer(jnp.arange(1.0, 4.0), jnp.ones(4))}
      >>> state = tx.init(g)
      >>> for step in range(7):  # refreshed before steps 0, 2 and 4
      ...   _, state = tx.update(g, state)
      >>> state.lazy.refreshes["w"].item(), state.lazy.interval["w"].item()
      (3, 8)

    Reference:
      Zhang et al., Q-GaLore, arXiv 2407.08296. Its code has signed cosines, whose sign is that of
      the decomposition.
    """

    threshold: float = 0.4
    growth: float = 2.0
    window: int = 5
    signed: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        check_number("threshold", self.threshold)
        check_number("growth", self.growth, low=1.0)
        check_static_int("window", self.window)


class LazyRefreshState(NamedTuple):
    """What ``LazyRefresh`` remembers: trees like the matrices, of each a number or a few."""

    interval: PyTree  # int32 (*batch,), steps between two refreshes
    refreshes: PyTree  # int32 (*batch,), how many there have been
    cosines: PyTree  # float32 (*batch, window), the last ones, newest last, 0 before there are any
    first: PyTree  # float32 (*batch, side), first singular vector; () where P itself has it


class Memory(NamedTuple):
    """That of one part."""

    interval: jax.Array
    refreshes: jax.Array
    cosines: jax.Array
    first: jax.Array | None


def fresh_memory(
    lazy: LazyRefresh, part: Projector, leaf: Any, refresh_every: Any, keeps_first: bool
) -> Memory:
    """Returns the memory of a part that has seen no gradient."""

    def zeros(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
        return zeros_beside(leaf, (*part.batch, *shape), dtype)

    side = part.size(part.sides[0]) if part.rank else 0
    return Memory(
        zeros() + jnp.asarray(refresh_every, jnp.int32),
        zeros(),
        zeros(lazy.window, dtype=jnp.float32),
        zeros(side, dtype=jnp.float32) if keeps_first else None,
    )


def refreshed_memory(
    lazy: LazyRefresh,
    memory: Memory,
    old: jax.Array,
    new: jax.Array,
    use: jax.Array,
    like: jax.Array,
) -> Memory:
    """Returns the memory after a refresh of the matrices ``use`` (*batch,) of a part.

    Args:
      lazy: the options.
      memory: the one before.
      old: first singular vectors (*batch, side) of the last bases.
      new: those of the new ones.
      use: which matrices have a new basis.
      like: the matrices themselves.

    Returns:
      The new memory.
    """
    cosine = jnp.sum(old * new, axis=-1).astype(jnp.float32)
    cosine = cosine if lazy.signed else jnp.abs(cosine)
    again = use & (memory.refreshes > 0)
    moved = jnp.concatenate([memory.cosines[..., 1:], cosine[..., None]], axis=-1)
    cosines = jnp.where(again[..., None], moved, memory.cosines)
    quiet = jnp.mean(cosines, axis=-1) >= lazy.threshold
    grown = jnp.floor(memory.interval.astype(jnp.float32) * lazy.growth)
    grown = jnp.minimum(grown, _FOREVER).astype(jnp.int32)
    grows = again & (memory.refreshes >= lazy.window) & quiet
    done = Memory(
        jnp.where(grows, grown, memory.interval),
        memory.refreshes + use,
        cosines,
        None if memory.first is None else jnp.where(use[..., None], new, memory.first),
    )
    return jax.tree.map(lambda x: place_statistic(x, like), done)
