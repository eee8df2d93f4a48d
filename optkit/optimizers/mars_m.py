"""MARS-M: Moonlight's Muon on a variance-reduced gradient."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import (
    Transformation,
    blend_momentum,
    clip_leaf_norm,
    momentum,
    orthogonalize,
    scale_by_shape,
    variance_reduce,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, value_at
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


def _blend(gamma: ScalarOrSchedule, b1: ScalarOrSchedule) -> ScalarOrSchedule:
    """``(1-gamma)*b1``: the weight of the old momentum in MARS's own."""
    check_number("gamma", gamma, low=0.0, high=1.0)
    if callable(gamma) or callable(b1):
        return lambda count: jnp.asarray((1.0 - value_at(gamma, count)) * value_at(b1, count))
    return (1.0 - gamma) * b1


@register(
    kind="recipe",
    family="matrix",
    paper=("MARS-M: When Variance Reduction Meets Matrices", "2510.21800", 2025),
    state_bytes={"*": 8},
    tags=("mars", "variance reduction", "muon", "newton-schulz"),
    chain="variance_reduce > clip_leaf_norm > momentum > orthogonalize > match_rms > decay > lr; "
    "adamw on the rest",
)
def mars_m(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    gamma: ScalarOrSchedule = 0.025,
    clip: float | None = 1.0,
    exact: bool = False,
    one_buffer: bool = False,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    update_rms: float = 0.2,
    weight_decay: ScalarOrSchedule = 0.1,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_eps: float = 1e-8,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Moonlight's Muon on gradients from which MARS has taken part of the noise.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``c = g + gamma*b1/(1-b1)*(g - last)``; ``last <- g``;
    2. ``c <- c/max(1, norm(c)/clip)``, each matrix by itself;
    3. ``m <- b1*m + (1-b1)*c``; ``O = NS(m)``, without Nesterov;
    4. ``W <- (1 - lr*weight_decay)*W - lr*update_rms*sqrt(max(A, B))*O``.

    All other leaves go to AdamW with the same learning rate and decay, betas (0.9, 0.95) and eps
    beside the uncorrected root, or to ``other``.

    Extra matrix work: that of ``muon``, and the norm of ``c``, ``2*A*B`` FLOPs. Choose it where
    batches are small and memory for a second buffer is there; with ``one_buffer`` it costs what
    ``muon_rms`` does, and with ``gamma = 1-b1`` it is that. That it beats Muon on GPT-2 is the
    paper's claim, not reproduced here.

    Args:
      learning_rate: step of all leaves, a number or a schedule.
      b1: decay rate of the momentum.
      gamma: strength of the correction.
      clip: largest norm of ``c`` of a matrix; None for none.
      exact: take ``last`` from ``tx.update(..., prev_grad=...)``: the gradient of this batch at the
        parameters before the last update. Saves a buffer and costs a gradient.
      one_buffer: compute the same, unclipped, as ``u = (1-gamma)*b1*m + (1-(1-gamma)*b1)*g``;
        ``m <- b1*m + (1-b1)*g``: no ``last``, 4 bytes a parameter instead of 8. Needs
        ``clip=None``; the same for constant ``gamma`` and ``b1`` only.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-7); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      update_rms: RMS of the update per unit of learning rate.
      weight_decay: coefficient for all leaves.
      decay: kind of decay of the matrices.
      mask: matrices that decay.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments and of ``last``; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter; 4 per matrix
      parameter with ``one_buffer`` or ``exact``.

    Raises:
      ValueError: an option out of range, ``one_buffer`` with ``clip`` or ``exact``; at init a leaf
        that cannot be read as ``dims`` says; ``exact`` without ``prev_grad``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(4)}}
      >>> light = optkit.mars_m(0.02, clip=None, one_buffer=True)
      >>> [optkit.plan(tx, params).rows[0].state_bytes for tx in (optkit.mars_m(0.02), light)]
      [128, 64]

    Reference:
      Liu et al., MARS-M, arXiv 2510.21800, and its code, which starts with ``last = 0``: the first
      ``c`` is ``(1 + gamma*b1/(1-b1))*g``, where the paper has ``g``
      (``optkit.variance_reduce(start="gradient")``). The code clips whatever its ``clip_c`` says.
      4-D leaves it iterates on along the last two axes; we take fan_out and fan_in, and clip and
      orthogonalize each matrix of a stack by itself.
    """
    if one_buffer and (exact or clip is not None):
        raise ValueError(
            f"one_buffer=True cannot keep clip={clip!r} or exact={exact!r}: the clip needs the "
            "corrected gradient itself; give clip=None and exact=False, or one_buffer=False"
        )
    if one_buffer:
        averages = [blend_momentum(_blend(gamma, b1), b1, state_dtype=state_dtype)]
    else:
        averages = [variance_reduce(gamma, b1, exact=exact, state_dtype=state_dtype)]
        if clip is not None:
            averages.append(clip_leaf_norm(clip, per="matrix", dims=dims, roles=roles))
        averages.append(momentum(b1, state_dtype=state_dtype))
    links = (
        *averages,
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dims=dims,
            roles=roles,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
        scale_by_shape("match_rms", factor=update_rms, dims=dims, roles=roles),
    )
    rest = adam_for_the_rest(
        other,
        learning_rate,
        eps=adam_eps,
        state_dtype=state_dtype,
        weight_decay=weight_decay,
        eps_mode="uncorrected",
    )
    return matrix_recipe(
        "mars_m",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
