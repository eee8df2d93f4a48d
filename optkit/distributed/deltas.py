"""Lossless differences of weights: what changed, bit for bit, for workers that hold the rest."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optkit.tree import PyTree, leaves_with_paths

Form = Literal["gaps16", "int32", "int64", "dense"]

# A gap of 0 does not occur; in a row of gaps it moves on so far without a value.
_FILLER = 65535


@dataclass(frozen=True, eq=False)
class LeafDelta:
    """The changed entries of one leaf.

    Attributes:
      shape: of the leaf.
      dtype: its name.
      count: how many entries are in it.
      form: how the places are written. "gaps16": uint16 distances from the place before (of the
        first, from -1); 0 stands for 65535 places without a value. "int32", "int64": places in the
        flattened leaf. "dense": none, since all entries are in it, for that takes fewer bytes.
      places: see ``form``.
      values: unsigned integers: the bits of the new entries, by place.
    """

    shape: tuple[int, ...]
    dtype: str
    count: int
    form: Form
    places: np.ndarray
    values: np.ndarray

    def indices(self) -> np.ndarray:
        """The places in the flattened leaf, ascending, int64."""
        if self.form == "dense":
            return np.arange(self.count)
        if self.form != "gaps16":
            return self.places.astype(np.int64)
        steps = np.where(self.places == 0, _FILLER, self.places.astype(np.int64))
        return (np.cumsum(steps) - 1)[self.places != 0]


@dataclass(frozen=True, eq=False)
class Delta:
    """What leads from one tree of weights to another.

    Attributes:
      leaves: changed leaves by path; those that did not change are not there.
      base: hash of the tree that it starts from.
      result: hash of the tree that it leads to.
    """

    leaves: dict[str, LeafDelta]
    base: str
    result: str


class FixedDelta(NamedTuple):
    """What ``encode_delta_fixed`` gives: arrays of sizes that do not depend on the weights."""

    places: PyTree  # at each leaf (capacity,) int32, filled up with the leaf's size
    values: PyTree  # at each leaf (capacity,) unsigned integers: bits of the new entries
    count: PyTree  # at each leaf an int32 scalar: entries that changed, maybe beyond the capacity


def _bits(path: str, leaf: Any) -> np.ndarray:
    """The flattened leaf as unsigned integers."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"leaf {path!r} has no bits yet inside jax.jit, where a delta's size is not known; use "
            "optkit.encode_delta_fixed and optkit.apply_delta_fixed there"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise TypeError(f"leaf {path!r} of dtype {leaf.dtype} has no bits; give its key data")
    array = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
    if array.dtype.itemsize > 8:
        raise TypeError(f"leaf {path!r} of dtype {leaf.dtype} has entries of more than 8 bytes")
    return array.view(np.dtype(f"uint{8 * array.dtype.itemsize}"))


def _hash(tree: PyTree, bits: dict[str, np.ndarray]) -> str:
    out = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves_with_paths(tree):
        out.update(f"{path}|{tuple(np.shape(leaf))}|{leaf.dtype}\n".encode())
        out.update(np.ascontiguousarray(bits[path]).data)
    return out.hexdigest()


def _all_bits(tree: PyTree) -> dict[str, np.ndarray]:
    return {path: _bits(path, leaf) for path, leaf in leaves_with_paths(tree)}


def _check_same(old: PyTree, new: PyTree) -> None:
    """Raises unless weights have the paths, shapes and dtypes of those before them."""
    before, after = dict(leaves_with_paths(old)), dict(leaves_with_paths(new))
    for path in [*before, *after]:
        if path not in before or path not in after:
            which = "old" if path in before else "new"
            raise ValueError(f"leaf {path!r} is in the {which} weights only; deltas need both")
        a, b = before[path], after[path]
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"leaf {path!r} was of shape {np.shape(a)} and is of {np.shape(b)}; a delta is of "
                "weights of equal shapes: send this leaf whole"
            )
        was, now = (getattr(x, "dtype", type(x)) for x in (a, b))
        if was != now:
            raise ValueError(f"leaf {path!r} was of dtype {was} and is of {now}; cast it")
    structure: Any = jax.tree.structure(old)
    if structure != jax.tree.structure(new):
        raise ValueError("the old and new weights have the same paths in other containers")


def _leaf_delta(
    shape: tuple[int, ...],
    dtype: str,
    places: np.ndarray,
    values: np.ndarray,
    whole_leaf: np.ndarray | None = None,
) -> LeafDelta:
    """Writes the places in the form of the fewest bytes, or all of the leaf if that takes less."""
    size = int(np.prod(shape, dtype=np.int64))
    gaps = np.diff(places, prepend=-1)
    fillers = (gaps - 1) // _FILLER
    whole: Form = "int32" if size <= 2**31 - 1 else "int64"
    costs: dict[Form, int] = {
        "gaps16": 2 * (len(places) + int(fillers.sum())),
        whole: np.dtype(whole).itemsize * len(places),
    }
    if len(places) == size:
        costs["dense"] = 0
    form = min(costs, key=lambda name: costs[name])
    if whole_leaf is not None and whole_leaf.nbytes < costs[form] + values.nbytes:
        return LeafDelta(shape, dtype, size, "dense", np.zeros(0, np.uint16), whole_leaf)
    if form == "dense":
        coded = np.zeros(0, np.uint16)
    elif form == "gaps16":
        coded = np.zeros(len(places) + int(fillers.sum()), np.uint16)
        at = np.arange(len(places)) + np.cumsum(fillers)
        coded[at] = gaps - fillers * _FILLER
    else:
        coded = places.astype(form)
    return LeafDelta(shape, dtype, len(places), form, coded, values)


def encode_delta(old: PyTree, new: PyTree) -> Delta:
    """Returns what leads from one tree of weights to another, bit for bit.

    Entries are compared by their bits, so that -0.0 differs from 0.0 and NaNs are kept as they are,
    and the new *values* are stored: of several deltas the last one counts, and rounding has no part
    in it. Weights in the precision in which they are used change rarely: small steps vanish in the
    rounding of 16-bit ones (``python -m benchmarks.claims weight_deltas`` counts them).

    Args:
      old: the weights that the receiver has: arrays of any dtypes of up to 8 bytes.
      new: weights of the same paths, shapes and dtypes.

    Returns:
      A ``Delta`` of NumPy arrays.

    Raises:
      ValueError: other paths, shapes or dtypes.
      TypeError: a leaf without bits of its own, such as a PRNG key, or inside ``jax.jit``.

    Example:
      >>> import numpy as np, optkit
      >>> old, new = {"w": np.zeros(4, np.float16)}, {"w": np.float16([0.0, -0.0, 0.0, 3.0])}
      >>> delta = optkit.encode_delta(old, new)
      >>> delta.leaves["w"].indices().tolist(), optkit.payload_bytes(delta)
      ([1, 3], 8)

    Reference:
      SparseRL-Sync, arXiv 2605.07330. Its code compares floats, and marks with NaN what stayed.
    """
    _check_same(old, new)
    before, after = _all_bits(old), _all_bits(new)
    leaves = {}
    for path, leaf in leaves_with_paths(new):
        places = np.flatnonzero(before[path] != after[path])
        if len(places):
            values = after[path][places]
            shape, whole = tuple(np.shape(leaf)), after[path].copy()
            leaves[path] = _leaf_delta(shape, str(leaf.dtype), places, values, whole)
    return Delta(leaves, _hash(old, before), _hash(new, after))


def apply_delta(tree: PyTree, delta: Delta, *, check: bool = True) -> PyTree:
    """Returns the weights that a delta leads to.

    Args:
      tree: the weights that it starts from; they stay as they are.
      delta: what ``optkit.encode_delta`` gave.
      check: compare the hash of the weights with that of the delta's base. Without it any weights
        of these shapes and dtypes are taken, and entries that are not in the delta stay theirs.

    Returns:
      The new weights: NumPy arrays where there were such, else arrays on the devices of the old.

    Raises:
      ValueError: weights without a leaf that the delta changes, or with one of another shape or
        dtype; or, unless that is not checked, weights that are not its base.
      TypeError: no delta, or values inside ``jax.jit``.

    Example:
      >>> import numpy as np, optkit
      >>> old, new = {"w": np.zeros(3, np.float32)}, {"w": np.float32([0.0, 7.0, 0.0])}
      >>> optkit.apply_delta(old, optkit.encode_delta(old, new))["w"].tolist()
      [0.0, 7.0, 0.0]
    """
    given: Any = delta
    if not isinstance(given, Delta):
        swapped = "; the weights come first" if isinstance(tree, Delta) else ""
        raise TypeError(
            f"delta of type {type(given).__name__} is not what optkit.encode_delta gives{swapped}"
        )
    named = dict(leaves_with_paths(tree))
    for path, own in delta.leaves.items():
        leaf = named.get(path)
        if leaf is None or tuple(np.shape(leaf)) != own.shape or str(leaf.dtype) != own.dtype:
            what = "is not there" if leaf is None else f"is {leaf.dtype}{tuple(np.shape(leaf))}"
            raise ValueError(f"leaf {path!r} {what}; the delta has {own.dtype}{own.shape}")
    bits = _all_bits(tree)
    if check and _hash(tree, bits) != delta.base:
        raise ValueError(
            "these weights are not those that the delta starts from (their hash is another); apply "
            "all deltas in order, merge them, or send the weights whole"
        )

    def changed(path: str, leaf: Any) -> Any:
        if path not in delta.leaves:
            return leaf
        own, flat = delta.leaves[path], bits[path].copy()
        flat[own.indices()] = own.values
        array = flat.view(np.asarray(leaf).dtype).reshape(own.shape)
        return jax.device_put(array, leaf.sharding) if isinstance(leaf, jax.Array) else array

    leaves = [changed(path, leaf) for path, leaf in leaves_with_paths(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def merge_deltas(first: Delta, second: Delta) -> Delta:
    """Returns the delta of two steps, one after the other.

    Args:
      first: the earlier one.
      second: the later one, which starts where the first one ends; its values win.

    Returns:
      A ``Delta`` from the first one's base to the second one's result. An entry that came back to
      its old value is in it, which does no harm.

    Raises:
      ValueError: the second one starts somewhere else.

    Example:
      >>> import numpy as np, optkit
      >>> a, b, c = ({"w": np.float32([x, 0.0])} for x in (0.0, 1.0, 2.0))
      >>> both = optkit.merge_deltas(optkit.encode_delta(a, b), optkit.encode_delta(b, c))
      >>> optkit.apply_delta(a, both)["w"].tolist()
      [2.0, 0.0]
    """
    if first.result != second.base:
        raise ValueError(
            "the second delta does not start from the weights that the first one leads to; merge "
            "them in the order in which they were made, none left out"
        )
    leaves = dict(first.leaves)
    for path, late in second.leaves.items():
        if path not in leaves:
            leaves[path] = late
            continue
        early = leaves[path]
        places = np.concatenate([late.indices(), early.indices()])
        places, at = np.unique(places, return_index=True)  # of equal ones the first
        values = np.concatenate([late.values, early.values])[at]
        leaves[path] = _leaf_delta(late.shape, late.dtype, places, values)
    return Delta(leaves, first.base, second.result)


def payload_bytes(delta: Delta) -> int:
    """Returns the bytes of a delta's places and values.

    Args:
      delta: what ``optkit.encode_delta`` gave.

    Returns:
      ``count*(itemsize + 2)`` for each leaf whose changes lie less than 65536 places apart, at most
      ``size*itemsize``; names, shapes and hashes are not counted.

    Example:
      >>> import numpy as np, optkit
      >>> old = {"w": np.zeros(9, np.float32)}
      >>> optkit.payload_bytes(optkit.encode_delta(old, old))
      0
    """
    return sum(own.places.nbytes + own.values.nbytes for own in delta.leaves.values())


def _unsigned(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    bits = jax.dtypes.itemsize_bits(x.dtype)
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))


def encode_delta_fixed(old: PyTree, new: PyTree, capacity: int) -> FixedDelta:
    """Like ``encode_delta``, inside ``jax.jit``: with room for so many entries of each leaf.

    Args:
      old: the weights that the receiver has.
      new: weights of the same paths, shapes and dtypes.
      capacity: entries that there is room for; less of smaller leaves.

    Returns:
      A ``FixedDelta``. Where a ``count`` is above the capacity, the last changes of the leaf are
      not in it: send it whole.

    Raises:
      ValueError: other paths, shapes or dtypes, or a capacity below 1.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> old, new = jnp.zeros(4), jnp.array([0.0, 5.0, 0.0, 6.0])
      >>> delta = optkit.encode_delta_fixed(old, new, capacity=3)
      >>> delta.places.tolist(), int(delta.count), optkit.apply_delta_fixed(old, delta).tolist()
      ([1, 3, 4], 2, [0.0, 5.0, 0.0, 6.0])
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity!r} must be an integer of at least 1")
    _check_same(old, new)

    def leaf(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        before, after = (_unsigned(jnp.asarray(x)).reshape(-1) for x in (a, b))
        off, room = before != after, min(capacity, after.size)
        (places,) = jnp.nonzero(off, size=room, fill_value=after.size)
        values = after.at[places].get(mode="fill", fill_value=0)
        return places.astype(jnp.int32), values, jnp.sum(off, dtype=jnp.int32)

    structure: Any = jax.tree.structure(new)
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    done = [leaf(a, b) for a, b in pairs]
    return FixedDelta(*(structure.unflatten([own[i] for own in done]) for i in range(3)))


def apply_delta_fixed(tree: PyTree, delta: FixedDelta) -> PyTree:
    """Returns the weights with a ``FixedDelta``'s entries in place, inside ``jax.jit``.

    Args:
      tree: the weights that it starts from; there is no hash, so that this is not checked.
      delta: what ``optkit.encode_delta_fixed`` gave.

    Returns:
      The new weights.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> delta = optkit.encode_delta_fixed(jnp.zeros(2), jnp.ones(2), capacity=9)
      >>> optkit.apply_delta_fixed(jnp.zeros(2), delta).tolist()
      [1.0, 1.0]
    """

    def leaf(x: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        bits = _unsigned(x).reshape(-1).at[places].set(values, mode="drop").reshape(x.shape)
        if x.dtype == jnp.bool_:
            return bits.astype(jnp.bool_)
        return lax.bitcast_convert_type(bits, x.dtype) if bits.dtype != x.dtype else bits

    return jax.tree.map(leaf, tree, delta.places, delta.values)
