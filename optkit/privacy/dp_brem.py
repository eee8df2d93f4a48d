"""DP-BREM: clients' momenta of clipped gradients, clipped around the server's, with noise."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.aggregate.noisy import Recorded, check_noise, is_silent
from optkit.aggregate.private import dp_centered_clipping
from optkit.catalogue import register
from optkit.federated.server import ServerState, server_step
from optkit.privacy.clipping import per_example_clip
from optkit.transforms.base import check_state
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_number,
    check_static_int,
    value_at,
)
from optkit.transforms.noise import Key
from optkit.tree import PyTree, compute_dtype


class DPBremState(NamedTuple):
    """State of a ``DPBrem``."""

    momentum: PyTree  # arrays (clients, ...), float32 or better: each client's own
    server: ServerState


@dataclasses.dataclass(frozen=True, eq=False)
class DPBrem:
    """What ``optkit.privacy.dp_brem`` returns.

    Attributes:
      init: (parameters, number of clients) -> ``DPBremState``.
      step: (parameters, state, data, *, mask=None, present=None) -> parameters and state.
    """

    init: Callable[[PyTree, int], DPBremState]
    step: Callable[..., tuple[PyTree, DPBremState]]


@register(
    kind="federated",
    family="private",
    paper=(
        "DP-BREM: Differentially-Private and Byzantine-Robust Federated Learning with Client "
        "Momentum",
        "2306.12608",
        2023,
    ),
    state_bytes={"*": 8},
    tags=("federated", "privacy", "robust", "clipping", "momentum"),
    chain="m = ema(mean clip(g, R)); dp_centered_clipping; tx",
)
def dp_brem(
    loss_fn: Callable[[PyTree, Any], Any],
    tx: optax.GradientTransformation,
    *,
    example_clip: ScalarOrSchedule,
    clip: ScalarOrSchedule,
    noise_multiplier: float,
    key: Key,
    b1: Scalar = 0.9,
    expected_batch: float | None = None,
    is_gradient: bool = False,
    microbatch: int | None = None,
    eps: float = 1e-6,
    noise: Recorded = None,
) -> DPBrem:
    """DP-BREM: private and robust federated learning by clients' momenta.

    1. Every client, reporting or not: ``g_i = sum_b g_ib*min(1, R/(norm(g_ib) + eps))/B``,
       ``m_i <- b1*m_i + (1 - b1)*g_i``; R is ``example_clip``.
    2. Server, S the n clients that report: ``M <- M + (sum_{i in S} clip(m_i - M, C) +
       noise_multiplier*R*N(0, I))/n``; C is ``clip`` (``optkit.aggregate.dp_centered_clipping``).
    3. ``x <- x + tx(M)``.

    Args:
      loss_fn: (params, one example) -> scalar, as in ``optkit.privacy.per_example_clip``.
      tx: the server's optimizer; ``optax.sgd(rate)`` in the paper.
      example_clip: longest gradient of an example, above 0. The code lets both lengths fall over
        its T rounds: ``optax.linear_schedule(R, 0.3*R, T)``.
      clip: how far from M a client may pull.
      noise_multiplier: standard deviation of the noise on the server's sum, in units of R.
      key: seed or PRNG key of the noise; a secret.
      b1: decay of the clients' momenta.
      expected_batch: B; None for a batch's own size, as in the code, which tells how many examples
        a client drew.
      is_gradient: ``loss_fn`` returns a gradient already.
      microbatch: examples of a client whose gradients are in memory at once; None for all.
      eps: added to norms of examples.
      noise: see ``optkit.aggregate.dp_mean``.

    Returns:
      A ``DPBrem``: ``init(params, clients)``, and ``step(params, state, data, *, mask=None,
      present=None)``, jit it; data of leading axes (clients, B), ``mask`` bool (clients, B),
      ``present`` bool (clients,). Schedules count the rounds that somebody reported in. State
      bytes: 4 a parameter and client, 4 a parameter for M, and those of ``tx``.

    Raises:
      ValueError: lengths that are not positive, noise for an infinite ``example_clip``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> method = optkit.privacy.dp_brem(
      ...     lambda w, x: 0.5*jnp.sum((w - x)**2), optax.sgd(1.0),
      ...     example_clip=1.0, clip=0.5, noise_multiplier=0.0, key=0, b1=0.0)
      >>> params = jnp.zeros(1)
      >>> data = jnp.array([[[0.25], [0.25]], [[9.0], [9.0]]])  # two clients, two examples each
      >>> params, state = method.step(params, method.init(params, 2), data)
      >>> round(float(params[0]), 4)
      0.375

    Reference:
      Gu et al., arXiv 2306.12608; Emory-AIMS/DP-BREM@ed4675c. The algorithm is certain, its
      accounting is not: a client's momentum moves by ``(1 - b1)*R/B`` with an example, over all
      rounds that follow, while the code scales noise by R alone; ``optkit.privacy.epsilon`` does
      not apply to it. The method needs ``b1`` above 0; the code's default is 0. Departure: a round
      without reports moves nothing, where the code draws again. Not here: noise added by clients,
      secure aggregation (DP-BREM+).
    """
    check_noise(example_clip, noise_multiplier, "example_clip")
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    if expected_batch is not None:
        check_number("expected_batch", expected_batch, low=1.0)
    std = _noise_std(example_clip, noise_multiplier)
    server = server_step(dp_centered_clipping(clip, std, key=key, noise=noise), tx)

    def init(params: PyTree, clients: int) -> DPBremState:
        check_static_int("clients", clients)
        momentum = jax.tree.map(lambda p: jnp.zeros((clients, *p.shape), compute_dtype(p)), params)
        return DPBremState(momentum, server.init(params, clients))

    def step(
        params: PyTree,
        state: DPBremState,
        data: Any,
        *,
        mask: jax.Array | None = None,
        present: jax.Array | None = None,
    ) -> tuple[PyTree, DPBremState]:
        check_state(state, DPBremState, "params, state, data")
        length = value_at(example_clip, state.server.rounds)
        clipped = per_example_clip(
            loss_fn, length, is_gradient=is_gradient, microbatch=microbatch, eps=eps
        )

        def client(momentum: PyTree, batch: Any, mask: jax.Array | None) -> PyTree:
            sums = clipped(params, batch, mask)
            below = jnp.maximum(sums.examples, 1) if expected_batch is None else expected_batch
            return jax.tree.map(
                lambda m, s: b1 * m + (1.0 - b1) * (s / jnp.asarray(below, s.dtype)),
                momentum,
                sums.total,
            )

        axes = (0, 0, None if mask is None else 0)
        momentum = jax.vmap(client, in_axes=axes)(state.momentum, data, mask)
        params, after = server.step(params, state.server, momentum, present=present)
        return params, DPBremState(momentum, after)

    return DPBrem(init, step)


def _noise_std(example_clip: ScalarOrSchedule, noise_multiplier: float) -> ScalarOrSchedule:
    if is_silent(noise_multiplier):
        return 0.0
    if callable(example_clip) and not isinstance(example_clip, jax.Array):
        return lambda count: noise_multiplier * example_clip(count)
    return noise_multiplier * example_clip
