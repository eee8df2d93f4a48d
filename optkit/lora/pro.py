"""LoRA-Pro: Adam on the gradient of the adapted weight, as far as an adapter can follow it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.lora.algebra import adjusted, adjusted_at_zero, frame, together
from optkit.lora.find import AdapterTree, by_scale, check_scale, check_served
from optkit.lora.naming import AdapterLayout, Naming, Patterns, Scale
from optkit.transforms.base import Transformation, check_same_leaves, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.tree import PyTree, accumulator_dtype, upcast
from optkit.tree.sharding import place_statistic, zeros_beside

Counter = Literal["fixed", "official"]
FirstStep = Literal["general", "zero_b"]
FULL_SIZE = {"adapter": StateBytes(0, lambda m, n: 8 * m * n, "8 an entry of W"), "*": 0}


class ScaleByLoraProState(NamedTuple):
    """State of ``scale_by_lora_pro``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # at each A: (..., fan_out, fan_in), first moment of the equivalent gradient
    nu: PyTree  # at each A: (..., fan_out, fan_in), its second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class _Numbers(NamedTuple):
    """What a step is computed with."""

    b1: Any
    b2: Any
    eps: Any
    delta: Any
    c1: Any  # 1 - b1**n
    c2: Any
    is_first: Any  # whether B counts as 0; None if it never does


def _step(with_: _Numbers, scale: Any) -> Callable[..., tuple[jax.Array, ...]]:
    """The update of adapters of one scale, a function of batches of them."""

    def change(at: Any, ga: jax.Array, gb: jax.Array, split: Any) -> tuple[jax.Array, jax.Array]:
        general = adjusted(at, ga, gb, scale, split)
        if with_.is_first is None:
            return general
        special = adjusted_at_zero(at, ga, gb, scale)
        da, db = (jnp.where(with_.is_first, x, y) for x, y in zip(special, general, strict=True))
        return da, db

    def step(*given: jax.Array) -> tuple[jax.Array, ...]:
        a, b, ga, gb, mu, nu = map(upcast, given)
        at = frame(a, b, with_.delta)
        e = together(at, *change(at, ga, gb, "zero"), scale)
        mu = with_.b1 * mu + (1.0 - with_.b1) * e
        nu = with_.b2 * nu + (1.0 - with_.b2) * jnp.square(e)
        root = jnp.sqrt(nu / with_.c2) + with_.eps
        u = mu / with_.c1 / jnp.where(root == 0.0, 1.0, root)
        da, db = change(at, scale * (b.mT @ u), scale * (u @ a.mT), "closest")
        return da, db, mu.astype(given[4].dtype), nu.astype(given[5].dtype)

    return step


@register(
    kind="part",
    family="lora",
    paper=("LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", "2407.18242", 2024),
    state_bytes=FULL_SIZE,
    tags=("lora", "adapter", "fine-tuning", "low rank"),
    chain="adam of the equivalent gradient, split over A and B",
    replicated="moments of the weight that is adapted, whose axes are not the factors'",
    example={"required": False},
)
def scale_by_lora_pro(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    scale: Scale = 1.0,
    delta: ScalarOrSchedule = 1e-8,
    counter: Counter = "fixed",
    first_step: FirstStep = "general",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Adam's direction of the adapted weight ``W + s B A``, followed by A and B together.

    A (r, fan_in), B (fan_out, r), ``Ai = (A A^T + delta I)^+``, ``Bi = (B^T B + delta I)^+``, and n
    the number of the update:

    1. ``a = Bi gA / s^2``; ``b = (I - B Bi B^T) gB Ai / s^2``; ``E = s (B a + b A)``, which is W's
       gradient projected onto what the adapter can do;
    2. ``M <- b1*M + (1-b1)*E``; ``V <- b2*V + (1-b2)*E**2``, full size;
    3. ``U = M/(1-b1**n) / (sqrt(V/(1-b2**n)) + eps)``;
    4. 1. again with ``gA = s B^T U``, ``gB = s U A^T``, and ``a <- a + X A``, ``b <- b - B X`` for
       the X of ``B^T B X + X A A^T = -Bi gA A^T / s^2``: of all splits the one closest to the
       gradients.

    Leaves that are no adapters pass. Both factors have to be there: a mask that hides one of them
    is refused.

    Args:
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      scale: s, as the model multiplies with it: 1 for ``flax.nnx.LoRA``; a mapping of patterns of
        A's paths to numbers where adapters differ. The reference has 2 whatever the model does.
      delta: added to both Gram matrices. 0 takes pseudo-inverses.
      counter: "official" divides moments by ``1 - b**(n+1)``, as the reference does, whose first
        step is 0.744 times as long at the default rates.
      first_step: "zero_b" computes the first step as if B were 0, by a branch that the reference
        has and does not reach: it differs from "general" only if B is not 0 at the start.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.
      group_bytes: bytes of one stack of A.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: **8 for each entry of
      W**, as much as Adam on the whole matrix; on several devices each has all of it.

    Raises:
      ValueError: an option out of range, params not given to update, or what
        ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.eye(3, 2), "lora_b": jnp.zeros((2, 3))}
      >>> tx = optkit.scale_by_lora_pro()
      >>> u, state = tx.update(params, tx.init(params), params)
      >>> state.mu["lora_a"].shape
      (3, 3)

    Reference:
      Wang et al., LoRA-Pro, arXiv 2407.18242. Its code casts the second moment's increments to
      bfloat16; this does not.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_number("delta", delta, low=0.0)
    check_scale(scale)
    check_choice("counter", counter, get_args(Counter))
    check_choice("first_step", first_step, get_args(FirstStep))
    naming = Naming(a, b, None, layout, required)
    values = {"b1": b1, "b2": b2, "eps": eps, "delta": delta}

    def numbers_at(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b1=b1, b2=b2, eps=eps, delta=delta)

    def init_fn(params: PyTree) -> ScaleByLoraProState:
        tree = AdapterTree(naming, params)
        check_served(scale, tree, params)

        def moments() -> PyTree:
            return tree.pack(
                [
                    zeros_beside(
                        left, (*x.batch, x.fan_out, x.fan_in), accumulator_dtype(left, state_dtype)
                    )
                    for x, left in zip(tree.adapters, tree.stored(params), strict=True)
                ]
            )

        count = jnp.zeros((), jnp.int32)
        return ScaleByLoraProState(count, moments(), moments(), numbers_at(count))

    def update_fn(
        updates: PyTree,
        state: ScaleByLoraProState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByLoraProState]:
        del extra_args
        params = need_params(params, "scale_by_lora_pro")
        check_same_leaves(updates, params, "parameters", shapes=True)
        tree = AdapterTree(naming, params)
        now = {name: value_at(value, state.count) for name, value in values.items()}
        n = state.count + (2 if counter == "official" else 1)
        is_first = state.count == 0 if first_step == "zero_b" else None
        numbers = _Numbers(
            **now, c1=debias(now["b1"], n), c2=debias(now["b2"], n), is_first=is_first
        )
        factors, held = tree.split(params), [tree.unpack(x) for x in (state.mu, state.nu)]
        placed = [list(map(place_statistic, column, factors[0])) for column in held]
        done = by_scale(
            tree,
            scale,
            lambda s: _step(numbers, s),
            *factors,
            *tree.split(updates),
            *placed,
            group_bytes=group_bytes,
        )
        da, db, mu, nu = ([result[i] for result in done] for i in range(4))
        return tree.merge(updates, da, db), ScaleByLoraProState(
            state.count + 1, tree.pack(mu), tree.pack(nu), numbers_at(state.count)
        )

    return Transformation(init_fn, update_fn)
