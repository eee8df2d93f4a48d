"""Muon as the Dion authors' library runs it."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, momentum, orthogonalize, scale_by_shape
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=("Dion: Distributed Orthonormalized Updates", "2504.05295", 2025),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz", "polar express"),
    chain="heavy ball > polar express > sqrt(fan_out/fan_in) > decay > lr; adamw on the rest",
)
def muon_dion(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = False,
    coefficients: str | Sequence[Sequence[float]] = "polar_express_1p02",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    scale: Mode = "rms_op",
    weight_decay: ScalarOrSchedule = 0.01,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_eps: float = 1e-8,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Heavy-ball Muon with Polar Express and the RMS-to-RMS operator norm.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + g``; ``u = m``, or ``g + b1*m`` with ``nesterov``;
    2. ``O = NS(u)`` with the Polar Express coefficients;
    3. ``W <- (1 - lr*weight_decay)*W - lr*sqrt(A/B)*O``; with ``decay="cautious"`` only entries
       with ``W*O >= 0`` decay.

    All other leaves go to AdamW, or to ``other``. Extra matrix work of a step: that of
    ``optkit.muon``, 5 Newton-Schulz steps of ``4*m**2*n + 2*m**3`` FLOPs for an m x n matrix, m the
    shorter side, or its Gram form.

    Choose it where learning rates shall carry over between widths, or to go on with a run of the
    library. Evidence: ``python -m benchmarks.claims muon`` has ``optkit.muon``; this form, with its
    own momentum, coefficients and factor, is not compared here.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the heavy ball.
      nesterov: look one step ahead.
      coefficients: "polar_express_1p02" or, in the library's other setting, "quintic_you".
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: "rms_op" (the library's spectral_norm), "match_rms" (its rms_norm) or "none".
      weight_decay: coefficient for the matrices, and for AdamW.
      decay: "decoupled" or "cautious" (or another kind of ``optkit.decay_weights``).
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(4)}}
      >>> tx = optkit.muon_dion(0.5, weight_decay=0.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> bool(abs(u["dense"]["kernel"][0, 0] + 0.5) < 0.08)
      True

    Reference:
      Ahn et al., Dion, arXiv 2504.05295 (its library's Muon); Amsel et al., The Polar Express,
      arXiv 2505.16932.
    """
    links = (
        momentum(b1, kind="heavy_ball", nesterov=nesterov, state_dtype=state_dtype),
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
        scale_by_shape(scale, dims=dims, roles=roles),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adam_for_the_rest(
        other, rate, eps=adam_eps, state_dtype=state_dtype, weight_decay=weight_decay
    )
    return matrix_recipe(
        "muon_dion",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
