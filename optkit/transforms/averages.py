"""Averages of the iterates, kept behind any optimizer: exponential, uniform, of the latest few."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, map_leaves, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.tree import (
    PyTree,
    accumulator_dtype,
    leaves_with_paths,
    map_with_path,
    upcast,
    zeros_like_params,
)


class WeightEmaState(NamedTuple):
    """State of ``weight_ema``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    total: jax.Array  # float32 scalar, sum of the weights that the average has so far
    average: PyTree  # like params, float32 or better
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class SwaState(NamedTuple):
    """State of ``swa``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    taken: jax.Array  # int32 scalar, iterates that were taken so far
    average: PyTree  # like params, float32 or better: the mean of those that count


class LatestSwaState(NamedTuple):
    """State of ``swa(latest=...)``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    taken: jax.Array  # int32 scalar, iterates that were taken so far
    ring: tuple[PyTree, ...]  # `latest` trees like params, float32 or better: the latest iterates


def _stepped(params: PyTree, updates: PyTree) -> PyTree:
    """Returns the weights that ``optax.apply_updates`` makes, in float32 or better."""
    check_same_leaves(updates, params, "parameters", shapes=True)
    return jax.tree.map(
        lambda p, u: upcast((upcast(p) + upcast(u)).astype(p.dtype)), params, updates
    )


@register(
    kind="part",
    family="averaging",
    state_bytes={"*": 4},
    tags=("averaging", "ema"),
    chain="th <- b th + (1 - b)(p + u)",
)
def weight_ema(
    decay: ScalarOrSchedule = 0.999, *, debias: bool = False, state_dtype: Any | None = None
) -> Transformation:
    """Keeps an exponential moving average of the weights; the last link of a chain.

    ``th <- b*th + (1-b)*(p + u)``, from the weights at init, or with ``debias`` from 0, divided by
    the sum of its weights, ``1 - b**n``, when it is read. A weight counts half after
    ``ln(2)/(1-b)`` steps. Updates pass as they are; read it with ``optkit.averaged_params``.

    Batch statistics of a model are not averaged with it: compute them anew.

    Args:
      decay: b, in [0, 1).
      debias: start from 0, so that the weights at init do not count.
      state_dtype: dtype of the average; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: a rate outside [0, 1), or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optax.sgd(1.0), optkit.weight_ema(0.5))
      >>> params = {"w": jnp.zeros(1)}
      >>> u, state = tx.update({"w": -jnp.ones(1)}, tx.init(params), params)
      >>> optkit.averaged_params(state, optax.apply_updates(params, u))["w"].tolist()
      [0.5]

    Reference:
      Polyak averaging as the field does it; for schedules' sake see Morales-Brotons et al.,
      Exponential Moving Average of Weights in Deep Learning, arXiv 2411.18704.
    """
    check_number("decay", decay, low=0.0, high=1.0, open_high=True)

    def init_fn(params: PyTree) -> WeightEmaState:
        count = jnp.zeros((), jnp.int32)
        total = jnp.full((), 0.0 if debias else 1.0, jnp.float32)
        if debias:
            average = zeros_like_params(params, state_dtype)
        else:
            average = jax.tree.map(
                lambda p: jnp.copy(p).astype(accumulator_dtype(p, state_dtype)), params
            )
        return WeightEmaState(count, total, average, recorded(count, decay=decay))

    def update_fn(
        updates: PyTree, state: WeightEmaState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, WeightEmaState]:
        del extra_args
        now = _stepped(need_params(params, "weight_ema"), updates)
        b = value_at(decay, state.count)
        average = map_leaves(
            lambda new, old: (b * upcast(old) + (1.0 - b) * new).astype(old.dtype),
            now,
            state.average,
        )
        total = b * state.total + (1.0 - b)
        new = recorded(state.count, decay=decay)
        return updates, WeightEmaState(state.count + 1, total, average, new)

    return Transformation(init_fn, update_fn)


@register(
    kind="part",
    family="averaging",
    paper=("Averaging Weights Leads to Wider Optima and Better Generalization", "1803.05407", 2018),
    state_bytes={"*": 4},
    tags=("averaging", "swa", "latest weights"),
    chain="mean of every c-th p + u",
)
def swa(every: int = 1, *, start: int = 0, latest: int | None = None) -> Transformation:
    """Keeps the plain mean of the weights, of all or of the latest few; the last link of a chain.

    From step ``start`` on it takes the weights of each ``every``-th step: all of them as a running
    mean, ``m <- m + (p + u - m)/k``, or only the ``latest`` so many, each of which it holds.
    Before the first is taken, the mean is the parameters themselves. Updates pass as they are; read
    it with ``optkit.averaged_params``. At a constant learning rate such a mean is about what a
    decay would have led to (for checkpoints on disk see
    ``optkit.merge_checkpoints``).

    Args:
      every: steps between those that are taken.
      start: finished updates after which the first is taken at the earliest.
      latest: how many count, the last ones; None for all.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter, with
      ``latest`` so many times 4.

    Raises:
      ValueError: a number that is no integer in range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optax.sgd(1.0), optkit.swa(latest=2))
      >>> p = {"w": jnp.zeros(1)}
      >>> state = tx.init(p)
      >>> for _ in range(4):
      ...   u, state = tx.update({"w": -jnp.ones(1)}, state, p)
      ...   p = optax.apply_updates(p, u)
      >>> p["w"].tolist(), optkit.averaged_params(state, p)["w"].tolist()
      ([4.0], [3.5])

    Reference:
      Izmailov et al., arXiv 1803.05407; the latest few: Kaddour, Stop Wasting My Time!, arXiv
      2209.14981.
    """
    check_static_int("every", every)
    check_static_int("start", start, low=0)
    if latest is not None:
        check_static_int("latest", latest)

    def init_fn(params: PyTree) -> SwaState | LatestSwaState:
        counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        if latest is None:
            return SwaState(*counts, zeros_like_params(params))
        return LatestSwaState(*counts, tuple(zeros_like_params(params) for _ in range(latest)))

    def update_fn(
        updates: PyTree,
        state: SwaState | LatestSwaState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SwaState | LatestSwaState]:
        del extra_args
        now = _stepped(need_params(params, "swa"), updates)
        count = state.count + 1
        takes = (count > start) & ((count - start) % every == 0)
        taken = state.taken + takes
        if isinstance(state, SwaState):
            share = takes / jnp.maximum(taken, 1).astype(jnp.float32)
            average = map_leaves(lambda new, old: old + share * (new - old), now, state.average)
            return updates, SwaState(count, taken, average)
        # Trees and not a stack, so that each lies on a mesh as its parameters do.
        ring = tuple(
            map_leaves(
                lambda new, old, i=i: jnp.where(
                    takes & (state.taken % len(state.ring) == i), new, old
                ),
                now,
                tree,
            )
            for i, tree in enumerate(state.ring)
        )
        return updates, LatestSwaState(count, taken, ring)

    return Transformation(init_fn, update_fn)


def _mean_of(node: Any, trees: list[dict[str, jax.Array]], path: str, p: jax.Array) -> jax.Array:
    """Returns the average of one leaf; the leaf itself as long as nothing was taken."""
    held = [upcast(tree[path]) for tree in trees]
    if any(jnp.shape(h) != jnp.shape(p) for h in held):
        raise ValueError(
            f"{path or '(root)'}: shape {jnp.shape(p)} in the parameters, {jnp.shape(held[0])} in "
            "the average; give the parameters that belong to the state"
        )
    # A leaf of its own: flax.nnx.Optimizer keeps each number of a state in a variable.
    taken: jax.Array = jax.tree.leaves(
        node.total if isinstance(node, WeightEmaState) else node.taken
    )[0]
    if isinstance(node, WeightEmaState):
        mean = held[0] / jnp.where(taken > 0, taken, 1.0)
    elif isinstance(node, SwaState):
        mean = held[0]
    else:
        mean = sum(held[1:], held[0]) / jnp.clip(taken, 1, len(held)).astype(jnp.float32)
    return jnp.where(taken > 0, mean, upcast(p)).astype(p.dtype)


_KEPT = (WeightEmaState, SwaState, LatestSwaState)


def averaged_params(state: PyTree, params: PyTree) -> PyTree:
    """Returns the averages that ``weight_ema`` or ``swa`` keeps in a state.

    Args:
      state: an optimizer state that has one of them at any depth.
      params: the parameters that belong to it.

    Returns:
      A tree like the parameters, dtypes kept; leaves without an average as they are.

    Raises:
      ValueError: no average in the state, several of one leaf, or a leaf of another shape.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx, params = optkit.swa(), {"w": jnp.ones(2)}
      >>> optkit.averaged_params(tx.init(params), params)["w"].tolist()
      [1.0, 1.0]

    Reference:
      Ours: reads the states of ``optkit.weight_ema`` and ``optkit.swa``.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _KEPT))
    owners: dict[str, tuple[Any, list[dict[str, jax.Array]]]] = {}
    for node in nodes:
        if isinstance(node, _KEPT):
            ring = node.ring if isinstance(node, LatestSwaState) else (node.average,)
            trees = [dict(leaves_with_paths(tree)) for tree in ring]
            for path in trees[0]:
                if path in owners:
                    raise ValueError(
                        f"the state keeps several averages of {path or '(root)'!r}; give the part "
                        "of the state that belongs to one, optax.tree.get finds it"
                    )
                owners[path] = (node, trees)
    if not owners:
        raise ValueError(
            "the state keeps no average: put optkit.weight_ema() last in the chain; what "
            "optkit.schedule_free averages optkit.schedule_free_eval_params reads"
        )

    def leaf(path: str, p: jax.Array) -> jax.Array:
        return _mean_of(*owners[path], path, p) if path in owners else p

    return map_with_path(leaf, params)
