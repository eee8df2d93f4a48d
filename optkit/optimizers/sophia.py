"""Sophia: signs of a momentum where the loss is flat, Newton steps where it is curved."""

from collections.abc import Callable
from typing import Any

import jax

from optkit.catalogue import register
from optkit.curvature import Estimate, constant, gauss_newton_bartlett
from optkit.transforms import Transformation, descend, scale_by_sophia
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.noise import Key
from optkit.transforms.sophia import PAPER
from optkit.transforms.step import Decay, Mask
from optkit.tree import PyTree


@register(
    kind="recipe",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("second order", "gauss-newton", "diagonal", "sophia"),
    chain="clip(m / (rho h + eps)) > decay > learning rate",
    example={"curvature": constant()},
)
def sophia_g(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    rho: ScalarOrSchedule = 0.04,
    eps: ScalarOrSchedule = 1e-15,
    clip: ScalarOrSchedule | None = 1.0,
    every: int | None = None,
    first: int | None = None,
    curvature: Estimate | None = None,
    weight_decay: ScalarOrSchedule = 0.1,
    decay: Decay = "decoupled",
    mask: Mask = None,
    monitor: bool = False,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Sophia with the Gauss-Newton estimate, as its authors' code computes it.

    In update ``t``, counted from 0:

    1. if ``t % every == 0`` and ``t > 0``: ``h <- b2*h + (1-b2)*curvature(p)``;
    2. ``m <- b1*m + (1-b1)*g``, not debiased;
    3. ``u = clip(m/(rho*h + eps), -c, c)``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*u``.

    Until the first refresh ``h`` is 0 and the steps are ``optkit.signum``'s. Pass the estimate to
    each update, nothing of it is computed but in the updates of line 1::

      estimate = optkit.curvature.gauss_newton_bartlett(logits_fn, inputs)
      updates, state = tx.update(grads, state, params, curvature=estimate)

    or the logits as a function of the parameters, from which it makes that estimate itself::

      updates, state = tx.update(grads, state, params, logits_fn=lambda p: model.apply(p, inputs))

    as ``optkit train`` does on tasks that have logits. An update that gets but ``value_fn``, as on
    tasks that have none, takes Hutchinson's estimate of it; where that is negative, the step is the
    sign.

    Of a flax.nnx model ``graph, params, rest = nnx.split(model, nnx.Param, ...)`` are parts from
    which functions of the parameters make it: ``lambda p: nnx.merge(graph, p, rest)(inputs)``.

    Evidence: half of AdamW's steps is the paper's claim. In
    ``python -m benchmarks.claims curvature`` a small byte model is worse than with AdamW, 3.433
    against 3.097 bits a byte, and never gets there; on digits it ends at 0.041 against 0.051,
    within the spread over seeds.

    Args:
      learning_rate: like Lion's; it is the paper's times its rho.
      b1: decay rate of the momentum.
      b2: decay rate of the curvature.
      rho: share of the curvature that divides; raise it if ``win_rate`` is above 0.5, and lower it
        below 0.1. The authors' GPT-2 runs have 0.05.
      eps: added to the divisor.
      clip: largest entry of the update; None for no limit.
      every: updates from one refresh to the next; None for 10.
      first: number of the first update that refreshes; None for ``every``, as the code has it, 0 as
        the paper has it.
      curvature: the estimate where update is given none.
      weight_decay: coefficient; the GPT-2 runs have 0.2.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay; the GPT-2 runs spare norms and biases.
      monitor: keep the share of entries that are not clipped, as
        ``optax.tree.get(state, "win_rate")`` reads it.
      key: seed or PRNG key of the estimates; None for 0.
      state_dtype: dtype of ``m`` and ``h``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range, or no curvature.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> tx, params, x = optkit.sophia_g(0.1, every=1), {"w": jnp.ones((2, 3))}, jnp.eye(2)
      >>> estimate = optkit.curvature.gauss_newton_bartlett(lambda p, x: x @ p["w"], x)
      >>> g = {"w": jnp.array([[1.0, -1.0, 0.0], [0.0, 2.0, -2.0]])}
      >>> u, state = tx.update(g, tx.init(params), params, curvature=estimate)
      >>> u["w"].round(2).tolist()  # not refreshed yet: signs, and decay
      [[-0.1..., 0.08..., -0.00...], [-0.00..., -0.1..., 0.08...]]

    Reference:
      Liu et al., Sophia, arXiv 2305.14342, and its code, whose B is part of the estimate here. The
      code refreshes at the end of update ``every-1``, at the parameters that the next update
      begins with: the same, but for the batch, which here is that of the refreshing update.
    """
    every = 10 if every is None else every
    direction = scale_by_sophia(
        b1,
        b2,
        gamma=rho,
        eps=eps,
        clip=clip,
        every=every,
        first=every if first is None else first,
        refresh="before",
        debias_momentum=False,
        eps_mode="add",
        curvature=curvature,
        monitor=monitor,
        key=key,
        state_dtype=state_dtype,
    )
    direction = _estimated_from_logits(direction, curvature)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)


def _estimated_from_logits(direction: Transformation, own: Estimate | None) -> Transformation:
    """Makes the Gauss-Newton estimate of the extra argument ``logits_fn`` if given no other."""

    def update_fn(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        curvature: Any = None,
        logits_fn: Callable[[PyTree], jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        if curvature is None and own is None and logits_fn is not None:
            curvature = gauss_newton_bartlett(logits_fn)
        return direction.update(updates, state, params, curvature=curvature, **extra_args)

    return Transformation(direction.init, update_fn)


@register(
    kind="recipe",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("second order", "hessian", "hutchinson", "diagonal", "sophia"),
    chain="clip(m / max(gamma h, eps)) > decay > learning rate",
    example={"curvature": constant()},
)
def sophia_h(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    gamma: ScalarOrSchedule = 0.01,
    eps: ScalarOrSchedule = 1e-8,
    clip: ScalarOrSchedule | None = 1.0,
    every: int | None = None,
    first: int | None = None,
    curvature: Estimate | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay: Decay = "decoupled",
    mask: Mask = None,
    monitor: bool = False,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Sophia with Hutchinson's estimate, as Optax and levanter compute it.

    In update ``t``, counted from 0:

    1. ``m <- b1*m + (1-b1)*g``; ``u = clip(m/(1-b1**(t+1)) / max(gamma*h, eps), -c, c)``;
    2. ``p <- p - lr*(u + weight_decay*p)``;
    3. if ``(t - first) % every == 0`` and ``t >= first``: ``h <- b2*h + (1-b2)*curvature(p)``, at
       the parameters before line 2.

    Pass the loss of the batch to each update, as a function of the parameters, and Hutchinson's
    estimate of it is computed in the updates of line 3::

      updates, state = tx.update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))

    or any estimate as ``curvature=``, such as ``optkit.curvature.hutchinson(loss_fn, batch,
    probe="gaussian")``. Of a flax.nnx model ``graph, params, rest = nnx.split(model, nnx.Param,
    ...)`` are parts from which a function of the parameters makes it::

      optimizer.update(model, grads, value_fn=lambda p: loss(nnx.merge(graph, p, rest), batch))

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum; 0.96 in the paper.
      b2: decay rate of the curvature.
      gamma: share of the curvature that divides.
      eps: least divisor; 1e-12 in the paper. Where curvature is negative it is the divisor.
      clip: largest entry of the update; None for no limit.
      every: updates from one refresh to the next; None for 10.
      first: number of the first update that refreshes: None for 0 as in Optax, ``every-1`` as in
        levanter.
      curvature: an estimate of your own in place of ``value_fn``'s; update's comes first.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      monitor: keep the share of entries that are not clipped, as
        ``optax.tree.get(state, "win_rate")`` reads it.
      key: seed or PRNG key of the estimates; None for 0.
      state_dtype: dtype of ``m`` and ``h``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range, or no curvature.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> tx = optkit.sophia_h(0.5, b1=0.0, b2=0.0, gamma=0.5, every=1, weight_decay=0.0)
      >>> params = jnp.array([3.0, -2.0])
      >>> state, loss = tx.init(params), lambda p: jnp.sum(p**2)
      >>> for _ in range(4):
      ...   u, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
      ...   params = params + u
      >>> params.tolist()
      [1.0, 0.0]

    Reference:
      Liu et al., Sophia, arXiv 2305.14342; optax.contrib.sophia.
    """
    direction = scale_by_sophia(
        b1,
        b2,
        gamma=gamma,
        eps=eps,
        clip=clip,
        every=every,
        first=first,
        curvature=curvature,
        monitor=monitor,
        key=key,
        state_dtype=state_dtype,
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
