"""1-bit LAMB: as 1-bit Adam, with trust ratios of the warm-up that follow the fresh variance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.catalogue import LeafBytes, register
from optkit.distributed.compressed import ONE_BIT, compressed_average, only_active, padded_size
from optkit.distributed.onebit_adam import averaged, check_moments, mean_tree
from optkit.distributed.workers import (
    AxisName,
    PerWorker,
    as_varying,
    check_bound,
    check_local,
    cond,
    count_workers,
)
from optkit.linalg.norms import norm_over
from optkit.transforms import Transformation, descend
from optkit.transforms.base import check_same_leaves, map_leaves, need_params, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import PyTree, upcast, zeros_like_params
from optkit.tree.sharding import mesh_of, place_like, whole_stack, zeros_beside


class OnebitLambState(NamedTuple):
    """State of 1-bit LAMB's direction."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, float32: first moment, equal on all workers
    nu: PyTree  # like params, float32: second moment, constant after the warm-up
    fresh: PyTree  # like params, float32: second moment of gradients read off mu after it
    ratio: PyTree  # at each leaf a float32 scalar: average of its trust ratios in the warm-up
    factor: PyTree  # at each leaf a float32 scalar: what its ratio was multiplied by last
    scale: PyTree  # at each leaf a float32 scalar: what its momentum is multiplied by to be sent
    # {"worker": at each leaf (1, size), "fill": (1, L - all sizes), "server": (1, L/workers), None
    # for one worker} float32: errors of one flat array of L entries.
    error: PerWorker
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _norm(x: jax.Array) -> jax.Array:
    return norm_over(x, tuple(range(x.ndim))).reshape(())


def _divided(a: Any, b: jax.Array, where_zero: float = 1.0) -> jax.Array:
    """``a/b``; another number where one of them is 0."""
    null = (a == 0) | (b == 0)
    return jnp.where(null, where_zero, a / jnp.where(null, 1.0, b))


def _scales(mu: PyTree) -> PyTree:
    """Factors by which all leaves' momenta get the mean of their root mean squares."""
    own = jax.tree.map(lambda m: _norm(m) / max(m.size, 1) ** 0.5, mu)
    sizes = jax.tree.leaves(own)
    if not sizes:
        return own
    common = sum(sizes) / len(sizes)
    return jax.tree.map(lambda size: _divided(common, size), own)


def _whole(x: jax.Array, mesh: Any) -> jax.Array:
    """The array, whole on each device of a mesh."""
    return x if mesh is None or x.ndim == 0 else whole_stack(x, 0, mesh)


def _average_flat(mu: PyTree, error: PerWorker, axis_name: AxisName) -> tuple[PyTree, PerWorker]:
    """Averages a tree as one array of signs and one size."""
    leaves, structure = jax.tree.flatten(mu)
    if not leaves:
        return mu, error
    held, workers = error.of_worker, count_workers(axis_name)
    fill = held["fill"][0]
    mesh = next((own for x in leaves if (own := mesh_of(x)) is not None), None)
    rows = [_whole(x, mesh).reshape(-1) for x in leaves]
    here = [x[0] for x in jax.tree.leaves(held["worker"])]
    given = as_varying(jnp.concatenate([*rows, jnp.zeros_like(fill)]), axis_name)
    waiting = as_varying(jnp.concatenate([*here, fill]), axis_name)
    served = jnp.zeros_like(given) if held["server"] is None else held["server"][0]
    (out,), (lost,), (others,) = compressed_average(
        [given], [waiting], [as_varying(served, axis_name)], ONE_BIT, axis_name
    )
    out, lost = (_whole(x, mesh) for x in (out, lost))
    found, missing, at = [], [], 0
    for x in leaves:
        found.append(place_like(out[at : at + x.size].reshape(x.shape), x))
        missing.append(_whole(lost[None, at : at + x.size], mesh))
        at += x.size
    new = {
        "fill": lost[None, at:],
        "server": None if workers == 1 else others[None],
        "worker": jax.tree.unflatten(structure, missing),
    }
    return jax.tree.unflatten(structure, found), PerWorker(new)


class _Bounds(NamedTuple):
    """What trust ratios and factors may be."""

    ratio: tuple[float, float]
    ratio_decay: float
    factor: tuple[float, float]
    factor_pace: float


class _Now(NamedTuple):
    """The hyperparameters of one step."""

    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any


def _step(now: _Now, m: jax.Array, v: jax.Array, p: jax.Array, decays: bool) -> tuple[Any, Any]:
    """Adam's direction, and with the decay of a leaf that decays."""
    plain = m / (jnp.sqrt(v) + now.eps)
    return plain, plain + now.weight_decay * p if decays else plain


def _warm_leaf(now: _Now, bounds: _Bounds) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The direction and the average of trust ratios of a leaf in the warm-up."""

    def leaf(m: jax.Array, v: jax.Array, p: jax.Array, decays: bool, held: jax.Array) -> Any:
        _, u = _step(now, m, v, p, decays)
        free = (_norm(p) == 0) | (_norm(u) == 0)
        ratio = jnp.where(free, 1.0, jnp.clip(_divided(_norm(p), _norm(u)), *bounds.ratio))
        keep = bounds.ratio_decay
        new = jnp.where(ratio == 1.0, held, keep * held + (1.0 - keep) * ratio)
        return ratio * u, new.astype(held.dtype)

    return leaf


def _later_leaf(now: _Now, bounds: _Bounds) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The direction and the factor of a leaf after the warm-up."""

    def leaf(
        m: jax.Array,
        v: jax.Array,
        fresh: jax.Array,
        p: jax.Array,
        decays: bool,
        ratio: jax.Array,
        last: jax.Array,
    ) -> Any:
        plain, u = _step(now, m, v, p, decays)
        grown = (jnp.sqrt(v) + now.eps) / (jnp.sqrt(fresh) + now.eps)
        # An eps of 0, where both moments are 0: nothing has changed.
        factor = jnp.max(jnp.where(jnp.isnan(grown), 1.0, grown), initial=0.0)
        if decays:
            share = jnp.minimum(1.0, _divided(_norm(plain), _norm(u)))
            factor = jnp.where(now.weight_decay == 0, factor, factor * share + 1.0 - share)
        pace = bounds.factor_pace
        factor = jnp.clip(
            jnp.clip(factor, *bounds.factor), last * (1.0 - pace), last * (1.0 + pace)
        )
        return ratio * factor * u, factor.astype(last.dtype)

    return leaf


def _fresh_error(params: PyTree, axis_name: AxisName) -> PerWorker:
    check_bound(axis_name, "onebit_lamb")
    workers = count_workers(axis_name)
    whole = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    length = padded_size(whole, workers, ONE_BIT)
    rows = jax.tree.map(
        lambda x: zeros_beside(x, (1, jnp.size(x)), jnp.float32, lambda *_: PartitionSpec()),
        params,
    )
    server = None if workers == 1 else jnp.zeros((1, length // workers), jnp.float32)
    fill = jnp.zeros((1, length - whole), jnp.float32)
    return PerWorker({"fill": fill, "server": server, "worker": rows})


def _scale_by_onebit_lamb(
    numbers: dict[str, ScalarOrSchedule],
    warmup_steps: int | jax.Array,
    axis_name: AxisName,
    active: PyTree | None,
    bounds: _Bounds,
    mask: Mask,
) -> Transformation:
    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, False, **numbers)

    def init_fn(params: PyTree) -> OnebitLambState:
        decay_mask(mask, params, ())  # to refuse a mask that does not fit
        count = jnp.zeros((), jnp.int32)
        mu, nu, fresh = (zeros_like_params(params) for _ in range(3))
        ratio, factor, scale = (
            jax.tree.map(lambda _, value=value: jnp.full((), value, jnp.float32), params)
            for value in (0.0, 1.0, 1.0)
        )
        return OnebitLambState(
            count,
            mu,
            nu,
            fresh,
            ratio,
            factor,
            scale,
            _fresh_error(params, axis_name),
            record(count),
        )

    def update_fn(
        updates: PyTree, state: OnebitLambState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, OnebitLambState]:
        del extra_args
        check_local(updates, axis_name, "onebit_lamb")
        params = need_params(params, "onebit_lamb")
        check_same_leaves(updates, state.mu, "state")
        now = _Now(**{name: value_at(value, state.count) for name, value in numbers.items()})
        own, weights = jax.tree.map(upcast, updates), jax.tree.map(upcast, params)
        decays = decay_mask(mask, params, ())

        def warm() -> Any:
            g = mean_tree(own, axis_name)
            mu = averaged(now.b1, state.mu, g)
            nu = averaged(now.b2, state.nu, jax.tree.map(jnp.square, g))
            leaf = _warm_leaf(now, bounds)
            out, ratio = unzip(mu, jax.tree.map(leaf, mu, nu, weights, decays, state.ratio), 2)
            fresh = jax.tree.map(jnp.copy, nu)
            error = as_varying(state.error, axis_name)
            return out, mu, nu, fresh, ratio, state.factor, state.scale, error

        def compressed() -> Any:
            begins = state.count == warmup_steps
            scale = jax.tree.map(
                lambda new, old: jnp.where(begins, new.astype(old.dtype), old),
                _scales(state.mu),
                state.scale,
            )
            sent = map_leaves(lambda m, s: m * s, averaged(now.b1, state.mu, own), scale)
            got, error = _average_flat(sent, as_varying(state.error, axis_name), axis_name)
            mu = map_leaves(lambda m, s, old: (m / s).astype(old.dtype), got, scale, state.mu)
            mu = only_active(mu, active)
            read = map_leaves(lambda m, old: (m - now.b1 * old) / (1.0 - now.b1), mu, state.mu)
            fresh = averaged(now.b2, state.fresh, jax.tree.map(jnp.square, read))
            held = (weights, decays, state.ratio, state.factor)
            done = jax.tree.map(_later_leaf(now, bounds), mu, state.nu, fresh, *held)
            out, factor = unzip(mu, done, 2)
            return out, mu, state.nu, fresh, state.ratio, factor, scale, error

        out, mu, nu, fresh, ratio, factor, scale, error = cond(
            state.count < warmup_steps, warm, compressed, axis_name
        )
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        return out, OnebitLambState(
            state.count + 1, mu, nu, fresh, ratio, factor, scale, error, record(state.count)
        )

    return Transformation(init_fn, update_fn)


@register(
    kind="recipe",
    family="communication",
    paper=(
        "1-bit LAMB: Communication Efficient Large-Scale Large-Batch Training with LAMB's "
        "Convergence Speed",
        "2104.06069",
        2021,
    ),
    state_bytes={"*": LeafBytes(16, lambda n: 16 * n + 12, "and 12 a leaf")},
    tags=("lamb", "compression", "error feedback", "sign", "data parallel"),
    chain="mean > lamb; after the warm-up: signs of all momenta, frozen v and ratios, fresh factor",
)
def onebit_lamb(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    axis_name: AxisName = None,
    warmup_steps: int | jax.Array = 1000,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    ratio_bounds: tuple[float, float] = (0.01, 10.0),
    ratio_decay: float = 0.9,
    factor_bounds: tuple[float, float] = (0.5, 4.0),
    factor_pace: float = 0.1,
    active: PyTree | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
) -> Transformation:
    """LAMB whose workers send a bit an entry once its moments have settled.

    Inside ``jax.shard_map`` (or ``jax.vmap(axis_name=...)``), fed with this worker's own gradient.
    Of each leaf W, with ``u = m/(sqrt(v) + eps) + weight_decay*W``:

    1. in the first ``warmup_steps``: m and v of ``mean(g)`` as in ``optkit.onebit_adam``;
       ``ratio = clip(norm(W)/norm(u), *ratio_bounds)``, 1 if a norm is 0; ``c <- ratio_decay*c +
       (1-ratio_decay)*ratio`` unless the ratio is 1; ``W <- W - lr*ratio*u``;
    2. when it ends: v and c stay; ``s`` = mean of all leaves' root mean squares of m, over the
       leaf's own; ``f = v``;
    3. then ``m' = s*(b1*m + (1-b1)*g)`` of all leaves is one array for ``optkit.onebit_mean``, and
       what comes, over s, is the new m; ``f <- b2*f + (1-b2)*((m - b1*m_old)/(1-b1))**2``;
    4. ``k = max((sqrt(v) + eps)/(sqrt(f) + eps))`` over entries; with decay ``k <- k*q + 1 - q``,
       ``q = min(1, norm(m/(sqrt(v) + eps))/norm(u))``; clipped to ``factor_bounds``, then to
       ``1 -+ factor_pace`` times the last k, at first 1; ``W <- W - lr*c*k*u``.

    No matrix work. Evidence is thin: no reference trajectory was at hand, so that this follows the
    published code by reading; equations are tested, not numbers. That it keeps LAMB's speed is the
    paper's claim.

    Args:
      learning_rate: a number or a schedule.
      axis_name: see ``optkit.powersgd_mean``.
      warmup_steps: updates with plain averages.
      b1: decay rate of the first moment.
      b2: decay rate of both second moments.
      eps: added to the roots.
      ratio_bounds: of trust ratios in the warm-up.
      ratio_decay: of their average.
      factor_bounds: of k.
      factor_pace: largest relative change of k in a step.
      active: see ``optkit.onebit_adam``.
      weight_decay: coefficient; inside of u, so that the ratio scales it.
      mask: leaves that decay.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes of a worker: 16 per parameter, 12 a
      leaf, and 4/workers per parameter for the chunk that it serves, if there are several. A leaf
      of stacked layers has one ratio.

    Raises:
      ValueError: an option out of range, params not given to update, or ``axis_name=None`` inside
        a ``shard_map``.
      NameError: used outside of its axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx, w = optkit.onebit_lamb(0.1), jnp.array([3.0, 4.0])
      >>> u, _ = tx.update(jnp.array([1.0, 2.0]), tx.init(w), w)
      >>> bool(jnp.allclose(jnp.linalg.norm(u), 0.1 * 5.0))  # the way is lr*norm(W)
      True

    Reference:
      Li et al., 1-bit LAMB, arXiv 2104.06069, after DeepSpeed 0.15.1 (runtime/fp16/onebit/lamb.py).
      Its allocating call is not counted; a momentum of zeros keeps s = 1.
    """
    check_moments(b1, b2, eps, warmup_steps, axis_name)
    check_number("weight_decay", weight_decay, low=0.0)
    for name, pair in (("ratio_bounds", ratio_bounds), ("factor_bounds", factor_bounds)):
        if not 0.0 <= pair[0] <= pair[1]:
            raise ValueError(f"{name}={pair!r} must be two numbers of at least 0, the least first")
    check_number("ratio_decay", ratio_decay, low=0.0, high=1.0)
    check_number("factor_pace", factor_pace, low=0.0, high=1.0)
    numbers = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    bounds = _Bounds(ratio_bounds, ratio_decay, factor_bounds, factor_pace)
    direction = _scale_by_onebit_lamb(numbers, warmup_steps, axis_name, active, bounds, mask)
    return descend(direction, learning_rate)
