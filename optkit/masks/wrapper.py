"""The wrapper that trains what a policy chooses, with three meanings of the others' state."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.masks.compact import carry_over
from optkit.masks.entries import random
from optkit.masks.plan import Plan, State
from optkit.masks.policy import Look, Policy
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    check_transformation,
    need_params,
)
from optkit.transforms.hyperparams import check_choice
from optkit.tree import PyTree


class UpdateMaskState(NamedTuple):
    """State of ``update_mask``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    kept: PyTree  # at leaves masked in part: bool, the mask; with "drop" int32, (active entries,)
    policy: PyTree  # what the policy keeps
    inner: PyTree  # state of the inner transformation; none for leaves of which nothing trains


@register(
    kind="wrapper",
    family="masks",
    state_bytes={"*": 1},
    tags=("mask", "sparsity", "fine-tuning", "block coordinate"),
    chain="inner on the entries that a policy chooses",
    example={"policy": random(0.75, where="**")},
)
def update_mask(
    inner: optax.GradientTransformation, policy: Policy, *, state: State = "hold"
) -> Transformation:
    """Trains the entries that a policy chooses and leaves all others bit for bit as they are.

    At step ``t``, with the mask ``k`` (1 where an entry trains):

    1. where the policy is due, ``k <- policy(t, g, p, k)``;
    2. ``u, s <- inner(k*g)``; 3. ``u <- k*u``, so that decay and momentum inside of ``inner`` move
       no masked entry either; 4. what becomes of the inner state of masked entries:

    * ``"hold"``: it keeps its value bit for bit until they train again;
    * ``"zero"``: it sees gradients of zero, so that moments decay;
    * ``"drop"``: there is none. The inner transformation is given arrays of the active entries
      alone, and its state has their size. Entries that enter begin with fresh state, those that
      stay keep theirs, and counters run on.

    A leaf of which nothing trains has no state in any of them. For a mask that does not change, and
    an element-wise ``inner``, all three do the same.

    What a decay inside of ``inner`` sees is masked as well: what does not train does not decay. Put
    the decay behind the wrapper where all weights are to decay:
    ``optax.chain(optkit.update_mask(direction, policy), optkit.decay_weights(0.1), ...)``.

    Policies are in ``optkit.masks``: ``random``, ``magnitude``, ``lift``, ``id3``, ``fixed``,
    ``own`` choose entries, ``paca`` and ``s2ft`` columns and channels, ``greedy_blocks`` rows,
    chunks or leaves, ``ist`` layers, ``snella`` budgets of matrices.

    Args:
      inner: any transformation, or a whole optimizer with decay and learning rate. For "hold" its
        statistics should be a number per entry: those of rows or matrices go on as they are.
      policy: what trains.
      state: see above. "drop" needs counts that do not change, and hands single entries of a leaf
        ``(m, n)`` to ``inner`` as ``(1, k)`` and r of its columns as ``(m, r)``: the rank and with
        it the role stays, but the shape of a matrix only where whole columns or rows train.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 1 for each entry of a mask (that of
      columns has one entry a column), and those of ``inner``. With "drop" 4 for each active entry
      of a mask, and those of ``inner`` for what is active. On a mesh "drop" brings the active
      entries of a leaf to every device; masks of the other two lie like the parameters.

    Raises:
      ValueError: an unknown state; at init a policy that trains nothing, that keeps more than there
        is, or whose counts change with "drop"; params not given to a policy that looks at them.
      TypeError: ``inner`` is no transformation, or ``policy`` no policy.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.adam(0.1), optkit.masks.magnitude(2), state="drop")
      >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
      >>> state = tx.init(params)
      >>> state.inner[0].mu["kernel"].shape, state.kept["kernel"].tolist()
      ((1, 2), [1, 2])
      >>> u, state = tx.update(params, state, params)
      >>> u["kernel"].round(3).tolist()
      [[0.0, 0.1...], [-0.1..., 0.0]]
    """
    check_choice("state", state, get_args(State))
    inner = check_transformation("inner", inner, swapped_with=policy)
    if not isinstance(policy, Policy):
        raise TypeError(
            f"policy={policy!r} is no mask policy; call one of optkit.masks, such as "
            "optkit.masks.magnitude(0.05), or wrap a function with optkit.masks.own(...)"
        )
    held = state

    @jax.jit  # one program: init runs by itself as a rule, operation by operation
    def choose(own: PyTree, count: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        return policy.mask(own, Look(count, params, None, None, {}))

    def init_fn(params: PyTree) -> UpdateMaskState:
        plan = Plan(policy, held, params)
        count = jnp.zeros((), jnp.int32)
        own = policy.init(params)
        if policy.needs_gradients:
            kept = plan.begin()
        else:
            masks, own = choose(own, count, params)
            kept = plan.kept(masks)
        state = inner.init(plan.stored(kept, params))
        return UpdateMaskState(count, plan.tree_of(kept), own, state)

    def refresh(
        plan: Plan, state: UpdateMaskState, updates: PyTree, params: PyTree, extra: dict[str, Any]
    ) -> tuple[list[jax.Array], PyTree, PyTree]:
        """Returns masks or indices, the policy's state and the inner state for them."""
        old = plan.values(state.kept)
        before = None if plan.drops else state.kept
        masks, own = policy.mask(state.policy, Look(state.count, params, updates, before, extra))
        new = plan.kept(masks)
        if not plan.drops:
            return new, own, state.inner
        paths = [plan.paths[at] for at in plan.partial]
        stored = plan.stored(new, params)
        moved = carry_over(
            state.inner,
            inner.init(stored),
            stored,
            {plan.paths[at]: plan.slot(at) for at in plan.partial},
            dict(zip(paths, old, strict=True)),
            dict(zip(paths, new, strict=True)),
        )
        return new, own, moved

    def update_fn(
        updates: PyTree, state: UpdateMaskState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, UpdateMaskState]:
        if params is not None:
            check_same_leaves(updates, params, "parameters", shapes=True)
        extra = {name: extra_args.pop(name) for name in policy.extra if name in extra_args}
        plan = Plan(policy, held, updates)
        kept, own, before = plan.values(state.kept), state.policy, state.inner
        if policy.due is not False or policy.needs_gradients:
            params = need_params(params, f"update_mask(policy={policy.name})")
            due = state.count == 0 if policy.due is False else policy.due
            due = due(state.count) if callable(due) else due
            kept, own, before = _if(
                due,
                lambda: refresh(plan, state, updates, params, extra),
                lambda: (kept, own, before),
            )
        extras = {
            name: plan.stored(kept, value) if plan.is_like(value) else value
            for name, value in extra_args.items()
        }
        given = None if params is None else plan.stored(kept, params)
        grads = plan.stored(kept, updates if plan.drops else plan.full(kept, updates))
        out, after = inner.update(grads, before, given, **extras)
        if held == "hold":
            after = plan.held(kept, after, before)
        full = plan.full(kept, out)
        return full, UpdateMaskState(state.count + 1, plan.tree_of(kept), own, after)

    return Transformation(init_fn, update_fn)


def _if(due: Any, fresh: Any, keep: Any) -> Any:
    """``lax.cond`` where the answer is not known when the program is built."""
    if not isinstance(due, jax.core.Tracer):
        # Made once: else compilers make masks again in whatever uses them.
        return jax.lax.optimization_barrier(fresh()) if bool(due) else keep()
    return jax.lax.cond(due, fresh, keep)
