"""NAMO: Muon whose step shrinks with the noise of the gradients, as Adam's does."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import StateBytes, register
from optkit.optimizers._namo import PAPER, AdaptiveDecay, namo_recipe
from optkit.transforms import Transformation
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.norm_ratio import ShapeFrom
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Mask
from optkit.tree import MATRIX_ROLES, Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=PAPER,
    state_bytes={
        **dict.fromkeys(MATRIX_ROLES, StateBytes(4, lambda fan_out, fan_in: 4, "4 a matrix")),
        "*": 8,
    },
    tags=("muon", "adam", "newton-schulz"),
    chain="scale_by_norm_ratio(orthogonalize), which decays > learning rate; adamw on the rest",
)
def namo(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    b2: ScalarOrSchedule = 0.99,
    norm_eps: ScalarOrSchedule = 0.0,
    debias: bool = True,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    update_rms: float = 0.2,
    shape_from: ShapeFrom = "matrix",
    cap: float | None = 1.0,
    weight_decay: ScalarOrSchedule = 0.1,
    decay: AdaptiveDecay = "adaptive",
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
    """Muon with one adaptive step size a matrix: small where gradients disagree, full where not.

    For hidden matrices, with A = fan_out, B = fan_in and ``n`` counted from 1:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov); ``O = NS(u)``;
    2. ``s <- sqrt(b2*s**2 + (1-b2)*norm(g)**2)``, one number a matrix;
    3. ``a = lr * norm(u)/(s + norm_eps) * sqrt(1-b2**n)/(1-b1**n)``;
    4. ``W <- (1 - weight_decay*min(a, 1))*W - min(a*update_rms*sqrt(max(A, B)), cap)*O``.

    ``a`` is ``lr`` for gradients that never change and ``lr*sqrt((1-b1)/(1+b1))`` (0.16 of it) for
    pure noise without Nesterov. It does not depend on the scale of the gradients. Every matrix of
    a stack has an ``s`` of its own. All other leaves go to AdamW with the same learning rate and
    decay, betas (0.9, 0.95) and eps beside the uncorrected root, or to ``other``.

    Matrix work beside Muon's: two norms, ``4*A*B`` FLOPs a matrix. Choose it over ``muon_rms`` when
    the best learning rate is unknown or noise grows during the run. That it beats Muon and AdamW in
    pretraining GPT-2 is the paper's claim. In ``python -m benchmarks.claims namo_d``, a regression
    of a 64 x 64 matrix, the step shrinks from 0.085 to 0.038 of the rate as noise grows 16 times,
    where Muon's stays at 0.174; the loss ends below Muon's at little noise (0.027 against 0.040)
    and not at much (0.921 against 0.906), and more learning rates are good ones at the least noise
    alone.

    Args:
      learning_rate: step of all leaves, a number or a schedule; the paper's GPT-2 runs: 0.012.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      b2: decay rate of the squared gradient norm.
      norm_eps: added to its root (the reference: 1e-8); 0 divides safely at any scale.
      debias: correct both averages for their start at zero.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm before the iteration (the reference: 1e-7); None divides safely.
      method: how to orthogonalize, see ``optkit.orthogonalize``; "svd" is the reference's exact
        option.
      update_rms: RMS of the update per unit of ``a``.
      shape_from: "first_two_axes" for the reference's ``sqrt(max(out, in))`` on convolutions.
      cap: bound of the spectral norm of a step, and of ``a`` in the decay; None for no bound.
      weight_decay: coefficient for all leaves.
      decay: "adaptive" shrinks matrices by ``weight_decay*a`` as the reference does; the other
        kinds of ``optkit.decay_weights`` use the learning rate itself.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None. ``s`` is float32.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter and 4 per
      matrix, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.namo(0.1, weight_decay=0.0, method="svd", nesterov=False)
      >>> params = {"dense": {"kernel": jnp.zeros((4, 4))}}
      >>> u, _ = tx.update({"dense": {"kernel": 7.0 * jnp.eye(4)}}, tx.init(params), params)
      >>> round(float(u["dense"]["kernel"][0, 0]), 4)  # 0.1 * 0.2*sqrt(4)
      -0.04

    Reference:
      Zhang, Liu and Schaeffer, Adam Improves Muon, arXiv 2602.17080, and its code. As there, the
      correction ``1/(1-b1**n)`` is that of ``m`` though Nesterov's ``u`` is measured, so that the
      first step is ``(1+b1)*lr`` and not ``lr``. Unlike there, decay stops at turning a weight to
      0 (``weight_decay*a > 1``), and a matrix whose gradients are all zero does not move with
      "svd".
    """
    return namo_recipe(
        "namo",
        "matrix",
        learning_rate,
        b1=b1,
        nesterov=nesterov,
        b2=b2,
        norm_eps=norm_eps,
        debias=debias,
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        method=method,
        update_rms=update_rms,
        shape_from=shape_from,
        cap=cap,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        adam_learning_rate=adam_learning_rate,
        adam_eps=adam_eps,
        other=other,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
        dtype=dtype,
        group_bytes=group_bytes,
        sharding=sharding,
    )
