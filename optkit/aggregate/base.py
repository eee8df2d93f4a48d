"""What every aggregate is: a rule by which what many clients send becomes one direction."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optkit.aggregate.checks import check_ids, check_leaves, check_numbers, in_range, sound
from optkit.distributed.workers import AxisName, as_varying, axes_of, check_bound
from optkit.transforms.base import Transformation
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, compute_dtype, leaves_with_paths, upcast


class Reports(NamedTuple):
    """What C clients report in a round, along a leading axis.

    Attributes:
      displacement: tree of arrays (C, ...): where a client started minus where it ended, or its
        gradient. The server subtracts it.
      client: int32 (C,), who they are, from 0.
      weight: float32 (C,), such as their numbers of examples.
      present: bool (C,); what stands in the place of an absent one is not read.
      staleness: int32 (C,), how many rounds ago they were sent the parameters they started from;
        None for 0.
    """

    displacement: PyTree
    client: jax.Array
    weight: jax.Array
    present: jax.Array
    staleness: jax.Array | None = None


class Aggregated(NamedTuple):
    """What a round comes to.

    Attributes:
      direction: tree of arrays without the client axis, in float32 or better.
      state: of the aggregate, for the next round.
      moved: bool scalar, whether there is anything to step on; without, the server stays.
    """

    direction: PyTree
    state: PyTree
    moved: jax.Array


class Fold(NamedTuple):
    """An aggregate in parts, for clients that come one chunk after the other.

    Attributes:
      start: (shapes of one client's displacement, state) -> carry.
      add: (carry, ``Reports``) -> carry.
      finish: carry -> ``Aggregated``.
    """

    start: Callable[[PyTree, PyTree], Any]
    add: Callable[[Any, Reports], Any]
    finish: Callable[[Any], Aggregated]


@dataclasses.dataclass(frozen=True, eq=False)
class Aggregate:
    """A rule by which what many clients send becomes one direction, with what it remembers.

    Attributes:
      init: (parameters, number of clients) -> state.
      combine: (state, ``Reports``) -> ``Aggregated``.
      fold: the same in parts, where no more than sums have to be kept; None where the rule needs
        all vectors at once.
      clients: state -> of how many clients it keeps something; None for a rule that keeps nothing
        of any one.
    """

    init: Callable[[PyTree, int], PyTree]
    combine: Callable[[PyTree, Reports], Aggregated]
    fold: Fold | None = None
    clients: Callable[[PyTree], int] | None = None

    def apply(
        self,
        displacement: PyTree,
        state: PyTree,
        *,
        client: Any = None,
        weight: Any = None,
        present: Any = None,
        staleness: Any = None,
    ) -> Aggregated:
        """Returns the direction of a round.

        Args:
          displacement: tree of arrays (C, ...), a client each.
          state: of the last round, or ``init(params, clients)``.
          client: int (C,), who they are; 0, 1, ... by default, where all report to a rule that
            keeps something of each.
          weight: (C,) of any positive scale; equal by default.
          present: bool (C,); all by default.
          staleness: int (C,), by how many rounds reports are late; 0 by default.

        Returns:
          ``Aggregated``.

        Raises:
          ValueError: leading axes that differ; names the leaf. An id that is no client's or there
            twice, a negative or NaN weight, a negative staleness. Where they are traced nothing
            can be raised: who has such an id or weight counts as absent.
        """
        given = {"client": client, "weight": weight, "present": present, "staleness": staleness}
        return self.combine(state, self.reports(displacement, state, **given))

    def reports(self, displacement: PyTree, state: PyTree, **given: Any) -> Reports:
        """Fills up what was not given, checked against what the state keeps; see ``apply``."""
        filled = reports(displacement, **given)
        clients = None if self.clients is None else self.clients(state)
        count = filled.client.shape[0]
        check_ids(given.get("client"), given.get("present"), count, clients)
        return filled


def reports(
    displacement: PyTree,
    client: Any = None,
    weight: Any = None,
    present: Any = None,
    staleness: Any = None,
) -> Reports:
    """Fills up what was not given, or raises ValueError where leading axes differ.

    Who has a negative weight or none that is finite counts as absent.
    """
    named = leaves_with_paths(displacement)
    if not named:
        raise ValueError("displacement has no arrays: give one client's along each leading entry")
    count = jnp.shape(named[0][1])[0] if jnp.ndim(named[0][1]) else None
    for path, leaf in named:
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != count:
            raise ValueError(
                f"displacement has shape {jnp.shape(leaf)} at leaf {path!r} and "
                f"{jnp.shape(named[0][1])} at {named[0][0]!r}: all need one leading axis of "
                "clients; stack their trees"
            )
    filled = {
        "client": jnp.arange(count, dtype=jnp.int32) if client is None else client,
        "weight": jnp.ones(count, jnp.float32) if weight is None else weight,
        "present": jnp.ones(count, bool) if present is None else present,
        "staleness": jnp.zeros(count, jnp.int32) if staleness is None else staleness,
    }
    kinds = {
        "client": jnp.int32,
        "weight": jnp.float32,
        "present": jnp.bool_,
        "staleness": jnp.int32,
    }
    arrays = {name: jnp.asarray(value, kinds[name]) for name, value in filled.items()}
    for name, value in arrays.items():
        if value.shape != (count,):
            raise ValueError(
                f"{name} has shape {value.shape}: displacement has {count} clients along its "
                f"leading axis; give shape ({count},)"
            )
    check_numbers(weight, present, staleness, arrays["client"].shape[0])
    if weight is not None:
        arrays["present"] = arrays["present"] & sound(arrays["weight"])
    return Reports(displacement, **arrays)


def known_only(given: Reports, clients: int) -> Reports:
    """Returns reports of which those with an id beyond the clients of a memory are absent."""
    return given._replace(present=given.present & in_range(given.client, clients))


def one_of(displacement: PyTree) -> PyTree:
    """Returns shapes of one client's displacement, in the dtype of sums."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], compute_dtype(x)), displacement
    )


def zeros_for(one: PyTree, axis_name: AxisName) -> PyTree:
    """Returns zeros of these shapes, to which each device adds its own clients'."""
    return as_varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one), axis_name)


def weighted_sum(weight: jax.Array, tree: PyTree) -> PyTree:
    """Sums arrays (C, ...) over clients; what has no weight is not read, be it NaN.

    By multiplication and addition in float32: as a matrix product TPUs would round it.
    """

    def leaf(x: jax.Array) -> jax.Array:
        w = jnp.expand_dims(weight, tuple(range(1, x.ndim)))
        return jnp.sum(jnp.where(w == 0, 0.0, w.astype(compute_dtype(x)) * upcast(x)), axis=0)

    return jax.tree.map(leaf, tree)


def over_clients(tree: PyTree, axis_name: AxisName) -> PyTree:
    """Sums over the devices that clients are laid along."""
    names = axes_of(axis_name)
    return lax.psum(tree, names) if names else tree


def ratio(numerator: PyTree, denominator: jax.Array) -> PyTree:
    """Divides a tree by a scalar; by 0 it is 0."""
    safe = jnp.where(denominator == 0, 1.0, denominator)
    return jax.tree.map(lambda x: jnp.where(denominator == 0, 0.0, x / safe), numerator)


def folded(
    init: Callable[[PyTree, int], PyTree],
    fold: Fold,
    axis_name: AxisName,
    who: str,
    clients: Callable[[PyTree], int] | None = None,
) -> Aggregate:
    """Makes an aggregate of its parts."""

    def checked(params: PyTree, count: int) -> PyTree:
        check_static_int("clients", count)
        return init(params, count)

    def combine(state: PyTree, given: Reports) -> Aggregated:
        check_bound(axis_name, who)
        return fold.finish(fold.add(fold.start(one_of(given.displacement), state), given))

    return Aggregate(checked, combine, fold, clients)


def check_aggregate(aggregate: Any) -> None:
    """Raises TypeError with the remedy unless it is an aggregate."""
    if not isinstance(aggregate, Aggregate):
        raise TypeError(
            f"aggregate={aggregate!r} must be what a factory of optkit.aggregate returns, such as "
            "optkit.aggregate.mean()"
        )


def as_transform(aggregate: Aggregate, clients: int) -> Transformation:
    """Makes an aggregate the first link of a chain that is fed with gradients of many clients.

    ``update`` takes arrays (clients, ...) and gives one direction; what follows in the chain sees
    that alone. A round in which nothing can be stepped on gives zeros.

    Args:
      aggregate: any aggregate.
      clients: how many there are, for its memory.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` takes ``client``, ``weight``,
      ``present`` and ``staleness`` (see ``Aggregate.apply``). State bytes: those of the aggregate.

    Raises:
      TypeError: ``aggregate`` is none.
      ValueError: in update, reports without an axis of clients, where the parameters are given.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> first = optkit.aggregate.as_transform(optkit.aggregate.mean(), 3)
      >>> tx = optax.chain(first, optax.sgd(1.0))
      >>> grads = jnp.array([[1.0], [2.0], [6.0]])
      >>> tx.update(grads, tx.init(jnp.zeros(1)))[0].tolist()
      [-3.0]
    """
    check_aggregate(aggregate)

    def update_fn(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        client: Any = None,
        weight: Any = None,
        present: Any = None,
        staleness: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        del extra_args
        if params is not None:
            check_leaves(updates, params, "parameters", name="updates")
        given = {"client": client, "weight": weight, "present": present, "staleness": staleness}
        out = aggregate.apply(updates, state, **given)
        zeroed = jax.tree.map(lambda d: jnp.where(out.moved, d, 0.0), out.direction)
        return zeroed, out.state

    return optax.GradientTransformationExtraArgs(
        lambda params: aggregate.init(params, clients), update_fn
    )
