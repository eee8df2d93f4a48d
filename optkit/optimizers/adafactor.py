"""Adafactor: second moments of rows and columns, steps relative to the size of the weights."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, in_float32, scale_by_factored_rms
from optkit.transforms.base import map_leaves, need_params
from optkit.transforms.factored import FACTORED, Factoring, clip_rms, root_mean_square
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import Dims, PyTree, RuleLike, upcast, zeros_like_params

Dialect = Literal["hf", "torch"]


class AdafactorStepState(NamedTuple):
    """State of the last link of ``adafactor``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like params, average of the steps; () without b1
    hyperparams: dict[str, jax.Array]  # {"learning_rate": float32 scalar} and scheduled values


def adafactor_rate(
    learning_rate: ScalarOrSchedule | None, dialect: Dialect, warmup_init: bool
) -> ScalarOrSchedule:
    """The learning rate by the number of finished updates; None for the relative one."""
    if dialect == "hf" and learning_rate is not None:
        return learning_rate

    def rate(count: jax.Array) -> jax.Array:
        n = count.astype(jnp.float32) + 1.0
        most: Any = 1e-2
        if learning_rate is not None:
            most = value_at(learning_rate, count)
        elif warmup_init:
            most = 1e-6 * n
        return jnp.minimum(most, jax.lax.rsqrt(n))

    return rate


def adafactor_step(
    learning_rate: ScalarOrSchedule | None,
    dialect: Dialect,
    *,
    b1: Scalar | None,
    eps2: ScalarOrSchedule,
    scale_parameter: bool,
    warmup_init: bool,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    state_dtype: Any,
) -> Transformation:
    """Steps along a direction at the rates of Adafactor, and decays; records them."""
    check_number("eps2", eps2, low=0.0)
    check_number("weight_decay", weight_decay, low=0.0)
    relative = adafactor_rate(learning_rate, dialect, warmup_init)
    plain = relative if learning_rate is None else learning_rate
    numbers = {"eps2": eps2, "weight_decay": weight_decay}

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, True, learning_rate=plain) | recorded(count, False, **numbers)

    def init_fn(params: PyTree) -> AdafactorStepState:
        decay_mask(mask, params, ())
        count = jnp.zeros((), jnp.int32)
        momentum = () if b1 is None else zeros_like_params(params, state_dtype)
        return AdafactorStepState(count, momentum, record(count))

    def update_fn(
        updates: PyTree, state: AdafactorStepState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdafactorStepState]:
        del extra_args
        params = need_params(params, "adafactor")
        base, least = value_at(relative, state.count), value_at(eps2, state.count)
        decay = value_at(weight_decay, state.count)

        def rate_of(p: jax.Array) -> Scalar:
            size = root_mean_square(p.astype(jnp.float32))
            return base * jnp.maximum(least, size) if scale_parameter else base

        steps = map_leaves(lambda u, p: rate_of(p) * upcast(u), updates, params)
        momentum = state.momentum
        if b1 is not None:
            keep = b1
            steps = map_leaves(
                lambda u, m: keep * m.astype(u.dtype) + (1.0 - keep) * u, steps, momentum
            )
            momentum = map_leaves(lambda u, m: u.astype(m.dtype), steps, momentum)

        def shrunk(u: jax.Array, p: jax.Array, on: bool) -> jax.Array:
            if not on or (isinstance(weight_decay, int | float) and weight_decay == 0):
                return -u
            rate = rate_of(p) if dialect == "hf" else value_at(plain, state.count)
            return -u - rate * decay * p.astype(u.dtype)

        out = map_leaves(shrunk, steps, params, decay_mask(mask, params, ()))
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        return out, AdafactorStepState(state.count + 1, momentum, record(state.count))

    return Transformation(init_fn, update_fn)


def check_adafactor(
    dialect: Dialect,
    learning_rate: ScalarOrSchedule | None,
    b1: Scalar | None,
    warmup_init: bool,
) -> None:
    """Raises ValueError for options that contradict each other."""
    check_choice("dialect", dialect, get_args(Dialect))
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, low=0.0)
    if b1 is not None:
        check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    if warmup_init and learning_rate is not None:
        raise ValueError("warmup_init belongs to learning_rate=None; leave one of them out")


@register(
    kind="recipe",
    family="memory",
    paper=("Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", "1804.04235", 2018),
    state_bytes={"*": FACTORED},
    tags=("adafactor", "factored"),
    chain="scale_by_factored_rms > clip by rms > relative step > decay",
)
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    *,
    dialect: Factoring = "hf",
    decay_rate: ScalarOrSchedule = -0.8,
    eps: Scalar | None = None,
    eps2: ScalarOrSchedule = 1e-3,
    clip_threshold: ScalarOrSchedule = 1.0,
    b1: Scalar | None = None,
    scale_parameter: bool = True,
    warmup_init: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Adam without momentum whose second moment of a matrix is one number a row and a column.

    With n the number of the update, rows r and columns c of ``optkit.scale_by_factored_rms``:

    1. ``u = g / sqrt(r c^T / mean(r))``; ``u <- u / max(1, rms(u)/clip_threshold)``;
    2. ``a = lr``, or without one ``min(1e-2, 1/sqrt(n))``; ``a <- a*max(eps2, rms(W))``;
    3. ``s = a*u``, or with ``b1`` the average of that;
    4. ``W <- (1 - a*weight_decay)*W - s``.

    "torch" has ``a = min(lr, 1/sqrt(n))`` with 1e-2 for lr by default, and decays by
    ``lr*weight_decay``.

    Choose it where a model's weights leave no room for moments: the state is next to nothing.
    Evidence: training Transformers for translation as well as Adam does is the paper's claim. In
    ``python -m benchmarks.claims memory_lm``, a byte language model and 250 steps, it ends 1.4%
    below an AdamW whose matrices have a quarter of the rate (the better of two) with 0.7% of the
    state.

    Args:
      learning_rate: a number or a schedule; None for the relative step of above.
      dialect: "hf" (Transformers, fairseq) or "torch" (``torch.optim.Adafactor``).
      decay_rate: exponent of the averages' weights, at most 0.
      eps: see ``optkit.scale_by_factored_rms``.
      eps2: smallest size of a leaf that its steps are relative to.
      clip_threshold: root mean square that an update may have.
      b1: average of the steps, 4 bytes per parameter; None for none. Not in torch's.
      scale_parameter: whether steps are relative to the weights' root mean square.
      warmup_init: a relative step that begins with 1e-6 n.
      weight_decay: coefficient.
      mask: leaves that decay.
      dims: which axes are input and output; the references take the last two axes.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of v and of the averaged steps; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per row and per column of each
      matrix, 4 per parameter of leaves below rank 2; 4 per parameter more with ``b1``.

    Raises:
      ValueError: an option out of range or against another; params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((512, 1024)), "bias": jnp.ones(1024)}}
      >>> [row.state_bytes for row in optkit.plan(optkit.adafactor(), params).rows]
      [4096, 6144]

    Reference:
      Shazeer and Stern, Adafactor, arXiv 1804.04235. ``optax.adafactor`` leaves sides below 128
      unfactored and its decay is not multiplied by the learning rate.
    """
    check_adafactor(dialect, learning_rate, b1, warmup_init)
    if dialect == "torch" and learning_rate is None:
        learning_rate = 1e-2
    direction = scale_by_factored_rms(
        decay_rate, eps=eps, dialect=dialect, dims=dims, roles=roles, state_dtype=state_dtype
    )
    step = adafactor_step(
        learning_rate,
        dialect,
        b1=b1,
        eps2=eps2,
        scale_parameter=scale_parameter,
        warmup_init=warmup_init,
        weight_decay=weight_decay,
        mask=mask,
        state_dtype=state_dtype,
    )
    return in_float32(optax.chain(direction, clip_rms(clip_threshold), step))
