"""Where a step is about to lead: the point at which weight prediction takes the gradient."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optkit.transforms.adam import ScaleByAdamState, ScaleByAmsgradState
from optkit.transforms.base import check_same_leaves, check_transformation
from optkit.transforms.hyperparams import (
    Scalar,
    check_choice,
    check_number,
    debias,
    get_hyperparam,
)
from optkit.transforms.momentum import MomentumState
from optkit.tree import PyTree, upcast

Direction = Literal["momentum", "adam", "sign"] | Callable[[PyTree], PyTree]

_ADAM = (ScaleByAdamState, ScaleByAmsgradState, optax.ScaleByAdamState)
_FIRST_MOMENT = {MomentumState: "momentum", optax.TraceState: "trace", optax.ScaleByLionState: "mu"}
_KNOWN = (*_ADAM, *_FIRST_MOMENT)


def _accumulator(state: PyTree) -> Any:
    """Returns the only accumulator of a known kind in a state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _KNOWN))
    found = [leaf for leaf in leaves if isinstance(leaf, _KNOWN)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(type(leaf).__name__ for leaf in found) or "none"
    raise ValueError(
        f"the state should have one accumulator that predicts the next update, and has {names}; "
        "give direction=function, from this state to a tree like the parameters"
    )


def _first_moment(held: Any) -> PyTree:
    return held.mu if isinstance(held, _ADAM) else getattr(held, _FIRST_MOMENT[type(held)])


def _kind(held: Any) -> str:
    """Returns the direction that an accumulator stands for, where it stands for one only."""
    if isinstance(held, _ADAM):
        return "adam"
    if isinstance(held, MomentumState):
        raise ValueError(
            "the state keeps a momentum, which steps may follow or take the sign of: "
            'give direction="momentum" (optkit.momentum), or "sign" (optkit.lion, optkit.signum)'
        )
    return "momentum" if isinstance(held, optax.TraceState) else "sign"


def _adam(held: Any, b1: Scalar, b2: Scalar, eps: Scalar) -> PyTree:
    # Before the first update both sums of weights are 0, and so is the first moment.
    steps = jnp.maximum(held.count, 1)
    c1, c2 = debias(b1, steps), debias(b2, steps)

    def leaf(mu: jax.Array, nu: jax.Array) -> jax.Array:
        below = jnp.sqrt(upcast(nu) / c2) + eps
        return upcast(mu) / c1 / jnp.where(below > 0, below, 1.0)

    return jax.tree.map(leaf, held.mu, held.nu)


def predict_weights(
    params: PyTree,
    state: PyTree,
    learning_rate: Scalar | None = None,
    steps: Scalar = 1.0,
    *,
    direction: Direction | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
) -> PyTree:
    """Predicts the weights some steps ahead from the state alone, where XGrad takes the gradient.

    ``p_hat = p - steps*lr*dir``, with ``dir`` of the state before the step:

    * "momentum": ``m``, as it is kept;
    * "adam": ``(mu/c1)/(sqrt(nu/c2) + eps)``, with the counter of the last finished update; with
      amsgrad too, whose maximum the reference leaves out of the prediction;
    * "sign": ``sign(m)``, for Lion and Signum.

    The gradient is taken at ``p_hat`` and the update applied to ``p``. Weight decay is not
    predicted, and before the first update ``p_hat`` is ``p``. Extra work: a copy of the parameters
    while the gradient is taken, and a pass over the state.

    For heavy-ball SGD, ``steps`` equal to the momentum coefficient is Nesterov's method. For other
    optimizers take ``optkit.coast_weights``, or a function.

    Args:
      params: parameters of any shapes and float dtypes.
      state: state of the optimizer after the last update.
      learning_rate: the one of the next update; None takes the last one's, which optkit's recipes
        record.
      steps: how many steps ahead; the paper takes 1 to 3, and 0 predicts nothing.
      direction: see above; None reads it off the state where that tells. A function gets the whole
        state and returns a tree like the parameters that points along the gradient.
      b1: Adam's first decay rate, which the state does not hold.
      b2: Adam's second decay rate.
      eps: what Adam adds to the root.

    Returns:
      A tree like the parameters, in their dtypes.

    Raises:
      ValueError: the state has no accumulator of a known kind, or several, or one that does not
        tell the direction; a prediction that does not fit the parameters.
      KeyError: no learning rate given or recorded.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, params = optax.sgd(0.1, momentum=0.5), {"w": jnp.zeros(1)}
      >>> u, state = tx.update({"w": jnp.ones(1)}, tx.init(params), params)
      >>> params = optax.apply_updates(params, u)
      >>> ahead = optkit.predict_weights(params, state, 0.1, steps=2)
      >>> round(float(params["w"][0]), 3), round(float(ahead["w"][0]), 3)
      (-0.1, -0.3)

    Reference:
      Guan et al., XGrad: Boosting Gradient-Based Optimizers With Weight Prediction, arXiv
      2305.18240. That it gains up to a point of accuracy is the paper's claim.
    """
    if learning_rate is None:
        learning_rate = get_hyperparam(state, "learning_rate")
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("steps", steps, low=0.0)
    if callable(direction):
        ahead = direction(state)
    else:
        held = _accumulator(state)
        kind = _kind(held) if direction is None else direction
        check_choice("direction", kind, ("momentum", "adam", "sign"))
        if kind == "adam":
            if not isinstance(held, _ADAM):
                raise ValueError(f'direction="adam" needs two moments, not {type(held).__name__}')
            ahead = _adam(held, b1, b2, eps)
        else:
            ahead = _first_moment(held)
            ahead = jax.tree.map(jnp.sign, ahead) if kind == "sign" else ahead
    check_same_leaves(params, ahead, "prediction", shapes=True)
    rate = steps * learning_rate
    return jax.tree.map(lambda p, d: (upcast(p) - rate * upcast(d)).astype(p.dtype), params, ahead)


def coast_weights(
    tx: optax.GradientTransformation,
    params: PyTree,
    state: PyTree,
    steps: Scalar = 1.0,
    **extra_args: Any,
) -> PyTree:
    """Predicts the weights by the update that a gradient of zeros would give.

    ``p_hat = p + steps*u`` with ``u`` of ``tx.update(0, state, params)``, whose state is dropped:
    what the optimizer does without a gradient, weight decay included. For heavy-ball SGD with
    ``steps=1`` that is Nesterov's point, whatever the momentum coefficient. It serves every chain,
    at the price of one more update.

    Args:
      tx: a whole optimizer.
      params: its parameters.
      state: its state after the last update.
      steps: how many such updates ahead.
      **extra_args: handed to ``tx.update``.

    Returns:
      A tree like the parameters, in their dtypes.

    Raises:
      TypeError: ``tx`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, params = optax.sgd(0.1, momentum=0.5), {"w": jnp.zeros(1)}
      >>> u, state = tx.update({"w": jnp.ones(1)}, tx.init(params), params)
      >>> ahead = optkit.coast_weights(tx, optax.apply_updates(params, u), state)
      >>> round(float(ahead["w"][0]), 3)
      -0.15

    Reference:
      The idea of XGrad, arXiv 2305.18240, for optimizers that it does not name; ours.
    """
    check_number("steps", steps, low=0.0)
    tx = check_transformation("tx", tx)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, state, params, **extra_args)
    return jax.tree.map(
        lambda p, u: (upcast(p) + steps * upcast(u)).astype(p.dtype), params, updates
    )
