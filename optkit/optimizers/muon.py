"""Muon as its author published it."""

from collections.abc import Sequence
from typing import Any, Literal

import optax

from optkit.catalogue import register
from optkit.linalg.implementation import Choice
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
    paper=("Muon: An optimizer for hidden layers in neural networks", None, 2024),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz"),
    chain="momentum > orthogonalize > scale_by_shape > decay > learning rate; adamw on the rest",
)
def muon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    debias: bool = False,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    scale: Mode = "max1",
    shape_from: Literal["matrix", "last_two_axes"] = "matrix",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
    implementation: Choice = "xla",
) -> Transformation:
    """Momentum whose matrices are replaced by their orthogonal factors.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov);
    2. ``O = NS(u)``: five Newton-Schulz steps towards ``U V^T``;
    3. ``O <- O*sqrt(max(1, A/B))``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*O``.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or to
    ``other``.

    Extra matrix work of a step: K Newton-Schulz steps of ``4*m**2*n + 2*m**3`` FLOPs each for an m
    x n matrix, m the shorter side; K = 5. Where it saves a tenth of that, and m is at least 64,
    "auto" takes the Gram form: ``4*m**2*n + (8*K - 6)*m**3`` in all in float32.
    ``optkit.linalg.factor_flops`` tells the number. On a CPU from 512 rows on, and with
    ``implementation="pallas"``, symmetric products are taken by half, which these numbers do not
    count.

    Choose it where hidden matrices dominate and the number of steps counts. Evidence: 1.35 times
    fewer steps on GPT-2 small is its author's claim. In ``python -m benchmarks.claims muon``, a
    byte language model, it has AdamW's last held-out loss in 360 of 500 steps, in
    ``python -m benchmarks.claims curvature``, a smaller one, in 144 of 300; there, too, a
    perceptron on digits never has it: 0.114 against 0.051.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      debias: divide by the sum of the weights. With it, ``coefficients`` and ``scale`` as they are
        and ``dims`` for every 2-D leaf this is optax.contrib.muon, whose two Nesterov terms are
        debiased differently: up to 5e-3 from the reference after ten steps.
      coefficients: Newton-Schulz coefficients, a name in ``optkit.linalg.COEFFICIENTS`` or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-7); None divides safely at any scale of gradients.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: shape factor, see ``optkit.scale_by_shape``.
      shape_from: "last_two_axes" for the reference's factor 1 on convolutions.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.
      implementation: "xla"; "pallas" for the kernels of TPUs and GPUs; "auto" for the kernel where
        it serves and wins, on TPUs, and XLA elsewhere; see there.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> tx = optkit.muon(0.02)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).state_bytes, optkit.tree.tree_bytes(state)
      (216, 216)

    Reference:
      Jordan et al., Muon, 2024 (blog, no arXiv id). For 4-D leaves the reference takes the shape
      factor from kernel height and width; we take fan_out and fan_in.
    """
    links = (
        momentum(b1, nesterov=nesterov, debias=debias, state_dtype=state_dtype),
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
            implementation=implementation,
        ),
        scale_by_shape(scale, shape_from=shape_from, dims=dims, roles=roles),
    )
    rest = adam_for_the_rest(
        other,
        adam_learning_rate,
        eps=1e-10,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    return matrix_recipe(
        "muon",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
