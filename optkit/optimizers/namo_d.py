"""NAMO-D: NAMO with a step size of its own for every column."""

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
        **dict.fromkeys(
            MATRIX_ROLES, StateBytes(4, lambda fan_out, fan_in: 4 * fan_in, "4 a column")
        ),
        "*": 8,
    },
    tags=("muon", "adam", "newton-schulz"),
    chain="scale_by_norm_ratio(orthogonalize, per column) > learning rate; adamw on the rest",
)
def namo_d(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    b2: ScalarOrSchedule = 0.99,
    norm_eps: ScalarOrSchedule = 0.0,
    clamp: ScalarOrSchedule = 0.75,
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
    """NAMO with one adaptive step size a column: inputs with noisy gradients take smaller steps.

    For hidden matrices, with A = fan_out, B = fan_in, ``j`` a column (one of the B inputs) and
    ``n`` counted from 1:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov); ``O = NS(u)``;
    2. ``s_j <- sqrt(b2*s_j**2 + (1-b2)*norm(g_j)**2)``;
    3. ``r_j = norm(u_j)/(s_j + norm_eps)``, clipped to ``[clamp*mean(r), mean(r)/clamp]``;
       ``a_j = lr * r_j * sqrt(1-b2**n)/(1-b1**n)``;
    4. ``W_j <- (1 - weight_decay*min(a_j, 1))*W_j - min(a_j*update_rms*sqrt(max(A, B)), cap)*O_j``.

    The columns of a step are no longer orthogonal unless ``clamp`` is 1. All other leaves are
    served as in ``optkit.namo``.

    Matrix work beside Muon's: two norms of each column, ``4*A*B`` FLOPs a matrix. Choose it over
    ``namo`` where inputs differ in how often they are active. That it improves on NAMO in
    pretraining GPT-2, with ``clamp`` tuned, is the paper's claim. In
    ``python -m benchmarks.claims namo_d``, a regression of a 64 x 64 matrix, it does as NAMO does,
    to a hundredth of the loss: below Muon at little noise (0.027 against 0.040) and not at much
    (0.919 against 0.906), and more learning rates are good ones at the least noise alone.

    Args:
      learning_rate: step of all leaves, a number or a schedule; the paper's GPT-2 runs: 0.009.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      b2: decay rate of the squared gradient norms.
      norm_eps: added to their roots (the reference: 1e-8); 0 divides safely at any scale.
      clamp: share of the mean ratio that columns are held to: 1 makes all equal, 0 clips nothing.
        0.75 is the code's default; the paper's GPT-2 runs: 0.01.
      debias: correct both averages for their start at zero.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm before the iteration (the reference: 1e-7); None divides safely.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      update_rms: RMS of the update per unit of ``a``.
      shape_from: "first_two_axes" for the reference's ``sqrt(max(out, in))`` on convolutions.
      cap: bound of the factor of each column, and of ``a_j`` in the decay; None for no bound.
      weight_decay: coefficient for all leaves.
      decay: "adaptive" shrinks column j by ``weight_decay*a_j`` as the reference does; the other
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
      column (fan_in of each matrix), else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.namo_d(0.1, weight_decay=0.0, method="svd", nesterov=False)
      >>> params = {"dense": {"kernel": jnp.zeros((4, 4))}}
      >>> state = tx.init(params)
      >>> for sign in (1.0, -1.0):  # the gradient of the first input changes its sign
      ...   grads = {"dense": {"kernel": jnp.diag(jnp.array([sign, 1.0, 1.0, 1.0]))}}
      ...   u, state = tx.update(grads, state, params)
      >>> [round(abs(float(x)), 4) for x in jnp.diag(u["dense"]["kernel"])]
      [0.0227, 0.04, 0.04, 0.04]

    Reference:
      Zhang, Liu and Schaeffer, Adam Improves Muon, arXiv 2602.17080, and its code. As there, the
      first step with Nesterov is ``(1+b1)*lr``, see ``optkit.namo``.
    """
    return namo_recipe(
        "namo_d",
        "column",
        learning_rate,
        b1=b1,
        nesterov=nesterov,
        b2=b2,
        norm_eps=norm_eps,
        clamp=clamp,
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
