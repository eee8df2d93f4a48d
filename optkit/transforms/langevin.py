"""Langevin noise: optimizers that sample, and the accumulators that are theirs alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.adam import ScaleByAdamState
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    map_leaves,
    unzip,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key, normal_like
from optkit.transforms.precision import in_float32
from optkit.tree import PyTree, upcast, zeros_like_params

Preconditioner = Callable[[PyTree], PyTree]


class LangevinNoiseState(NamedTuple):
    """State of ``langevin_noise``."""

    inner: PyTree  # state of the inner transformation
    key: jax.Array  # threefry PRNG key, constant
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="wrapper",
    family="sampling",
    paper=("Bayesian Learning via Stochastic Gradient Langevin Dynamics", None, 2011),
    state_bytes={"*": 0},
    tags=("langevin", "noise", "bayes"),
    chain="inner, + sqrt(2 lr temperature G) z",
    example={"learning_rate": 0.05},
)
def langevin_noise(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 1e-6,
    preconditioner: Preconditioner | None = None,
    key: Key = None,
) -> Transformation:
    """Adds to the steps of an optimizer the noise that makes it sample.

    1. ``u <- inner(g)``, learning rate and sign included;
    2. ``u <- u + sqrt(2*lr*temperature*G)*z``, ``z`` standard normal and ``G`` 1 or what
       ``preconditioner`` makes of the new inner state.

    The inner step has to be ``-lr*G*g`` for this to sample ``exp(-loss/temperature)``. Noise is
    drawn from the key, the number of the step and the leaf's path, so that any sharding gives the
    same run; ``update(..., noise=tree)`` takes recorded standard normal numbers. A guard or an
    accumulation of gradients belongs around the whole.

    Args:
      inner: a whole optimizer.
      learning_rate: the one that ``inner`` has, a number or a schedule.
      temperature: of the loss as it is: 1/N for a mean over N examples samples the posterior. The
        ``noise_scale`` of other codes is its root.
      preconditioner: a function from the inner state to a tree like the parameters, at least 0.
      key: seed or PRNG key; None for 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates: a key and a
      counter beside the inner state.

    Raises:
      ValueError: a negative number, or noise that does not fit the updates.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.langevin_noise(optax.sgd(0.5), 0.5, temperature=4.0)
      >>> params = {"w": jnp.zeros(1)}
      >>> z = {"w": jnp.ones(1)}
      >>> tx.update({"w": jnp.ones(1)}, tx.init(params), params, noise=z)[0]["w"].tolist()
      [1.5]

    Reference:
      Welling and Teh, 2011: their step size is ``2*lr/N`` here, and their noise the same.
    """
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("temperature", temperature, low=0.0)
    check_seed(key)
    inner = check_transformation("inner", inner)

    def record(count: jax.Array) -> dict[str, jax.Array]:
        # Under a name of its own: the inner optimizer records the same learning rate.
        return recorded(count, noise_learning_rate=learning_rate, temperature=temperature)

    def init_fn(params: PyTree) -> LangevinNoiseState:
        count = jnp.zeros((), jnp.int32)
        return LangevinNoiseState(inner.init(params), fresh_key(key), count, record(count))

    def update_fn(
        updates: PyTree,
        state: LangevinNoiseState,
        params: PyTree | None = None,
        *,
        noise: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, LangevinNoiseState]:
        out, new = update_inner(inner, updates, state.inner, params, extra_args)
        rate, heat = (value_at(value, state.count) for value in (learning_rate, temperature))
        scale = jnp.sqrt(2.0 * jnp.asarray(rate, jnp.float32) * heat)

        def add(u: jax.Array, z: jax.Array, *g: jax.Array) -> jax.Array:
            spread = scale * jnp.sqrt(upcast(g[0])) if g else scale
            return (upcast(u) + spread * upcast(z)).astype(u.dtype)

        weights = () if preconditioner is None else (preconditioner(new),)
        drawn = normal_like(updates, state.key, state.count, noise)
        out = map_leaves(add, out, drawn, *weights)
        return out, LangevinNoiseState(new, state.key, state.count + 1, record(state.count))

    return in_float32(Transformation(init_fn, update_fn))


def _find(state: PyTree, kind: type) -> Any:
    """Returns the only state of a kind inside another."""
    (found,) = (
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
        if isinstance(leaf, kind)
    )
    return found


class MeanSquareState(NamedTuple):
    """State of ``scale_by_mean_square``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    nu: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def scale_by_mean_square(
    b2: ScalarOrSchedule, eps: ScalarOrSchedule, state_dtype: Any | None
) -> tuple[Transformation, Preconditioner]:
    """RMSprop without debiasing, ``g*G`` with ``G = 1/(eps + sqrt(nu))``, and the function to G."""
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)

    def inverse(nu: jax.Array, count: jax.Array) -> jax.Array:
        below = value_at(eps, count) + jnp.sqrt(upcast(nu))
        return jnp.where(below > 0, 1.0 / jnp.where(below > 0, below, 1.0), 0.0)

    def init_fn(params: PyTree) -> MeanSquareState:
        count = jnp.zeros((), jnp.int32)
        nu = zeros_like_params(params, state_dtype)
        return MeanSquareState(count, nu, recorded(count, b2=b2, eps=eps))

    def update_fn(
        updates: PyTree, state: MeanSquareState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MeanSquareState]:
        del params, extra_args
        decay = value_at(b2, state.count)

        def step(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            g32 = upcast(g)
            new = decay * upcast(nu) + (1.0 - decay) * jnp.square(g32)
            kept = new.astype(nu.dtype)
            return (g32 * inverse(kept, state.count)).astype(g.dtype), kept

        out, nu = unzip(updates, map_leaves(step, updates, state.nu), 2)
        new = recorded(state.count, b2=b2, eps=eps)
        return out, MeanSquareState(state.count + 1, nu, new)

    def preconditioner(state: PyTree) -> PyTree:
        held = _find(state, MeanSquareState)
        return jax.tree.map(lambda nu: inverse(nu, held.count - 1), held.nu)

    return Transformation(init_fn, update_fn), preconditioner


def adam_preconditioner(
    b1: ScalarOrSchedule, b2: ScalarOrSchedule, eps: ScalarOrSchedule
) -> Preconditioner:
    """The function from a state with Adam's to ``sqrt(c2)/c1 / (sqrt(nu) + eps)``."""

    def preconditioner(state: PyTree) -> PyTree:
        held = _find(state, ScaleByAdamState)
        a1, a2, e = (value_at(value, held.count - 1) for value in (b1, b2, eps))
        factor = jnp.sqrt(debias(a2, held.count)) / debias(a1, held.count)

        def leaf(nu: jax.Array) -> jax.Array:
            below = jnp.sqrt(upcast(nu)) + e
            return jnp.where(below > 0, factor / jnp.where(below > 0, below, 1.0), 0.0)

        return jax.tree.map(leaf, held.nu)

    return preconditioner


class AdamDriftState(NamedTuple):
    """State of ``adam_drift``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment, not debiased
    nu: PyTree  # like params, second moment, not debiased
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def adam_drift(
    drift: ScalarOrSchedule,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    state_dtype: Any | None,
) -> Transformation:
    """``g + drift*mu/(sqrt(nu) + eps)`` with moments that are not debiased."""
    check_number("drift", drift, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, drift=drift, b1=b1, b2=b2, eps=eps)

    def init_fn(params: PyTree) -> AdamDriftState:
        count = jnp.zeros((), jnp.int32)
        mu, nu = (zeros_like_params(params, state_dtype) for _ in range(2))
        return AdamDriftState(count, mu, nu, record(count))

    def update_fn(
        updates: PyTree, state: AdamDriftState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdamDriftState]:
        del params, extra_args
        a, a1, a2, e = (value_at(value, state.count) for value in (drift, b1, b2, eps))

        def step(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            g32 = upcast(g)
            m = a1 * upcast(mu) + (1.0 - a1) * g32
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(g32)
            below = jnp.sqrt(v) + e
            u = g32 + a * m / jnp.where(below > 0, below, 1.0)
            return u.astype(g.dtype), m.astype(mu.dtype), v.astype(nu.dtype)

        out, mu, nu = unzip(updates, map_leaves(step, updates, state.mu, state.nu), 3)
        return out, AdamDriftState(state.count + 1, mu, nu, record(state.count))

    return Transformation(init_fn, update_fn)
