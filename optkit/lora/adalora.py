"""AdaLoRA: a budget of singular values that all adapters share, given to the most important."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.catalogue import register
from optkit.lora.budget import Plan
from optkit.lora.find import AdapterTree
from optkit.lora.naming import AdapterLayout, Naming, Patterns
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_transformation,
    need_params,
    unzip,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.transforms.recording import recording
from optkit.transforms.route import FROZEN
from optkit.tree import PyTree, upcast, zeros_like_params


class AdaLoraState(NamedTuple):
    """State of ``adalora``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the wrapped transformation
    importance: PyTree  # like params, average of |p g|; nothing at leaves of no adapter
    uncertainty: PyTree  # like params, average of what that average misses
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _scores(tree: AdapterTree, importance: PyTree, uncertainty: PyTree) -> list[jax.Array]:
    """One score a triplet of a singular value, its row of A and its column of B: (..., r)."""
    factors = [[upcast(x) for x in column] for column in tree.split(importance)]
    doubts = [[upcast(x) for x in column] for column in tree.split(uncertainty)]
    own = zip(tree.singular(importance), tree.singular(uncertainty), strict=True)
    return [
        upcast(e) * upcast(u) + jnp.mean(a * v, axis=-1) + jnp.mean(b * w, axis=-2)
        for (e, u), a, v, b, w in zip(
            own, factors[0], doubts[0], factors[1], doubts[1], strict=True
        )
    ]


def _threshold(scores: Sequence[jax.Array], dropped: jax.Array) -> jax.Array:
    """The score of the last of so many that are dropped; below all of them for none."""
    flat = jnp.sort(jnp.concatenate([x.reshape(-1) for x in scores]))
    return jnp.where(dropped > 0, flat[jnp.maximum(dropped - 1, 0)], -jnp.inf)


def _checked_plan(total_steps: int, init_warmup: int, final_warmup: int, interval: int) -> Plan:
    """The plan of these options; raises ValueError where they leave no room for a budget."""
    for name, value in (("total_steps", total_steps), ("interval", interval)):
        check_static_int(name, value)
    for name, value in (("init_warmup", init_warmup), ("final_warmup", final_warmup)):
        check_static_int(name, value, low=0)
    if max(init_warmup, 1) + final_warmup >= total_steps:
        raise ValueError(
            f"init_warmup={init_warmup} and final_warmup={final_warmup} leave no step of "
            f"total_steps={total_steps} in which importance is measured and the budget falls; "
            "give smaller ones"
        )
    return Plan(total_steps, init_warmup, final_warmup, interval)


def _check_inner(inner: Transformation, tree: AdapterTree, params: PyTree) -> None:
    """Raises ValueError if singular values are frozen inside: those at 0 would stay there."""
    with recording() as found:
        jax.eval_shape(inner.init, params)
    for adapter in tree.adapters:
        if any(record.routes.get(str(adapter.e)) == FROZEN for record in found.routes):
            raise ValueError(
                f"the optimizer inside adalora freezes the singular values {adapter.e!r}, so that "
                "nothing could be trained from E = 0; give one that trains A, B and E, such as "
                'optkit.freeze("kernel", optkit.adamw(1e-3)): recipes of adapters without E '
                "(lora_pro, altlora, lora_plus, loqt) are none"
            )


@register(
    kind="wrapper",
    family="lora",
    paper=(
        "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "2303.10512",
        2023,
    ),
    state_bytes={"adapter": 8, "*": 0},
    tags=("lora", "adapter", "fine-tuning", "rank", "pruning"),
    chain="inner > singular values of low importance to 0",
    example={"target_rank": 1, "total_steps": 1000, "init_warmup": 100, "required": False},
)
def adalora(
    inner: optax.GradientTransformation,
    target_rank: int,
    total_steps: int,
    *,
    init_warmup: int = 0,
    final_warmup: int = 0,
    interval: int = 10,
    b1: ScalarOrSchedule = 0.85,
    b2: ScalarOrSchedule = 0.85,
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    e: Patterns = "lora_e",
    layout: AdapterLayout = "flax",
    required: bool = True,
) -> Transformation:
    """Lets a whole optimizer step, and sets the least important singular values of adapters to 0.

    For adapters ``W + s B diag(E) A`` and the n-th step, after which p is what ``inner`` makes it:

    1. ``I <- b1*I + (1-b1)*|p*g|``; ``U <- b2*U + (1-b2)*abs(|p*g| - I)``, of each entry of A, B
       and E, but not from step ``total_steps - final_warmup`` on;
    2. the score of a singular value is ``I*U`` of its own plus its means over its row of A and its
       column of B;
    3. every ``interval`` steps after ``init_warmup``, and in each of the last ``final_warmup``, of
       all adapters together only the ``optkit.lora.adalora_budget`` best keep their values; the
       others become exactly 0. They may grow again until they are masked anew.

    Wrap it around everything, clipping included, and around an optimizer that trains A, B and E,
    such as AdamW: ``optkit.lora_pro`` and its kin know no E and would freeze it. The gradients must
    be those of the loss, to which ``optkit.lora.orthogonality_penalty`` belongs.

    Args:
      inner: a whole optimizer of A, B and E, learning rate and all.
      target_rank: singular values that remain, on average over adapters.
      total_steps: of the training.
      init_warmup: steps before the budget falls.
      final_warmup: steps after it has fallen, with a fixed choice.
      interval: steps between two choices.
      b1: decay rate of the importance.
      b2: decay rate of its uncertainty.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      e: pattern of the singular values, r numbers of any shape for each adapter.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter of an adapter, and
      those of ``inner``.

    Raises:
      ValueError: an option out of range; at init a target above an adapter's rank (names it), an
        ``inner`` that freezes singular values, or what ``optkit.lora.adapters`` refuses.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 3))}
      >>> params |= {"lora_e": jnp.array([3.0, 1.0]), "kernel": jnp.ones((3, 3))}
      >>> inner = optkit.freeze("kernel", optkit.adamw(0.1))  # AdamW of A, B and E
      >>> tx = optkit.adalora(inner, target_rank=1, total_steps=3, final_warmup=1)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...   updates, state = tx.update(params, state, params)
      ...   params = optax.apply_updates(params, updates)
      >>> params["lora_e"].round(2).tolist()
      [2.70..., 0.0]

    Reference:
      Zhang et al., AdaLoRA, arXiv 2303.10512, as its code has it: a threshold, so that values of
      equal scores fall together and fewer may remain than the budget allows.
    """
    inner = check_transformation("inner", inner)
    check_static_int("target_rank", target_rank)
    plan = _checked_plan(total_steps, init_warmup, final_warmup, interval)
    check_number("b1", b1, low=0.0, high=1.0)
    check_number("b2", b2, low=0.0, high=1.0)
    naming = Naming(a, b, e, layout, required)

    def sizes(tree: AdapterTree) -> tuple[int, int]:
        counts = [int(np.prod(x.batch, dtype=int)) for x in tree.adapters]
        whole = sum(n * x.rank for n, x in zip(counts, tree.adapters, strict=True))
        return whole, target_rank * sum(counts)

    def init_fn(params: PyTree) -> AdaLoraState:
        tree = AdapterTree(naming, params)
        _check_inner(inner, tree, params)
        for adapter in tree.adapters:
            if adapter.rank < target_rank:
                raise ValueError(
                    f"target_rank={target_rank} is above the rank {adapter.rank} of the adapter "
                    f"{adapter.a!r}; give a smaller one"
                )
        count = jnp.zeros((), jnp.int32)
        own = tree.only(params)
        zeros = [zeros_like_params(own) for _ in range(2)]
        return AdaLoraState(
            count, inner.init(params), zeros[0], zeros[1], recorded(count, b1=b1, b2=b2)
        )

    def update_fn(
        updates: PyTree, state: AdaLoraState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdaLoraState]:
        params = need_params(params, "adalora")
        check_gradients(updates, params)
        out, held = update_inner(inner, updates, state.inner, params, extra_args)
        tree = AdapterTree(naming, params)
        numbers = recorded(state.count, b1=b1, b2=b2)
        step = state.count + 1
        if not tree.adapters:
            kept = state.importance, state.uncertainty
            return out, AdaLoraState(step, held, kept[0], kept[1], numbers)
        now = value_at(b1, state.count), value_at(b2, state.count)
        is_open = step < total_steps - final_warmup
        columns = map(tree.only, (out, params, updates))
        found = jax.tree.map(
            lambda *x: _sensed(now, is_open, *x), *columns, state.importance, state.uncertainty
        )
        importance, uncertainty = unzip(state.importance, found, 2)
        scores = _scores(tree, importance, uncertainty)
        whole, target = sizes(tree)
        dropped = whole - plan.budget(whole, target, step)
        limit = jnp.where(plan.is_masking(step), _threshold(scores, dropped), -jnp.inf)
        out = tree.silenced(out, params, [score <= limit for score in scores])
        return out, AdaLoraState(step, held, importance, uncertainty, numbers)

    return Transformation(init_fn, update_fn)


def _sensed(
    decays: tuple[Any, Any], is_open: jax.Array, u: Any, p: Any, g: Any, old: Any, doubt: Any
) -> tuple[jax.Array, jax.Array]:
    """Importance and uncertainty of one leaf after a step."""
    b1, b2 = decays
    sense = jnp.abs((upcast(p) + upcast(u)) * upcast(g))
    new = b1 * old + (1.0 - b1) * sense
    unsure = b2 * doubt + (1.0 - b2) * jnp.abs(sense - new)
    return jnp.where(is_open, new, old), jnp.where(is_open, unsure, doubt)
