"""Shampoo in both of its dialects, facebookresearch's and google-research's."""

from collections.abc import Sequence
from typing import Any, Literal

import optax

from optkit.catalogue import register
from optkit.linalg import RootMethod
from optkit.optimizers._shared import adam_for_the_rest
from optkit.transforms import (
    Transformation,
    descend,
    scale_by_shampoo,
    scale_by_shampoo_google,
)
from optkit.transforms.grafting import Magnitude
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.shampoo import PAPER, factor_bytes
from optkit.transforms.shampoo_google import PAPER as GOOGLE
from optkit.transforms.shampoo_google import Sides
from optkit.transforms.split import route_matrices
from optkit.transforms.step import Decay, Mask
from optkit.tree import MATRIX_ROLES, RuleLike, Selector
from optkit.tree.tensor_blocks import Merging

_EVERY = ("*", "**")


def _bytes(parameter: float) -> dict[str, float]:
    return {role: factor_bytes(parameter) for role in MATRIX_ROLES} | {"*": 8}


def _or(value: int | None, default: int) -> int:
    """A number that decides the program; its default is None, so that nothing injects it."""
    return default if value is None else value


def _recipe(
    name: str,
    direction: Transformation,
    learning_rate: ScalarOrSchedule,
    rest: tuple[str, optax.GradientTransformation],
    preconditioned: Selector,
    reading: dict[str, Any],
    **decay: Any,
) -> Transformation:
    """Decays and steps, and routes leaves that are not preconditioned to the rest."""
    whole = descend(direction, learning_rate, roles=reading["roles"], **decay)
    if isinstance(preconditioned, str) and preconditioned in _EVERY:
        return whole
    dims = None if isinstance(reading["dims"], str) else reading["dims"]
    rules = [(preconditioned, name), ("**", rest[0])]
    matrices = (name,) if preconditioned is MATRIX_ROLES else ()
    inner = {name: whole, rest[0]: optax.with_extra_args_support(rest[1])}
    return route_matrices(inner, rules, matrices=matrices, dims=dims, roles=reading["roles"])


@register(
    kind="recipe",
    family="curvature",
    paper=PAPER,
    state_bytes=_bytes(8),
    tags=("shampoo", "distributed shampoo", "kronecker", "grafting", "second order"),
    chain="scale_by_shampoo > decay > lr; adamw on the rest",
)
def shampoo(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: float | None = None,
    eps: ScalarOrSchedule = 1e-12,
    ridge: float = 1e-6,
    graft: Magnitude = "adam",
    graft_b2: float | None = None,
    graft_eps: ScalarOrSchedule = 1e-8,
    refresh_every: int | None = None,
    start: int | None = None,
    stagger: bool = True,
    block_size: int | None = None,
    keep: int | None = None,
    exponent: float | None = None,
    bias_correction: bool = True,
    method: RootMethod = "auto",
    tolerance: float | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    preconditioned: Selector = MATRIX_ROLES,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Any = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Adam's step length, in the direction that both sides' second moments give each matrix.

    For each block G of a hidden matrix, of at most ``block_size`` a side, ``s`` from 1:

    1. ``L <- b2*L + (1-b2)*G G^T``, ``R <- b2*R + (1-b2)*G^T G``;
    2. every ``refresh_every`` updates ``L' = (L/(1-b2**s) + e I)**(-1/4)``, R' likewise, with
       ``e = eps + ridge*lambda_max``;
    3. ``m <- b1*m + (1-b1)*G``; ``M = m/(1-b1**s)``; A is Adam's step with this M;
    4. ``P = L' M R' * norm(A)/norm(L' M R')``; ``A`` before ``start``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*P``.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95), or to ``other``. For the
    reference's treatment of every leaf set ``preconditioned="*"`` and ``dims="tensor"``. With
    ``stagger`` each update refreshes every ``refresh_every``-th root, so that all cost the same;
    without it one update in ``refresh_every`` refreshes all.

    Choose it for few steps at a cost of two products a side, and roots, for each matrix; it won
    AlgoPerf's external tuning in 2024. Learning rates of AdamW are a start. Evidence here: its
    reference's trajectories, ``python -m benchmarks.curvature_step``, and small models in
    ``python -m benchmarks.claims curvature``: on bytes AdamW's last loss in 174 of 300 steps, each
    1.5 times as long on a CPU; on digits 0.042 against AdamW's 0.051, within the spread over seeds,
    in steps 5.3 times as long. No training at size.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum.
      b2: decay rate of the factors; 1 for sums (the reference's default).
      b3: see ``optkit.scale_by_shampoo``.
      eps: added to every eigenvalue.
      ridge: the same relative to the largest one (reference: 0).
      graft: what gives the length: "none" (the reference's default), "sgd", "adagrad", "rmsprop",
        "adam".
      graft_b2: decay rate of its second moment; None for ``b2``.
      graft_eps: added to its root.
      refresh_every: updates between two roots of a factor; None for 10 (reference: 1).
      start: number of the first update with roots; None for ``refresh_every``.
      stagger: see above.
      block_size: longer sides are cut into blocks; None for 1024.
      keep: see ``optkit.scale_by_shampoo``; None for 2.
      exponent: p of the roots ``-1/p``; None for twice the number of axes.
      bias_correction: divide by sums of weights.
      method: of the roots, see ``optkit.linalg.inverse_root``.
      tolerance: of their iteration.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "coupled" is the reference's L2.
      mask: leaves that decay.
      preconditioned: leaves that have factors; "*" for all.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``; or "tensor".
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; factors and roots are float32.
      group_bytes: bytes of one stack of blocks. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter, and
      ``8*(fan_in**2 + fan_out**2)`` a block of a matrix.

    Raises:
      ValueError: as ``optkit.scale_by_shampoo``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> tx = optkit.shampoo(1e-3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * 4 * 8 + 8 * (4 * 4 + 8 * 8)
      896

    Reference:
      Gupta et al., Shampoo, arXiv 1802.09568; Shi et al., arXiv 2309.06497. The reference's
      CORRECTED decay is a schedule ``wd*lr(t)/peak`` here.
    """
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    direction = scale_by_shampoo(
        b1,
        b2,
        b3=b3,
        eps=eps,
        ridge=ridge,
        graft=graft,
        graft_b2=graft_b2,
        graft_eps=graft_eps,
        refresh_every=_or(refresh_every, 10),
        start=start,
        stagger=stagger,
        block_size=_or(block_size, 1024),
        keep=_or(keep, 2),
        exponent=exponent,
        bias_correction=bias_correction,
        method=method,
        tolerance=tolerance,
        state_dtype=state_dtype,
        group_bytes=group_bytes,
        **reading,
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adam_for_the_rest(
        other, rate, eps=1e-8, state_dtype=state_dtype, weight_decay=adam_weight_decay
    )
    given: dict[str, Any] = {"weight_decay": weight_decay, "decay": decay, "mask": mask}
    return _recipe("shampoo", direction, learning_rate, rest, preconditioned, reading, **given)


@register(
    kind="recipe",
    family="curvature",
    paper=GOOGLE,
    state_bytes=_bytes(8),
    tags=("shampoo", "distributed shampoo", "kronecker", "coupled newton", "grafting"),
    chain="scale_by_shampoo_google > decay > lr; adamw on the rest",
)
def shampoo_google(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    relative: bool = True,
    graft: Magnitude = "sgd",
    graft_eps: ScalarOrSchedule = 1e-10,
    refresh_every: int | None = None,
    statistics_every: int | None = None,
    start: int | None = None,
    stagger: bool = False,
    block_size: int | None = None,
    merging: Merging = "first",
    merge_limit: int | None = None,
    skip_size: int | None = None,
    skip_rank: int | None = None,
    sides: Sides = "all",
    exponent: float | None = None,
    nesterov: bool = True,
    moving_average: bool = False,
    method: RootMethod = "coupled_newton",
    tolerance: float | None = None,
    tries: int | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Literal["coupled", "decoupled"] = "coupled",
    mask: Mask = None,
    preconditioned: Selector = MATRIX_ROLES,
    adam_learning_rate: ScalarOrSchedule = 1e-3,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Any = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Momentum of preconditioned gradients that are as long as another method's, leaf by leaf.

    For each hidden matrix, in blocks of at most ``block_size`` a side, ``t`` from 0:

    1. ``L <- b2*L + (1-b2)*G G^T``, ``R <- b2*R + (1-b2)*G^T G``, both ``eps*I`` at first;
    2. every ``refresh_every`` updates ``L' = (L + eps*lambda_max I)**(-1/4)``, R' likewise;
    3. ``P = L' G R' * norm(A)/norm(L' G R')`` with A the gradient ("sgd") or another ``graft``;
    4. ``m <- b1*m + P``; ``u = P + b1*m``; before ``start`` the same of A;
    5. ``W <- W - lr*u``.

    Embeddings, head, norms and biases go to AdamW, or to ``other``. ``optkit.shampoo`` differs in
    that the momentum comes first and the length is Adam's, of each block; prefer it unless you
    follow results of this dialect. The parts of step 2 to 4 are told in
    ``optkit.scale_by_shampoo_google``.

    Args:
      learning_rate: a number or a schedule, as of SGD with this ``graft``.
      b1: decay rate of the momentum.
      b2: decay rate of the factors.
      eps: of the ridge and of the first factors.
      relative: the ridge is relative to the largest eigenvalue.
      graft: what gives the length.
      graft_eps: added to the root of its second moment.
      refresh_every: updates between two roots of a factor; None for 1.
      statistics_every: updates between two changes of the factors; None for 1.
      start: number of the first update with roots, counted from 0; None for 5.
      stagger: refresh a part of the roots at each update.
      block_size: longer sides are cut into blocks; None for 1024 (the reference has no default).
      merging: of leaves that are read by axes, see ``optkit.tree.merge_dims``; "none" is the
        reference's ``best_effort_shape_interpretation=False``.
      merge_limit: the most that merged axes may have; None for 4096.
      skip_size: leaves with a longer axis are not preconditioned; None for 4096.
      skip_rank: nor are those of a lower rank; None for 1.
      sides: which sides have factors, see ``optkit.scale_by_shampoo_google``.
      exponent: p of the roots ``-1/p``; None for twice the number of factors.
      nesterov: look one step ahead.
      moving_average: momenta are averages.
      method: of the roots.
      tolerance: of their iteration; None for 1e-6.
      tries: how often a root is tried, each time with ten times the ridge; None for 6.
      weight_decay: coefficient.
      decay: "coupled" adds it before the momentum, "decoupled" behind.
      mask: leaves that decay, for "decoupled".
      preconditioned: leaves that have factors; "*" for all.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``; or "tensor".
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; factors and roots are float32.
      group_bytes: bytes of one stack of blocks. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter (12 with a
      ``graft`` that has a second moment), and ``8*(fan_in**2 + fan_out**2)`` a block of a matrix.

    Raises:
      ValueError: as ``optkit.scale_by_shampoo_google``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> tx = optkit.shampoo_google(0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["dense"]["kernel"][0, 0].round(3).item()  # -0.1 * (1 + 0.9), before the start
      -0.19...

    Reference:
      Anil et al., Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018; its code
      google-research/precondition.
    """
    check_choice("decay", decay, ("coupled", "decoupled"))
    coupled = decay == "coupled"
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    direction = scale_by_shampoo_google(
        b1,
        b2,
        eps=eps,
        relative=relative,
        graft=graft,
        graft_eps=graft_eps,
        refresh_every=_or(refresh_every, 1),
        statistics_every=_or(statistics_every, 1),
        start=_or(start, 5),
        stagger=stagger,
        block_size=_or(block_size, 1024),
        merging=merging,
        merge_limit=_or(merge_limit, 4096),
        skip_size=_or(skip_size, 4096),
        skip_rank=_or(skip_rank, 1),
        sides=sides,
        exponent=exponent,
        nesterov=nesterov,
        moving_average=moving_average,
        weight_decay=weight_decay if coupled else 0.0,
        method=method,
        tolerance=1e-6 if tolerance is None else tolerance,
        tries=_or(tries, 6),
        state_dtype=state_dtype,
        group_bytes=group_bytes,
        **reading,
    )
    rest = adam_for_the_rest(
        other, adam_learning_rate, eps=1e-8, state_dtype=state_dtype, weight_decay=adam_weight_decay
    )
    given: dict[str, Any] = {"weight_decay": 0.0 if coupled else weight_decay, "mask": mask}
    return _recipe(
        "shampoo_google", direction, learning_rate, rest, preconditioned, reading, **given
    )
