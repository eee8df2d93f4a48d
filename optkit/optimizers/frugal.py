"""FRUGAL: an optimizer with state on a part of the gradient, signs on the rest."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.optimizers._low_rank import low_rank_recipe
from optkit.transforms import (
    Transformation,
    blend_momentum,
    momentum,
    rotate_blocks,
    scale_by_adam,
    scale_by_kappa,
    split,
)
from optkit.transforms.base import map_leaves, map_updates
from optkit.transforms.blocks import Order
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, PyTree, RuleLike, upcast, zeros_like_params

Inner = Literal["adam", "lion", "sgdm"]
Select = BasisKind | Literal["blocks"]
_BYTES = StateBytes(
    0, lambda rows, columns: 8 * rows * max(columns // 4, min(columns, 1)), "8 density"
)


class HeavyBallState(NamedTuple):
    """State of the heavy ball of ``frugal``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like what was selected, float32 for 16-bit parameters


def _heavy_ball(b1: ScalarOrSchedule, dampening: Scalar, state_dtype: Any) -> Transformation:
    """Torch's SGD with momentum as FRUGAL begins it: the first gradient counts twice."""

    def init_fn(params: PyTree) -> HeavyBallState:
        return HeavyBallState(jnp.zeros((), jnp.int32), zeros_like_params(params, state_dtype))

    def update_fn(
        updates: PyTree, state: HeavyBallState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, HeavyBallState]:
        del params, extra_args
        keep, first = value_at(b1, state.count), state.count == 0

        def step(g: jax.Array, m: jax.Array) -> jax.Array:
            wide = upcast(g)
            return keep * jnp.where(first, wide, upcast(m)) + (1.0 - dampening) * wide

        moved = map_leaves(step, updates, state.momentum)
        out = map_leaves(lambda m, g: m.astype(g.dtype), moved, updates)
        kept = map_leaves(lambda m, old: m.astype(old.dtype), moved, state.momentum)
        return out, HeavyBallState(state.count + 1, kept)

    return Transformation(init_fn, update_fn)


@register(
    kind="recipe",
    family="memory",
    paper=("FRUGAL: Memory-Efficient Optimization by Reducing State Overhead", "2411.07837", 2024),
    state_bytes=dict.fromkeys(("matrix", "stacked", "expert", "conv"), _BYTES) | {"*": 8},
    tags=("low rank", "projection", "sign", "block coordinate descent"),
    chain="split(scale_by_adam, sign) > decay > learning rate; adamw on the rest",
)
def frugal(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    density: Rank | None = None,
    select: Select = "columns",
    free: Literal["sign", "sgd", "drop"] = "sign",
    inner: Inner = "adam",
    b1: ScalarOrSchedule = 0.9,
    b2: Scalar | None = None,
    eps: ScalarOrSchedule = 1e-8,
    dampening: Scalar = 0.0,
    full_scale: ScalarOrSchedule = 1.0,
    free_scale: ScalarOrSchedule = 1.0,
    refresh_every: int | jax.Array = 200,
    state_on_refresh: Literal["reset", "keep", "transport"] = "reset",
    side: Side = "std",
    order: Order = "random",
    key: int | jax.Array | None = None,
    draw: Draw | Any | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """AdamW on a part of every matrix, signSGD on the rest of it, and another part every T steps.

    For hidden matrices G:

    1. every ``refresh_every`` steps another part is selected, and the moments begin anew;
    2. ``R = down(G)``; ``N`` = Adam's direction of R (or Lion's, or a heavy ball);
    3. ``u = full_scale*(up(N) + free_scale*sign(G - up(R)))``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*u``.

    Embeddings, head, norms and biases go to the same optimizer in full, or to ``other``.

    Matrix work of a step: none where columns, rows, entries or blocks are selected; ``4*A*B*r``
    operations for r directions of a basis.

    Choose it where state has to be small and updates of full rank: ``density`` is the share of
    Adam's state that stays. Evidence: better than GaLore and BAdam at equal memory and near Adam at
    a quarter of its state on C4 is the paper's claim. In ``python -m benchmarks.claims memory_lm``,
    a byte language model and 250 steps, it ends 4.9% below an AdamW of one rate for all leaves with
    35.8% of the state; with ``full_scale=0.25`` 2.8% below an AdamW whose matrices have a quarter
    of the rate, too, and 0.045 below GaLore. On a regression it is ahead of GaLore and BAdam, and
    four decades behind AdamW (``python -m benchmarks.claims low_rank``).

    Args:
      learning_rate: a number or a schedule.
      density: share of each matrix, or of the matrices, with state; None for 0.25.
      select: "columns", "rows", "randk", "permutation", "svd", "orthonormal" and the other bases of
        ``optkit.split``; "blocks" selects whole leaves, see ``optkit.rotate_blocks``.
      free: what the rest becomes: its "sign", itself ("sgd"), or nothing ("drop").
      inner: "adam", "lion", or "sgdm", a heavy ball whose first gradient counts twice after each
        refresh, as in the reference.
      b1: decay rate of the first moment.
      b2: decay rate of the second one, or of Lion's momentum; None for 0.999, and 0.99 for Lion.
      eps: added to Adam's root.
      dampening: of the heavy ball.
      full_scale: factor of the steps of matrices.
      free_scale: factor of the rest; the paper has 0.1 for fine-tuning.
      refresh_every: steps from one selection to the next.
      state_on_refresh: "reset", "keep" (stale coordinates) or "transport"; blocks are always reset.
      side: which side a basis projects, see ``optkit.low_rank``.
      order: of blocks, see ``optkit.rotate_blocks``.
      key: seed or PRNG key of the selection; None for 0.
      draw: what stands in for the selection, see ``optkit.low_rank`` and ``optkit.rotate_blocks``.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*density`` per matrix parameter
      with Adam, half of it else; "svd" stores its basis, "randk" its indices; 8 (4) elsewhere.

    Raises:
      ValueError: an option out of range or against another.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.frugal(1e-3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * 16 * 2 of 8 inputs
      256

    Reference:
      Zmushko et al., FRUGAL, arXiv 2411.07837. The paper carries moments over to the next selection
      (``state_on_refresh="transport"``), its code resets them. Random blocks of equal shapes share
      as many places as may be active at a time: for a few shapes, prefer another order.
    """
    check_choice("inner", inner, get_args(Inner))
    check_number("full_scale", full_scale)

    def direction() -> Transformation:
        if inner == "lion":
            rate = 0.99 if b2 is None else b2
            return optax.chain(
                blend_momentum(b1, rate, state_dtype=state_dtype), scale_by_kappa("l1")
            )
        if inner == "sgdm":
            return _heavy_ball(b1, dampening, state_dtype)
        return scale_by_adam(b1, 0.999 if b2 is None else b2, eps, state_dtype=state_dtype)

    share = 0.25 if density is None else density
    both: dict[str, Any] = {
        "full_scale": 1.0,
        "free_scale": free_scale,
        "key": key,
        "draw": draw,
        "roles": roles,
    }
    if select == "blocks":
        halves: Any = _blocks(direction(), share, free, refresh_every, order, both)
    else:
        halves = split(
            direction(),
            free,
            select,
            density=share,
            refresh_every=refresh_every,
            state_on_refresh=state_on_refresh,
            side=side,
            dims=dims,
            precision=precision,
            group_bytes=group_bytes,
            **both,
        )
    plain = isinstance(full_scale, float) and full_scale == 1.0
    return low_rank_recipe(
        "frugal",
        halves if plain else optax.chain(halves, _scaled(full_scale)),
        learning_rate,
        direction() if inner != "sgdm" else momentum(b1, kind="heavy_ball", dampening=dampening),
        other,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
        rest_name={"adam": "adamw"}.get(inner, inner),
    )


def _blocks(
    inner: Transformation,
    share: Rank,
    free: Any,
    refresh_every: int | jax.Array,
    order: Order,
    options: dict[str, Any],
) -> Transformation:
    """Whole leaves, a share of those that there are."""

    def build(tree: PyTree) -> Transformation:
        count = len(jax.tree.leaves(tree))
        active = max(1, round(share * count) if isinstance(share, float) else share)
        given = {"active": active, "free": free, "refresh_every": refresh_every, "order": order}
        return rotate_blocks(inner, "leaves", **given, **options)

    return Transformation(
        lambda params: build(params).init(params),
        lambda updates, state, params=None, **extra: build(updates).update(
            updates, state, params, **extra
        ),
    )


class ScaledState(NamedTuple):
    """State of the factor of ``frugal``'s matrices."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # {"full_scale": float32 scalar} if scheduled


def _scaled(full_scale: ScalarOrSchedule) -> Transformation:
    """Multiplies by a number or a schedule."""

    def init_fn(params: PyTree) -> ScaledState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ScaledState(count, recorded(count, full_scale=full_scale))

    def update_fn(
        updates: PyTree, state: ScaledState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaledState]:
        del params, extra_args
        now = value_at(full_scale, state.count)
        new = recorded(state.count, full_scale=full_scale)
        return map_updates(lambda u: now * u, updates), ScaledState(state.count + 1, new)

    return Transformation(init_fn, update_fn)
