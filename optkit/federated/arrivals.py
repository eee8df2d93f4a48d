"""Clients that a server hears one after the other: what it keeps from one arrival to the next."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.checks import known
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    check_state,
    map_leaves,
    unzip,
)
from optkit.transforms.hyperparams import check_number, check_static_number
from optkit.tree import PyTree, upcast, zeros_like_params


class WeightedMomentumState(NamedTuple):
    """State of ``weighted_momentum``."""

    momentum: PyTree  # like params, float32 or better


def weighted_momentum(momentum: float = 0.9) -> Transformation:
    """Makes a server's momentum that a report moves, and wears off, by as much as it counts.

    One arrival an update, no buffer. Of the displacement ``D`` and its weight ``w`` in [0, 1]:

    1. ``b = momentum + (1-momentum)*(1-w)``;
    2. ``m <- b*m + w*D``;
    3. ``u = w*m``, a direction that an optimizer such as ``optax.sgd(rate)`` has to follow.

    A weight of 1 is a heavy ball, one of 0 changes nothing. For late reports ``w`` is such as
    ``optkit.federated.polynomial_staleness(0.5, average=0.0)(staleness)``.

    Args:
      momentum: mu, in [0, 1).

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` takes ``weight``, 1 by default. One
      that is traced and outside of [0, 1], or no number, counts as 0. Updates keep their dtypes.
      State bytes: 4 per parameter.

    Raises:
      ValueError: ``momentum`` out of range; in update a ``weight`` that is no number in [0, 1].

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.federated.weighted_momentum(0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for weight in (1.0, 0.5):
      ...   u, state = tx.update(jnp.ones(1), state, weight=weight)
      ...   print(u.tolist(), state.momentum.tolist())
      [1.0] [1.0]
      [0.625] [1.25]

    Reference:
      FLSim's FedAvgWithLRWithMomentumAsyncAggregator (facebookresearch/FLSim@7311f2d,
      flsim/optimizers/async_aggregators.py), the unbuffered form of FedBuff, arXiv 2106.06639,
      which the paper does not have. The weight is in the rate and in the displacement both, as
      there. No recorded run: its code does not import on Python 3.11.
    """
    check_static_number("momentum", momentum)
    check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)

    def init(params: PyTree) -> WeightedMomentumState:
        return WeightedMomentumState(zeros_like_params(params))

    def update(
        updates: PyTree,
        state: WeightedMomentumState,
        params: PyTree | None = None,
        *,
        weight: Any = 1.0,
        **extra_args: Any,
    ) -> tuple[PyTree, WeightedMomentumState]:
        del params, extra_args
        w = _weight(weight)
        b = momentum + (1.0 - momentum) * (1.0 - w)

        def leaf(d: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            # What does not count is not read, be it NaN.
            sent = jnp.where(w == 0, 0.0, w.astype(m.dtype) * upcast(d))
            new = b.astype(m.dtype) * m + sent.astype(m.dtype)
            return (w.astype(m.dtype) * new).astype(d.dtype), new

        out, new = unzip(updates, map_leaves(leaf, updates, state.momentum), 2)
        return out, WeightedMomentumState(new)

    return Transformation(init, update)


def _weight(weight: Any) -> jax.Array:
    """The weight of a report, float32; 0 where it is traced and none."""
    value = known(weight)
    if jnp.ndim(weight) or (value is not None and not 0.0 <= float(value) <= 1.0):
        raise ValueError(
            f"weight={weight!r} must be one number in [0, 1], as a report is one update; of "
            "several give one after the other, such as by jax.lax.scan"
        )
    w = jnp.asarray(weight, jnp.float32)
    return jnp.where((w >= 0.0) & (w <= 1.0), w, 0.0)


class MeanSquareState(NamedTuple):
    """State of an ``AdaptiveCompensation``."""

    mean_square: PyTree  # like params, float32 or better


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveCompensation:
    """What ``optkit.federated.adaptive_dc_asgd`` returns.

    Attributes:
      init: parameters -> ``MeanSquareState``.
      convert: (displacements (C, ...), parameters that each client started from (C, ...), today's,
        state, present=None) -> displacements (C, ...) and state.
    """

    init: Callable[[PyTree], MeanSquareState]
    convert: Callable[..., tuple[PyTree, MeanSquareState]]


def adaptive_dc_asgd(
    lam: float = 2.0, *, decay: float = 0.95, eps: float = 1e-7
) -> AdaptiveCompensation:
    """Makes a converter of late gradients whose strength follows their size, entry by entry.

    Of the present clients, one after the other in the order that they stand in:

    1. ``s <- decay*s + (1-decay)*D_i*D_i``, at first 0;
    2. ``D_i + lam/sqrt(s + eps)*D_i*D_i*(x_now - x_start)``.

    As ``D*D/sqrt(s)`` is about the size of ``D``, one ``lam`` serves gradients and displacements,
    unlike that of ``optkit.federated.dc_asgd``. With ``decay=0`` nothing is remembered.

    Args:
      lam: lambda_0, at least 0.
      decay: of the mean of squares, in [0, 1).
      eps: added to it under the root; above 0.

    Returns:
      An ``AdaptiveCompensation``. Displacements come back in float32 or better; those of absent
      clients, where ``present`` is given, as they were. State bytes: 4 per parameter.

    Raises:
      ValueError: a number out of range; in ``convert`` trees or shapes that differ, or a
        ``present`` that is no bool (C,).
      TypeError: something else in the place of the state.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> late = optkit.federated.adaptive_dc_asgd(1.0, decay=0.0)
      >>> params = jnp.array([2.0])
      >>> sent, old = jnp.array([[3.0], [-3.0]]), jnp.array([[1.0], [2.0]])
      >>> got, state = late.convert(sent, old, params, late.init(params))
      >>> [round(x, 4) for x in got[:, 0].tolist()]
      [6.0, -3.0]

    Reference:
      Zheng et al., arXiv 1609.08326, DC-ASGD-a; the defaults are those of its experiments on
      CIFAR-10 as others report them. Read in code (Multiverso's dcasgda_updater.h), which keeps one
      mean of squares for each worker; here, as the paper's, one serves all. Confidence low: no
      recorded run of the reference.
    """
    for name, value in (("lam", lam), ("decay", decay), ("eps", eps)):
        check_static_number(name, value)
    check_number("lam", lam, low=0.0)
    check_number("decay", decay, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0, open_low=True)

    def init(params: PyTree) -> MeanSquareState:
        return MeanSquareState(zeros_like_params(params))

    def convert(
        displacement: PyTree,
        started_from: PyTree,
        params: PyTree,
        state: MeanSquareState,
        present: Any = None,
    ) -> tuple[PyTree, MeanSquareState]:
        check_state(state, MeanSquareState, "displacement, started_from, params, state")
        check_same_leaves(displacement, started_from, "parameters they started from", shapes=True)
        check_same_leaves(displacement, params, "parameters")
        here = _present(displacement, present)

        def arrive(held: PyTree, one: Any) -> tuple[PyTree, PyTree]:
            sent, started, counts = one

            def leaf(s: jax.Array, d: jax.Array, old: jax.Array, new: jax.Array) -> Any:
                wide = upcast(d)
                mean = decay * s + (1.0 - decay) * jnp.square(wide).astype(s.dtype)
                moved = upcast(new) - upcast(old)
                # Divided before it is squared, which could overflow.
                more = lam * wide * (wide / jnp.sqrt(mean + eps)) * moved
                return jnp.where(counts, mean, s), jnp.where(counts, wide + more, wide)

            both = map_leaves(leaf, held, sent, started, params)
            mean, out = unzip(held, both, 2)
            return mean, out

        mean, out = lax.scan(arrive, state.mean_square, (displacement, started_from, here))
        return out, MeanSquareState(mean)

    return AdaptiveCompensation(init, convert)


def _present(displacement: PyTree, present: Any) -> jax.Array:
    """Which reports count, bool (C,)."""
    count = math.prod(jnp.shape(jax.tree.leaves(displacement)[0])[:1])
    here = jnp.ones(count, bool) if present is None else jnp.asarray(present)
    if here.shape != (count,) or here.dtype != bool:
        raise ValueError(
            f"present is {here.dtype}{list(here.shape)} and must be bool[{count}], one a client"
        )
    return here
