"""Muon with AdamW-sized updates, as Moonlight trains with it."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, momentum, orthogonalize, scale_by_shape
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=("Muon is Scalable for LLM Training", "2502.16982", 2025),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz"),
    chain="momentum > orthogonalize > scale_by_shape(match_rms) > decay > lr; adamw on the rest",
)
def muon_rms(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
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
    """Muon whose updates have the RMS of AdamW's, so that both share learning rate and decay.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + g``; ``u = g + b1*m`` (Nesterov);
    2. ``O = NS(u)``; RMS(O) is about ``1/sqrt(max(A, B))``;
    3. ``W <- (1 - lr*weight_decay)*W - lr*update_rms*sqrt(max(A, B))*O``.

    All other leaves go to AdamW with the same learning rate and decay, betas (0.9, 0.95) and eps
    beside the uncorrected root, or to ``other``.

    Extra matrix work of a step: that of ``optkit.muon``, 5 Newton-Schulz steps of
    ``4*m**2*n + 2*m**3`` FLOPs for an m x n matrix, m the shorter side, or its Gram form.

    Choose it to keep the learning rate and decay of an AdamW run. Evidence: about half of AdamW's
    compute to a loss is the paper's claim, not examined here; ``python -m benchmarks.claims muon``
    has ``optkit.muon``, whose steps differ by a factor for each shape.

    Args:
      learning_rate: step of all leaves, a number or a schedule.
      b1: decay rate of the heavy ball.
      nesterov: look one step ahead.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm; None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      update_rms: RMS of the update per unit of learning rate.
      weight_decay: coefficient for all leaves.
      decay: kind of decay of the matrices.
      mask: matrices that decay.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(4)}}
      >>> tx = optkit.muon_rms(1.0, weight_decay=0.0, method="svd")
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> round(float(jnp.sqrt(jnp.mean(u["dense"]["kernel"] ** 2))), 3)
      0.2

    Reference:
      Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982. The reference takes 2-D
      leaves only; we take convolutions, stacks and experts as well.
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
        "muon_rms",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
