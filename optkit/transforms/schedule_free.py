"""Schedule-Free learning around any optimizer: steps at one sequence, an average of it for use."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_transformation,
    keep_dtypes,
    need_params,
    unzip,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import PyTree, accumulator_dtype, leaves_with_paths, map_with_path, upcast

# Names in states: inner optimizers record a learning_rate and a b1.
_RATE, _MIX = "averaging_learning_rate", "averaging_b1"


class ScheduleFreeState(NamedTuple):
    """State of ``schedule_free``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    b1: jax.Array  # float32 scalar, that of the mix which the parameters are
    weight_sum: jax.Array  # float32 scalar, sum of all weights
    max_learning_rate: jax.Array  # float32 scalar, the largest so far
    z: PyTree  # like params, where the inner optimizer steps; float32 for 16-bit leaves
    x: PyTree  # the average, in the dtype of z, or masked nodes where it is computed from y and z
    inner: PyTree  # state of the inner transformation
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _lead(y: jax.Array, z: jax.Array, x: Any, b1: Any) -> jax.Array:
    """``x - z``, from the average that is kept, or as the parameters ``b1*x + (1-b1)*z`` say."""
    if _is_masked(x):
        return (upcast(y) - upcast(z)) / b1
    return upcast(x) - upcast(z)


def _averaged(
    g: jax.Array,
    y: jax.Array,
    z: jax.Array,
    x: Any,
    u: jax.Array,
    *,
    share: Any,
    mix: Any,
    last_mix: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Returns the step of ``y``, and ``z`` and ``x`` after it, from the inner step ``u`` of ``z``.

    ``share`` is that of the new ``z`` in the average, ``mix`` that of the average in the new ``y``,
    ``last_mix`` in the old one.
    """
    lead = _lead(y, z, x, last_mix)
    new_z, new_lead = upcast(z) + u, (1.0 - share) * (lead - u)
    if _is_masked(x):
        # new_z + mix*new_lead - y in terms that are small: a step may be far below y's ulp.
        step = (1.0 - mix * (1.0 - share)) * u + ((mix - last_mix) - mix * share) * lead
        return step.astype(g.dtype), new_z.astype(z.dtype), x
    step = new_z + mix * new_lead - upcast(y)
    return step.astype(g.dtype), new_z.astype(z.dtype), (new_z + new_lead).astype(x.dtype)


def _is_zero(b1: Any) -> bool:
    return not callable(b1) and not isinstance(b1, jax.Array) and b1 == 0


@register(
    kind="wrapper",
    family="averaging",
    paper=("The Road Less Scheduled", "2405.15682", 2024),
    state_bytes={"*": 4},
    tags=("schedule-free", "averaging", "wrapper"),
    chain="z <- z + inner(g at y); x <- average of z; y <- b1 x + (1 - b1) z",
)
def schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: ScalarOrSchedule = 0.9,
    weight_power: float = 0.0,
    weight_lr_power: float = 2.0,
    average_decay: float | None = None,
    decay_at: Literal["y", "z"] = "y",
    keep_average: bool | None = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Trains without a horizon: gradients at a mix of the iterates and of their running average.

    The parameters of the training loop are ``y``; evaluate at ``x``, which
    ``optkit.schedule_free_eval_params`` reads. With ``n`` updates, this one counted:

    1. ``z <- z + inner(g)``, ``g`` being taken at ``y``;
    2. ``lr_max <- max(lr_max, lr)``; ``w = n**weight_power * lr_max**weight_lr_power``;
       ``S <- S + w``; ``c = w/S``, or ``c = 1 - average_decay`` where that is given;
    3. ``x <- (1-c)*x + c*z``; ``y <- b1*x + (1-b1)*z``.

    ``inner`` is a whole optimizer with a constant learning rate or a warm-up, and **without
    momentum**: that is what ``b1`` stands for. Of any learning rate, 1 to 10 times that of a
    scheduled run is the paper's advice. With ``average_decay`` it is generalised primal averaging,
    whose average forgets. Put it outermost: what comes behind it would move ``y`` and not ``z``.

    Batch statistics of a model belong to ``y``: compute them anew at ``x``. A checkpoint for use is
    ``x``; to train on, keep the state too, which holds ``z`` (see
    ``optkit.schedule_free_train_params``).

    Evidence: ``python -m benchmarks.claims schedule_free`` has it around AdamW, see
    ``optkit.schedule_free_adamw``; other inner optimizers are not compared there.

    Args:
      inner: any optimizer, such as ``optax.sgd(1.0)`` or ``optkit.muon(0.02, b1=0.0)``.
      learning_rate: the inner one's, for the weights alone: only its course matters, so that a
        constant one needs none. A warm-up gives its steps small weights.
      b1: share of the average in ``y``, in [0, 1).
      weight_power: r of the weights, above 0 to weigh late steps more.
      weight_lr_power: p of the weights.
      average_decay: a constant share of the old average in the new one; None averages all.
      decay_at: the parameters that ``inner`` is given, at which it decays: "y" or "z".
      keep_average: True keeps ``x`` in the state, False computes it from ``y`` and ``z``, for which
        ``b1`` must stay above 0; None keeps it for leaves of 16 bits, whose ``y`` is too coarse to
        tell it, and if ``b1`` is the number 0.
      state_dtype: dtype of ``z`` and of an average that is kept; float32 for 16-bit parameters if
        None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      4 per float32 parameter beside the inner state, 8 where the average is kept.

    Raises:
      ValueError: a number out of range; ``keep_average=False`` with ``b1=0``; params not given to
        update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, y = optkit.schedule_free(optax.sgd(1.0), b1=0.5), {"w": jnp.zeros(1)}
      >>> state = tx.init(y)
      >>> for _ in range(3):  # z is -1, -2, -3
      ...   u, state = tx.update({"w": jnp.ones(1)}, state, y)
      ...   y = optax.apply_updates(y, u)
      >>> y["w"].tolist(), optkit.schedule_free_eval_params(state, y)["w"].tolist()
      ([-2.5], [-2.0])

    Reference:
      Defazio et al., The Road Less Scheduled, arXiv 2405.15682, and facebookresearch/schedule_free.
      Unlike in ``optax.contrib.schedule_free`` schedules count from 0 for the weights too, and
      ``weight_power`` exists. Generalised primal averaging: facebookresearch/optimizers.
    """
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("weight_power", weight_power, low=0.0)
    check_number("weight_lr_power", weight_lr_power, low=0.0)
    if average_decay is not None:
        check_number("average_decay", average_decay, low=0.0, high=1.0, open_high=True)
    check_choice("decay_at", decay_at, ("y", "z"))
    if keep_average is False and _is_zero(b1):
        raise ValueError("b1=0 makes y = z, from which no average can be read: keep_average=True")
    inner = check_transformation("inner", inner)

    def kept(p: jax.Array) -> bool:
        if keep_average is None:
            return _is_zero(b1) or p.dtype.itemsize < accumulator_dtype(p, state_dtype).itemsize
        return keep_average

    def numbers(count: jax.Array) -> dict[str, jax.Array]:
        values: dict[str, Any] = {_RATE: learning_rate, _MIX: b1}
        return recorded(count, **values)

    def init_fn(params: PyTree) -> ScheduleFreeState:
        count, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        z = jax.tree.map(lambda p: jnp.copy(p).astype(accumulator_dtype(p, state_dtype)), params)
        x = jax.tree.map(lambda p, z: jnp.copy(z) if kept(p) else optax.MaskedNode(), params, z)
        mix = jnp.array(value_at(b1, count), jnp.float32)
        state = inner.init(jax.tree.map(upcast, params))
        return ScheduleFreeState(count, mix, zero, jnp.copy(zero), z, x, state, numbers(count))

    def weights(state: ScheduleFreeState) -> tuple[jax.Array, jax.Array, Any]:
        """Returns the sum of the weights, the largest learning rate and the share of the new z."""
        rate = jnp.asarray(value_at(learning_rate, state.count), jnp.float32)
        largest = jnp.maximum(state.max_learning_rate, rate)
        n = (state.count + 1).astype(jnp.float32)
        weight = n**weight_power * largest**weight_lr_power
        total = state.weight_sum + weight
        if average_decay is not None:
            return total, largest, 1.0 - average_decay
        return total, largest, jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)

    def update_fn(
        updates: PyTree, state: ScheduleFreeState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScheduleFreeState]:
        params = need_params(params, "schedule_free")
        check_gradients(updates, params)
        seen = jax.tree.map(upcast, params if decay_at == "y" else state.z)
        up = jax.tree.map(upcast, updates)
        steps, inner_state = update_inner(inner, up, state.inner, seen, extra_args)
        total, largest, share = weights(state)
        mix = value_at(b1, state.count)
        leaf = functools.partial(_averaged, share=share, mix=mix, last_mix=state.b1)
        # An average that is not kept, a masked node, stands where a leaf does.
        moved = jax.tree.map(leaf, updates, params, state.z, state.x, steps)
        out, z, x = unzip(updates, moved, 3)
        held = keep_dtypes(inner_state, state.inner)
        mix, record = jnp.asarray(mix, jnp.float32), numbers(state.count)
        return out, ScheduleFreeState(state.count + 1, mix, total, largest, z, x, held, record)

    return Transformation(init_fn, update_fn)


def _found(state: PyTree) -> dict[str, tuple[jax.Array, Any, jax.Array]]:
    """Returns z, x and b1 of every leaf that a state trains schedule-free, by path."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
    found = {}
    for node in nodes:
        if isinstance(node, ScheduleFreeState):
            kept = dict(leaves_with_paths(node.x))
            for path, z in leaves_with_paths(node.z):
                found[path] = (z, kept.get(path, optax.MaskedNode()), node.b1)
    return found


def _need(state: PyTree) -> dict[str, tuple[jax.Array, Any, jax.Array]]:
    found = _found(state)
    if not found:
        raise ValueError(
            "the state has no part of optkit.schedule_free, or no leaves in it: give the state of "
            "a chain with optkit.schedule_free or optkit.schedule_free_adamw, as its init or "
            "update returned it. Other optimizers are evaluated at their parameters themselves; "
            "averages of optkit.weight_ema and optkit.swa are read by optkit.averaged_params, the "
            "state of optax.contrib.schedule_free by optax.contrib.schedule_free_eval_params"
        )
    return found


def _checked(path: str, p: jax.Array, z: jax.Array) -> None:
    if jnp.shape(p) != jnp.shape(z):
        raise ValueError(
            f"{path or '(root)'}: shape {jnp.shape(p)} in the parameters, {jnp.shape(z)} in the "
            "state; give the parameters that belong to it"
        )


def schedule_free_eval_params(state: PyTree, params: PyTree) -> PyTree:
    """Returns the average ``x`` at which a schedule-free run is evaluated, and saved for use.

    Args:
      state: an optimizer state that has ``optkit.schedule_free`` at any depth.
      params: the training parameters ``y`` that belong to it.

    Returns:
      A tree like the parameters, dtypes kept; leaves that something else trains as they are.

    Raises:
      ValueError: no such part in the state, or a leaf of another shape.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.ones(2)}
      >>> state = optkit.schedule_free_adamw().init(params)
      >>> optkit.schedule_free_eval_params(state, params)["w"].tolist()
      [1.0, 1.0]

    Reference:
      Defazio et al., The Road Less Scheduled, arXiv 2405.15682.
    """
    _need(state)
    return evaluation_params(state, params)


def evaluation_params(state: PyTree, params: PyTree) -> PyTree:
    """Like ``schedule_free_eval_params``, and the parameters themselves of any other state."""
    found = _found(state)

    def leaf(path: str, p: jax.Array) -> jax.Array:
        if path not in found:
            return p
        z, x, b1 = found[path]
        _checked(path, p, z)
        return (upcast(z) + _lead(p, z, x, b1)).astype(p.dtype)

    return map_with_path(leaf, params)


def schedule_free_train_params(state: PyTree, params: PyTree) -> PyTree:
    """Returns the training parameters ``y`` from the average: to go on from a checkpoint of ``x``.

    Args:
      state: the optimizer state that was saved beside it.
      params: what ``optkit.schedule_free_eval_params`` gave.

    Returns:
      A tree like the parameters, dtypes kept: ``y = b1*x + (1-b1)*z``.

    Raises:
      ValueError: no such part in the state, or a leaf of another shape.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.ones(2)}
      >>> state = optkit.schedule_free_adamw().init(params)
      >>> x = optkit.schedule_free_eval_params(state, params)
      >>> optkit.schedule_free_train_params(state, x)["w"].tolist()
      [1.0, 1.0]

    Reference:
      Defazio et al., The Road Less Scheduled, arXiv 2405.15682.
    """
    found = _need(state)

    def leaf(path: str, p: jax.Array) -> jax.Array:
        if path not in found:
            return p
        z, _, b1 = found[path]
        _checked(path, p, z)
        return (upcast(z) + b1 * (upcast(p) - upcast(z))).astype(p.dtype)

    return map_with_path(leaf, params)
