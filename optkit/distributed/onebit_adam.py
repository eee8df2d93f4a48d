"""1-bit Adam: after a warm-up the second moment is frozen and momentum is averaged by signs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import LeafBytes, register
from optkit.distributed.compressed import (
    ONE_BIT,
    average_tree,
    fresh_errors,
    only_active,
    padded_size,
)
from optkit.distributed.workers import (
    AxisName,
    PerWorker,
    as_varying,
    check_axis_name,
    check_local,
    cond,
    mean,
)
from optkit.transforms import Transformation, descend
from optkit.transforms.base import check_same_leaves, map_leaves
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.transforms.step import Decay, Mask
from optkit.tree import PyTree, upcast, zeros_like_params


class ScaleByOnebitAdamState(NamedTuple):
    """State of 1-bit Adam's direction."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, float32: first moment, equal on all workers
    nu: PyTree  # like params, float32: second moment, constant after the warm-up
    error: PerWorker  # see CompressedMeanState: what signs did not say of mu
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def mean_tree(tree: PyTree, axis_name: AxisName) -> PyTree:
    """Averages all leaves over workers in one exchange."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, mean(leaves, axis_name))


def averaged(decay: Any, old: PyTree, new: PyTree) -> PyTree:
    """``decay*old + (1-decay)*new``, in the dtypes of the old."""
    return map_leaves(lambda x, y: (decay * x + (1.0 - decay) * y).astype(x.dtype), old, new)


def _scale_by_onebit_adam(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    warmup_steps: int | jax.Array,
    axis_name: AxisName,
    active: PyTree | None,
) -> Transformation:
    def init_fn(params: PyTree) -> ScaleByOnebitAdamState:
        count = jnp.zeros((), jnp.int32)
        moments = [zeros_like_params(params) for _ in range(2)]
        error = fresh_errors(params, ONE_BIT, axis_name, "onebit_adam")
        return ScaleByOnebitAdamState(
            count, moments[0], moments[1], error, recorded(count, b1=b1, b2=b2, eps=eps)
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByOnebitAdamState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByOnebitAdamState]:
        del params, extra_args
        check_local(updates, axis_name, "onebit_adam")
        check_same_leaves(updates, state.mu, "state")
        a1, a2, e = (value_at(value, state.count) for value in (b1, b2, eps))
        own = jax.tree.map(upcast, updates)
        error = as_varying(state.error, axis_name)

        def warm() -> tuple[PyTree, PyTree, PerWorker]:
            g = mean_tree(own, axis_name)
            nu = averaged(a2, state.nu, jax.tree.map(jnp.square, g))
            return averaged(a1, state.mu, g), nu, error

        def compressed() -> tuple[PyTree, PyTree, PerWorker]:
            mu, new = average_tree(averaged(a1, state.mu, own), error, ONE_BIT, axis_name)
            return only_active(mu, active), state.nu, new or error

        mu, nu, error = cond(state.count < warmup_steps, warm, compressed, axis_name)
        out = map_leaves(lambda g, m, v: (m / (jnp.sqrt(v) + e)).astype(g.dtype), updates, mu, nu)
        record = recorded(state.count, b1=b1, b2=b2, eps=eps)
        return out, ScaleByOnebitAdamState(state.count + 1, mu, nu, error, record)

    return Transformation(init_fn, update_fn)


def check_moments(b1: Any, b2: Any, eps: Any, warmup_steps: Any, axis_name: Any) -> None:
    """Raises unless the options that both 1-bit recipes have are in range."""
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    if not isinstance(warmup_steps, jax.Array):
        check_static_int("warmup_steps", warmup_steps)
    check_axis_name(axis_name)


@register(
    kind="recipe",
    family="communication",
    paper=("1-bit Adam: Communication Efficient Large-Scale Training", "2102.02888", 2021),
    state_bytes={
        "*": LeafBytes(16, lambda n: 8 * n + 8 * padded_size(n, 1, ONE_BIT), "errors in bytes")
    },
    tags=("adam", "compression", "error feedback", "sign", "data parallel"),
    chain="mean > adam; after the warm-up: m <- onebit_mean(b1 m + (1-b1) g) / root of frozen v",
)
def onebit_adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    axis_name: AxisName = None,
    warmup_steps: int | jax.Array = 1000,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    active: PyTree | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
) -> Transformation:
    """Adam whose workers send a bit an entry once its second moment has settled.

    Inside ``jax.shard_map`` (or ``jax.vmap(axis_name=...)``), fed with this worker's own gradient:

    1. in the first ``warmup_steps``: ``g = mean(g)``; ``m <- b1*m + (1-b1)*g``;
       ``v <- b2*v + (1-b2)*g**2``;
    2. then v stays; each worker has ``m' = b1*m + (1-b1)*g`` of its own gradient, and
       ``m <- onebit_mean(m')`` takes m's place, the same on all workers;
    3. ``p <- (1 - lr*weight_decay)*p - lr*m/(sqrt(v) + eps)``.

    Moments are not debiased, as in the reference, whose flag for it has no effect: the first steps
    are about ``(1-b1)/sqrt(1-b2)`` long, so that a learning rate wants a warm-up of its own.

    No matrix work. Choose it where the wire, not the arithmetic, is slow: after the warm-up a
    worker sends two bits an entry instead of 64 (``optkit.wire_bytes``). The share of steps that
    the warm-up needs (the paper: 15% to 25%) and that the loss is Adam's are the paper's claims.

    Args:
      learning_rate: a number or a schedule.
      axis_name: see ``optkit.powersgd_mean``.
      warmup_steps: exact updates with plain averages; the reference's ``freeze_step`` counts its
        allocation as one, and is one more.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment, while it moves.
      eps: added to the root.
      active: a tree (or prefix) of masks of zeros and ones: entries whose gradient is always 0,
        such as rows of an embedding that no batch has, need a 0 here, since a bit cannot say 0 and
        v is 0 there, too. Only after the warm-up.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes of a worker: 12 per parameter, and
      4/workers for the chunk that it serves; 16 with one worker. See ``optkit.init_workers``.

    Raises:
      ValueError: an option out of range; in update ``axis_name=None`` inside a ``shard_map``.
      NameError: used outside of its axis.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> tx = optkit.onebit_adam(0.1, axis_name="workers", warmup_steps=1)
      >>> def two(g):
      ...   u, state = tx.update(g, tx.init(g))
      ...   return tx.update(g, state)[0]
      >>> u = jax.vmap(two, axis_name="workers")(jnp.array([[1.0, -1.0], [3.0, -3.0]]))
      >>> bool((u[0] == u[1]).all()), jnp.sign(u[0]).tolist()
      (True, [-1.0, 1.0])

    Reference:
      Tang et al., 1-bit Adam, arXiv 2102.02888, in the form of DeepSpeed 0.15.1
      (runtime/fp16/onebit/adam.py).
    """
    check_moments(b1, b2, eps, warmup_steps, axis_name)
    direction = _scale_by_onebit_adam(b1, b2, eps, warmup_steps, axis_name, active)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
