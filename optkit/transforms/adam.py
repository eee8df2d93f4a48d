"""Adam's direction with statistics in a dtype of their own."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.hyperparams import debias as debias_weight
from optkit.tree import PyTree, upcast, zeros_like_params


class ScaleByAdamState(NamedTuple):
    """State of ``scale_by_adam``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment
    nu: PyTree  # like params, second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class ScaleByAmsgradState(NamedTuple):
    """State of ``scale_by_adam`` that keeps the largest second moment."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment
    nu: PyTree  # like params, second moment
    nu_max: PyTree  # like params, the largest second moment seen; for "optax" of corrected ones
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


AdamState: TypeAlias = ScaleByAdamState | ScaleByAmsgradState
Amsgrad = Literal["torch", "optax", "paper"]
EpsMode = Literal["corrected", "uncorrected", "inside"]


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
    eps_mode: EpsMode = "corrected",
    debias: bool = True,
    nesterov: bool | Literal["one_debias"] = False,
    amsgrad: Amsgrad | None = None,
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Divides the first moment by the root of the second.

    With ``n`` the number of the update, counted from 1, ``c1 = 1-b1**n`` and ``c2 = 1-b2**n``:

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    2. ``m = mu/c1``; with ``nesterov`` ``m = b1*mu/(1-b1**(n+1)) + (1-b1)*g/c1``;
    3. ``u = m / (sqrt(nu/c2) + eps)`` (``"corrected"``: the paper, torch, Optax) or
       ``u = m * sqrt(c2) / (sqrt(nu) + eps)`` (``"uncorrected"``: the Hugging Face family, where
       eps weighs more in the first steps), or ``u = m / sqrt(nu/c2 + eps)`` (``"inside"``).

    With ``amsgrad`` the largest second moment so far takes the place of ``nu`` in 3, so that rare
    large gradients are not forgotten. Three forms are in use, which part at the second update:

    * ``"torch"``: ``nu_max <- max(nu_max, nu)``; ``u = m / (sqrt(nu_max/c2) + eps)``;
    * ``"optax"``: ``nu_max <- max(nu_max, nu/c2)``; ``u = m / (sqrt(nu_max) + eps)``;
    * ``"paper"``: ``nu_max <- max(nu_max, nu)``; ``u = m / (sqrt(nu_max) + eps)`` with
      ``m = mu`` (with ``nesterov`` ``b1*mu + (1-b1)*g``), nothing corrected. The paper has no eps:
      with ``eps=0`` an entry that has seen no gradient rests.

    Arithmetic runs in float32 for 16-bit gradients, so that eps cannot underflow.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; with 0 an entry that has seen no gradient rests.
      eps_mode: where eps stands.
      debias: divide the moments by the sums of their weights; else ``c1 = c2 = 1``, so that the
        first steps are about ``(1-b1)/sqrt(1-b2)`` long.
      nesterov: NAdam's look-ahead; "one_debias" divides both of its terms by ``c1``, as AdamP does.
      amsgrad: which form of AMSGrad; None for Adam.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}`` (with ``amsgrad`` also
        ``"nu_max"``); float32 for 16-bit parameters if None. A second moment in bfloat16 stalls:
        b2 = 0.999 changes it by less than its last bit.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates.
      State bytes: two numbers per parameter, three with ``amsgrad``.

    Raises:
      ValueError: a rate outside its interval, state_dtype names another accumulator, or an
        eps elsewhere asked of a form of AMSGrad that does not correct beside it.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_adam()
      >>> u, _ = tx.update({"w": jnp.array([4.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
      >>> [round(float(x), 4) for x in u["w"]]
      [1.0, -1.0]

    Reference:
      Kingma and Ba, Adam, arXiv 1412.6980; Dozat 2016 for the look-ahead; Reddi, Kale and Kumar,
      On the Convergence of Adam and Beyond, arXiv 1904.09237, for AMSGrad.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_choice("eps_mode", eps_mode, get_args(EpsMode))
    if not isinstance(nesterov, bool):
        check_choice("nesterov", nesterov, ("one_debias",))
    if amsgrad is not None:
        check_choice("amsgrad", amsgrad, get_args(Amsgrad))
    if amsgrad in ("optax", "paper") and eps_mode != "corrected":
        raise ValueError(
            f"eps_mode={eps_mode!r} has no place in amsgrad={amsgrad!r}, which does not correct "
            "the largest moment; leave it out, or give amsgrad='torch'"
        )
    names = ("mu", "nu") if amsgrad is None else ("mu", "nu", "nu_max")
    dtypes = {name: dtype_of(state_dtype, name, names) for name in names}

    def init_fn(params: PyTree) -> AdamState:
        count = jnp.zeros((), jnp.int32)
        moments = [zeros_like_params(params, dtypes[name]) for name in names]
        return _state(count, moments, recorded(count, b1=b1, b2=b2, eps=eps))

    def update_fn(
        updates: PyTree, state: AdamState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdamState]:
        del params, extra_args
        a1, a2, e = (value_at(value, state.count) for value in (b1, b2, eps))
        n = state.count + 1
        corrects = debias and amsgrad != "paper"
        c1, c2 = (debias_weight(a1, n), debias_weight(a2, n)) if corrects else (1.0, 1.0)
        # What the momentum of the look-ahead is divided by.
        c1_ahead = debias_weight(a1, n + 1) if corrects and nesterov is True else c1

        may_vanish = amsgrad is not None or isinstance(e, jax.Array) or e == 0.0

        def step(g: jax.Array, mu: jax.Array, nu: jax.Array, *most: jax.Array) -> Any:
            g32 = upcast(g)
            m = a1 * upcast(mu) + (1.0 - a1) * g32
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(g32)
            ahead = a1 / c1_ahead * m + (1.0 - a1) / c1 * g32 if nesterov else m / c1
            largest = [
                jnp.maximum(upcast(held), v / c2 if amsgrad == "optax" else v) for held in most
            ]
            second = largest[0] if largest else v
            if amsgrad == "optax":
                root = jnp.sqrt(second) + e
            elif eps_mode == "corrected":
                root = jnp.sqrt(second / c2) + e
            elif eps_mode == "inside":
                root = jnp.sqrt(second / c2 + e)
            else:
                root, ahead = jnp.sqrt(second) + e, ahead * jnp.sqrt(c2)
            u = ahead / (jnp.where(root == 0.0, 1.0, root) if may_vanish else root)
            held = zip((m, v, *largest), (mu, nu, *most), strict=True)
            return u.astype(g.dtype), *(new.astype(old.dtype) for new, old in held)

        moments = [getattr(state, name) for name in names]
        mapped = map_leaves(step, updates, *moments)
        out, *new = unzip(updates, mapped, 1 + len(names))
        return out, _state(n, new, recorded(state.count, b1=b1, b2=b2, eps=eps))

    return Transformation(init_fn, update_fn)


def _state(count: jax.Array, moments: Sequence[PyTree], numbers: dict[str, jax.Array]) -> AdamState:
    mu, nu, *most = moments
    if most:
        return ScaleByAmsgradState(count, mu, nu, most[0], numbers)
    return ScaleByAdamState(count, mu, nu, numbers)
