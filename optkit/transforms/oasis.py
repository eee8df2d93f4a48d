"""Gradients over a diagonal of the curvature, in steps whose length follows from the last one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.curvature import Estimate
from optkit.curvature.calling import loss_of
from optkit.transforms.base import Transformation, check_gradients, map_leaves, need_params, unzip
from optkit.transforms.estimates import choose_estimate, cut, follow_if_due
from optkit.transforms.guards import global_norm
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, upcast, zeros_like_params
from optkit.tree.sharding import place_like

PAPER = (
    "Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    "2109.05198",
    2021,
)
# Steps on a loss without curvature grow for ever: this is where a float32 step ends.
_LONGEST = 1e30


class ScaleByOasisState(NamedTuple):
    """State of ``scale_by_oasis``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    curvature: PyTree  # like params, state_dtype (float32 for 16-bit parameters), D
    momentum: PyTree  # the same; None where b1 is the constant 0
    last: PyTree  # the same, parameters before the last update; None with adaptive=False
    step_size: jax.Array  # float32 scalar, eta
    growth: jax.Array  # float32 scalar, theta: the last step size over the one before
    key: jax.Array  # threefry PRNG key, constant
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def half_square(params: PyTree) -> jax.Array:
    """A loss: half the sum of all squares."""
    total = sum((jnp.sum(jnp.square(upcast(p))) for p in jax.tree.leaves(params)), jnp.zeros(()))
    return 0.5 * total


def _scaled(tree: PyTree, scale: PyTree, invert: bool) -> jax.Array:
    """The norm of a tree whose entries are multiplied by, or divided by, the root of a scale."""

    def leaf(x: jax.Array, d: jax.Array) -> jax.Array:
        root = jnp.sqrt(d)
        return x / root if invert else x * root

    return global_norm(map_leaves(leaf, tree, scale))


def _gradient_of(loss: Callable[[PyTree], Any] | None) -> Callable[[PyTree], PyTree]:
    if loss is None:
        raise ValueError(
            "scale_by_oasis needs the loss of this batch: call tx.update(grads, state, params, "
            "value_fn=lambda p: loss_fn(p, batch)), of which it makes Hutchinson's estimate and "
            "the gradient at the last parameters; or give prev_grad=jax.grad(...) and curvature=, "
            "or build it with adaptive=False"
        )
    return jax.grad(loss_of(loss, (), False))


def _changes(
    grads: PyTree, params: PyTree, last: PyTree, scale: PyTree, prev_grad: Any, *, fresh: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scaled norms of what parameters moved, and of what gradients turned, in the last step."""
    if callable(prev_grad):
        # At first nothing has been left behind yet.
        back = lambda p, old: jnp.where(fresh, p, old.astype(p.dtype))  # noqa: E731
        prev_grad = prev_grad(map_leaves(back, params, last))
    before = cut(prev_grad, grads, "prev_grad")
    dw = map_leaves(lambda p, old: upcast(p) - upcast(old), params, last)
    dg = map_leaves(lambda g, old: upcast(g) - place_like(upcast(old), g), grads, before)
    return _scaled(dw, scale, False), _scaled(dg, scale, True)


def _next_step(
    count: jax.Array, held: tuple[jax.Array, jax.Array], moved: jax.Array, turned: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the new step size and its growth from norms of what moved and of what turned.

    Where nothing moved, nothing is learned and the step stays; where no gradient turned, it grows.
    """
    step, growth = held
    grown = jnp.where(count == 1, jnp.inf, jnp.sqrt(1.0 + growth) * step)
    local = 0.5 * moved / jnp.where(turned > 0, turned, 1.0)
    new = jnp.where(turned > 0, jnp.minimum(grown, local), grown)
    known = (count > 0) & (moved > 0) & jnp.isfinite(new) & (new > 0)
    new = jnp.where(known, jnp.minimum(new, _LONGEST), step)
    return new, jnp.where(known, new / step, growth)


@register(
    kind="part",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("second order", "hessian", "hutchinson", "diagonal", "parameter-free"),
    chain="eta g / max(|D|, alpha); D <- b2 D + (1-b2) curvature; eta by local smoothness",
    example={"value_fn": half_square},
)
def scale_by_oasis(
    b2: ScalarOrSchedule = 0.99,
    *,
    alpha: ScalarOrSchedule = 1e-2,
    first_step: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.0,
    adaptive: bool = True,
    every: int | None = None,
    curvature: Estimate | None = None,
    value_fn: Callable[[PyTree], Any] | None = None,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides by an average of the Hessian's diagonal, and finds the length of the step itself.

    In update ``k``, counted from 0, at parameters ``w`` with ``w_old`` those of the last update:

    1. ``D = curvature(w)`` in the first update, later ``D <- b2*D + (1-b2)*curvature(w)``;
       ``Dhat = max(abs(D), alpha)``;
    2. ``eta = first_step`` in the first update, later, with sums over all leaves,
       ``eta <- min(sqrt(1+theta)*eta, sqrt(sum(dw**2*Dhat) / sum(dg**2/Dhat))/2)``,
       ``dw = w - w_old``, ``dg = g(w) - g(w_old)`` of this batch; ``theta = eta/eta_old``, infinite
       at first;
    3. ``m <- b1*m + (1-b1)*g``; ``u = eta*m/Dhat``.

    A gradient that has not changed lets the step grow by the first term; parameters that have not
    moved leave it as it is (the paper has neither case).

    Of the extra arguments ``value_fn``, the loss of this batch as a function of the parameters, is
    enough: Hutchinson's estimate and ``g(w_old)``, a second gradient, are computed from it. The
    others are ``curvature``, an estimate or a tree (see ``optkit.scale_by_sophia``), and
    ``prev_grad``, the tree ``g(w_old)`` or a function of the parameters that returns gradients.

    Args:
      b2: decay rate of the curvature, in [0, 1).
      alpha: least divisor, in units of the curvature: 1e-3 to 1e-1.
      first_step: the first step size; small is safe, since it soon grows.
      b1: decay rate of a momentum in place of the gradient, for deep networks; 0 for none.
      adaptive: find the step size; False leaves out line 2, ``eta = 1``.
      every: updates from one estimate of curvature to the next; None for 1.
      curvature: the estimate where update is given none.
      value_fn: the loss where update is given none, as of one fixed set of data.
      key: seed or PRNG key of the estimates; None for 0.
      state_dtype: dtype of ``D``, ``w_old`` and ``m``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      two state_dtype numbers per parameter, one more with momentum, one less with
      ``adaptive=False``; two numbers and a key.

    Raises:
      ValueError: an option out of range, no curvature or no ``prev_grad``, trees of other leaves
        than the updates, or params not given to update.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_oasis(first_step=0.25)
      >>> params, loss = jnp.array([3.0, -2.0]), lambda p: p @ (jnp.array([1.0, 8.0]) * p)
      >>> u, state = tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> u.tolist()  # a quarter of the Newton step
      [0.75, -0.5]

    Reference:
      Jahani et al., OASIS, arXiv 2109.05198.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("alpha", alpha, low=1e-30)
    check_number("first_step", first_step, low=1e-30)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    every = 1 if every is None else every
    check_static_int("every", every)
    check_seed(key)
    has_momentum = isinstance(b1, jax.Array) or b1 != 0
    own, own_value_fn = curvature, value_fn

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b1=b1, b2=b2, alpha=alpha, first_step=first_step)

    def init_fn(params: PyTree) -> ScaleByOasisState:
        count, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
        d, m, last = (
            zeros_like_params(params, state_dtype) if kept else None
            for kept in (True, has_momentum, adaptive)
        )
        eta = one * value_at(first_step, count) if adaptive else one
        return ScaleByOasisState(
            count, d, m, last, eta, jnp.copy(one), fresh_key(key), record(count)
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByOasisState,
        params: PyTree | None = None,
        *,
        curvature: Any = None,
        prev_grad: Any = None,
        value_fn: Callable[[PyTree], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByOasisState]:
        del extra_args
        params = need_params(params, "scale_by_oasis")
        check_gradients(updates, params)
        loss = own_value_fn if value_fn is None else value_fn
        before = prev_grad
        if adaptive and prev_grad is None:
            before = _gradient_of(loss)
        estimate = choose_estimate("scale_by_oasis", curvature, own, loss)
        count = state.count
        held = follow_if_due(
            every == 1 or count % every == 0,
            state.curvature,
            estimate,
            params,
            jax.random.fold_in(state.key, count),
            decay=value_at(b2, count),
            fresh=count == 0,
            like=updates,
            name="scale_by_oasis",
        )
        least, b = value_at(alpha, count), value_at(b1, count)
        scale = jax.tree.map(lambda d: jnp.maximum(jnp.abs(upcast(d)), least), held)
        eta, growth, last = state.step_size, state.growth, state.last
        if adaptive:
            first = jnp.where(count == 0, value_at(first_step, count), eta).astype(jnp.float32)
            norms = _changes(updates, params, last, scale, before, fresh=count == 0)
            eta, growth = _next_step(count, (first, growth), *norms)
            last = map_leaves(lambda p, old: upcast(p).astype(old.dtype), params, last)

        def leaf(g: jax.Array, d: jax.Array, *m: jax.Array) -> tuple[jax.Array, ...]:
            wide = upcast(g)
            mean = b * upcast(m[0]) + (1.0 - b) * wide if m else wide
            return (eta * (mean / d)).astype(g.dtype), *(mean.astype(x.dtype) for x in m)

        buffers = (state.momentum,) if has_momentum else ()
        out, *means = unzip(updates, map_leaves(leaf, updates, scale, *buffers), 1 + len(buffers))
        mean = means[0] if means else None
        return out, ScaleByOasisState(
            count + 1, held, mean, last, eta, growth, state.key, record(count)
        )

    return Transformation(init_fn, update_fn)
