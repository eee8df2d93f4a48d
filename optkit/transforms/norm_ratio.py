"""Adam's ratio for whole matrices: the norm of the momentum over that of the gradients."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit import linalg
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
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, leaves_with_paths, map_groups, upcast
from optkit.tree.sharding import place_statistic

Per = Literal["matrix", "column"]
ShapeFrom = Literal["matrix", "first_two_axes"]


class ScaleByNormRatioState(NamedTuple):
    """State of ``scale_by_norm_ratio``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    average: PyTree  # state of ``momentum``: m like params, state_dtype
    norm: PyTree  # float32, (*batch,) or (*batch, fan_in): root of the mean squared gradient norm
    direction: PyTree  # state of the direction
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def norms_of(x: jax.Array, per: Per) -> jax.Array:
    """Norm of each matrix ``(..., fan_out, fan_in)``, or of each of its columns, at any scale."""
    if per == "column":
        x = jnp.swapaxes(x, -1, -2)[..., None, :]
    return linalg.frobenius_norm(x, keepdims=False)


def root_mean_square(old: jax.Array, new: jax.Array, decay: Scalar) -> jax.Array:
    """``sqrt(decay*old**2 + (1-decay)*new**2)`` without squares that overflow or vanish."""
    largest = jnp.maximum(old, new)
    unit = jnp.where(largest > 0, largest, 1.0)
    mean = decay * jnp.square(old / unit) + (1.0 - decay) * jnp.square(new / unit)
    return unit * jnp.sqrt(mean)


def towards_mean(ratio: jax.Array, clamp: Scalar) -> jax.Array:
    """Clips ``(..., columns)`` to ``[clamp*mean, mean/clamp]``; a clamp of 0 clips nothing."""
    if not isinstance(clamp, jax.Array) and clamp == 0.0:
        return ratio
    mean = jnp.mean(ratio, axis=-1, keepdims=True)
    highest = jnp.where(clamp > 0, mean / jnp.where(clamp > 0, clamp, 1.0), jnp.inf)
    return jnp.clip(ratio, clamp * mean, highest)


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
        norm = layout.zeros(
            params, lambda view: () if per == "matrix" else (view.fan_in,), jnp.float32
        )
        return ScaleByNormRatioState(
            count,
            average.init(params),
            norm,
            inner.init(params),
            record(count),
        )

    def lengths(layout: MatrixLayout, updates: PyTree) -> list[Any]:
        """Returns the factor of step 6 of each part."""
        if update_rms is None:
            return [1.0] * len(layout.views)
        shapes = {path: jnp.shape(leaf) for path, leaf in leaves_with_paths(updates)}
        sides = [
            (view.fan_out, view.fan_in) if shape_from == "matrix" else shapes[path][:2]
            for path, view in zip(layout.paths, layout.views, strict=True)
        ]
        return [update_rms * math.sqrt(max(pair)) for pair in sides]

    def decaying(layout: MatrixLayout, params: PyTree) -> tuple[list[jax.Array], list[bool]]:
        """Returns the weights of each part, and whether they decay."""
        chosen = jax.tree.leaves(decay_mask(mask, params, roles))
        by_path = dict(zip((path for path, _ in leaves_with_paths(params)), chosen, strict=True))
        weights = layout.split(jax.tree.map(upcast, params), "out")
        return weights, [by_path[path] for path in layout.paths]

    def measure(
        layout: MatrixLayout, ahead: PyTree, grads: PyTree, state: ScaleByNormRatioState
    ) -> tuple[list[jax.Array], PyTree]:
        """Returns the ratios, ready to be multiplied with (..., A, B), and the new statistic."""
        e, decay, held = (value_at(value, state.count) for value in (eps, b2, clamp))
        n = state.count + 1
        weights: Scalar = 1.0
        if debias:
            weights = jnp.sqrt(debias_weight(decay, n)) / debias_weight(
                value_at(b1, state.count), n
            )

        def ratio(u: jax.Array, g: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = root_mean_square(s, norms_of(g, per).astype(s.dtype), decay)
            new = place_statistic(new, g)  # of the whole stack: one exchange for all its leaves
            below = new + e
            r = norms_of(u, per) / jnp.where(below > 0, below, 1.0) * weights
            return towards_mean(r, held) if per == "column" else r, new

        us, gs = (layout.split(tree, "out") for tree in (ahead, grads))
        # Only norms leave the devices that hold a leaf.
        pairs = map_groups(ratio, us, gs, layout.unpack(state.norm), move=False)
        last = None if per == "matrix" else slice(None)
        return [r[..., None, last] for r, _ in pairs], layout.pack([new for _, new in pairs])

    def update_fn(
        updates: PyTree,
        state: ScaleByNormRatioState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByNormRatioState]:
        grads = jax.tree.map(upcast, updates)
        ahead, averaged = average.update(grads, state.average)
        layout = MatrixLayout(updates, dims, roles)
        ratios, norm = measure(layout, ahead, grads, state)
        out, directed = inner.update(ahead, state.direction, params, **extra_args)
        most = value_at(limit, state.count)
        triples = zip(ratios, lengths(layout, updates), layout.split(out, "out"), strict=True)
        parts = [jnp.minimum(r * k, most) * x for r, k, x in triples]
        if decays:
            weights, chosen = decaying(layout, need_params(params, "scale_by_norm_ratio"))
            rate = value_at(weight_decay, state.count)
            parts = [
                x + jnp.minimum(rate * jnp.minimum(r, most), most) * w if on else x
                for x, r, w, on in zip(parts, ratios, weights, chosen, strict=True)
            ]
        out = map_leaves(lambda x, g: x.astype(g.dtype), layout.merge(parts, "out"), updates)
        new = record(state.count)
        return out, ScaleByNormRatioState(state.count + 1, averaged, norm, directed, new)

    return Transformation(init_fn, update_fn)
