"""What all clients sent in one place, for rules that no sum can stand for."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.base import Aggregated, Reports, one_of
from optkit.distributed.workers import (
    AxisName,
    as_varying,
    axes_of,
    check_bound,
    check_uncut,
    count_workers,
    exchange,
    gather,
)
from optkit.spmd import varying
from optkit.tree import PyTree, upcast

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The vectors of W clients; along a mesh axis a device has all W at its own coordinates.

    Attributes:
      tree: arrays (W, ...) in float32 or better; along an axis arrays (W, n), one for all leaves
        that are cut along the same axes.
      present: bool (W,).
      client: int32 (W,), who they are.
      one: shapes of a whole vector.
      axis_name: the mesh axis, or None.
      cut: of each leaf of ``one``, the axes that its coordinates are cut along.
      beside: other axes along which anything varies: each of their devices is on its own.
    """

    tree: PyTree
    present: jax.Array
    client: jax.Array
    one: PyTree
    axis_name: AxisName
    cut: tuple[Names, ...]
    beside: Names = ()

    @property
    def count(self) -> jax.Array:
        """Returns how many are present, int32."""
        return jnp.sum(self.present, dtype=jnp.int32)

    def total(self, parts: PyTree) -> jax.Array:
        """Returns sums over all coordinates from those over a device's own of each leaf.

        What is cut along other axes is added by itself: whole leaves would count twice.
        """
        leaves, sums = jax.tree.leaves(parts), []
        along = axes_of(self.axis_name)
        cut = _groups(self.cut) if along else self.cut
        for names in _groups(self.cut):
            own = [leaf for leaf, name in zip(leaves, cut, strict=True) if name == names]
            added = functools.reduce(jnp.add, own)
            sums.append(lax.psum(added, along + names) if along + names else added)
        return functools.reduce(jnp.add, sums)

    def own(self, vector: PyTree) -> PyTree:
        """Returns a device's coordinates of a vector that all devices have."""
        names = axes_of(self.axis_name)
        if not names:
            return vector
        rows = _rows(jax.tree.map(lambda x: x[None], vector), count_workers(names), self.cut)
        place = lax.axis_index(names)
        return [lax.dynamic_index_in_dim(x, place, 0, keepdims=False)[0] for x in rows]

    def zeros(self) -> PyTree:
        """Returns zeros at a device's coordinates, which vary as the vectors do."""

        def leaf(x: jax.Array) -> jax.Array:
            names = sorted(varying(x) | set(self.beside))
            return as_varying(jnp.zeros(x.shape[1:], x.dtype), tuple(names))

        return jax.tree.map(leaf, self.tree)

    def whole(self, own: PyTree) -> PyTree:
        """Returns a vector on all devices from the coordinates of each."""
        if not axes_of(self.axis_name):
            return own
        leaves, structure = jax.tree.flatten(self.one)
        out = list(leaves)
        for names, part in zip(_groups(self.cut), own, strict=True):
            flat, start = _gathered(part, self.axis_name), 0
            for index, leaf in enumerate(leaves):
                if self.cut[index] == names:
                    end = start + math.prod(leaf.shape)
                    out[index] = flat[start:end].reshape(leaf.shape).astype(leaf.dtype)
                    start = end
        return jax.tree.unflatten(structure, out)

    def squares(self, centre: PyTree) -> jax.Array:
        """Returns squared distances from a vector, (W,); not finite where one is not."""
        return self.total(jax.tree.map(_squares, self.tree, centre))

    def readable(self, squared: jax.Array) -> jax.Array:
        """Returns which vectors have any weight, bool (W,): present, and at a finite distance."""
        return self.present & jnp.isfinite(squared)

    def distances(self) -> jax.Array:
        """Returns squared distances of all pairs, (W, W); NaN or infinite where one is not finite.

        By differences: as ``|a|^2 + |b|^2 - 2ab`` those of close vectors would cancel.
        """
        return self.total(jax.tree.map(_pairs, self.tree))

    def ranking(self, score: jax.Array) -> jax.Array:
        """Returns places (W,) by score, equal ones by client: whatever order they come in."""
        places = jnp.arange(score.shape[0])
        return lax.sort((score, self.client, places), num_keys=2, is_stable=True)[2]

    def settled(self, own: PyTree, state: PyTree, moved: jax.Array) -> Aggregated:
        """Returns a round's outcome; 0 where nothing is stepped on."""
        direction = jax.tree.map(lambda x: jnp.where(moved, x, 0.0), self.whole(own))
        return Aggregated(direction, state, moved)


def all_vectors(
    given: Reports,
    axis_name: AxisName,
    who: str,
    least: int = 1,
    why: str = "",
    coordinates_axis: AxisName = (),
) -> Vectors:
    """Brings the vectors of all clients together.

    Along an axis by one exchange: each device gets all clients' values of its share of the
    coordinates, W/devices vectors in all, and not W.

    Args:
      given: the reports, along an axis those of a device's own clients.
      axis_name: the mesh axis, or None.
      who: the rule's name.
      least: clients without which the rule can never step.
      why: what they are needed for.
      coordinates_axis: axes that leaves may be cut along. None: along none, which is checked; ():
        whatever varies otherwise is no affair of the rule.

    Returns:
      ``Vectors``.

    Raises:
      ValueError: fewer clients than ``least``; leaves that are cut along other axes, or along axes
        that types do not keep track of.
    """
    check_bound(axis_name, who)
    cut, beside = _cut(given, axis_name, coordinates_axis, who)
    one = one_of(given.displacement)
    names = axes_of(axis_name)
    devices = count_workers(axis_name)
    count = given.present.shape[0] * devices
    if count < least:
        which = f"{who} with {why}" if why else who
        raise ValueError(
            f"{which} needs at least {least} clients in a round, and {count} report: ask more of "
            "them, or expect fewer hostile ones"
        )
    if not names:
        tree = jax.tree.map(upcast, given.displacement)
        return Vectors(tree, given.present, given.client, one, axis_name, cut, beside)
    rows = as_varying(_rows(given.displacement, devices, cut), axis_name)
    came = [upcast(exchange(x, axis_name).reshape(count, -1)) for x in rows]
    present, client = (_gathered(x, axis_name) for x in (given.present, given.client))
    return Vectors(came, present, client, one, axis_name, cut, beside)


def _cut(
    given: Reports, axis_name: AxisName, coordinates_axis: AxisName, who: str
) -> tuple[tuple[Names, ...], Names]:
    """Returns the axes that each leaf is cut along, and others that anything varies along."""
    check_bound(coordinates_axis, who)
    for name in axes_of(coordinates_axis):
        if name not in varying(lax.axis_index(name)):
            raise ValueError(
                f"coordinates_axis={coordinates_axis!r} of {who}: nothing tells which leaves are "
                f"cut along {name!r}; use jax.shard_map with that axis and check_vma=True"
            )
    why = f"{who} has norms over all coordinates"
    check_uncut(given.displacement, axis_name, coordinates_axis, why, "clients", "a server")
    known, cut, beside = set(axes_of(axis_name)), [], set(varying(given.present))
    for leaf in jax.tree.leaves(given.displacement):
        others = varying(leaf) - known
        cut.append(tuple(name for name in axes_of(coordinates_axis) if name in others))
        beside |= others - set(cut[-1])
    return tuple(cut), tuple(sorted(beside - known - set(axes_of(coordinates_axis))))


def _groups(cut: tuple[Names, ...]) -> tuple[Names, ...]:
    """The different axes that leaves are cut along, in the order that they come in."""
    return tuple(dict.fromkeys(cut))


def _gathered(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Joins the (n,) of all devices."""
    return gather(as_varying(x, axis_name), axis_name).reshape(-1)


def _rows(tree: PyTree, devices: int, cut: tuple[Names, ...]) -> list[jax.Array]:
    """Lays arrays (C, ...) out as (devices, C, coordinates of each device), filled up with 0.

    Leaves that are cut along the same axes come together.
    """

    def together(leaves: list[jax.Array]) -> jax.Array:
        flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % devices)))
        return jnp.moveaxis(flat.reshape(flat.shape[0], devices, -1), 1, 0)

    pairs = list(zip(jax.tree.leaves(tree), cut, strict=True))
    return [together([x for x, name in pairs if name == names]) for names in _groups(cut)]


@jax.jit  # one program: without it the differences of all pairs would be kept
def _pairs(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x[:, None] - x[None]), axis=tuple(range(2, x.ndim + 1)))


def _squares(x: jax.Array, centre: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x - centre[None]), axis=tuple(range(1, x.ndim)))


def column(per_client: jax.Array, x: jax.Array) -> jax.Array:
    """Returns (W,) in the rank of an array (W, ...)."""
    return jnp.expand_dims(per_client, tuple(range(1, x.ndim)))


def in_order(x: jax.Array, counted: jax.Array) -> jax.Array:
    """Sorts (W, ...) over clients in each coordinate, those that do not count at the end.

    What is no number counts as +infinity, so that an infinity is among the first or the last.
    """
    read = column(counted, x) & ~jnp.isnan(x)
    return jnp.sort(jnp.where(read, x, jnp.inf), axis=0)


def middle(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the median of the first ``count`` of sorted (W, ...): the mean of the middle two."""
    low, high = (
        lax.dynamic_index_in_dim(ordered, jnp.maximum(place, 0), 0, keepdims=False)
        for place in ((count - 1) // 2, count // 2)
    )
    return 0.5 * low + 0.5 * high


def finite(x: jax.Array) -> jax.Array:
    """Returns the array with 0, no step, where it is not finite."""
    return jnp.where(jnp.isfinite(x), x, 0.0)
