"""FedAMD: anchors send gradients of large batches, miners follow them with small ones."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optkit.aggregate import mean
from optkit.aggregate.base import known_only, reports
from optkit.aggregate.checks import check_ids
from optkit.catalogue import register
from optkit.federated.server import Server, ServerState, check_server, server_step
from optkit.transforms.base import check_same_leaves, check_state, prng_key
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    check_static_number,
    value_at,
)
from optkit.tree import PyTree, leaves_with_paths, upcast

GradFn: TypeAlias = Callable[[PyTree, Any], PyTree]


class FedAmdState(NamedTuple):
    """State of ``FedAmd``."""

    anchors: PyTree  # arrays (N, ...): each client's last gradient of a large batch
    server: ServerState
    rounds: jax.Array  # int32 scalar


@dataclasses.dataclass(frozen=True, eq=False)
class FedAmd:
    """What ``optkit.fedamd`` returns.

    Attributes:
      grad_fn: (parameters, batch) -> gradients.
      learning_rate: of a miner's steps, a number or a schedule of rounds.
      anchor_probability: see ``optkit.fedamd``.
      server: moves along the mean of what miners send.
      chunk: clients side by side.
    """

    grad_fn: GradFn
    learning_rate: ScalarOrSchedule
    anchor_probability: float
    server: Server
    chunk: int | None

    def init(self, params: PyTree, large: Any) -> FedAmdState:
        """Returns the state before the first round, in which every client has been an anchor.

        Args:
          params: the server's parameters.
          large: a large batch of each of all N clients, along a leading axis.

        Returns:
          ``FedAmdState``.
        """
        clients = reports(large).client.shape[0]
        anchors = lax.map(lambda b: self._gradient(params, b), large, batch_size=self.chunk)
        return FedAmdState(anchors, self.server.init(params, clients), jnp.zeros((), jnp.int32))

    def draw_anchors(self, key: int | jax.Array | None, rounds: Any, count: int) -> jax.Array:
        """Returns who of ``count`` clients is an anchor in a round, bool (count,).

        Args:
          key: a PRNG key or a seed; not needed where all are, every so many rounds.
          rounds: int scalar, finished rounds.
          count: how many.

        Returns:
          See above.

        Raises:
          ValueError: a key is needed.
        """
        if self.anchor_probability >= 1:
            due = jnp.asarray(rounds, jnp.int32) % int(self.anchor_probability) == 0
            return jnp.broadcast_to(due, (count,))
        if key is None:
            raise ValueError("anchors are drawn at random: give key=, or anchor= to choose them")
        own = prng_key(jnp.asarray(key) if np.ndim(key) else key)  # NumPy's old keys too
        return jax.random.bernoulli(own, self.anchor_probability, (count,))

    def round(
        self,
        params: PyTree,
        state: FedAmdState,
        large: Any,
        small: Any,
        *,
        client: Any = None,
        present: Any = None,
        anchor: Any = None,
        key: int | jax.Array | None = None,
    ) -> tuple[PyTree, FedAmdState]:
        """Runs a round of C clients; jit it.

        Args:
          params: the server's parameters.
          state: ``FedAmdState``.
          large: a large batch of each client, leading axis C; read for anchors.
          small: K small batches of each client, leading axes (C, K); read for miners.
          client: int (C,), who they are; 0, 1, ... by default, where all are there.
          present: bool (C,); all by default.
          anchor: bool (C,), who is an anchor and not a miner; drawn by default.
          key: a PRNG key for that, or a seed.

        Returns:
          New parameters and state.

        Raises:
          ValueError: leading axes that differ, ``small`` without the one of K, an id that is no
            client's or there twice (traced, such a one is absent), or neither ``anchor`` nor
            ``key``.
          TypeError: ``state`` is none of this method.
        """
        check_state(state, FedAmdState, "params, state, large, small, ...")
        _check_steps(small)
        given = reports((large, small), client, None, present)
        count, everybody = given.client.shape[0], jax.tree.leaves(state.anchors)[0].shape[0]
        check_ids(client, present, count, everybody)
        given = known_only(given, everybody)
        drawn = self.draw_anchors(key, state.rounds, count) if anchor is None else anchor
        is_anchor = jnp.asarray(drawn, bool)
        if is_anchor.shape not in ((), (count,)):
            raise ValueError(
                f"anchor has shape {is_anchor.shape} and {count} clients are there: give bool "
                f"({count},)"
            )
        towards = jax.tree.map(lambda v: jnp.mean(v, axis=0), state.anchors)
        rate = value_at(self.learning_rate, state.rounds)

        def work(batches: Any) -> tuple[PyTree, PyTree]:
            own, steps = batches
            return self._gradient(params, own), self._mine(params, towards, steps, rate)

        gradients, sent = lax.map(work, (large, small), batch_size=self.chunk or count)
        rows = jnp.where(given.present & is_anchor, given.client, everybody)
        anchors = jax.tree.map(
            lambda v, g: v.at[rows].set(g.astype(v.dtype), mode="drop"), state.anchors, gradients
        )
        params, server = self.server.step(
            params,
            state.server,
            sent,
            client=given.client,
            present=given.present & ~is_anchor,
        )
        return params, FedAmdState(anchors, server, state.rounds + 1)

    def _gradient(self, params: PyTree, batch: Any) -> PyTree:
        out = self.grad_fn(params, batch)
        check_same_leaves(params, out, "gradients that grad_fn returns", shapes=True)
        return jax.tree.map(upcast, out)

    def _mine(self, params: PyTree, towards: PyTree, batches: Any, rate: Any) -> PyTree:
        """Where a miner started minus where it ends."""

        def step(carry: tuple[PyTree, PyTree, PyTree], batch: Any) -> tuple[Any, None]:
            before, now, direction = carry
            old, new = self._gradient(before, batch), self._gradient(now, batch)
            direction = jax.tree.map(lambda d, a, b: d - a + b, direction, old, new)
            moved = jax.tree.map(
                lambda y, d: (upcast(y) - rate * d).astype(y.dtype), now, direction
            )
            return (now, moved, direction), None

        (_, end, _), _ = lax.scan(step, (params, params, towards), batches)
        return jax.tree.map(lambda x, y: upcast(x) - upcast(y), params, end)


def _check_steps(small: Any) -> None:
    """Raises ValueError unless all small batches have one axis of steps after that of clients."""
    named = leaves_with_paths(small)
    steps = {np.shape(leaf)[1] if np.ndim(leaf) > 1 else None for _, leaf in named}
    if None in steps or len(steps) > 1:
        shapes = ", ".join(f"{np.shape(leaf)} at {path or '(root)'!r}" for path, leaf in named)
        raise ValueError(
            f"small needs leading axes (C, K), equal for all leaves: K small batches of each "
            f"client; it has shapes {shapes}; for one step a miner give each leaf as batch[:, None]"
        )


@register(
    kind="federated",
    family="federated",
    paper=(
        "Anchor Sampling for Federated Learning with Partial Client Participation",
        "2206.05891",
        2022,
    ),
    state_bytes={"*": 4},
    tags=("federated", "variance reduction", "anchors", "participation"),
    chain="anchors: v = F; miners: K times d += F(y) - F(y_0), y -= lr d, from d = mean(v); mean",
)
def fedamd(
    grad_fn: GradFn,
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    anchor_probability: float = 0.2,
    server: Server | None = None,
    chunk: int | None = None,
) -> FedAmd:
    """Anchor sampling: some clients measure a good gradient, the others walk along it.

    In a round, with ``v_i`` the last gradient of a large batch of client i:

    1. ``g = mean_i(v_i)`` over all N clients;
    2. each client that is there is an anchor with probability ``anchor_probability``, else a miner;
    3. an anchor: ``v_i <- grad(x; large batch)``, which enters ``g`` in the next round;
    4. a miner: ``y_0 = y = x``, ``d = g``, and for each of its K small batches: ``d <- d -
       grad(y_0; batch) + grad(y; batch)``, ``y_0 <- y``, ``y <- y - lr*d``; it sends ``D_i = x -
       y``;
    5. the server steps along the mean of the miners' ``D_i``; without miners it stays.

    Under ``jit`` every client does the work of both kinds, and one of the two is dropped: this
    simulates the method, and does not show its cost.

    Args:
      grad_fn: (parameters, batch) -> gradients.
      learning_rate: of a miner's steps, a number or a schedule of finished rounds.
      anchor_probability: in [0, 1), or an integer: in every so many rounds, from the first on, all
        are anchors.
      server: of ``optkit.server_step``; None is the mean at rate 1.
      chunk: clients side by side; None for all.

    Returns:
      A ``FedAmd`` with ``init`` and ``round``. State bytes: 4 per parameter and client beside the
      server's; a miner holds three copies of the parameters at work.

    Raises:
      ValueError: an option out of range.
      TypeError: ``server`` is no ``Server``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> method = optkit.fedamd(lambda x, target: x - target, 0.5)
      >>> params, targets = jnp.array([0.0]), jnp.array([[2.0], [4.0]])
      >>> state = method.init(params, targets)
      >>> small = targets[:, None]  # one step of each miner
      >>> params, state = method.round(params, state, targets, small, anchor=[True, False])
      >>> params.tolist()
      [1.5]

    Reference:
      Wu et al., FedAMD, arXiv 2206.05891, and the code of its authors, whose option to divide what
      miners send by K is the server's rate here. In that code an ``anchor_probability`` of just 1
      makes no anchors; here it makes all.
    """
    check_number("learning_rate", learning_rate, low=0.0)
    check_static_number("anchor_probability", anchor_probability)
    check_number("anchor_probability", anchor_probability, low=0.0)
    if anchor_probability > 1 and anchor_probability != int(anchor_probability):
        raise ValueError(
            f"anchor_probability={anchor_probability!r} must be in [0, 1) or an integer, a number "
            "of rounds"
        )
    if chunk is not None:
        check_static_int("chunk", chunk)
    own = server_step(mean(), optax.sgd(1.0)) if server is None else server
    check_server(own)
    return FedAmd(grad_fn, learning_rate, anchor_probability, own, chunk)
