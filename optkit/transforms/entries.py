"""A share of every leaf's entries trains at a time, and only it has state."""

import zlib
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from optkit.transforms.base import (
    Transformation,
    branch,
    check_gradients,
    check_transformation,
    keep_dtypes,
    map_leaves,
    prng_key,
    update_inner,
)
from optkit.transforms.hyperparams import (
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
)
from optkit.tree import PyTree, map_with_path, upcast
from optkit.tree.sharding import mesh_of, place, place_like, spec_of

Entries = Literal["adjacent", "scatter"]


class RotateEntriesState(NamedTuple):
    """State of ``rotate_entries``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    places: PyTree  # at each leaf int32: (k,) indices in reading order, or () where a run begins
    inner: PyTree  # state of the inner transformation over vectors of k entries


def share_of(ratio: float, size: int) -> int:
    """How many entries of a leaf train at a time, at least one."""
    return min(max(int(ratio * size), 1), size)


def _flat(x: jax.Array) -> jax.Array:
    """The entries in reading order, whole on each device: a share of them is of no shard."""
    if spec_of(x) is not None:
        x = place(x, mesh_of(x), PartitionSpec())
    return x.reshape(-1)


class _Choice(NamedTuple):
    """How entries are chosen, taken out of leaves and put back."""

    ratio: float
    entries: Entries
    key: int | jax.Array | None

    def drawn(self, tree: PyTree, turn: jax.Array) -> PyTree:
        """Where the entries of a turn are, as ``places`` of the state holds them."""

        def leaf(path: str, x: Any) -> jax.Array:
            size = int(np.size(x))
            own = jax.random.fold_in(prng_key(self.key), zlib.crc32(path.encode()))
            own = jax.random.fold_in(own, turn)
            if self.entries == "adjacent":
                return jax.random.randint(own, (), 0, max(size, 1), jnp.int32)
            return jax.random.permutation(own, size)[: share_of(self.ratio, size)].astype(jnp.int32)

        return map_with_path(leaf, tree)

    def indices(self, at: jax.Array, size: int) -> jax.Array:
        """The places of one leaf as indices in reading order."""
        if self.entries == "scatter":
            return at
        run = at + jnp.arange(share_of(self.ratio, size), dtype=jnp.int32)
        return jnp.where(run >= size, run - size, run)

    def taken(self, tree: PyTree, places: PyTree) -> PyTree:
        """A vector of the chosen entries of each leaf."""
        return map_leaves(lambda x, at: _flat(x)[self.indices(at, x.size)], tree, places)

    def put(self, g: jax.Array, at: jax.Array, u: jax.Array) -> jax.Array:
        """A leaf like ``g`` of such a vector, and zeros."""
        whole = jnp.zeros(g.size, u.dtype).at[self.indices(at, g.size)].set(u, unique_indices=True)
        return place_like(whole.reshape(g.shape).astype(g.dtype), g)


def rotate_entries(
    inner: optax.GradientTransformation,
    ratio: float,
    entries: Entries = "adjacent",
    *,
    refresh_every: int | jax.Array = 100,
    key: int | jax.Array | None = None,
) -> Transformation:
    """Trains a share of each leaf's entries at a time, and keeps state for no more of them.

    Every ``refresh_every`` steps other entries are drawn and the state of ``inner`` begins anew. It
    sees vectors of ``int(ratio*size)`` entries in place of the leaves, and parameters with them;
    all other entries rest.

    Args:
      inner: any transformation that works entry by entry; its learning rate belongs outside.
      ratio: the share.
      entries: "adjacent", a run in reading order that begins anywhere and goes on at the beginning
        after the last entry, or "scatter", each entry for itself.
      refresh_every: steps from one choice to the next.
      key: seed or PRNG key of the choices; None for 0. A leaf's depends on its path and the turn.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: those of ``inner``
      for the share, and 4 an entry of it for "scatter", 4 a leaf for "adjacent".

    Raises:
      ValueError: an option out of range.
      TypeError: ``inner`` is no transformation, or ``ratio`` an array.
    """
    inner = check_transformation("inner", inner)
    check_choice("entries", entries, get_args(Entries))
    check_static_number("ratio", ratio)
    check_number("ratio", ratio, low=0.0, high=1.0, open_low=True)
    if not isinstance(refresh_every, jax.Array):
        check_static_int("refresh_every", refresh_every)

    choice = _Choice(ratio, entries, key)

    def init_fn(params: PyTree) -> RotateEntriesState:
        places = choice.drawn(params, jnp.zeros((), jnp.int32))
        count = jnp.zeros((), jnp.int32)
        return RotateEntriesState(count, places, inner.init(choice.taken(params, places)))

    def update_fn(
        updates: PyTree, state: RotateEntriesState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RotateEntriesState]:
        check_gradients(updates, params)
        due = state.count % refresh_every == 0
        turn = state.count // refresh_every
        places = branch(due, lambda: choice.drawn(updates, turn), lambda: state.places)
        given = choice.taken(updates, places)
        own = None if params is None else choice.taken(params, places)
        fresh = inner.init(jax.tree.map(jnp.zeros_like, given) if own is None else own)
        before = jax.tree.map(lambda a, b: jnp.where(due, a, b), fresh, state.inner)
        out, after = update_inner(inner, given, before, own, extra_args)

        result = map_leaves(choice.put, updates, places, jax.tree.map(upcast, out))
        return result, RotateEntriesState(state.count + 1, places, keep_dtypes(after, state.inner))

    return Transformation(init_fn, update_fn)
