"""Adam's ratio for whole matrices: the norm of the momentum over that of the gradients."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    map_leaves,
    need_params,
)
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.hyperparams import (
    debias as debias_weight,
)
from optkit.transforms.momentum import momentum
from optkit.transforms.orthogonalize import orthogonalize
from optkit.transforms.ratios import Factors, Numbers, Per, factors_of
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import (
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    leaves_with_paths,
    upcast,
)

ShapeFrom = Literal["matrix", "first_two_axes"]


class ScaleByNormRatioState(NamedTuple):
    """State of ``scale_by_norm_ratio``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    average: PyTree  # state of ``momentum``: m like params, state_dtype
    norm: PyTree  # float32, (*batch,) or (*batch, fan_in): root of the mean squared gradient norm
    direction: PyTree  # state of the direction
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    paper=(
        "Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum",
        "2602.17080",
        2026,
    ),
    state_bytes={"*": StateBytes(4, lambda fan_out, fan_in: 4, "4 a matrix")},
    tags=("muon", "adam", "newton-schulz"),
    chain="m <- b1 m + (1-b1) g, s^2 <- b2 s^2 + (1-b2) |g|^2 -> direction(m) |m|/c1 / (s/c2)",
    matrices_only=True,
)
def scale_by_norm_ratio(
    direction: optax.GradientTransformation | None = None,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 0.0,
    debias: bool = True,
    per: Per = "matrix",
    clamp: ScalarOrSchedule = 0.0,
    update_rms: float | None = None,
    shape_from: ShapeFrom = "matrix",
    limit: ScalarOrSchedule = math.inf,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Scales a direction by the norm of the momentum over the root mean square of gradient norms.

    Adam's ratio, of one number a matrix (or a column) instead of one a parameter: near 1 where
    gradients agree from step to step, ``sqrt((1-b1)/(1+b1))`` where they are noise. With A =
    fan_out, B = fan_in and ``n`` the number of the update, counted from 1:

    1. ``m <- b1*m + (1-b1)*g``; ``u = m``, or with ``nesterov`` ``u = (1-b1)*g + b1*m``;
    2. ``O = direction(u)``;
    3. ``s <- sqrt(b2*s**2 + (1-b2)*norm(g)**2)``, the gradient itself and not the momentum;
    4. ``r = norm(u)/(s + eps) * sqrt(1-b2**n)/(1-b1**n)``, and 0 for 0/0;
    5. of columns: ``r <- clip(r, clamp*mean(r), mean(r)/clamp)``;
    6. ``k = update_rms*sqrt(max(A, B))``;
       ``u <- min(r*k, limit)*O + min(weight_decay*min(r, limit), limit)*W``.

    A column holds what one input feeds to all outputs. Every matrix of a stack has a norm of its
    own, as if it were a leaf.

    The part stands alone because four things meet in it that a chain cannot hand on: the raw
    gradient, the momentum before it is orthogonalized, the factor afterwards, and a weight decay
    with the same ratio.

    Args:
      direction: what is scaled; None for ``optkit.orthogonalize``.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      b2: decay rate of the squared norm.
      eps: added to the root mean square, in units of the gradient's norm.
      debias: divide both averages by the sums of their weights; False leaves that factor of step 4
        out.
      per: one ratio a "matrix" or a "column".
      clamp: share of the mean, from 0 (off) to 1, that columns are held to.
      update_rms: RMS of a full-rank orthogonal direction after step 6; None scales by 1.
      shape_from: "first_two_axes" takes A and B of step 6 to be the leaf's first two axes as they
        are: what the reference does with (out, in, kh, kw) convolutions.
      limit: bound of both factors; with ``1/learning_rate`` the spectral norm of an orthogonal
        step stays below 1 and decay never turns a weight round.
      weight_decay: coefficient of decay by the ratio.
      mask: leaves that decay, see ``optkit.decay_weights``.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of ``m``; float32 for 16-bit parameters if None. ``s`` is float32 always.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State
      bytes: 4 per parameter, and 4 per matrix or column.

    Raises:
      ValueError: an option out of range, a leaf that is no matrix, or params not given to an
        update that decays.
      TypeError: ``direction`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_norm_ratio(optkit.orthogonalize("svd"), nesterov=False)
      >>> state = tx.init({"w": jnp.eye(2)})
      >>> for sign in (1.0, -1.0):
      ...   u, state = tx.update({"w": sign * jnp.eye(2)}, state)
      ...   print(round(float(jnp.abs(u["w"][0, 0])), 3))
      1.0
      0.026

    Reference:
      Zhang et al., Adam Improves Muon, arXiv 2602.17080: ``optkit.namo`` and ``optkit.namo_d``.
      We keep ``s`` where the reference keeps its square, which overflows float32 at gradients of
      1e+20.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_choice("per", per, ("matrix", "column"))
    check_number("clamp", clamp, low=0.0, high=1.0)
    check_choice("shape_from", shape_from, ("matrix", "first_two_axes"))
    check_number("limit", limit, low=0.0, infinite=True)
    check_number("weight_decay", weight_decay, low=0.0)
    if update_rms is not None:
        check_number("update_rms", update_rms, low=0.0)
    average = momentum(b1, nesterov=nesterov, state_dtype=state_dtype)
    if direction is None:
        direction = orthogonalize(dims=dims, roles=roles)
    inner = check_transformation("direction", direction)
    decays = not isinstance(weight_decay, int | float) or weight_decay != 0

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b2=b2, eps=eps, clamp=clamp, limit=limit, weight_decay=weight_decay)

    def init_fn(params: PyTree) -> ScaleByNormRatioState:
        count = jnp.zeros((), jnp.int32)
        if decays:
            decay_mask(mask, params, roles)  # to refuse a mask that does not fit
        layout = MatrixLayout(params, dims, roles)
        norm = layout.zeros(params, lambda view: () if per == "matrix" else (view.fan_in,))
        return ScaleByNormRatioState(
            count,
            average.init(params),
            norm,
            inner.init(params),
            record(count),
        )

    def decaying(layout: MatrixLayout, params: PyTree) -> tuple[list[jax.Array], list[bool]]:
        """Returns the weights of each part, and whether they decay."""
        chosen = jax.tree.leaves(decay_mask(mask, params, roles))
        by_path = dict(zip((path for path, _ in leaves_with_paths(params)), chosen, strict=True))
        weights = layout.split(jax.tree.map(upcast, params))
        return weights, [by_path[path] for path in layout.paths]

    def factors_now(
        layout: MatrixLayout, ahead: PyTree, grads: PyTree, state: ScaleByNormRatioState
    ) -> list[Factors]:
        first, second, e, held, most, rate = (
            value_at(value, state.count) for value in (b1, b2, eps, clamp, limit, weight_decay)
        )
        n = state.count + 1
        weights: Scalar = 1.0
        if debias:
            weights = jnp.sqrt(debias_weight(second, n)) / debias_weight(first, n)
        lengths = []
        if update_rms is not None and shape_from == "first_two_axes":
            shapes = {path: jnp.shape(leaf) for path, leaf in leaves_with_paths(grads)}
            sides = [max(shapes[path][:2]) for path in layout.paths]
            lengths.append(
                [
                    jnp.full(view.batch_shape, update_rms * math.sqrt(side), jnp.float32)
                    for view, side in zip(layout.views, sides, strict=True)
                ]
            )
        return factors_of(
            per,
            Numbers(second, e, weights, held, update_rms, most, rate),
            layout.views,
            layout.split(ahead),
            layout.split(grads),
            layout.unpack(state.norm),
            *lengths,
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByNormRatioState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByNormRatioState]:
        grads = jax.tree.map(upcast, updates)
        ahead, averaged = average.update(grads, state.average)
        layout = MatrixLayout(updates, dims, roles)
        factors = factors_now(layout, ahead, grads, state)
        out, directed = inner.update(ahead, state.direction, params, **extra_args)
        parts = [own.direction * x for own, x in zip(factors, layout.split(out), strict=True)]
        if decays:
            weights, chosen = decaying(layout, need_params(params, "scale_by_norm_ratio"))
            parts = [
                x + own.decay * w if on else x
                for x, own, w, on in zip(parts, factors, weights, chosen, strict=True)
            ]
        norm = layout.pack([own.norm for own in factors])
        out = map_leaves(lambda x, g: x.astype(g.dtype), layout.merge(parts), updates)
        new = record(state.count)
        return out, ScaleByNormRatioState(state.count + 1, averaged, norm, directed, new)

    return Transformation(init_fn, update_fn)
