"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.linalg.eigenbasis import Refresh
from optkit.linalg.norms import to_unit_peak
from optkit.transforms import Transformation, descend, in_rotated_basis, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, debias, value_at
from optkit.transforms.rotated_basis import FirstStep, RotatedBasisState, eigenbasis_bytes
from optkit.transforms.rotated_units import FACTOR_ROLES, Axes
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import AxisLayout, Dims, PyTree, RuleLike, upcast


class UnitRmsState(NamedTuple):
    """State of the link that normalises SOAP's updates."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates


def _unit_rms(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    corrects: bool,
    skips: bool,
    read: Any,
) -> Transformation:
    """``u/(1e-30 + RMS(u))`` of each tensor, and then Adam's correction of bias."""

    def init_fn(params: PyTree) -> UnitRmsState:
        del params
        return UnitRmsState(jnp.zeros((), jnp.int32))

    def update_fn(
        updates: PyTree, state: UnitRmsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, UnitRmsState]:
        del params, extra_args
        factor: Any = 1.0
        if corrects:
            n = jnp.maximum(state.count + (0 if skips else 1), 1)
            a1, a2 = value_at(b1, state.count), value_at(b2, state.count)
            factor = jnp.sqrt(debias(a2, n)) / debias(a1, n)
        layout = read(updates)

        def unit(x: jax.Array, batch: int) -> jax.Array:
            inside = tuple(range(batch, x.ndim))
            if not x.size:
                return x
            y, peak = to_unit_peak(x, inside)
            rms = jnp.sqrt(jnp.mean(y * y, axis=inside, keepdims=True))
            return factor * y / (1e-30 / peak + rms)

        pairs = zip(layout.split(jax.tree.map(upcast, updates)), layout.views, strict=True)
        done = layout.merge([unit(x, len(view.batch)) for x, view in pairs])
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), done, updates)
        return out, UnitRmsState(state.count + 1)

    return Transformation(init_fn, update_fn)


def _still_at_first(tx: optax.GradientTransformationExtraArgs) -> Transformation:
    """Moves nothing at the update that makes the first bases, by decay either."""

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        out, new = tx.update(updates, state, params, **extra_args)
        is_own = lambda x: isinstance(x, RotatedBasisState)  # noqa: E731
        (own,) = filter(is_own, jax.tree.leaves(state, is_leaf=is_own))
        return jax.tree.map(lambda u: jnp.where(own.count == 0, jnp.zeros_like(u), u), out), new

    return Transformation(tx.init, update_fn)


@register(
    kind="recipe",
    family="curvature",
    paper=("SOAP: Improving and Stabilizing Shampoo using Adam", "2409.11321", 2024),
    state_bytes=dict.fromkeys(FACTOR_ROLES, eigenbasis_bytes(8)) | {"*": 8},
    tags=("shampoo", "adam", "kronecker", "eigenbasis", "second order"),
    chain="in_rotated_basis(scale_by_adam) > lr > decay of the moved weights",
)
def soap(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    shampoo_beta: Any = None,
    weight_decay: ScalarOrSchedule = 0.01,
    decay: StepDecay = "after",
    mask: Mask = None,
    refresh_every: int | None = None,
    refresh: Refresh = "qr",
    stagger: bool = False,
    first_step: FirstStep = "skip",
    correct_bias: bool = True,
    normalize_grads: bool = False,
    max_precond_dim: int | None = None,
    precondition_1d: bool = False,
    merge_small_dims: bool = False,
    axes: Axes = "matrix",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Adam whose coordinates are the eigenvectors of Shampoo's two factors, refreshed now and then.

    For a matrix G with inputs along rows, and ``n`` the number of the update from 1:

    1. ``G' = Q_L^T G Q_R``; ``M <- b1*M + (1-b1)*G'``; ``V <- b2*V + (1-b2)*G'**2``;
    2. ``u = sqrt(1 - b2**n)/(1 - b1**n) * Q_L (M/(sqrt(V) + eps)) Q_R^T``;
    3. ``W <- (1 - lr*weight_decay)*(W - lr*u)``: decay after the step;
    4. ``L <- b*L + (1-b)*G G^T``, ``R <- b*R + (1-b)*G^T G``, ``b = shampoo_beta``;
    5. if ``n % refresh_every == 0``, for each side: the columns of Q, and V with them, ordered by
       decreasing ``diag(Q^T L Q)``; ``Q <- qr(L Q)``; M turned into the new basis.

    With ``first_step="skip"`` the first call of all makes the bases, by an eigendecomposition, and
    moves nothing; n counts from the next one. Norms, biases and scalars have plain Adam.

    Matrix work of a step: ``6*m*n*(m + n)`` operations in products, where Muon's five steps take
    ``20*m^2*n + 10*m^3``, m the short side. A refresh is a product and a QR of each side, and QR
    runs far below the speed of products; ``stagger`` divides refreshes among the steps.

    Embeddings and heads are preconditioned like other matrices: an axis of up to
    ``max_precond_dim`` entries takes 8 times its square in bytes, 536 MB at a vocabulary of 8192.
    Lower the bound to leave vocabularies as they are.

    Choose it where steps are expensive and batches large. The paper's claim is 40% fewer steps than
    AdamW at 360 and 660 million parameters. In ``python -m benchmarks.claims curvature`` a small
    byte model has AdamW's last loss in 144 of 300 steps; on digits it is worse, 0.101 against
    0.051, and never gets there.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second.
      eps: added to the root; the correction of bias does not change it.
      shampoo_beta: decay rate of the statistics, a number or a schedule; None for b2.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.descend``; "after" is that of step 3.
      mask: leaves that decay.
      refresh_every: steps from one basis to the next; None for 10.
      refresh: "qr" as above, or "eigh": a whole eigendecomposition.
      stagger: every factor has its own turn, so that no step is slow.
      first_step: "skip", or "step": the first gradient makes the bases and a step.
      correct_bias: the factor of step 2.
      normalize_grads: bring each tensor's update to a root mean square of 1, before the factor.
      max_precond_dim: longer axes are not turned; None for 10 000.
      precondition_1d: turn vectors, too.
      merge_small_dims: with ``axes="all"``, read neighbouring axes as one, up to that bound.
      axes: "matrix", or "all" for a factor of every axis of every leaf, as the reference has it.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of M and V; float32 for 16-bit parameters if None, as L, R and Q always.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of tensors. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter and
      ``8*(fan_in**2 + fan_out**2)`` a matrix.

    Raises:
      ValueError: as ``optkit.in_rotated_basis`` and ``optkit.scale_by_adam``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.soap(3e-3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * (8 * 16 + 8 * 8 + 16 * 16)
      3584

    Reference:
      Vyas et al., SOAP, arXiv 2409.11321, and its code. The paper has eps inside of the root and a
      step at the first gradient. The code reads leaves axis by axis, convolutions with four factors
      (``axes="all"``); ours are matrices. At first a gradient has no more than rank min(m, n): the
      larger side's other eigenvectors are whatever LAPACK takes, and runs differ by them.
    """
    if shampoo_beta is not None:
        check_number("shampoo_beta", shampoo_beta, low=0.0, high=1.0, open_high=True)
    adam = scale_by_adam(
        b1,
        b2,
        eps,
        eps_mode="uncorrected",
        debias=correct_bias and not normalize_grads,
        state_dtype=state_dtype,
    )
    direction = in_rotated_basis(
        adam,
        statistics_decay=b2 if shampoo_beta is None else shampoo_beta,
        refresh_every=10 if refresh_every is None else refresh_every,
        refresh=refresh,
        stagger=stagger,
        first_step=first_step,
        max_precond_dim=10000 if max_precond_dim is None else max_precond_dim,
        precondition_1d=precondition_1d,
        merge_small_dims=merge_small_dims,
        axes=axes,
        dims=dims,
        roles=roles,
        precision=precision,
        group_bytes=group_bytes,
    )
    skips = first_step == "skip"
    if normalize_grads:
        read = lambda tree: AxisLayout(tree, dims, roles, whole=axes == "all")  # noqa: E731
        direction = optax.chain(direction, _unit_rms(b1, b2, correct_bias, skips, read))
    tx = descend(
        direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask, roles=roles
    )
    return _still_at_first(tx) if skips else tx
