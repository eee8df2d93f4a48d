"""HDET: replicas with hyperparameters of their own, averaged, and led by their losses."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optkit.catalogue import register
from optkit.distributed.exploring import (
    AutoRate,
    Explored,
    Permute,
    Spread,
    as_spreads,
    scheduled,
    steered,
)
from optkit.distributed.exploring import spread as spread_of
from optkit.distributed.replicas import meeting
from optkit.distributed.workers import (
    AxisName,
    as_varying,
    axes_of,
    check_axis_name,
    check_bound,
    check_local,
    cond,
    count_workers,
    gather,
    mean,
)
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    keep_dtypes,
    need_params,
    prng_key,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    value_at,
)
from optkit.tree import PyTree, upcast

Factory: TypeAlias = Callable[..., optax.GradientTransformation]
Dialect = Literal["paper", "code"]
RATE = "learning_rate"


class HdetState(NamedTuple):
    """State of ``hdet`` on one replica."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the inner transformation
    values: dict[str, Explored]  # scalars by name: what the next update goes by
    loss: jax.Array  # float32 scalar, sum of this replica's losses since the last meeting
    key: jax.Array  # PRNG key, constant, the same on all replicas


class _Hdet:
    """What ``hdet`` was given, and the functions of its transformation."""

    def __init__(
        self,
        inner: Transformation | Factory,
        spreads: dict[str, Spread],
        outside: frozenset[str],
        alpha: ScalarOrSchedule,
        every: int,
        auto: AutoRate | None,
        axis_name: AxisName,
        dialect: Dialect,
        permute: Permute | None,
        key: int | jax.Array,
    ) -> None:
        self.inner, self.spreads, self.outside = inner, spreads, outside
        self.alphas = {n: alpha if s.alpha is None else s.alpha for n, s in spreads.items()}
        self.every, self.auto, self.axis_name = every, auto, axis_name
        self.dialect, self.permute, self.key = dialect, permute, key
        # The code returns before its averages where nothing is steered, or nothing differs.
        still = auto is None or all(_is_zero(a) for a in self.alphas.values())
        self.meets = dialect == "paper" or not still

    def init(self, params: PyTree) -> HdetState:
        check_bound(self.axis_name, "hdet")
        count, replicas = jnp.zeros((), jnp.int32), count_workers(self.axis_name)
        key = jnp.copy(prng_key(self.key))
        zero, place, values = jnp.zeros(()), self._place(), {}
        for index, name in enumerate(self.spreads):
            # The first as replicas are numbered; none goes along with another.
            order = place if index == 0 else self._order(key, jnp.int32(-1), index)
            own = Explored(zero, zero, order, zero)
            values[name] = self._scheduled(name, own, count, replicas)
        inner = self._built({n: v.own for n, v in values.items()}).init(params)
        state = HdetState(count, inner, values, zero, key)
        varying = as_varying(state._replace(key=zero), self.axis_name)
        return varying._replace(key=key)

    def update(
        self,
        updates: PyTree,
        state: HdetState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, HdetState]:
        check_local(updates, self.axis_name, "hdet")
        total = self._losses(state, extra_args)
        out, inner = self._step(updates, state, params, extra_args)
        count, replicas = state.count + 1, count_workers(self.axis_name)
        if replicas > 1 and self.meets:
            need_params(params, "hdet")
        first = self.auto.first(self.every) if self.auto else None
        begun = False if first is None else count >= first
        plain = {
            n: _where(begun, v, self._scheduled(n, v, count, replicas))
            for n, v in state.values.items()
        }

        def apart() -> Any:
            return self._varying((out, total, plain))

        def together() -> Any:
            ends = meeting(params, out, self.axis_name) if replicas > 1 and self.meets else out
            moved = plain
            if self.auto is not None and first is not None:
                meetings = (count - first) // self.every
                new = self._steered(state, total, count, meetings)
                moved = {n: _where(begun, v, plain[n]) for n, v in new.items()}
            return self._varying((ends, jnp.zeros(()), moved))

        out, total, values = cond(count % self.every == 0, together, apart, self.axis_name)
        return out, HdetState(count, inner, values, total, state.key)

    def _varying(self, tree: PyTree) -> PyTree:
        return as_varying(tree, self.axis_name)

    def _place(self) -> jax.Array:
        names = axes_of(self.axis_name)
        return jnp.asarray(lax.axis_index(names) if names else 0, jnp.int32)

    def _order(self, key: jax.Array, meeting: jax.Array, index: int) -> jax.Array:
        """This replica's place in a fresh permutation, which all replicas draw alike."""
        if self.permute is not None:
            drawn = jnp.where(meeting < 0, jnp.arange(self._count()), self.permute(meeting, index))
        else:
            own = jax.random.fold_in(jax.random.fold_in(key, index), meeting)
            drawn = jax.random.permutation(own, self._count())
        return jnp.asarray(drawn, jnp.int32)[self._place()]

    def _count(self) -> int:
        return count_workers(self.axis_name)

    def _scheduled(self, name: str, old: Explored, count: jax.Array, replicas: int) -> Explored:
        alpha = self.alphas[name] if self.dialect == "paper" else 0.0
        return scheduled(self.spreads[name], alpha, old, count, replicas)

    def _losses(self, state: HdetState, extra_args: dict[str, Any]) -> jax.Array:
        """The sum of losses since the last meeting."""
        if self.auto is None:
            return state.loss
        loss = extra_args.get("loss")
        if loss is None:
            raise ValueError(
                "hdet with auto needs each replica's own loss: call "
                "tx.update(grads, state, params, loss=loss)"
            )
        if jnp.shape(loss):
            raise ValueError(f"loss has the shape {jnp.shape(loss)} and must be a scalar: its mean")
        return state.loss + jnp.asarray(loss, jnp.float32)

    def _built(self, values: Mapping[str, Any]) -> Transformation:
        """The inner transformation with values in it."""
        if not callable(self.inner):
            return optax.with_extra_args_support(self.inner)
        given = {n: value for n, value in values.items() if n not in self.outside}
        rate = [given.pop(RATE)] if RATE in given else []
        return check_transformation("what inner returns", self.inner(*rate, **given))

    def _step(
        self, updates: PyTree, state: HdetState, params: PyTree | None, extra_args: dict[str, Any]
    ) -> tuple[PyTree, PyTree]:
        """The inner step from the mean gradient, which is the same on all replicas but for size."""
        leaves, structure = jax.tree.flatten(updates)
        if len(leaves) and self._count() > 1:
            means = mean([upcast(g) for g in leaves], self.axis_name)
            leaves = [m.astype(g.dtype) for m, g in zip(means, leaves, strict=True)]
        grads = jax.tree.unflatten(structure, leaves)
        values = {n: v.own for n, v in state.values.items()}
        tx = self._built(values)
        out, inner = update_inner(tx, grads, state.inner, params, extra_args)
        inner = keep_dtypes(inner, state.inner)
        if callable(self.inner):
            return self._rounded(out, grads, state, params, extra_args), inner
        rate = values[RATE]
        return jax.tree.map(lambda u: (rate * upcast(u)).astype(u.dtype), out), inner

    def _rounded(
        self,
        out: PyTree,
        grads: PyTree,
        state: HdetState,
        params: PyTree | None,
        extra_args: dict[str, Any],
    ) -> PyTree:
        """Updates in the dtypes that the factory's have for numbers; an array is float32."""
        if all(g.dtype.itemsize >= 4 for g in jax.tree.leaves(grads)):
            return out
        plain = self._built({n: _number(s.value) for n, s in self.spreads.items()})
        shapes, _ = jax.eval_shape(
            lambda g: plain.update(g, plain.init(params), params, **extra_args), grads
        )
        return jax.tree.map(lambda u, like: u.astype(like.dtype), out, shapes)

    def _steered(
        self, state: HdetState, total: jax.Array, count: jax.Array, meetings: jax.Array
    ) -> dict[str, Explored]:
        """What the replicas' losses make of all values."""
        auto, replicas, names = self.auto, self._count(), list(state.values)
        assert auto is not None
        own = jnp.stack([total / self.every, *(state.values[n].own for n in names)])
        losses, *columns = gather(own, self.axis_name).T
        out = {}
        for index, (name, values) in enumerate(zip(names, columns, strict=True)):
            decay = auto.decay(self.every, self.spreads[name].shrink)
            base, velocity = steered(values, losses, state.values[name].velocity, auto, decay)
            if self.dialect == "paper":
                # A velocity of larger values must not lead past 0.
                lowest = 0.5 * (1.0 - decay) * jnp.mean(values)
                base = jnp.where(lowest > 0.0, jnp.maximum(base, lowest), base)
            order = self._order(state.key, meetings, index)
            rho = spread_of(value_at(self.alphas[name], count), order, replicas)
            out[name] = Explored(base, velocity, order, base * rho)
        return out


def _number(value: ScalarOrSchedule) -> float:
    """A number in place of a value, for the sake of dtypes."""
    return 0.5 if callable(value) or isinstance(value, jax.Array) else float(value)


def _is_zero(value: Any) -> bool:
    return isinstance(value, float | int) and value == 0


def _where(when: Any, one: Explored, other: Explored) -> Explored:
    if when is False:
        return other
    return jax.tree.map(lambda x, y: jnp.where(when, x, y), one, other)


def _check_inner(
    inner: Any, learning_rate: Any, explore: Any
) -> tuple[Transformation | Factory, Any]:
    """Returns a transformation or a factory of one, and the learning rate that goes with it."""
    is_one = callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))
    if is_one or not callable(inner):
        if explore:
            raise ValueError(
                f"explore={dict(explore)!r} names arguments of a factory, and inner is none: give "
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
        and makes rates grow; (c) nothing is averaged without ``auto`` or with alpha 0; and the
        base is not kept above half its fall. (d) Its velocity is not debiased, as in the paper, and
        (e) its permutations come from one fixed seed; give them by ``permute``.
      permute: (meetings of ``auto`` before, index of the scalar) -> int32 (N,), each replica's
        place in the spread, instead of random ones.
      key: seed or PRNG key of permutations.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that hands ``loss`` on. State bytes: a few
      scalars, and the inner state.

    Raises:
      ValueError: an option out of range, a name that the factory does not take; in update no loss
        with ``auto``, no parameters, ``axis_name=None`` inside a ``shard_map``.
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
    inner, learning_rate = _check_inner(inner, learning_rate, explore)
    spreads = as_spreads(learning_rate, explore, outside, auto.shrink if auto else 1.0)
    falls = {name: spread.shrink for name, spread in spreads.items()}
    if dialect == "paper" and (grows := [name for name, f in falls.items() if f < 1.0]):
        raise ValueError(
            f"shrink={falls[grows[0]]!r} of {grows[0]!r} is below 1 and makes it grow, as the "
            'authors\' code does; give its inverse, or dialect="code"'
        )
    made = _Hdet(
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


def hdet_value(state: PyTree, name: str = RATE) -> jax.Array:
    """Returns the value that a replica's next update goes by, for its loss function, say.

    Args:
      state: the state of ``optkit.hdet``, or of a chain that it is in.
      name: the scalar's.

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
    if name not in held:
        there = f"it has {', '.join(held)}" if found else "the state is none of optkit.hdet"
        raise KeyError(f"no scalar {name!r} is explored: {there}")
    return held[name]
