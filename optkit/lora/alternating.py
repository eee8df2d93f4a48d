"""AltLoRA: one factor of an adapter at a time, preconditioned by the other one.

No chain of parts can say it: the second factor's direction depends on where the first one's step
has led, learning rate and decay included.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.lora.algebra import product, pseudo_inverse, spectrum
from optkit.lora.find import AdapterTree, by_scale, check_scale, check_served
from optkit.lora.naming import Naming, Scale
from optkit.transforms.base import Transformation, check_same_leaves, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import PyTree, upcast, zeros_like_params

AltSchedule = Literal["alternate", "joint", "simultaneous"]
AltDecay = Literal["decoupled", "after"]


class AltLoraState(NamedTuple):
    """State of ``altlora`` and ``altlora_plus``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment of each factor's preconditioned gradient
    nu: PyTree | None  # like params, second moment; None in AltLoRA
    old: PyTree  # like params, each factor as it was when the other one moved last
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class _Options(NamedTuple):
    """What does not change from step to step."""

    naming: Naming
    scale: Scale
    decay: AltDecay
    mask: Mask
    group_bytes: int | None


class _Numbers(NamedTuple):
    """What one step is computed with."""

    learning_rate: Any
    b1: Any
    b2: Any  # None in AltLoRA
    eps: Any
    delta: Any
    weight_decay: Any
    c1: Any  # 1 - b1**k, k updates of this factor


def _direction(now: _Numbers, scale: Any) -> Any:
    """A factor's direction and moments, a function of batches of (other, old, gradient, ...).

    All of them are (r, k): the other factor, and what belongs to this one, with r first.
    """

    def function(*given: jax.Array) -> tuple[jax.Array, ...]:
        gradient, other, old, mu, *nu = map(upcast, given)
        # In units of its largest entry, so that no square of it overflows.
        least = jnp.sqrt(jnp.asarray(now.delta, other.dtype))
        unit = jnp.maximum(jnp.max(jnp.abs(other), axis=(-2, -1), keepdims=True), least)
        unit = jnp.where(unit > 0.0, unit, 1.0)
        scaled = other / unit
        inverse = pseudo_inverse(spectrum(scaled), (now.delta / unit / unit)[..., 0])
        g = product(inverse, gradient) / unit / unit / scale / scale
        carried = product(inverse, scaled, (old / unit).mT, mu)
        m = now.b1 * carried + (1.0 - now.b1) * g
        if not nu:
            return m / now.c1, m.astype(given[3].dtype)
        kept = now.b1 * mu + (1.0 - now.b1) * g
        v = now.b2 * nu[0] + (1.0 - now.b2) * jnp.square(g)
        root = jnp.sqrt(v) + now.eps
        u = m / jnp.where(root == 0.0, 1.0, root) / now.c1
        return u, kept.astype(given[3].dtype), v.astype(given[4].dtype)

    return function


def _same(matrices: list[jax.Array]) -> list[jax.Array]:
    return matrices


def _turned(matrices: list[jax.Array]) -> list[jax.Array]:
    return [x.mT for x in matrices]


class _Step:
    """One update of a tree: reads it once, and moves one factor after the other."""

    def __init__(
        self, options: _Options, updates: PyTree, state: AltLoraState, params: PyTree
    ) -> None:
        self.options = options
        self.tree = AdapterTree(options.naming, params)
        self.params = list(self.tree.split(params))
        self.decays = self.tree.split(decay_mask(options.mask, params, ()), turned=False)
        self.grads = self.tree.split(updates)
        self.moments = [list(self.tree.split(state.mu))]
        if state.nu is not None:
            self.moments.append(list(self.tree.split(state.nu)))
        self.old = list(self.tree.split(state.old))
        self.steps = [[jnp.zeros_like(p) for p in factor] for factor in self.params]

    def move(self, which: int, now: _Numbers, others: list[jax.Array]) -> None:
        """Moves A (0) or B (1), given the other factor of each adapter."""
        # Of B the transposes: what is applied to it from the right is applied from the left there.
        mine, across = (_same, _turned) if which == 0 else (_turned, _same)
        done = by_scale(
            self.tree,
            self.options.scale,
            lambda s: _direction(now, s),
            mine(self.grads[which]),
            across(others),
            across(self.old[1 - which]),
            *(mine(moment[which]) for moment in self.moments),
            group_bytes=self.options.group_bytes,
            move=False,
        )
        u, *moments = (mine([result[i] for result in done]) for i in range(1 + len(self.moments)))
        for moment, new in zip(self.moments, moments, strict=True):
            moment[which] = new
        self.old[1 - which] = [
            other.astype(old.dtype) for other, old in zip(others, self.old[1 - which], strict=True)
        ]
        self.steps[which] = [
            self._stepped(d, p, on, now)
            for d, p, on in zip(u, self.params[which], self.decays[which], strict=True)
        ]

    def _stepped(self, u: jax.Array, p: jax.Array, on: bool, now: _Numbers) -> jax.Array:
        step = -now.learning_rate * u
        if not on:
            return step
        at = upcast(p) + step if self.options.decay == "after" else upcast(p)
        return step - now.learning_rate * now.weight_decay * at

    def moved(self, which: int) -> list[jax.Array]:
        """Returns a factor where its step leads."""
        pairs = zip(self.params[which], self.steps[which], strict=True)
        return [upcast(p) + step for p, step in pairs]

    def result(self, updates: PyTree, state: AltLoraState) -> tuple[PyTree, PyTree, Any, PyTree]:
        """Returns updates, both moments and the old factors."""
        merge = self.tree.merge
        nu = None if state.nu is None else merge(state.nu, *self.moments[1])
        return (
            merge(updates, *self.steps),
            merge(state.mu, *self.moments[0]),
            nu,
            merge(state.old, *self.old),
        )


def alternating(
    learning_rate: ScalarOrSchedule,
    naming: Naming,
    *,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule | None,
    eps: ScalarOrSchedule,
    delta: ScalarOrSchedule,
    scale: Scale,
    schedule: AltSchedule,
    weight_decay: ScalarOrSchedule,
    decay: AltDecay,
    mask: Mask,
    state_dtype: Any | None,
    group_bytes: int | None,
) -> Transformation:
    """Builds AltLoRA, and with ``b2`` AltLoRA+, for a tree of adapters only; see the recipes."""
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    if b2 is not None:
        check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    for name, value in (("eps", eps), ("delta", delta), ("weight_decay", weight_decay)):
        check_number(name, value, low=0.0)
    check_scale(scale)
    check_choice("schedule", schedule, get_args(AltSchedule))
    check_choice("decay", decay, get_args(AltDecay))
    options = _Options(naming, scale, decay, mask, group_bytes)
    second: ScalarOrSchedule = 0.0 if b2 is None else b2

    def numbers_at(count: jax.Array) -> dict[str, jax.Array]:
        own = recorded(count, True, learning_rate=learning_rate)
        return own | recorded(
            count, b1=b1, b2=second, eps=eps, delta=delta, weight_decay=weight_decay
        )

    def init_fn(params: PyTree) -> AltLoraState:
        # To refuse a tree that does not fit.
        check_served(scale, AdapterTree(naming, params), params)
        decay_mask(mask, params, ())
        count = jnp.zeros((), jnp.int32)
        mu = zeros_like_params(params, state_dtype)
        nu = None if b2 is None else zeros_like_params(params, state_dtype)
        return AltLoraState(
            count, mu, nu, zeros_like_params(params, state_dtype), numbers_at(count)
        )

    def now_at(count: jax.Array) -> _Numbers:
        rate, a1, a2, e, ridge, wd = (
            value_at(value, count)
            for value in (learning_rate, b1, second, eps, delta, weight_decay)
        )
        own = count // 2 if schedule == "alternate" else count
        return _Numbers(rate, a1, a2, e, ridge, wd, debias(a1, own + 1))

    def update_fn(
        updates: PyTree, state: AltLoraState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AltLoraState]:
        del extra_args
        params = need_params(params, "altlora")
        check_same_leaves(updates, params, "parameters", shapes=True)
        now = now_at(state.count)

        def step(*factors: int) -> Any:
            run = _Step(options, updates, state, params)
            for which in factors:
                first = which == factors[0] or schedule == "simultaneous"
                other = 1 - which
                run.move(which, now, run.params[other] if first else run.moved(other))
            return run.result(updates, state)

        if schedule == "alternate":
            done = jax.lax.cond(state.count % 2 == 0, lambda: step(0), lambda: step(1))
        else:
            done = step(0, 1)
        out, mu, nu, old = done
        return out, AltLoraState(state.count + 1, mu, nu, old, numbers_at(state.count))

    return Transformation(init_fn, update_fn)
