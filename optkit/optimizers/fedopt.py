"""FedAdam, FedYogi and FedAdagrad: adaptive servers, to which what clients send is a gradient."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms import Transformation, descend
from optkit.transforms.base import map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.step import Decay, Mask
from optkit.tree import PyTree, upcast, zeros_like_params

Rule = Literal["adam", "yogi", "adagrad"]


class FedOptState(NamedTuple):
    """State of the direction of ``fedopt``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment
    nu: PyTree  # like params, second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _direction(
    rule: Rule,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    tau: ScalarOrSchedule,
    flower: bool,
    state_dtype: Any,
) -> Transformation:
    def init_fn(params: PyTree) -> FedOptState:
        count = jnp.zeros((), jnp.int32)
        first = 0.0 if flower else jnp.square(value_at(tau, count))
        mu, zeros = (zeros_like_params(params, state_dtype) for _ in range(2))
        nu = jax.tree.map(lambda z: z + jnp.asarray(first, z.dtype), zeros)
        return FedOptState(count, mu, nu, recorded(count, b1=b1, b2=b2, tau=tau))

    def update_fn(
        updates: PyTree, state: FedOptState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, FedOptState]:
        del params, extra_args
        a1, a2, t = (value_at(value, state.count) for value in (b1, b2, tau))
        factor: Any = 1.0
        if flower and rule == "adam":
            ahead = state.count + 2  # its rounds are counted from 1, and then one is added
            factor = jnp.sqrt(debias(a2, ahead)) / debias(a1, ahead)

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> Any:
            d, held = upcast(g), upcast(nu)
            square = jnp.square(d)
            m = a1 * upcast(mu) + (1.0 - a1) * d
            if rule == "adam":
                v = a2 * held + (1.0 - a2) * square
            elif rule == "yogi":
                v = held - (1.0 - a2) * square * jnp.sign(held - square)
            else:
                v = held + square
            root = jnp.sqrt(v) + t
            u = factor * m / jnp.where(root == 0.0, 1.0, root)
            return u.astype(g.dtype), m.astype(mu.dtype), v.astype(nu.dtype)

        out, mu, nu = unzip(updates, map_leaves(leaf, updates, state.mu, state.nu), 3)
        numbers = recorded(state.count, b1=b1, b2=b2, tau=tau)
        return out, FedOptState(state.count + 1, mu, nu, numbers)

    return Transformation(init_fn, update_fn)


@register(
    kind="recipe",
    family="federated",
    paper=("Adaptive Federated Optimization", "2003.00295", 2020),
    state_bytes={"*": 8},
    tags=("federated", "server", "adam", "yogi", "adagrad"),
    chain="m/(sqrt(v) + tau) > decay > learning rate",
)
def fedopt(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    rule: Rule = "adam",
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    tau: ScalarOrSchedule = 1e-3,
    dialect: Literal["paper", "flwr"] = "paper",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """The servers of FedAdam, FedYogi and FedAdagrad: Adam and its kin for what clients send.

    With ``D`` the gradient, which ``optkit.server_step`` hands over:

    1. ``m <- b1*m + (1-b1)*D``;
    2. ``v <- b2*v + (1-b2)*D**2`` ("adam"), ``v <- v - (1-b2)*D**2*sign(v - D**2)`` ("yogi") or
       ``v <- v + D**2`` ("adagrad");
    3. ``x <- x - lr*(m/(sqrt(v) + tau) + weight_decay*x)``.

    ``v`` starts at ``tau**2`` ("paper") or at 0 ("flwr"). Neither corrects for the start, but that
    "flwr" multiplies the rate of "adam" in round r, counted from 1, by
    ``sqrt(1-b2**(r+1))/(1-b1**(r+1))``: one round further than Adam does.

    Without matrix work; as Adam. ``tau`` is how adaptive it is: far above ``sqrt(v)`` all entries
    share a rate.

    Args:
      learning_rate: of the server, a number or a schedule.
      rule: see above.
      b1: decay rate of the first moment; the paper's experiments with "adagrad" have 0, and so has
        "adagrad" of "flwr" whatever is given.
      b2: decay rate of the second moment; "adagrad" has none.
      tau: added to the root.
      dialect: whose form, see above; Flower's own default for ``tau`` is 1e-9.
      weight_decay: coefficient; the paper has none.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> server = optkit.server_step(optkit.aggregate.mean(), optkit.fedopt(0.1, b1=0.0, tau=0.5))
      >>> params = jnp.zeros(1)
      >>> state = server.init(params, clients=2)
      >>> sent = jnp.array([[1.0], [2.0]])
      >>> [round(float(x), 3) for x in server.step(params, state, sent)[0]]
      [-0.147]

    Reference:
      Reddi et al., arXiv 2003.00295, Algorithm 2; flwr 1.41.0 for "flwr".
    """
    check_choice("rule", rule, ("adam", "yogi", "adagrad"))
    check_choice("dialect", dialect, ("paper", "flwr"))
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("tau", tau, low=0.0)
    flower = dialect == "flwr"
    own = 0.0 if flower and rule == "adagrad" else b1
    direction = _direction(rule, own, b2, tau, flower, state_dtype)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
