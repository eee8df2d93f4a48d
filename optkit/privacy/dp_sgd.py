"""DP-SGD: gradients of clipped examples with noise, for any optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.aggregate.noisy import add_noise, check_noise, is_silent
from optkit.catalogue import register
from optkit.distributed.workers import AxisName
from optkit.privacy import accounting
from optkit.privacy.clipping import per_example_clip
from optkit.transforms.base import check_state
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, value_at
from optkit.transforms.noise import Key, fresh_key
from optkit.transforms.sketching import check_key
from optkit.tree import PyTree


class PrivateState(NamedTuple):
    """State of a ``PrivateGradient``; keep it in checkpoints, so that no noise is used twice.

    Orbax stores the key as it is. Tools that know arrays alone, such as ``flax.serialization``,
    take ``optkit.export_state(state)``; ``optkit.restore_state(gradient.init(0), ...)`` reads it.
    """

    key: jax.Array  # PRNG key, constant
    steps: jax.Array  # int32 scalar, gradients so far


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateGradient:
    """What ``optkit.privacy.private_gradient`` returns: call it in place of a gradient function.

    Attributes:
      noise_multiplier: standard deviation of the noise on the sum, in units of ``clip``.
      expected_batch: what sums are divided by.
    """

    noise_multiplier: float
    expected_batch: float
    _step: Callable[..., tuple[Any, PrivateState]] = dataclasses.field(repr=False)

    def init(self, key: Key) -> PrivateState:
        """Returns the state before the first gradient.

        Args:
          key: seed or PRNG key. Who knows it can take the noise away: draw it for one run, and
            keep it secret.

        Returns:
          ``PrivateState``.
        """
        check_key(key)
        return PrivateState(fresh_key(key), jnp.zeros((), jnp.int32))

    def __call__(
        self,
        params: PyTree,
        batch: Any,
        state: PrivateState,
        *,
        mask: jax.Array | None = None,
        noise: PyTree | None = None,
    ) -> tuple[Any, PrivateState]:
        """Returns the gradient and the next state; jit it.

        Args:
          params: parameters.
          batch: tree of arrays (B, ...).
          state: ``PrivateState``.
          mask: bool (B,), False where an example is padding.
          noise: standard normal numbers like the parameters, to be added in place of drawn ones.

        Returns:
          A gradient like the parameters, and ``PrivateState``. With ``has_aux`` a pair of a
          gradient and of what is beside it, of each example, in the place of the gradient.

        Raises:
          TypeError: something else in place of the state, such as a key.
          ValueError: a mask of another shape or dtype.
        """
        check_state(state, PrivateState, "params, batch, state")
        return self._step(params, batch, state, mask, noise)

    def epsilon(
        self, examples: int, steps: int, delta: float, accountant: accounting.Accountant = "rdp"
    ) -> float:
        """Returns epsilon of so many steps on batches that ``PoissonBatches`` draws.

        Args:
          examples: how many there are to draw from.
          steps: how many gradients.
          delta: probability that the bound may fail with.
          accountant: see ``optkit.privacy.epsilon``.

        Returns:
          Epsilon, that any one example is added or removed.
        """
        return accounting.epsilon(
            self.noise_multiplier,
            steps=steps,
            delta=delta,
            examples=examples,
            batch=self.expected_batch,
            accountant=accountant,
        )


@register(
    kind="gradient",
    family="private",
    paper=(
        "Deep Learning with Differential Privacy",
        "1607.00133",
        2016,
    ),
    state_bytes={"*": 0},
    tags=("privacy", "clipping", "noise", "dp_sgd"),
    chain="(sum clip(g, C) + C std N)/B",
)
def private_gradient(
    loss_fn: Callable[[PyTree, Any], Any],
    *,
    clip: ScalarOrSchedule,
    noise_multiplier: float,
    expected_batch: float,
    is_gradient: bool = False,
    has_aux: bool = False,
    microbatch: int | None = None,
    axis_name: AxisName = None,
) -> PrivateGradient:
    """DP-SGD's gradient: examples clipped one by one, their sum with noise, a fixed divisor.

    1. ``s = sum g_i*min(1, clip/norm(g_i))`` (``optkit.privacy.per_example_clip``).
    2. ``g = (s + clip*noise_multiplier*N(0, I))/expected_batch``.

    Any optimizer may follow: what comes after the noise costs no privacy. Noise is added once
    whatever the mesh and the microbatches, and depends on key, step and each leaf's path alone.
    Gradient accumulation behind it (``optax.MultiSteps``) would add noise to each part of a batch:
    use ``microbatch``.

    Args:
      loss_fn: (params, one example) -> scalar, an example being the batch without its leading axis.
      clip: the longest gradient of an example; may be a schedule of the gradients so far.
      noise_multiplier: standard deviation of the noise on the sum, in units of ``clip``
        (``optkit.privacy.calibrate_noise``).
      expected_batch: the sampling rate times all examples. It is not how many a batch has: that
        would tell how many were drawn, and accountants assume a fixed divisor.
      is_gradient: ``loss_fn`` returns a gradient already.
      has_aux: ``loss_fn`` returns a pair (loss, aux), aux a tree of arrays, as for ``jax.grad``.
        What comes back is **not private**: it has no noise, and tells of each example by itself.
        Keep it from whoever the model is kept private from; a mean of it is not private either.
      microbatch: examples whose gradients are in memory at once; None for all.
      axis_name: a mesh axis inside ``jax.shard_map``; see ``optkit.privacy.per_example_clip``.

    Returns:
      A ``PrivateGradient``: ``init(key)``, and a call ``(params, batch, state, *, mask=None) ->
      (gradient, state)``. Gradients have the parameters' dtypes. With ``has_aux`` the call returns
      ``((gradient, aux), state)``, aux of arrays (B, ...), an example each, padding that the mask
      leaves out among them; inside ``jax.shard_map`` those of a device's own examples. State
      bytes: a key and a counter.

    Raises:
      ValueError: an ``expected_batch``, a ``clip`` or a ``microbatch`` that is not positive, noise
        for an infinite ``clip``.
      TypeError: a schedule for the noise multiplier; ``loss_fn`` is no function, or returns no
        pair where ``has_aux`` says so.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> gradient = optkit.privacy.private_gradient(
      ...     lambda w, x: w @ x, clip=1.0, noise_multiplier=0.0, expected_batch=4)
      >>> x = jnp.array([[3.0, 4.0], [0.0, 0.5]])
      >>> [round(g, 3) for g in gradient(jnp.zeros(2), x, gradient.init(0))[0].tolist()]
      [0.15, 0.325]

    Reference:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133. Departures from
      ``optax.contrib.differentially_private_aggregate``: see ``optkit.aggregate.dp_mean``. Noise is
      drawn in floating point: no defence against attacks on its last bits.
    """
    check_noise(clip, noise_multiplier)
    check_number("expected_batch", expected_batch, low=0.0, open_low=True)
    # The rest is checked where it is used, but what is wrong is told before the first batch.
    per_example_clip(loss_fn, 1.0, microbatch=microbatch, axis_name=axis_name)
    silent = is_silent(noise_multiplier)

    def step(
        params: PyTree,
        batch: Any,
        state: PrivateState,
        mask: jax.Array | None,
        noise: PyTree | None,
    ) -> tuple[Any, PrivateState]:
        at = value_at(clip, state.steps)
        clipped = per_example_clip(
            loss_fn,
            at,
            is_gradient=is_gradient,
            has_aux=has_aux,
            microbatch=microbatch,
            axis_name=axis_name,
        )(params, batch, mask)
        std = 0.0 if silent else at * noise_multiplier
        total = add_noise(clipped.total, std, state.key, state.steps, noise)
        gradient = jax.tree.map(
            lambda x, p: (x / jnp.asarray(expected_batch, x.dtype)).astype(p.dtype), total, params
        )
        out = (gradient, clipped.aux) if has_aux else gradient
        return out, PrivateState(state.key, state.steps + 1)

    return PrivateGradient(noise_multiplier, expected_batch, step)
