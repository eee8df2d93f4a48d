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
    count_workers,
    exchange,
    gather,
)
from optkit.tree import PyTree, upcast


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The vectors of W clients; along a mesh axis a device has all W at its own coordinates.

    Attributes:
      tree: arrays (W, ...) in float32 or better; along an axis one array (W, n).
      present: bool (W,).
      client: int32 (W,), who they are.
      one: shapes of a whole vector.
      axis_name: the mesh axis, or None.
    """

    tree: PyTree
    present: jax.Array
    client: jax.Array
    one: PyTree
    axis_name: AxisName

    @property
    def count(self) -> jax.Array:
        """Returns how many are present, int32."""
        return jnp.sum(self.present, dtype=jnp.int32)

    def total(self, partial: jax.Array) -> jax.Array:
        """Returns sums over all coordinates from those over a device's own."""
        names = axes_of(self.axis_name)
        return lax.psum(partial, names) if names else partial

    def own(self, vector: PyTree) -> PyTree:
        """Returns a device's coordinates of a vector that all devices have."""
        names = axes_of(self.axis_name)
        if not names:
            return vector
        rows = _rows(jax.tree.map(lambda x: x[None], vector), count_workers(names))
        return lax.dynamic_index_in_dim(rows, lax.axis_index(names), 0, keepdims=False)[0]

    def zeros(self) -> PyTree:
        """Returns zeros at a device's coordinates."""
        start = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), self.tree)
        return as_varying(start, self.axis_name)

    def whole(self, own: PyTree) -> PyTree:
        """Returns a vector on all devices from the coordinates of each."""
        if not axes_of(self.axis_name):
            return own
        flat = _gathered(own, self.axis_name)
        leaves, structure = jax.tree.flatten(self.one)
        out, start = [], 0
        for leaf in leaves:
            size = math.prod(leaf.shape)
            out.append(flat[start : start + size].reshape(leaf.shape).astype(leaf.dtype))
            start += size
        return jax.tree.unflatten(structure, out)

    def squares(self, centre: PyTree) -> jax.Array:
        """Returns squared distances from a vector, (W,); not finite where one is not."""
        return self.total(_added(jax.tree.map(_squares, self.tree, centre)))

    def readable(self, squared: jax.Array) -> jax.Array:
        """Returns which vectors have any weight, bool (W,): present, and at a finite distance."""
        return self.present & jnp.isfinite(squared)

    def distances(self) -> jax.Array:
        """Returns squared distances of all pairs, (W, W); NaN or infinite where one is not finite.

        By differences: as ``|a|^2 + |b|^2 - 2ab`` those of close vectors would cancel.
        """
        return self.total(_added(jax.tree.map(_pairs, self.tree)))

    def ranking(self, score: jax.Array) -> jax.Array:
        """Returns places (W,) by score, equal ones by client: whatever order they come in."""
        places = jnp.arange(score.shape[0])
        return lax.sort((score, self.client, places), num_keys=2, is_stable=True)[2]

    def settled(self, own: PyTree, state: PyTree, moved: jax.Array) -> Aggregated:
        """Returns a round's outcome; 0 where nothing is stepped on."""
        direction = jax.tree.map(lambda x: jnp.where(moved, x, 0.0), self.whole(own))
        return Aggregated(direction, state, moved)


def all_vectors(
    given: Reports, axis_name: AxisName, who: str, least: int = 1, why: str = ""
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

    Returns:
      ``Vectors``.

    Raises:
      ValueError: fewer clients than ``least``.
    """
    check_bound(axis_name, who)
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
        return Vectors(tree, given.present, given.client, one, axis_name)
    rows = as_varying(_rows(given.displacement, devices), axis_name)
    came = upcast(exchange(rows, axis_name).reshape(count, -1))
    present, client = (_gathered(x, axis_name) for x in (given.present, given.client))
    return Vectors(came, present, client, one, axis_name)


def _gathered(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Joins the (n,) of all devices."""
    return gather(as_varying(x, axis_name), axis_name).reshape(-1)


def _rows(tree: PyTree, devices: int) -> jax.Array:
    """Lays arrays (C, ...) out as (devices, C, coordinates of each device), filled up with 0."""
    leaves = jax.tree.leaves(tree)
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
    flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % devices)))
    return jnp.moveaxis(flat.reshape(flat.shape[0], devices, -1), 1, 0)


@jax.jit  # one program: without it the differences of all pairs would be kept
def _pairs(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x[:, None] - x[None]), axis=tuple(range(2, x.ndim + 1)))


def _squares(x: jax.Array, centre: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x - centre[None]), axis=tuple(range(1, x.ndim)))


def _added(parts: PyTree) -> jax.Array:
    """Adds the leaves' sums."""
    first, *others = jax.tree.leaves(parts)
    return functools.reduce(jnp.add, others, first)


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
