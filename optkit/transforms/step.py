"""The last links of every recipe: weight decay of each kind and the learning rate."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_same_leaves,
    check_transformation,
    map_updates,
    need_params,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    ScaleByLearningRateState,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.precision import in_float32
from optkit.tree import (
    PyTree,
    RuleLike,
    Selector,
    leaves_with_paths,
    selects,
    values_by_path,
)
from optkit.tree.selection import check_selects, is_selector

Decay = Literal["decoupled", "cautious", "independent", "coupled"]
# "after" has to know the learning rate, so that only ``descend`` has it.
StepDecay = Decay | Literal["after"]
Mask = PyTree | Callable[[PyTree], PyTree] | Selector | None


class DecayState(NamedTuple):
    """State of ``decay_weights``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _takes_path_and_leaf(function: Callable[..., Any]) -> bool:
    """Tells a selector, a function of (path, leaf), from a function of the parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) == 2


def decay_mask(mask: Mask, params: PyTree, roles: Sequence[RuleLike]) -> PyTree:
    """Returns a tree of Python bools from any of the forms that a mask may have."""
    structure: Any = jax.tree.structure(params)
    if mask is None or not structure.num_leaves:
        return structure.unflatten([True] * structure.num_leaves)
    given: Any = mask
    if is_selector(given) or (callable(given) and _takes_path_and_leaf(given)):
        check_selects("mask", given, params, roles)
        return structure.unflatten(
            selects(given, path, leaf, roles) for path, leaf in leaves_with_paths(params)
        )
    tree = given(params) if callable(given) else given
    chosen = values_by_path(params, tree)
    for path, _ in leaves_with_paths(params):
        if path not in chosen:
            raise ValueError(f"the decay mask has no entry for leaf {path!r}; add True or False")
    return structure.unflatten(chosen[path] for path, _ in leaves_with_paths(params))


@register(
    kind="part",
    family="decay",
    paper=("Decoupled Weight Decay Regularization", "1711.05101", 2017),
    state_bytes={"*": 0},
    tags=("weight decay",),
    chain="u + wd p",
    example={"weight_decay": 0.1},
)
def decay_weights(
    weight_decay: ScalarOrSchedule,
    *,
    kind: Decay = "decoupled",
    mask: Mask = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Adds weight decay of a stated kind; where the link stands in the chain belongs to the kind.

    * ``"decoupled"``: ``u <- u + wd*p``, before the learning rate: ``p <- (1 - lr*wd)*p - lr*u``.
    * ``"cautious"``: ``u <- u + wd*p*1[u*p >= 0]``, before the learning rate: decays where the step
      shrinks the weight anyway.
    * ``"independent"``: ``u <- u - wd*p``, after the learning rate: ``p <- (1 - wd)*p - lr*u``, the
      loss of weight per step does not depend on the learning rate.
    * ``"coupled"``: ``g <- g + wd*p``, first in the chain: L2 regularisation.

    ``optkit.descend`` puts the link in its place.

    Args:
      weight_decay: coefficient, a number or a schedule, at least 0.
      kind: which decay.
      mask: leaves that decay; None for all. A tree of bools or a prefix of one; roles and globs
        such as ``("matrix", "embedding")``; or a function. A function of one argument is called
        with the parameters and returns a tree of bools, as in Optax; one of two is called with
        (path, leaf) of each leaf and returns a bool, as selectors are elsewhere in optkit.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; 0 bytes per parameter.

    Raises:
      ValueError: unknown kind, negative coefficient, params not given to update; at init a mask
        with a pattern that names no leaf, or without an entry for one.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.decay_weights(0.1, kind="cautious")
      >>> params = {"w": jnp.array([1.0, -1.0])}
      >>> tx.update({"w": jnp.array([1.0, 1.0])}, tx.init(params), params)[0]["w"].tolist()
      [1.100000023841858, 1.0]

    Reference:
      Loshchilov and Hutter, arXiv 1711.05101; cautious: Chen et al., Cautious Weight Decay, arXiv
      2510.12402.
    """
    check_number("weight_decay", weight_decay, low=0.0)
    check_choice("kind", kind, get_args(Decay))

    def init_fn(params: PyTree) -> DecayState:
        decay_mask(mask, params, roles)  # to refuse a mask that does not fit
        count = jnp.zeros((), jnp.int32)
        return DecayState(count, recorded(count, weight_decay=weight_decay))

    def update_fn(
        updates: PyTree, state: DecayState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, DecayState]:
        del extra_args
        params = need_params(params, f"decay_weights(kind={kind!r})")
        check_same_leaves(updates, params, "parameters", shapes=True)
        wd = value_at(weight_decay, state.count)

        def decay(u: jax.Array, p: jax.Array) -> jax.Array:
            if kind == "cautious":
                # u*p may underflow. And u is read once: used twice, compilers write it to memory.
                side = jnp.where(p < 0, -1.0, 1.0)
                along = side * u
                return side * along + wd * p * (along >= 0)
            return u - wd * p if kind == "independent" else u + wd * p

        chosen = decay_mask(mask, params, roles)
        out = jax.tree.map(
            lambda u, p, on: map_updates(decay, u, p) if on else u, updates, params, chosen
        )
        new = recorded(state.count, weight_decay=weight_decay)
        return out, DecayState(state.count + 1, new)

    return Transformation(init_fn, update_fn)


@register(
    kind="part",
    family="step",
    state_bytes={"*": 0},
    tags=("learning rate",),
    chain="u = -lr u",
    example={"learning_rate": 0.1},
)
def scale_by_learning_rate(learning_rate: ScalarOrSchedule) -> Transformation:
    """Multiplies by minus the learning rate and records it in the state.

    ``u <- -lr(t)*u`` with ``t`` the number of finished updates, 0 at the first.

    Args:
      learning_rate: a number or a schedule.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; 0 bytes per parameter. The value used last is
      ``optkit.get_hyperparam(state, "learning_rate")``.

    Raises:
      ValueError: not a number, not finite, or negative: the link turns the direction round itself.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_learning_rate(lambda t: 1.0 / (t + 1))
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for _ in range(2):
      ...   u, state = tx.update({"w": jnp.ones(1)}, state)
      >>> float(u["w"][0]), float(optkit.get_hyperparam(state, "learning_rate"))
      (-0.5, 0.5)
    """
    check_number("learning_rate", learning_rate, low=0.0)

    def init_fn(params: PyTree) -> ScaleByLearningRateState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ScaleByLearningRateState(count, recorded(count, True, learning_rate=learning_rate))

    def update_fn(
        updates: PyTree,
        state: ScaleByLearningRateState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByLearningRateState]:
        del params, extra_args
        rate = value_at(learning_rate, state.count)
        out = map_updates(lambda u: -rate * u, updates)
        new = recorded(state.count, True, learning_rate=learning_rate)
        return out, ScaleByLearningRateState(state.count + 1, new)

    return Transformation(init_fn, update_fn)


def _decay_after(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    roles: Sequence[RuleLike],
) -> Transformation:
    """Decays the stepped weights: ``p <- (1 - lr*wd)*(p + u)``, behind the learning rate."""
    check_number("weight_decay", weight_decay, low=0.0)

    def init_fn(params: PyTree) -> DecayState:
        decay_mask(mask, params, roles)
        count = jnp.zeros((), jnp.int32)
        return DecayState(count, recorded(count, weight_decay=weight_decay))

    def update_fn(
        updates: PyTree, state: DecayState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, DecayState]:
        del extra_args
        params = need_params(params, "weight decay")
        shrink = value_at(learning_rate, state.count) * value_at(weight_decay, state.count)
        chosen = decay_mask(mask, params, roles)
        out = jax.tree.map(
            lambda u, p, on: map_updates(lambda u, p: u - shrink * (p + u), u, p) if on else u,
            updates,
            params,
            chosen,
        )
        new = recorded(state.count, weight_decay=weight_decay)
        return out, DecayState(state.count + 1, new)

    return Transformation(init_fn, update_fn)


def descend(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Makes a direction an optimizer: decay of the stated kind, learning rate, float32 arithmetic.

    Args:
      direction: a transformation that points along the gradient.
      learning_rate: a number or a schedule.
      weight_decay: coefficient; the constant 0 adds no link.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, ``p <-
        (1 - lr*wd)*(p - lr*u)``, as the Hugging Face family does.
      mask: leaves that decay.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: those of the direction.

    Raises:
      ValueError: as ``optkit.decay_weights``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.descend(optax.identity(), 0.1, weight_decay=0.5)
      >>> params = {"w": jnp.ones(1)}
      >>> tx.update({"w": jnp.ones(1)}, tx.init(params), params)[0]["w"].round(3).tolist()
      [-0.15...]
    """
    check_choice("decay", decay, (*get_args(Decay), "after"))
    direction = check_transformation("direction", direction)
    links: list[optax.GradientTransformation] = [direction]
    step = scale_by_learning_rate(learning_rate)
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        links.append(step)
    elif decay == "after":
        links += [step, _decay_after(learning_rate, weight_decay, mask, roles)]
    else:
        link = decay_weights(weight_decay, kind=decay, mask=mask, roles=roles)
        order = {"coupled": [link, direction, step], "independent": [direction, step, link]}
        links = order.get(decay, [direction, link, step])
    tx = in_float32(optax.chain(*links))

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        check_gradients(updates, params)
        return tx.update(updates, state, params, **extra_args)

    return Transformation(tx.init, update_fn)
