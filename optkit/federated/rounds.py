"""Whole rounds in one call: clients work from the server's parameters, chunk after chunk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.base import Aggregate, Aggregated, Reports
from optkit.federated.server import Server, ServerState, check_server
from optkit.transforms.base import check_same_leaves, check_state
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, tree_bytes, upcast


class RoundInfo(NamedTuple):
    """What a round took.

    Attributes:
      reports: int32 scalar, clients that were present.
      bytes_up: float32 scalar, bytes that they sent: a displacement each.
      bytes_down: float32 scalar, bytes that all who were asked received: the parameters each.
      aux: what ``local`` returned besides, along a leading axis of clients; None without.
    """

    reports: jax.Array
    bytes_up: jax.Array
    bytes_down: jax.Array
    aux: Any


def federated_round(
    local: Callable[..., Any],
    server: Server,
    *,
    chunk: int | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[PyTree, ServerState, RoundInfo]]:
    """Makes a function that runs a whole round of simulated clients; jit it.

    1. Each client works: ``x_i = local(x, data_i)``, ``chunk`` clients side by side and one chunk
       after the other.
    2. ``D_i = x - x_i``; what each chunk adds to the aggregate's sums is added, and its vectors are
       dropped. A rule that needs all vectors (medians, Krum) gets them all.
    3. The server steps.

    Clients have a leading axis of their data, so that ``NamedSharding`` spreads them over devices,
    and what ``drjax`` maps over a placement goes into ``Server.step`` as it is
    (examples/drjax_round.py).

    Args:
      local: (parameters, one client's data) -> parameters after its local work; with ``has_aux``
        and something else beside them. The data is any tree, and may hold a PRNG key.
      server: of ``optkit.server_step``.
      chunk: clients side by side; None for all. A last chunk is filled up with absent ones.
      has_aux: see ``local``.

    Returns:
      A function ``(params, state, data, *, client=None, weight=None, present=None, staleness=None)
      -> (params, state, RoundInfo)``, data with a leading axis of clients, the others as in
      ``Aggregate.apply``. Memory: ``chunk`` displacements and the aggregate's state, or all
      displacements where its ``fold`` is None.

    Raises:
      ValueError: in the call, leading axes that differ, or ``local`` returns other leaves than it
        was given; see also ``Aggregate.apply``.
      TypeError: ``server`` is none, or in the call ``state`` is none of a server.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> server = optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))
      >>> run = optkit.federated_round(lambda x, target: x + 0.5 * (target - x), server, chunk=2)
      >>> params = jnp.zeros(1)
      >>> targets = jnp.array([[2.0], [4.0], [6.0]])
      >>> params, state, info = run(params, server.init(params, 3), targets)
      >>> params.tolist(), int(info.reports), float(info.bytes_up)
      ([2.0], 3, 12.0)

    Reference:
      McMahan et al., arXiv 1602.05629.
    """
    check_server(server)
    if chunk is not None:
        check_static_int("chunk", chunk)

    def worked(params: PyTree, data: Any) -> tuple[PyTree, Any]:
        out = local(params, data)
        end, aux = out if has_aux else (out, None)
        check_same_leaves(params, end, "parameters that local returns", shapes=True)
        return jax.tree.map(lambda x, y: upcast(x) - upcast(y), params, end), aux

    def run(
        params: PyTree,
        state: ServerState,
        data: Any,
        *,
        client: Any = None,
        weight: Any = None,
        present: Any = None,
        staleness: Any = None,
    ) -> tuple[PyTree, ServerState, RoundInfo]:
        check_state(state, ServerState, "params, state, data, ...")
        who = {"client": client, "weight": weight, "present": present, "staleness": staleness}
        given = server.aggregate.reports(data, state.aggregate, **who)

        def some(part: Reports) -> tuple[Reports, Any]:
            sent, aux = jax.vmap(worked, in_axes=(None, 0))(params, part.displacement)
            return part._replace(displacement=sent), aux

        out, aux = _combined(server.aggregate, state.aggregate, params, some, given, chunk)
        params, state = server.move(params, state, out)
        heard, size = jnp.sum(given.present, dtype=jnp.int32), float(tree_bytes(params))
        asked = jnp.float32(given.present.size * size)
        return params, state, RoundInfo(heard, heard * size, asked, aux)

    return run


def _combined(
    aggregate: Aggregate,
    state: PyTree,
    params: PyTree,
    work: Callable[[Reports], tuple[Reports, Any]],
    given: Reports,
    chunk: int | None,
) -> tuple[Aggregated, Any]:
    """Has clients work in chunks; returns what all come to, and what they returned besides."""
    count = given.present.size
    size = count if chunk is None else min(chunk, count)
    parts = jax.tree.map(lambda x: _chunks(x, size), given)
    real = jnp.arange(parts.present.size).reshape(parts.present.shape) < count
    parts = parts._replace(present=parts.present & real)
    fold = aggregate.fold
    if fold is None:
        sent, aux = lax.map(work, parts)
        return aggregate.combine(state, _joined(sent, count)), _joined(aux, count)

    def body(carry: Any, part: Reports) -> tuple[Any, Any]:
        sent, aux = work(part)
        return fold.add(carry, sent), aux

    one = jax.eval_shape(lambda x: jax.tree.map(upcast, x), params)
    carry, aux = lax.scan(body, fold.start(one, state), parts)
    return fold.finish(carry), _joined(aux, count)


def _chunks(x: Any, size: int) -> jax.Array:
    """(C, ...) as (chunks, size, ...), filled up with copies of the last client."""
    x = jnp.asarray(x)
    missing = -x.shape[0] % size
    if missing:
        x = jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)])
    return x.reshape(-1, size, *x.shape[1:])


def _joined(tree: PyTree, count: int) -> PyTree:
    """(chunks, size, ...) as (C, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)
