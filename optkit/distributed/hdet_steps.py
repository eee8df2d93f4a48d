"""What one replica of HDET does in a step."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optkit.distributed.exploring import (
    AutoRate,
    Explored,
    Permute,
    Spread,
    scheduled,
    spread,
    steered,
)
from optkit.distributed.replicas import meeting
from optkit.distributed.workers import (
    AxisName,
    as_varying,
    axes_of,
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
from optkit.transforms.hyperparams import ScalarOrSchedule, recorded, value_at
from optkit.tree import PyTree, upcast

Factory: TypeAlias = Callable[..., optax.GradientTransformation]
Dialect = Literal["paper", "code"]
RATE, FACTOR = "learning_rate", "factor"


class HdetState(NamedTuple):
    """State of ``hdet`` on one replica."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the inner transformation
    values: dict[str, Explored]  # scalars by name: what the next update goes by
    loss: jax.Array  # float32 scalar, sum of this replica's losses since the last meeting
    key: jax.Array  # PRNG key, constant, the same on all replicas
    hyperparams: dict[str, jax.Array]  # float32 scalars, this replica's values of the last update


class Replica:
    """What ``hdet`` was given, and ``init`` and ``update`` of a replica."""

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
        self.alpha = alpha
        self.alphas = {n: alpha if s.alpha is None else s.alpha for n, s in spreads.items()}
        # The code returns before its averages where nothing is steered, or nothing differs.
        still = auto is None or all(_is_zero(a) for a in self.alphas.values())
        self.meets = dialect == "paper" or not still
        self.every, self.auto, self.axis_name = every, auto if self.meets else None, axis_name
        self.dialect, self.permute, self.key = dialect, permute, key

    def init(self, params: PyTree) -> HdetState:
        """Returns the state of a replica from its parameters."""
        check_bound(self.axis_name, "hdet")
        count, replicas = jnp.zeros((), jnp.int32), count_workers(self.axis_name)
        key = jnp.copy(prng_key(self.key))
        place, values = self._place(), {}
        for index, name in enumerate(self.spreads):
            # The first as replicas are numbered; none goes along with another.
            order = place if index == 0 else self._order(key, jnp.int32(-1), index)
            own = Explored(jnp.zeros(()), jnp.zeros(()), order, jnp.zeros(()))
            values[name] = self._scheduled(name, own, count, replicas)
        inner = self._built({n: v.own for n, v in values.items()}).init(params)
        record = self._record(count, values)
        loss = jnp.zeros(())
        count, inner, values, loss, record = self._varying((count, inner, values, loss, record))
        return HdetState(count, inner, values, loss, key, record)

    def update(
        self,
        updates: PyTree,
        state: HdetState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, HdetState]:
        """Returns the replica's updates from its own gradients, and its state."""
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
        record = self._record(state.count, state.values)
        return out, HdetState(count, inner, values, total, state.key, record)

    def _varying(self, tree: PyTree) -> PyTree:
        return as_varying(tree, self.axis_name)

    def _record(self, count: jax.Array, values: dict[str, Explored]) -> dict[str, jax.Array]:
        """What this replica goes by, and scheduled widths."""
        widths = {"alpha": self.alpha} | {f"{n}_alpha": s.alpha for n, s in self.spreads.items()}
        out = {name: jnp.copy(value.own) for name, value in values.items()}
        for name, alpha in widths.items():
            out |= recorded(count, False, **{name: alpha}) if callable(alpha) else {}
        return out

    def _place(self) -> jax.Array:
        names = axes_of(self.axis_name)
        return jnp.asarray(lax.axis_index(names) if names else 0, jnp.int32)

    def _order(self, key: jax.Array, number: jax.Array, index: int) -> jax.Array:
        """This replica's place in a fresh permutation, which all replicas draw alike."""
        if self.permute is not None:
            drawn = jnp.where(number < 0, jnp.arange(self._count()), self.permute(number, index))
        else:
            own = jax.random.fold_in(jax.random.fold_in(key, index), number)
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
        rate = values[FACTOR]
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
        like = grads if params is None else params
        shapes, _ = jax.eval_shape(
            lambda g: plain.update(g, plain.init(like), params, **extra_args), grads
        )
        return jax.tree.map(lambda u, shape: u.astype(shape.dtype), out, shapes)

    def _steered(
        self, state: HdetState, total: jax.Array, count: jax.Array, meetings: jax.Array
    ) -> dict[str, Explored]:
        """What the replicas' losses make of all values."""
        auto, replicas = self.auto, self._count()
        assert auto is not None
        names = list(self.spreads)  # a state's names are sorted where it passes through JAX
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
            rho = spread(value_at(self.alphas[name], count), order, replicas)
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
