"""HDET: replicas with hyperparameters of their own, averaged, and led by their losses."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import register
from optkit.distributed.exploring import AutoRate, Spread, as_spreads, check_explored
from optkit.distributed.hdet_steps import FACTOR, RATE, Factory, HdetState, Replica
from optkit.distributed.workers import AxisName, check_axis_name
from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
)
from optkit.tree import PyTree


def _check_inner(
    inner: Any, learning_rate: Any, explore: Any
) -> tuple[Transformation | Factory, Any]:
    """Returns a transformation or a factory of one, and the learning rate that goes with it."""
    is_one = callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))
    if is_one or not callable(inner):
        if explore:
            raise ValueError(
                f"explore={explore!r} names arguments of a factory, and inner is none: give "
                "a function of them that returns the transformation, such as optkit.adamw"
            )
        inner = check_transformation("inner", inner)
        return inner, 1.0 if learning_rate is None else learning_rate
    parameters = inspect.signature(inner).parameters
    open_end = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in explore or {} if name not in parameters and not open_end]
    if unknown:
        raise ValueError(
            f"explore has {unknown[0]!r}, which inner does not take; it takes "
            f"{', '.join(parameters)}. What only the loss reads belongs into outside"
        )
    if learning_rate is None and not explore:
        raise ValueError(
            "inner is a factory: give the learning_rate that it is called with, or explore"
        )
    return inner, learning_rate


@register(
    kind="wrapper",
    family="communication",
    paper=(
        "Scalable Hyperparameter-Divergent Ensemble Training with Automatic Learning Rate "
        "Exploration for Large Models",
        "2604.24708",
        2026,
    ),
    state_bytes={"*": 0},
    tags=("data parallel", "ensemble", "hyperparameters", "learning rate", "weight averaging"),
    chain="mean over replicas > inner at this replica's values; every T steps p <- mean(p)",
)
def hdet(
    inner: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    learning_rate: ScalarOrSchedule | None = None,
    *,
    axis_name: AxisName = None,
    alpha: ScalarOrSchedule = 1 / 9,
    every: int = 1000,
    auto: AutoRate | None = None,
    explore: Mapping[str, ScalarOrSchedule | Spread] | None = None,
    outside: Mapping[str, ScalarOrSchedule | Spread] | None = None,
    dialect: Literal["paper", "code"] = "paper",
    permute: Callable[[jax.Array, int], jax.Array] | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """Data-parallel replicas that try several learning rates at once, averaged every T steps.

    On replica r of N, with ``rho_r`` evenly from ``1 - alpha`` to ``1 + alpha``:

    1. ``g = mean(g)`` over replicas, each taken at its own parameters, so that moments are equal;
    2. ``p_r <- p_r + inner(g)`` at ``lr_r = lr*rho_r``; the replica's losses are added up;
    3. every T steps ``p_r <- mean(p)``. With ``auto``, from ``start_step`` on also:
    4. ``w = softmax((mean(L) - L)/loss_scale)`` of the losses' means since the last time;
       ``delta = sum(w*lr) - mean(lr)``; ``v <- momentum*v + (1-momentum)*delta``;
    5. ``lr <- (1-gamma)*mean(lr) + gain*v``, gamma from ``auto.shrink`` and the steps that are
       left; ``lr_r = lr*rho_pi(r)`` by a fresh permutation pi, until the next time.

    Any scalar can take the learning rate's place or stand beside it, with a permutation and a
    velocity of its own: an argument of the factory (``explore``), or what only the loss function
    reads by ``optkit.hdet_value(state, name)`` (``outside``), such as a rate of dropout.

    Parameters differ between replicas: they, the state and the batch are stacked along a leading
    axis (``optkit.replicas``, which can also add the paper's noise at the start), and the step is a
    function of one replica under ``optkit.on_replicas``, by vmap or on a mesh. Evaluate any replica
    after a meeting. Meanwhile they differ by about alpha times the way since the last one.

    What the inner transformation copies of parameters (``master_weights``, averages of iterates) is
    not averaged, and pulls replicas apart again: keep such wrappers outside of replicas.

    Evidence: in ``python -m benchmarks.claims hdet``, a byte language model on four replicas,
    ``auto`` brings a rate four times too low or too high to a loss 0.070 or 0.214 bits a byte below
    that of plain data parallelism at the same rate. From the tuned rate it is 0.038 above, and
    trying rates without ``auto`` gains nothing at any of the three.

    Args:
      inner: a factory, called with the values of this step: ``optkit.adamw``, or ``lambda lr:
        optax.chain(..., optkit.adamw(lr))``. Or a transformation, whose updates are multiplied.
      learning_rate: a number or a schedule, the mean over replicas; the factory's first argument.
        Around a transformation, a factor of what it does, 1 by default.
      axis_name: the replicas' axis of a mesh or of ``jax.vmap``; None for one replica.
      alpha: half the width of the spread. 0 is plain data parallelism.
      every: T, steps between averages.
      auto: ``optkit.AutoRate``; update then needs ``loss=``, the replica's own. None keeps to
        schedules.
      explore: arguments of the factory by name: numbers, schedules or ``optkit.Spread``.
      outside: scalars for the loss function by name, likewise.
      dialect: ``"code"`` does what the authors' code does: (a) before the first step of ``auto``
        rates are not spread; (b) its shrink, ``div_factor/final_div_factor``, is 25/1e4 by default
        and makes rates grow; (c) without ``auto`` or with alpha 0 nothing is averaged or steered;
        and the base is not kept above half of its fall. (d) Its velocity is not debiased, as in the
        paper, and (e) its permutations come from one fixed seed: give them by ``permute``.
      permute: (meetings of ``auto`` before, index of the scalar) -> int32 (N,), each replica's
        place in the spread, instead of random ones.
      key: seed or PRNG key of permutations.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that hands ``loss`` on. State bytes: a few
      scalars, and the inner state.

    Raises:
      ValueError: an option out of range, a name that the factory does not take; in update no loss
        with ``auto``, no parameters, ``axis_name=None`` inside a ``shard_map``.
      TypeError: ``explore`` or ``outside`` is no mapping from names.
      NameError: used outside of its axis.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> tx = optkit.hdet(optax.sgd, 0.5, alpha=0.2, every=2, axis_name="replica")
      >>> def two(p):
      ...   u, state = tx.update(jnp.ones(1), tx.init(p), p)
      ...   q = p + u
      ...   return q, q + tx.update(jnp.ones(1), state, q)[0]
      >>> first, second = optkit.on_replicas(two)(optkit.replicas(jnp.zeros(1), 3))
      >>> first[:, 0].round(3).tolist(), second[:, 0].round(3).tolist()
      ([-0.4000000059604645, -0.5, -0.6000000238418579], [-1.0, -1.0, -1.0])

    Reference:
      Cheng et al., Scalable Hyperparameter-Divergent Ensemble Training with Automatic Learning Rate
      Exploration for Large Models, arXiv 2604.24708; code hailingc/ensemble_training@074afad. The
      paper bounds nothing from below; a replica whose loss is not finite weighs nothing here.
    """
    check_axis_name(axis_name)
    check_number("alpha", alpha, low=0.0, high=1.0)
    check_static_int("every", every)
    check_choice("dialect", dialect, ("paper", "code"))
    if auto is not None and not isinstance(auto, AutoRate):
        raise TypeError(f"auto={auto!r} must be an optkit.AutoRate or None")
    check_explored("explore", explore)
    check_explored("outside", outside)
    inner, learning_rate = _check_inner(inner, learning_rate, explore)
    first = RATE if callable(inner) else FACTOR
    spreads = as_spreads(first, learning_rate, explore, outside, auto.shrink if auto else 1.0)
    falls = {name: spread.shrink for name, spread in spreads.items()}
    if dialect == "paper" and (grows := [name for name, f in falls.items() if f < 1.0]):
        raise ValueError(
            f"shrink={falls[grows[0]]!r} of {grows[0]!r} is below 1 and makes it grow, as the "
            'authors\' code does; give its inverse, or dialect="code"'
        )
    made = Replica(
        inner,
        spreads,
        frozenset(outside or {}),
        alpha,
        every,
        auto,
        axis_name,
        dialect,
        permute,
        key,
    )
    return Transformation(made.init, made.update)


def hdet_value(state: PyTree, name: str | None = None) -> jax.Array:
    """Returns the value that a replica's next update goes by, for its loss function, say.

    Args:
      state: the state of ``optkit.hdet``, or of a chain that it is in.
      name: the scalar's; None for the learning rate, or the factor around a transformation.

    Returns:
      A float32 scalar; stacked states have one for each replica. ``state.values[name].base`` is the
      mean over replicas.

    Raises:
      KeyError: no such scalar, or no such state; lists what there is.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.hdet(optax.sgd, 0.5, outside={"dropout": 0.25})
      >>> float(optkit.hdet_value(tx.init(jnp.zeros(1)), "dropout"))
      0.25
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, HdetState))
    found = [node for node in nodes if isinstance(node, HdetState)]
    held = {key: value.own for node in found for key, value in node.values.items()}
    if name is None:
        name = FACTOR if FACTOR in held else RATE
    if name not in held:
        there = f"it has {', '.join(held)}" if found else "the state is none of optkit.hdet"
        raise KeyError(f"no scalar {name!r} is explored: {there}")
    return held[name]
