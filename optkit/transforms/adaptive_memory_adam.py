"""AM-AdamW's direction: the adaptive momentum in the metric of Adam."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.transforms.base import Transformation, check_same_leaves, need_params
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import PyTree, RuleLike, upcast, zeros_like_params


class AdaptiveMemoryAdamState(NamedTuple):
    """State of ``am_adamw``'s direction."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    memory: PyTree  # like params, state_dtype: d
    nu: PyTree  # like params, state_dtype: second moment
    # (2, leaves) float32: the product of each leaf's coefficients so far, and the last of them. One
    # array, because a donated one that is not read cannot be written to.
    coefficients: jax.Array
    rate: jax.Array  # float32 scalar, learning rate of the last update
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def adaptive_memory_adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    lam: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Returns the direction of ``optkit.am_adamw``, which see.

    It stands alone: its coefficient looks at the learning rates of this and the last update and at
    the weight decay, so that it fits into no chain but that of the recipe.

    Args:
      learning_rate: that of the recipe.
      b1: largest coefficient.
      b2: decay rate of the second moment.
      eps: added to the root.
      lam: weight of the penalty.
      weight_decay: that of the recipe, decoupled.
      mask: leaves that decay.
      roles: the user's ``(pattern, role)`` rules.
      state_dtype: dtype of both moments.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: two numbers per parameter, and two
      per leaf.
    """
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_number("lam", lam, low=0.0)
    check_number("weight_decay", weight_decay, low=0.0)
    decays = not isinstance(weight_decay, int | float) or weight_decay != 0

    def init_fn(params: PyTree) -> AdaptiveMemoryAdamState:
        count = jnp.zeros((), jnp.int32)
        memory, nu = (zeros_like_params(params, state_dtype) for _ in range(2))
        leaves = len(jax.tree.leaves(params))
        betas = jnp.stack([jnp.ones(leaves, jnp.float32), jnp.zeros(leaves, jnp.float32)])
        rate = jnp.zeros((), jnp.float32)
        numbers = recorded(count, b1=b1, b2=b2, eps=eps, lam=lam)
        return AdaptiveMemoryAdamState(count, memory, nu, betas, rate, numbers)

    def update_fn(
        updates: PyTree,
        state: AdaptiveMemoryAdamState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AdaptiveMemoryAdamState]:
        del extra_args
        check_same_leaves(updates, state.memory, "state", shapes=True)
        grads = [upcast(g) for g in jax.tree.leaves(updates)]
        moments = zip(jax.tree.leaves(state.memory), jax.tree.leaves(state.nu), strict=True)
        held = [(upcast(d), upcast(v)) for d, v in moments]
        decayed: list[jax.Array | None] = [None] * len(grads)
        if decays:
            params = need_params(params, "am_adamw")
            check_same_leaves(updates, params, "parameters", shapes=True)
            on = jax.tree.leaves(decay_mask(mask, params, roles))
            leaves = jax.tree.leaves(params)
            decayed = [upcast(p) if yes else None for p, yes in zip(leaves, on, strict=True)]

        numbers = _Numbers(
            value_at(b1, state.count),
            value_at(b2, state.count),
            value_at(eps, state.count),
            value_at(lam, state.count),
            value_at(weight_decay, state.count),
            jnp.asarray(value_at(learning_rate, state.count), jnp.float32),
            state.rate,
            state.count,
        )
        kept = state.coefficients[0]
        betas = _coefficients(numbers, kept, grads, held, decayed)
        steps = [
            _step(numbers, kept[i], betas[i], g, d, v)
            for i, (g, (d, v)) in enumerate(zip(grads, held, strict=True))
        ]
        out, memory, nu = (
            _like(tree, [step[i] for step in steps])
            for i, tree in enumerate((updates, state.memory, state.nu))
        )
        return out, AdaptiveMemoryAdamState(
            state.count + 1,
            memory,
            nu,
            jnp.stack([kept * betas, betas]),
            numbers.rate,
            recorded(state.count, b1=b1, b2=b2, eps=eps, lam=lam),
        )

    return Transformation(init_fn, update_fn)


def _bounded_ratio(numerator: jax.Array, denominator: jax.Array, bound: Scalar) -> jax.Array:
    """``clip(numerator/denominator, 0, bound)``, and 0 where there is no ratio, as for d = g."""
    ratio = numerator / jnp.where(denominator > 0, denominator, 1.0)
    defined = (denominator > 0) & jnp.isfinite(ratio)
    return jnp.where(defined, jnp.clip(ratio, 0.0, bound), 0.0)


class _Numbers(NamedTuple):
    """Those of one update of AM-AdamW."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    lam: Scalar
    weight_decay: Scalar
    rate: jax.Array
    last_rate: jax.Array
    finished: jax.Array


def _metric(
    numbers: _Numbers, kept: jax.Array, g: jax.Array, nu: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The new second moment of a leaf, and what its steps are divided by."""
    # An infinite one would make 0 times infinity of the sums, and never end. The square is bounded
    # and not v: compilers would compute a bounded v twice, from a copy of what it overwrites.
    square = jnp.minimum(jnp.square(g), 0.5 * jnp.finfo(nu.dtype).max)
    v = numbers.b2 * nu + (1.0 - numbers.b2) * square
    root = jnp.sqrt(v) / jnp.sqrt(debias(numbers.b2, numbers.finished + 1)) + numbers.eps
    scale = (1.0 - numbers.b1 * kept) * root
    # 1 in place of 0; a constant to choose from would be written out as an array on CPU.
    return v, scale + (scale == 0)


def _coefficients(
    numbers: _Numbers,
    kept: jax.Array,
    grads: Sequence[jax.Array],
    held: Sequence[tuple[jax.Array, jax.Array]],
    decayed: Sequence[jax.Array | None],
) -> jax.Array:
    """One coefficient a leaf, all in one array."""
    if not grads:
        return kept
    rate, moving = numbers.rate, numbers.rate > 0
    # The last step was of the last rate. Without a step there is no gap between the planes.
    pace = jnp.where(moving, numbers.last_rate / jnp.where(moving, rate, 1.0), 0.0)
    over, under = [], []
    for i, (g, (d, nu), p) in enumerate(zip(grads, held, decayed, strict=True)):
        _, scale = _metric(numbers, kept[i], g, nu)
        damped, back, gap = 1.0 + numbers.lam * scale, d / scale, pace
        if p is not None:
            gap = (1.0 + numbers.weight_decay * rate) * pace
            back = back + numbers.weight_decay * p
        # The definition's (g/P + lam*d)/(1 + lam*P) is d/P + (g - d)/(P*(1 + lam*P)): one of its
        # two sums is the denominator.
        below = jnp.sum(((d - g) / scale) * ((d - g) / damped))
        over.append(below + jnp.sum(back * ((1.0 + gap) * g - d)))
        under.append(below)
    betas = _bounded_ratio(jnp.stack(over), jnp.stack(under), numbers.b1)
    return jnp.where(numbers.finished == 0, numbers.b1, betas).astype(jnp.float32)


def _step(
    numbers: _Numbers,
    kept: jax.Array,
    beta: jax.Array,
    g: jax.Array,
    d: jax.Array,
    nu: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Update, memory and second moment of a leaf."""
    v, scale = _metric(numbers, kept, g, nu)
    held = numbers.lam * scale
    d = (1.0 - beta) / (1.0 + held) * g + (held + beta) / (1.0 + held) * d
    return d / scale, d, v


def _like(tree: PyTree, leaves: Sequence[jax.Array]) -> PyTree:
    """Leaves in the structure and the dtypes of a tree."""
    cast = [x.astype(old.dtype) for x, old in zip(leaves, jax.tree.leaves(tree), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), cast)
