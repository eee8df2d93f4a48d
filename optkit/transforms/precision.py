"""Arithmetic in float32 for 16-bit training: whole chains, master weights, stochastic rounding."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    dtypes_of_updates,
    keep_dtypes,
    map_leaves,
    need_params,
    prng_key,
)
from optkit.tree import PyTree, map_with_path, upcast


@register(
    kind="wrapper",
    family="precision",
    state_bytes={"*": 0},
    tags=("mixed precision",),
    chain="cast up, inner, cast down",
)
def in_float32(inner: optax.GradientTransformation) -> Transformation:
    """Runs a chain on float32 copies of 16-bit updates, and gives back their dtype.

    Without it each link of a chain would round to 16 bits.

    Args:
      inner: any transformation.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the inner state (no bytes of its own);
      nothing changes for float32 updates.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.in_float32(optax.chain(optax.scale(1 / 3), optax.scale(3.0)))
      >>> u, _ = tx.update(jnp.ones(1, jnp.bfloat16), tx.init(jnp.ones(1)))
      >>> u.dtype, float(u[0])
      (dtype(bfloat16), 1.0)
    """
    inner = check_transformation("inner", inner)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        out, new = inner.update(jax.tree.map(upcast, updates), state, params, **extra_args)
        dtypes = dtypes_of_updates(inner, updates, state, params, extra_args)
        out = jax.tree.map(lambda u, dtype: u.astype(dtype), out, dtypes)
        return out, keep_dtypes(new, state)

    return Transformation(inner.init, update_fn)


def _is_low(p: jax.Array) -> bool:
    return jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize < 4


def _exact_update(target: jax.Array, p: jax.Array) -> jax.Array:
    """A float32 update that takes p to a target of p's own dtype when added and rounded."""
    return target.astype(jnp.float32) - p.astype(jnp.float32)


class MasterWeightsState(NamedTuple):
    """State of ``master_weights``."""

    master: PyTree  # float32 copies of the 16-bit (and smaller) parameters; masked nodes elsewhere
    inner: PyTree  # state of the inner transformation


@register(
    kind="wrapper",
    family="precision",
    paper=("Mixed Precision Training", "1710.03740", 2017),
    state_bytes={"*": 0},
    tags=("mixed precision",),
    chain="inner on float32 copies, 4 bytes each, of 16-bit parameters",
)
def master_weights(inner: optax.GradientTransformation) -> Transformation:
    """Keeps float32 copies of 16-bit parameters and lets the inner optimizer train those.

    1. ``u <- inner(g, state, master)`` in float32; 2. ``master <- master + u``;
    3. the update leads the parameter to ``round(master)``.

    The updates of 16-bit leaves leave in float32, because a 16-bit difference cannot carry the
    step; ``optax.apply_updates`` rounds the sum to the parameter's dtype, exactly to the rounded
    master.

    Args:
      inner: a whole optimizer (with its learning rate).

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per 16-bit parameter and the
      inner state; float32 parameters need no copy and get none.

    Raises:
      ValueError: params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, p = optkit.master_weights(optax.sgd(1e-3)), jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(p)
      >>> for _ in range(200):
      ...   u, state = tx.update(jnp.ones(1, jnp.bfloat16), state, p)
      ...   p = optax.apply_updates(p, u)
      >>> p.dtype, round(float(p[0]), 2)
      (dtype(bfloat16), 0.8)

    Reference:
      Micikevicius et al., Mixed Precision Training, arXiv 1710.03740.
    """
    inner = check_transformation("inner", inner)

    def merged(master: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda m, p: p if isinstance(m, optax.MaskedNode) else m,
            master,
            params,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )

    def init_fn(params: PyTree) -> MasterWeightsState:
        master = jax.tree.map(
            lambda p: jnp.asarray(p, jnp.float32) if _is_low(p) else optax.MaskedNode(), params
        )
        return MasterWeightsState(master, inner.init(merged(master, params)))

    def update_fn(
        updates: PyTree, state: MasterWeightsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MasterWeightsState]:
        params = need_params(params, "master_weights")
        full = merged(state.master, params)
        up = jax.tree.map(upcast, updates)
        steps, inner_state = inner.update(up, state.inner, full, **extra_args)
        moved = jax.tree.map(lambda m, u: m + u.astype(m.dtype), full, steps)
        master = jax.tree.map(lambda m, p: m if _is_low(p) else optax.MaskedNode(), moved, params)
        out = map_leaves(
            lambda p, m, u, g: (
                _exact_update(m.astype(p.dtype), p) if _is_low(p) else u.astype(g.dtype)
            ),
            params,
            moved,
            steps,
            updates,
        )
        return out, MasterWeightsState(master, inner_state)

    return Transformation(init_fn, update_fn)


def round_stochastically(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Rounds to one of the two neighbours in a smaller dtype so that the mean is the value.

    Args:
      x: float32 values.
      dtype: dtype to round to.
      key: PRNG key.

    Returns:
      An array of ``dtype``; values beyond its range and non-finite ones round as a cast does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.transforms.precision import round_stochastically
      >>> x = jnp.full(4096, 1.0 + 2.0**-9)  # a quarter of the way from 1 to the next bfloat16
      >>> y = round_stochastically(x, jnp.bfloat16, jax.random.key(0))
      >>> sorted({float(v) for v in y}), bool(abs(y.astype(float).mean() - x[0]) < 3e-4)
      ([1.0, 1.0078125], True)
    """
    near = x.astype(dtype)
    # Neighbours are sought towards the largest finite values: not every 8-bit float has infinities.
    bound = jnp.finfo(dtype).max
    down = jnp.where(
        near.astype(x.dtype) > x, jnp.nextafter(near, jnp.full_like(near, -bound)), near
    )
    up = jnp.nextafter(down, jnp.full_like(down, bound))
    low, high = down.astype(x.dtype), up.astype(x.dtype)
    inside = jnp.isfinite(low) & jnp.isfinite(high) & (low < x) & (x < high)
    share = jnp.where(inside, (x - low) / jnp.where(inside, high - low, 1.0), 0.0)
    chosen = jnp.where(jax.random.uniform(key, x.shape, jnp.float32) < share, up, down)
    return jnp.where(inside, chosen, near)


class StochasticRoundState(NamedTuple):
    """State of ``stochastic_round``."""

    key: jax.Array  # PRNG key, constant
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates


@register(
    kind="part",
    family="precision",
    paper=("Revisiting BFloat16 Training", "2010.06192", 2020),
    state_bytes={"*": 0},
    tags=("mixed precision", "rounding"),
    chain="p + u lands on a 16-bit neighbour at random",
)
def stochastic_round(key: int | jax.Array = 0) -> Transformation:
    """Rounds the parameters of 16 bits at random, so that small steps are not lost.

    The last link of a chain: 1. ``t = p + u`` in float32; 2. ``t`` is rounded to one of its two
    neighbours in the parameter's dtype, up with probability ``(t - low)/(high - low)``; 3. the
    update becomes the float32 difference to ``p``. Leaves of 32 bits pass unchanged. Noise depends
    on key, step and the leaf's path only, so that any sharding gives the same run.

    Args:
      key: seed or PRNG key.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose updates for 16-bit leaves are float32;
      state: a key and a counter.

    Raises:
      ValueError: params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optax.sgd(1e-3), optkit.stochastic_round(0))
      >>> p = jnp.ones(512, jnp.bfloat16)
      >>> state = tx.init(p)
      >>> for _ in range(100):
      ...   u, state = tx.update(jnp.ones(512, jnp.bfloat16), state, p)
      ...   p = optax.apply_updates(p, u)
      >>> bool(abs(p.astype(float).mean() - 0.9) < 3e-3)
      True

    Reference:
      Zamirai et al., Revisiting BFloat16 Training, arXiv 2010.06192.
    """

    def init_fn(params: PyTree) -> StochasticRoundState:
        del params
        fresh = jnp.copy(prng_key(key))
        return StochasticRoundState(fresh, jnp.zeros((), jnp.int32))

    def update_fn(
        updates: PyTree,
        state: StochasticRoundState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, StochasticRoundState]:
        del extra_args
        params = need_params(params, "stochastic_round")
        step_key = jax.random.fold_in(state.key, state.count)

        def leaf(path: str, u: jax.Array, p: jax.Array) -> jax.Array:
            if not _is_low(p):
                return u
            own = jax.random.fold_in(step_key, zlib.crc32(path.encode()))
            target = p.astype(jnp.float32) + u.astype(jnp.float32)
            return _exact_update(round_stochastically(target, p.dtype, own), p)

        return map_with_path(leaf, updates, params), state._replace(count=state.count + 1)

    return Transformation(init_fn, update_fn)
