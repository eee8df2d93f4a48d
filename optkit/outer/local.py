"""Inner steps between two outer ones, in one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optkit.distributed.workers import as_varying
from optkit.spmd import varying
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import leaves_with_paths


def local_rounds(
    step: Callable[[Any, Any], tuple[Any, Any]], *, every: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Makes a function that takes H inner steps of a replica, one after the other; jit it.

    ``carry, aux_h = step(carry, batch_h)`` for h = 1 .. H, by ``jax.lax.scan``: the program does
    not grow with H, and nothing is sent between replicas.

    For replicas stacked along a leading axis it is ``optkit.on_replicas(run)``, with batches
    (R, H, ...).

    Args:
      step: (carry, batch) -> (carry, aux), of one replica; the carry is any tree, such as
        parameters and the state of an inner optimizer.
      every: H, steps of a round.

    Returns:
      A function ``(carry, batches) -> (carry, aux)``: batches with a leading axis of H, aux with
      one, too.

    Raises:
      TypeError: in the call, ``step`` returns anything but a carry of the same tree and aux.
      ValueError: in the call, batches of another number; names the leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> run = optkit.local_rounds(lambda x, g: (x - 0.1 * g, x), every=3)
      >>> end, seen = run(jnp.zeros(()), jnp.array([1.0, 2.0, 3.0]))
      >>> round(float(end), 3), seen.shape
      (-0.6, (3,))

    Reference:
      The inner loop of DiLoCo, arXiv 2311.08105, and of federated averaging, arXiv 1602.05629.
    """
    check_static_int("every", every)

    def run(carry: Any, batches: Any) -> tuple[Any, Any]:
        for path, leaf in leaves_with_paths(batches):
            if jnp.shape(leaf)[:1] != (every,):
                raise ValueError(
                    f"batches has shape {jnp.shape(leaf)} at leaf {path!r}: every={every} inner "
                    f"steps need a leading axis of {every}"
                )

        def one(carry: Any, batch: Any) -> tuple[Any, Any]:
            out = step(carry, batch)
            if not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    f"step must return (carry, aux), not {type(out).__name__}; where there is "
                    "nothing to tell, (carry, None)"
                )
            new, aux = out
            here: Any = jax.tree.structure(carry)
            there: Any = jax.tree.structure(new)
            if here != there:
                raise TypeError(
                    f"step must return (carry, aux) with a carry of the tree {here}, not {there}"
                )
            return jax.tree.map(_as_own, new, carry), aux

        return lax.scan(one, carry, batches, length=every)

    return run


def _as_own(new: jax.Array, old: jax.Array) -> jax.Array:
    """Says of a replica's array that it is its own, even if it is made of what all have alike."""
    return as_varying(new, tuple(varying(old)))
