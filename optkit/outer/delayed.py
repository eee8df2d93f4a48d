"""Asynchronous DiLoCo: a momentum for displacements that arrive one by one, and equal rounds."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, keep_dtypes, map_leaves
from optkit.transforms.hyperparams import check_number, check_static_int, check_static_number
from optkit.tree import PyTree, upcast, zeros_like_params


class DelayedNesterovState(NamedTuple):
    """State of ``delayed_nesterov``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, arrivals since the momentum's step
    momentum: PyTree  # like params, float32 or better
    buffer: PyTree  # like it, the sum of what has arrived since


@register(
    kind="part",
    family="communication",
    paper=("Asynchronous Local-SGD Training for Language Modeling", "2401.09135", 2024),
    state_bytes={"*": 8},
    tags=("asynchronous", "outer optimizer", "momentum", "low communication"),
    chain="every N arrivals m <- mu m + mean(D); D/N + (share of) mu m",
    example={"every": 2},
)
def delayed_nesterov(momentum: float = 0.9, *, every: int, share: float = 0.0) -> Transformation:
    """A momentum for workers that do not wait for each other, which moves at every N-th arrival.

    An update is fed with what one worker has to report when it does: how far it went, start minus
    end (see ``optkit.server_step``). With ``b`` the buffer, at arrival t of D:

    1. ``b <- b + D``;
    2. every N-th time ``m <- mu*m + b/N``; ``u = (1 - c*N + c)*mu*m + D/N``; ``b <- 0``;
    3. otherwise ``u = c*mu*m + D/N``.

    Nesterov's momentum taken at each arrival grows too large, as stale displacements repeat each
    other. With ``every=1`` and ``share=0`` it is Nesterov's.

    Args:
      momentum: mu.
      every: N, arrivals between two steps of the momentum, such as the number of workers.
      share: c, what of the momentum is added at each arrival, from 0 to 1/N.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` of ascending updates, to be followed by an outer
      learning rate such as ``optax.scale(-0.7)``. State bytes: 8 per parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.delayed_nesterov(0.5, every=2), optax.scale(-1.0))
      >>> x = jnp.zeros(1)
      >>> state = tx.init(x)
      >>> for displacement in (jnp.ones(1), jnp.ones(1)):
      ...   u, state = tx.update(displacement, state, x)
      >>> u.tolist()
      [-1.0]

    Reference:
      Liu et al., Asynchronous Local-SGD Training for Language Modeling, arXiv 2401.09135, algorithm
      "Delayed Nesterov". Of low confidence: written from memory of the paper, and compared with no
      code; the published notebook (google-deepmind/asyncdiloco@e783a30) has plain Nesterov.
    """
    check_static_number("momentum", momentum)
    check_number("momentum", momentum, low=0.0, high=1.0)
    check_static_int("every", every)
    check_static_number("share", share)
    check_number("share", share, low=0.0, high=1.0 / every)

    def init_fn(params: PyTree) -> DelayedNesterovState:
        fresh = (zeros_like_params(params) for _ in range(2))
        return DelayedNesterovState(jnp.zeros((), jnp.int32), *fresh)

    def update_fn(
        updates: PyTree, state: DelayedNesterovState, params: PyTree | None = None, **extra: object
    ) -> tuple[PyTree, DelayedNesterovState]:
        del params, extra
        check_same_leaves(updates, state.momentum, "state")
        turn = state.count + 1 == every
        weight = jnp.where(turn, 1.0 - share * (every - 1), share) * momentum
        sums = map_leaves(lambda d, b: upcast(d) + b, updates, state.buffer)
        held = jax.tree.map(
            lambda m, b: jnp.where(turn, momentum * m + b / every, m), state.momentum, sums
        )
        out = map_leaves(lambda d, m: upcast(d) / every + weight * m, updates, held)
        sums = jax.tree.map(lambda b: jnp.where(turn, 0.0, b), sums)
        new = DelayedNesterovState(jnp.where(turn, 0, state.count + 1), held, sums)
        return keep_dtypes(out, updates), new

    return Transformation(init_fn, update_fn)


def dylu_steps(speeds: Sequence[float], steps: int) -> list[int]:
    """Returns inner steps of each worker in proportion to its speed, so that rounds last as long.

    ``H_w = max(1, floor(H*v_w/max(v)))``.

    Args:
      speeds: of the workers, in any common unit such as steps a second.
      steps: H, of the fastest one.

    Returns:
      Inner steps, one number a worker.

    Raises:
      ValueError: no workers, or a speed that is not positive.

    Example:
      >>> import optkit
      >>> optkit.dylu_steps([1.0, 0.5, 0.26], 100)
      [100, 50, 26]

    Reference:
      "Dynamic local updates" of Liu et al., arXiv 2401.09135; of low confidence, from memory. That
      a worker takes one step at least is ours.
    """
    check_static_int("steps", steps)
    if not speeds:
        raise ValueError("speeds is empty: give one number a worker")
    for speed in speeds:
        check_number("speeds", speed, low=0.0, open_low=True)
    fastest = max(speeds)
    # A quotient such as 0.29*100 must not fall below its integer by rounding.
    return [max(1, int(steps * speed / fastest + 1e-9)) for speed in speeds]
