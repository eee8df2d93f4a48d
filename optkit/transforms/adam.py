"""Adam's direction with statistics in a dtype of their own."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast, zeros_like_params


class ScaleByAdamState(NamedTuple):
    """State of ``scale_by_adam``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment
    nu: PyTree  # like params, second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def dtype_of(state_dtype: Any | Mapping[str, Any] | None, name: str, names: tuple[str, ...]) -> Any:
    """Returns the dtype asked for one accumulator; a mapping names them, one dtype serves all."""
    if not isinstance(state_dtype, Mapping):
        return state_dtype
    unknown = set(state_dtype) - set(names)
    if unknown:
        raise ValueError(
            f"state_dtype names {sorted(unknown)}; this transformation keeps {', '.join(names)}"
        )
    return state_dtype.get(name)


@register(
    kind="part",
    family="accumulator",
    paper=("Adam: A Method for Stochastic Optimization", "1412.6980", 2014),
    state_bytes={"*": 8},
    tags=("adam",),
    chain="m, v -> (m/c1) / (sqrt(v/c2) + eps)",
)
def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_mode: Literal["corrected", "uncorrected"] = "corrected",
    nesterov: bool = False,
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Divides the first moment by the root of the second.

    With ``n`` the number of the update, counted from 1, ``c1 = 1-b1**n`` and ``c2 = 1-b2**n``:

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    2. ``m = mu/c1``; with ``nesterov`` ``m = b1*mu/(1-b1**(n+1)) + (1-b1)*g/c1``;
    3. ``u = m / (sqrt(nu/c2) + eps)`` (``"corrected"``: the paper, torch, Optax) or
       ``u = m * sqrt(c2) / (sqrt(nu) + eps)`` (``"uncorrected"``: the Hugging Face family, where
       eps weighs more in the first steps).

    Arithmetic runs in float32 for 16-bit gradients, so that eps cannot underflow.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; positive.
      eps_mode: where eps stands.
      nesterov: NAdam's look-ahead.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``; float32 for 16-bit
        parameters if None. A second moment in bfloat16 stalls: b2 = 0.999 changes it by less than
        its last bit.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates.
      State bytes: two numbers per parameter.

    Raises:
      ValueError: a rate outside its interval, or state_dtype names another accumulator.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_adam()
      >>> u, _ = tx.update({"w": jnp.array([4.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
      >>> [round(float(x), 4) for x in u["w"]]
      [1.0, -1.0]

    Reference:
      Kingma and Ba, Adam, arXiv 1412.6980; Dozat 2016 for the look-ahead.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_choice("eps_mode", eps_mode, ("corrected", "uncorrected"))
    names = ("mu", "nu")
    dtypes = {name: dtype_of(state_dtype, name, names) for name in names}

    def init_fn(params: PyTree) -> ScaleByAdamState:
        count = jnp.zeros((), jnp.int32)
        mu, nu = (zeros_like_params(params, dtypes[name]) for name in names)
        return ScaleByAdamState(count, mu, nu, recorded(count, b1=b1, b2=b2, eps=eps))

    def update_fn(
        updates: PyTree, state: ScaleByAdamState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleByAdamState]:
        del params, extra_args
        a1, a2, e = (value_at(value, state.count) for value in (b1, b2, eps))
        n = state.count + 1
        c1, c2 = debias(a1, n), debias(a2, n)

        def step(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            g32 = upcast(g)
            m = a1 * upcast(mu) + (1.0 - a1) * g32
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(g32)
            ahead = a1 / debias(a1, n + 1) * m + (1.0 - a1) / c1 * g32 if nesterov else m / c1
            if eps_mode == "corrected":
                u = ahead / (jnp.sqrt(v / c2) + e)
            else:
                u = ahead * jnp.sqrt(c2) / (jnp.sqrt(v) + e)
            return u.astype(g.dtype), m.astype(mu.dtype), v.astype(nu.dtype)

        out, mu, nu = unzip(updates, map_leaves(step, updates, state.mu, state.nu), 3)
        return out, ScaleByAdamState(n, mu, nu, recorded(state.count, b1=b1, b2=b2, eps=eps))

    return Transformation(init_fn, update_fn)
