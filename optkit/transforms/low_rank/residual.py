"""What becomes of the part of a gradient that the subspace does not hold."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.linalg.norms import norm_over
from optkit.transforms.base import check_transformation
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_choice, value_at
from optkit.transforms.low_rank.engine import Rule, Step, up
from optkit.transforms.low_rank.growth import limited
from optkit.transforms.low_rank.projection import COORDINATES
from optkit.transforms.low_rank.subspace import Subspaces
from optkit.tree import PyTree, zeros_like_params
from optkit.tree.sharding import place_statistic

ResidualKind = Literal["drop", "sign", "sgd", "norm_scaled", "feedback"]
Residual: TypeAlias = ResidualKind | optax.GradientTransformation
_NORM_EPS = 1e-8


def residual_of(step: Step, share: Scalar) -> list[jax.Array]:
    """Returns ``G - share * back(R)`` of each part; exactly 0 where unit vectors reach."""
    asked = step.spaces.asked
    if asked.kind in COORDINATES and isinstance(share, float) and share == 1.0:
        parts = zip(step.spaces.parts, step.grads, step.bases, strict=True)
        return [part.outside(g, own) for part, g, own in parts]
    back = up(step.spaces, step.low, step.bases, step.grads)
    return [g - share * b for g, b in zip(step.grads, back, strict=True)]


def scaled_norms(step: Step, eps: Scalar = _NORM_EPS) -> list[jax.Array]:
    """Returns ``norm(N_j)/(norm(R_j) + eps)`` of each part, norms along the projected axis."""
    out = []
    for part, direction, low in zip(step.spaces.parts, step.direction, step.low, strict=True):
        axes = (-2,) if part.sides == ("right",) else (-1,)
        out.append(norm_over(direction, axes) / (norm_over(low, axes) + eps))
    return out


def residual_rule(
    residual: Residual,
    *,
    scale: ScalarOrSchedule,
    residual_scale: ScalarOrSchedule,
    share: Scalar,
    growth: ScalarOrSchedule | None,
    official_zero_norm: bool,
) -> Rule:
    """Returns the rule of ``low_rank``: the direction mapped back, and the residual's own part."""
    if isinstance(residual, str):
        check_choice("residual", residual, get_args(ResidualKind))
        own = None
    else:
        own = check_transformation("residual", residual)

    def init(spaces: Subspaces, params: PyTree) -> PyTree:
        if own is not None:
            return own.init(params)
        if residual == "feedback":
            return zeros_like_params(params)
        if residual == "norm_scaled" and growth is not None:
            return spaces.layout.zeros(params, lambda view: ())
        return ()

    def before(spaces: Subspaces, grads: list[jax.Array], state: PyTree) -> list[jax.Array]:
        if residual != "feedback":
            return grads
        return [g + e for g, e in zip(grads, spaces.split(state), strict=True)]

    def combine(step: Step, state: PyTree) -> tuple[list[jax.Array], PyTree]:
        spaces = step.spaces
        factor = value_at(scale, step.step)
        back = up(spaces, step.direction, step.bases, step.grads)
        out = back if isinstance(scale, float) and scale == 1.0 else [factor * b for b in back]
        if residual == "drop":
            return out, state
        left = residual_of(step, share)
        if residual == "feedback":
            error = spaces.merge(left)
            return out, jax.tree.map(lambda e, s: e.astype(s.dtype), error, state)
        extra, state = free(step, left, state)
        weight = value_at(residual_scale, step.step)
        return [u + weight * f for u, f in zip(out, extra, strict=True)], state

    def free(step: Step, left: list[jax.Array], state: PyTree) -> tuple[list[jax.Array], PyTree]:
        spaces = step.spaces
        if own is not None:
            result, state = own.update(spaces.merge(left), state, step.params)
            return spaces.split(result), state
        if residual == "sign":
            return [jnp.sign(x) for x in left], state
        if residual == "sgd":
            return left, state
        scaled = [x * s for x, s in zip(left, scaled_norms(step), strict=True)]
        return limit(step, scaled, state)

    def limit(step: Step, us: list[jax.Array], state: PyTree) -> tuple[list[jax.Array], PyTree]:
        if growth is None:
            return us, state
        layout = step.spaces.layout
        bound, first = value_at(growth, step.step), step.step == 0
        norms = zip(us, layout.unpack(state), strict=True)
        pairs = [limited(u, q, first, bound, official_zero_norm) for u, q in norms]
        return [u for u, _ in pairs], layout.pack([place_statistic(q, u) for u, q in pairs])

    return Rule(init, before, combine)
