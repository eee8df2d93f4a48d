"""Elastic priors: a pull back to an anchor, stronger where the Fisher information says so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    map_leaves,
    need_params,
    unzip,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.tree import PyTree, accumulator_dtype, upcast, zeros_like_params


class ElasticPriorState(NamedTuple):
    """State of ``elastic_prior``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    anchor: PyTree  # like params, float32 for 16-bit parameters: where the pull leads
    fisher: PyTree  # like params, likewise; None for ones everywhere
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _own(tree: PyTree, params: PyTree, what: str) -> PyTree:
    """Copies a tree that fits the parameters into buffers of the state's own, placed like them."""
    check_same_leaves(params, tree, what, shapes=True)

    def copied(p: jax.Array, x: jax.Array) -> jax.Array:
        dtype = accumulator_dtype(p)
        return jnp.zeros_like(p, dtype=dtype) + jnp.asarray(x, dtype)

    return jax.tree.map(copied, params, tree)


@register(
    kind="part",
    family="continual",
    paper=("Overcoming catastrophic forgetting in neural networks", "1612.00796", 2016),
    state_bytes={"*": 4},
    tags=("ewc", "regularisation"),
    chain="g + lam F (p - anchor)",
)
def elastic_prior(
    strength: ScalarOrSchedule = 1.0,
    *,
    fisher: PyTree | None = None,
    anchor: PyTree | None = None,
) -> Transformation:
    """Adds the gradient of a quadratic pull to an anchor: elastic weight consolidation.

    ``u = g + strength*F*(p - anchor)``, the gradient of ``strength/2 * sum(F*(p - anchor)**2)``.
    First in a chain, so that what follows sees one gradient of loss and prior.

    The Fisher information is the mean of squared gradients of the log-likelihood of single
    examples, with labels drawn from the model; with the labels of the data it is the empirical one.
    The square of a batch's gradient is neither. The state holds both trees: between tasks replace
    them there, or build the transformation anew.

    Args:
      strength: ``lam``; implementations whose loss has ``lam*sum(...)`` without the half need twice
        the number here.
      fisher: a tree like the parameters, at least 0; None for ones, the plain pull to an anchor.
      anchor: a tree like the parameters, such as the optimum of the last task; None for the
        parameters that init gets.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      4 per parameter, 8 with a Fisher information.

    Raises:
      ValueError: negative strength, trees that do not fit the parameters, or params not given to
        update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> old, fisher = {"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([1.0, 0.1])}
      >>> tx = optkit.elastic_prior(2.0, fisher=fisher, anchor=old)
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> tx.update({"w": jnp.zeros(2)}, tx.init(params), params)[0]["w"].round(3).tolist()
      [2.0, 0.2...]

    Reference:
      Kirkpatrick et al., arXiv 1612.00796.
    """
    check_number("strength", strength, low=0.0)

    def init_fn(params: PyTree) -> ElasticPriorState:
        count = jnp.zeros((), jnp.int32)
        held = _own(params if anchor is None else anchor, params, "anchor")
        weights = None if fisher is None else _own(fisher, params, "fisher")
        return ElasticPriorState(count, held, weights, recorded(count, strength=strength))

    def update_fn(
        updates: PyTree,
        state: ElasticPriorState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ElasticPriorState]:
        del extra_args
        params = need_params(params, "elastic_prior")
        check_same_leaves(updates, params, "parameters", shapes=True)
        lam = value_at(strength, state.count)

        def pull(g: jax.Array, p: jax.Array, home: jax.Array, *f: jax.Array) -> jax.Array:
            away = lam * (upcast(p) - upcast(home))
            return (upcast(g) + (upcast(f[0]) * away if f else away)).astype(g.dtype)

        weights = () if state.fisher is None else (state.fisher,)
        out = map_leaves(pull, updates, params, state.anchor, *weights)
        new = recorded(state.count, strength=strength)
        return out, state._replace(count=state.count + 1, hyperparams=new)

    return Transformation(init_fn, update_fn)


class OnlineElasticPriorState(NamedTuple):
    """State of ``online_elastic_prior``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    anchor: PyTree  # like params, state_dtype: average of the parameters, from 0
    fisher: PyTree  # like params, state_dtype: average of the squared gradients, from 0
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="continual",
    paper=(
        "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
        "2302.03281",
        2023,
    ),
    state_bytes={"*": 8},
    tags=("ewc", "regularisation"),
    chain="g + lam F/cF (p - w/cw), w and F averages of p and g^2",
)
def online_elastic_prior(
    strength: ScalarOrSchedule = 1e-2,
    *,
    b_anchor: ScalarOrSchedule = 0.999,
    b_fisher: ScalarOrSchedule = 0.999,
    state_dtype: Any | None = None,
) -> Transformation:
    """Adds a pull to the average of past parameters, weighted by the average of squared gradients.

    Elastic weight consolidation that is told of no task boundaries. With ``n`` the number of the
    update, counted from 1:

    1. ``w <- b_anchor*w + (1-b_anchor)*p``; ``F <- b_fisher*F + (1-b_fisher)*g**2``;
    2. ``u = g + strength*F/(1-b_fisher**n)*(p - w/(1-b_anchor**n))``, of the new ``w`` and ``F``.

    At the first update ``w/(1-b_anchor)`` is ``p`` itself, and nothing is pulled. Gradients beyond
    1e+15 count as 1e+15 in ``F``, whose entries would leave float32.

    Args:
      strength: ``lam``.
      b_anchor: decay rate of the parameters' average, in [0, 1).
      b_fisher: decay rate of the squared gradients, in [0, 1).
      state_dtype: dtype of both averages; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      two numbers per parameter.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.online_elastic_prior(1.0, b_anchor=0.5, b_fisher=0.0)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for at in (0.0, 3.0):
      ...   u, state = tx.update({"w": jnp.ones(1)}, state, {"w": jnp.full(1, at)})
      >>> float(u["w"][0])  # the average is 2
      2.0

    Reference:
      Baseline of Elsayed and Mahmood, arXiv 2302.03281, after Kirkpatrick et al., arXiv 1612.00796.
    """
    check_number("strength", strength, low=0.0)
    check_number("b_anchor", b_anchor, low=0.0, high=1.0, open_high=True)
    check_number("b_fisher", b_fisher, low=0.0, high=1.0, open_high=True)

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, strength=strength, b_anchor=b_anchor, b_fisher=b_fisher)

    def init_fn(params: PyTree) -> OnlineElasticPriorState:
        count = jnp.zeros((), jnp.int32)
        anchor, fisher = (zeros_like_params(params, state_dtype) for _ in range(2))
        return OnlineElasticPriorState(count, anchor, fisher, record(count))

    def update_fn(
        updates: PyTree,
        state: OnlineElasticPriorState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OnlineElasticPriorState]:
        del extra_args
        params = need_params(params, "online_elastic_prior")
        check_same_leaves(updates, params, "parameters", shapes=True)
        lam, bw, bf = (value_at(x, state.count) for x in (strength, b_anchor, b_fisher))
        n = state.count + 1
        cw, cf = debias(bw, n), debias(bf, n)

        def step(g: jax.Array, p: jax.Array, w: jax.Array, f: jax.Array) -> tuple[jax.Array, ...]:
            g32, p32 = upcast(g), upcast(p)
            mean = bw * upcast(w) + (1.0 - bw) * p32
            square = jnp.square(jnp.clip(g32, -LARGEST, LARGEST))
            weight = bf * upcast(f) + (1.0 - bf) * square
            u = g32 + lam * (weight / cf) * (p32 - mean / cw)
            return u.astype(g.dtype), mean.astype(w.dtype), weight.astype(f.dtype)

        stepped = map_leaves(step, updates, params, state.anchor, state.fisher)
        out, anchor, fisher = unzip(updates, stepped, 3)
        return out, OnlineElasticPriorState(n, anchor, fisher, record(state.count))

    return Transformation(init_fn, update_fn)
