"""What NAMO and NAMO-D share."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import optax

from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, orthogonalize, scale_by_norm_ratio
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice, check_number
from optkit.transforms.norm_ratio import ShapeFrom
from optkit.transforms.orthogonalize import Method
from optkit.transforms.ratios import Per
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

AdaptiveDecay = Literal["adaptive"] | Decay
PAPER = (
    "Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum",
    "2602.17080",
    2026,
)


def per_unit_of_rate(cap: float | None, learning_rate: ScalarOrSchedule) -> ScalarOrSchedule:
    """Returns ``cap/learning_rate``: a bound on what the learning rate is yet to multiply."""
    if cap is None:
        return math.inf
    if callable(learning_rate):
        return lambda count: cap / learning_rate(count)
    if isinstance(learning_rate, jax.Array):
        return cap / learning_rate
    return cap / learning_rate if learning_rate > 0 else math.inf


def namo_recipe(
    name: str,
    per: Per,
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarOrSchedule,
    nesterov: bool,
    b2: ScalarOrSchedule,
    norm_eps: ScalarOrSchedule,
    debias: bool,
    coefficients: str | Sequence[Sequence[float]],
    steps: int | None,
    eps: float | None,
    method: Method,
    update_rms: float,
    shape_from: ShapeFrom,
    cap: float | None,
    weight_decay: ScalarOrSchedule,
    decay: AdaptiveDecay,
    mask: Mask,
    adam_learning_rate: ScalarOrSchedule | None,
    adam_eps: float,
    other: optax.GradientTransformation | None,
    dims: Dims,
    roles: Sequence[RuleLike],
    state_dtype: Any | None,
    dtype: Any | None,
    group_bytes: int | None,
    sharding: Sharding,
    clamp: ScalarOrSchedule = 0.0,
) -> Transformation:
    """Builds either; the options are those of ``optkit.namo_d``."""
    check_number("learning_rate", learning_rate, low=0.0)
    check_choice("decay", decay, ("adaptive", *get_args(Decay)))
    if cap is not None:
        check_number("cap", cap, low=0.0)
    # Adaptive decay is the link's own, which knows the ratio; the usual kinds come after it.
    usual: Decay = "decoupled" if decay == "adaptive" else decay
    adaptive = decay == "adaptive"
    direction = orthogonalize(
        method,
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        dims=dims,
        roles=roles,
        dtype=dtype,
        group_bytes=group_bytes,
        sharding=sharding,
    )
    link = scale_by_norm_ratio(
        direction,
        b1=b1,
        nesterov=nesterov,
        b2=b2,
        eps=norm_eps,
        debias=debias,
        per=per,
        clamp=clamp,
        update_rms=update_rms,
        shape_from=shape_from,
        limit=per_unit_of_rate(cap, learning_rate),
        weight_decay=weight_decay if adaptive else 0.0,
        mask=mask,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )
    rest = adam_for_the_rest(
        other,
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        eps=adam_eps,
        state_dtype=state_dtype,
        weight_decay=weight_decay,
        eps_mode="uncorrected",
    )
    return matrix_recipe(
        name,
        [link],
        learning_rate,
        rest,
        weight_decay=0.0 if adaptive else weight_decay,
        decay=usual,
        mask=mask,
        dims=dims,
        roles=roles,
    )
