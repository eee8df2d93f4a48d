"""Wrappers that refuse bad gradients on the device, count them in the state and recover."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_transformation, map_updates, stateless
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import PyTree, upcast


def global_norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm over all leaves in float32, without overflow of the squares.

    Args:
      tree: arrays of any float dtype.

    Returns:
      A float32 scalar; not finite if an entry is not.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> norm = optkit.transforms.global_norm({"a": jnp.full(4, 1e25), "b": jnp.zeros(0)})
      >>> round(float(norm) / 1e25, 4)
      2.0
    """
    return _norm_of(tree, tree)


def to_unit_norm(eps: float) -> Transformation:
    """Divides updates by their norm over all leaves together, plus ``eps``; zero stays zero."""

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        below = global_norm(updates) + eps
        below = jnp.where(below > 0, below, 1.0)
        return map_updates(lambda u: u / below, updates)

    return stateless(update)


def global_distance(one: PyTree, other: PyTree) -> jax.Array:
    """Returns the ``global_norm`` of the difference of two trees of the same structure."""
    # Written in two ways: one difference that two sums read would be an array of its own.
    ahead = jax.tree.map(lambda a, b: upcast(a) - upcast(b), one, other)
    return _norm_of(ahead, jax.tree.map(lambda a, b: upcast(b) - upcast(a), one, other))


def _norm_of(tree: PyTree, same: PyTree) -> jax.Array:
    """The norm of a tree; ``same`` has its magnitudes."""
    leaves, twins = ([upcast(x) for x in jax.tree.leaves(t) if x.size] for t in (tree, same))
    if not leaves:
        return jnp.zeros(())
    largest = jnp.stack([jnp.max(jnp.abs(x)).astype(jnp.float32) for x in leaves]).max()
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    total = sum(jnp.sum(jnp.square(x / scale)).astype(jnp.float32) for x in twins)
    return jnp.sqrt(total) * scale


def _choose(keep: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def _keep_or_skip(
    accept: jax.Array, out: PyTree, new: PyTree, old: PyTree
) -> tuple[PyTree, PyTree]:
    # Selected leaf by leaf, not by cond: XLA fuses the choice into the update, in place.
    zeros = jax.tree.map(jnp.zeros_like, out)
    return _choose(accept, out, zeros), _choose(accept, new, old)


class SkipNonfiniteState(NamedTuple):
    """State of ``skip_nonfinite``."""

    inner: PyTree  # state of the inner transformation, as after the last accepted update
    skipped: jax.Array  # int32 scalar, skipped updates in all
    consecutive: jax.Array  # int32 scalar, skipped since the last accepted one


@register(
    kind="wrapper",
    family="safety",
    state_bytes={"*": 0},
    tags=("guard", "nan"),
    chain="inner, unless something is not finite",
)
def skip_nonfinite(inner: optax.GradientTransformation) -> Transformation:
    """Skips an update whose gradient, loss or result is not finite.

    1. ``u, s <- inner(g)``;
    2. if an entry of ``g`` or ``u``, or the extra argument ``value``, is not finite: ``u = 0`` and
       ``s`` stays;
    3. ``skipped`` counts such steps, ``consecutive`` those in a row; a good step sets
       ``consecutive`` to 0, however long the row was.

    Args:
      inner: any transformation.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; two counters of state beside the inner one.
      Nothing is read on the host.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.skip_nonfinite(optax.sgd(1.0))
      >>> u, state = tx.update({"w": jnp.array([jnp.nan])}, tx.init({"w": jnp.ones(1)}))
      >>> float(u["w"][0]), int(state.skipped), int(state.consecutive)
      (0.0, 1, 1)
    """
    inner = check_transformation("inner", inner)

    def init_fn(params: PyTree) -> SkipNonfiniteState:
        counters = (jnp.zeros((), jnp.int32) for _ in range(2))
        return SkipNonfiniteState(inner.init(params), *counters)

    def update_fn(
        updates: PyTree, state: SkipNonfiniteState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, SkipNonfiniteState]:
        out, new = inner.update(updates, state.inner, params, **extra_args)
        checked = [*jax.tree.leaves(updates), *jax.tree.leaves(out)]
        if extra_args.get("value") is not None:
            checked.append(extra_args["value"])
        good = jnp.stack([jnp.all(jnp.isfinite(x)) for x in checked] or [jnp.array(True)]).all()
        out, kept = _keep_or_skip(good, out, new, state.inner)
        bad = 1 - good.astype(jnp.int32)
        consecutive = (state.consecutive + 1) * bad
        return out, SkipNonfiniteState(kept, state.skipped + bad, consecutive)

    return Transformation(init_fn, update_fn)


class SkipSpikesState(NamedTuple):
    """State of ``skip_spikes``."""

    inner: PyTree  # state of the inner transformation, as after the last accepted update
    history: jax.Array  # (window,) float32, the last accepted values, a ring
    accepted: jax.Array  # int32 scalar, values in the history since it was last cleared
    skipped: jax.Array  # int32 scalar, skipped updates in all
    consecutive: jax.Array  # int32 scalar, skipped since the last accepted one


@register(
    kind="wrapper",
    family="safety",
    state_bytes={"*": 0},
    tags=("guard", "spike", "nan"),
    chain="inner, unless the norm leaves its recent range",
)
def skip_spikes(
    inner: optax.GradientTransformation,
    *,
    window: int = 128,
    factor: float = 6.0,
    warmup: int = 16,
    max_consecutive: int = 16,
    monitor: Literal["norm", "value"] = "norm",
) -> Transformation:
    """Skips an update when the gradient norm (or loss) leaves the range of its recent past.

    With ``x`` the global gradient norm or the extra argument ``value``, and mean and deviation
    taken over the last ``window`` accepted values:

    1. ``x`` or the gradient not finite: skip, always;
    2. ``x > mean + factor*max(deviation, mean/100)`` once ``warmup`` values are known: skip (a
       flat history would call any rise a spike);
    3. after ``max_consecutive`` skips in a row a finite step is accepted and the history starts
       anew: the level has shifted, and the guard recovers.

    A skipped step gives zero updates and leaves the inner state untouched.

    Args:
      inner: any transformation.
      window: accepted values remembered.
      factor: deviations above the mean that are allowed.
      warmup: values needed before a spike can be told; at most window.
      max_consecutive: skips in a row before the new level is believed.
      monitor: "norm", or "value" for the loss, which the caller passes as ``value=``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; 4*window + 12 bytes beside the inner state.

    Raises:
      ValueError: impossible settings, or ``value`` missing for monitor="value".

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.skip_spikes(optax.sgd(1.0), warmup=2)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for size in (1.0, 1.1, 0.9, 50.0, 1.0):
      ...   u, state = tx.update({"w": jnp.array([size])}, state)
      >>> int(state.skipped), int(state.consecutive), float(u["w"][0])
      (1, 0, -1.0)

    Reference:
      The rule of MaxText's skip-step option; recovery is ours.
    """
    check_static_int("window", window, low=2)
    check_static_int("warmup", warmup, low=2)
    check_static_int("max_consecutive", max_consecutive)
    check_number("factor", factor, low=0.0, infinite=True)
    check_choice("monitor", monitor, ("norm", "value"))
    if warmup > window:
        raise ValueError(f"warmup={warmup} is more than window={window} values can show")
    inner = check_transformation("inner", inner)

    def init_fn(params: PyTree) -> SkipSpikesState:
        counters = (jnp.zeros((), jnp.int32) for _ in range(3))
        return SkipSpikesState(inner.init(params), jnp.zeros(window, jnp.float32), *counters)

    def update_fn(
        updates: PyTree, state: SkipSpikesState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, SkipSpikesState]:
        if monitor == "value" and extra_args.get("value") is None:
            raise ValueError('skip_spikes(monitor="value") needs tx.update(..., value=loss)')
        seen = extra_args["value"] if monitor == "value" else global_norm(updates)
        x = jnp.asarray(seen, jnp.float32)
        known = jnp.arange(window) < state.accepted
        count = jnp.maximum(jnp.minimum(state.accepted, window), 1)
        # Relative to the largest value: squares of 1e+25 leave float32's range.
        unit = jnp.maximum(jnp.max(jnp.abs(jnp.where(known, state.history, 0.0))), 1e-38)
        past = jnp.where(known, state.history, 0.0) / unit
        mean = past.sum() / count
        deviation = jnp.sqrt(jnp.where(known, jnp.square(past - mean), 0.0).sum() / count)
        spread = jnp.maximum(deviation, 0.01 * jnp.abs(mean))
        spike = (state.accepted >= warmup) & (x / unit > mean + factor * spread)
        shifted = state.consecutive >= max_consecutive
        finite = jnp.isfinite(x) & jnp.isfinite(global_norm(updates))
        good = finite & (~spike | shifted)
        anew = good & spike
        place = jnp.where(anew, 0, state.accepted % window)
        history = jnp.where(good, state.history.at[place].set(x), state.history)
        accepted = jnp.where(good, jnp.where(anew, 1, state.accepted + 1), state.accepted)
        out, new = inner.update(updates, state.inner, params, **extra_args)
        out, kept = _keep_or_skip(good, out, new, state.inner)
        bad = 1 - good.astype(jnp.int32)
        consecutive = (state.consecutive + 1) * bad
        return out, SkipSpikesState(kept, history, accepted, state.skipped + bad, consecutive)

    return Transformation(init_fn, update_fn)
