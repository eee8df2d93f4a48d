"""The server's side of a round: an aggregate feeds any optimizer as a gradient does."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optkit.aggregate import Aggregate, Aggregated
from optkit.aggregate.base import check_aggregate
from optkit.aggregate.checks import check_leaves
from optkit.transforms.base import Transformation, check_state, check_transformation
from optkit.tree import PyTree


class ServerState(NamedTuple):
    """State of a ``Server``."""

    aggregate: PyTree
    optimizer: PyTree
    rounds: jax.Array  # int32 scalar, those that moved


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
    """What ``optkit.server_step`` returns.

    Attributes:
      aggregate: its aggregate.
      optimizer: its optimizer.
    """

    aggregate: Aggregate
    optimizer: Transformation

    def init(self, params: PyTree, clients: int) -> ServerState:
        """Returns the state before the first round.

        Args:
          params: the server's parameters.
          clients: how many clients there are in all.

        Returns:
          ``ServerState``.

        Raises:
          TypeError: the number in the place of the parameters.
        """
        if isinstance(params, int) and not isinstance(clients, int):
            raise TypeError(
                f"params={params!r} must be the parameters; arguments are (params, clients)"
            )
        state = self.aggregate.init(params, clients)
        return ServerState(state, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(
        self,
        params: PyTree,
        state: ServerState,
        displacement: PyTree,
        *,
        client: Any = None,
        weight: Any = None,
        present: Any = None,
        staleness: Any = None,
    ) -> tuple[PyTree, ServerState]:
        """Moves the parameters by what clients report; jit it.

        Args:
          params: the server's parameters.
          state: ``ServerState``.
          displacement: tree of arrays (C, ...), where clients started minus where they ended.
          client: int (C,), who they are.
          weight: (C,).
          present: bool (C,).
          staleness: int (C,), by how many rounds reports are late.

        Returns:
          New parameters and state.

        Raises:
          ValueError: reports of another tree than the parameters, or without an axis of clients;
            see also ``Aggregate.apply``.
          TypeError: ``state`` is none of a server.
        """
        check_state(state, ServerState, "params, state, displacement, ...")
        check_leaves(displacement, params, "parameters")
        given = {"client": client, "weight": weight, "present": present, "staleness": staleness}
        return self.move(
            params, state, self.aggregate.apply(displacement, state.aggregate, **given)
        )

    def move(
        self, params: PyTree, state: ServerState, out: Aggregated
    ) -> tuple[PyTree, ServerState]:
        """Steps along what an aggregate gave; nothing but its memory changes in an empty round.

        Args:
          params: the server's parameters.
          state: ``ServerState``.
          out: the round.

        Returns:
          New parameters and state.

        Raises:
          ValueError: a direction of other leaves than the parameters.
          TypeError: ``state`` is none of a server.
        """
        check_state(state, ServerState, "params, state, out")
        check_leaves(out.direction, params, "parameters", name="direction", leading=False)

        def moved() -> tuple[PyTree, PyTree]:
            updates, optimizer = self.optimizer.update(out.direction, state.optimizer, params)
            return optax.apply_updates(params, updates), optimizer

        params, optimizer = lax.cond(out.moved, moved, lambda: (params, state.optimizer))
        return params, ServerState(out.state, optimizer, state.rounds + out.moved)


def check_server(server: Any) -> None:
    """Raises TypeError with the remedy unless it is a server."""
    if not isinstance(server, Server):
        raise TypeError(f"server={server!r} must be what optkit.server_step returns")


def server_step(aggregate: Aggregate, tx: optax.GradientTransformation) -> Server:
    """Makes a server of an aggregate and any optimizer, to which it is a gradient.

    1. ``D = aggregate(what clients report)``; a round without reports ends here.
    2. ``x <- x + tx(D)``.

    ``optax.sgd(1.0)`` after ``aggregate.mean()`` is FedAvg, ``optax.sgd(1.0, momentum=0.9)``
    FedAvgM, ``optax.adam(0.1, 0.9, 0.99, eps=1e-3)`` FedAdam with Adam's correction of its bias
    (``optkit.fedopt`` has the paper's and Flower's forms).

    Args:
      aggregate: of ``optkit.aggregate``.
      tx: an optimizer.

    Returns:
      An ``optkit.federated.Server``. State bytes: those of both.

    Raises:
      TypeError: something else in the place of either.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> server = optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))
      >>> params = jnp.array([10.0])
      >>> state = server.init(params, clients=2)
      >>> ended = jnp.array([[8.0], [6.0]])
      >>> server.step(params, state, params[None] - ended, weight=[1, 3])[0].tolist()
      [6.5]

    Reference:
      Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295.
    """
    check_aggregate(aggregate)
    return Server(aggregate, check_transformation("tx", tx))
