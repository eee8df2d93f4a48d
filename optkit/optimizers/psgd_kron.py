"""PSGD-Kron: momentum whitened by Kronecker factors that are fitted, not inverted."""

from collections.abc import Sequence
from typing import Any

import jax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_psgd_kron
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.psgd_factors import MemorySave
from optkit.transforms.psgd_kron import FACTOR_BYTES
from optkit.transforms.rotated_units import FACTOR_ROLES, Axes
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="curvature",
    paper=("Preconditioned Stochastic Gradient Descent", "1512.04202", 2015),
    state_bytes=dict.fromkeys(FACTOR_ROLES, FACTOR_BYTES) | {"*": 8},
    tags=("psgd", "kronecker", "whitening", "second order", "kron"),
    chain="scale_by_psgd_kron > decay > lr",
)
def psgd_kron(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    update_probability: Any = None,
    init_scale: float | None = None,
    max_size_triangular: int | None = None,
    min_ndim_triangular: int | None = None,
    memory_save_mode: MemorySave | None = None,
    momentum_into_precond_update: bool = True,
    max_update_rms: float | None = 1.1,
    balance_probability: float = 0.01,
    key: int | jax.Array | None = None,
    axes: Axes = "matrix",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Second-order steps from products and triangular solves: no eigenvalue, no inverse root.

    For a matrix W with factors Q1 of its inputs and Q2 of its outputs, upper triangular, and ``n``
    the number of the update from 1:

    1. ``mu <- b1*mu + (1-b1)*g``; ``M = mu/(1 - b1**n)``;
    2. every ``1/update_probability`` updates Q1 and Q2 move, by a relative step of at most
       ``preconditioner_lr``, towards those that whiten M;
    3. ``u = Q1^T Q1 M Q2^T Q2``; ``u <- u/max(1, RMS(u)/1.1)``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*u``.

    Embeddings and heads have two factors like other matrices, but only a diagonal for an axis of
    more than ``max_size_triangular`` entries; norms, biases and scalars a number an entry. Once the
    factors have adapted, u does not depend on the scale of the loss, and its entries are of about
    unit size, as Adam's are: learning rates of Adam are a start.

    Choose it where curvature is wanted without inverse roots or eigenvectors, which are slow on
    accelerators: Shampoo and SOAP hold two such factors more for each matrix. Evidence: none
    reproduced here beyond the trajectories of its reference; its authors report SOAP's number of
    steps.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum, in [0, 1).
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      preconditioner_lr: step of the factors.
      update_probability: how often they are fitted, a number or a schedule in (0, 1]; None for
        ``optkit.psgd_update_probability()``: at every update at first, at every 33rd in the end.
      init_scale: of the first product of all factors; None for 1.
      max_size_triangular: longer axes keep the diagonal of their factor; None for 8192.
      min_ndim_triangular: tensors of fewer axes keep diagonals; None for 2.
      memory_save_mode: "one_diag" keeps a diagonal of the longest axis, "all_diag" of all.
      momentum_into_precond_update: fit to M rather than to the gradient.
      max_update_rms: largest root mean square of a tensor's u; None for any.
      balance_probability: how often factors are balanced when they are fitted.
      key: seed or PRNG key of probes and balancing; None for 0.
      axes: "matrix", or "all" for a factor of every axis of every leaf, as the reference has it.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of mu and of vectors' factors; float32 for 16-bit parameters if None, as
        the factors of matrices always.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of tensors. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter and
      ``4*(fan_in**2 + fan_out**2)`` a matrix; 8 per parameter of norms and biases.

    Raises:
      ValueError: as ``optkit.scale_by_psgd_kron``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.psgd_kron(1e-3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * (8 * 16 + 8 * 8 + 16 * 16)
      1792

    Reference:
      Li, arXiv 1512.04202; for Lie groups and Kronecker products arXiv 2211.04422 and 2402.11858;
      the code of evanatyourservice/psgd_jax, which has no roles (``axes="all"``). Newer variants of
      its authors' own library fit in other ways; low confidence that this one is the best.
    """
    direction = scale_by_psgd_kron(
        b1,
        preconditioner_lr=preconditioner_lr,
        update_probability=update_probability,
        init_scale=init_scale,
        max_size_triangular=max_size_triangular,
        min_ndim_triangular=min_ndim_triangular,
        memory_save_mode=memory_save_mode,
        momentum_into_precond_update=momentum_into_precond_update,
        max_update_rms=max_update_rms,
        balance_probability=balance_probability,
        key=key,
        axes=axes,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
        precision=precision,
        group_bytes=group_bytes,
    )
    return descend(
        direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask, roles=roles
    )
