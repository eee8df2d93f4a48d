"""Steps as long as off-policy samples are worth: the effective sample size."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_updates
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast

Rule = Literal["sqrt", "linear"]


class ScaleByEssState(NamedTuple):
    """State of ``scale_by_ess``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    ratio: jax.Array  # float32 scalar, effective share of the last batch, 1 without weights
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def effective_share(log_weights: jax.Array) -> jax.Array:
    """Returns the effective sample size of importance weights, as a share of their number.

    ``(sum w)**2 / (n*sum w**2)``, which is ``exp(2*lse(l) - lse(2*l))/n``, in units of the largest
    weight, so that none can overflow. It lies in [1/n, 1] and does not depend on a common factor.

    Args:
      log_weights: logarithms of the weights, any shape, one a trajectory; -inf for a weight of 0.
        A sharded array is the whole batch; inside ``shard_map`` gather it first.

    Returns:
      A float32 scalar; NaN without weights, or if all of them are 0 or one is not a number.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> round(float(optkit.transforms.effective_share(jnp.array([900.0, 900.0, 0.0, 0.0]))), 4)
      0.5
    """
    flat = upcast(log_weights).reshape(-1)
    if not flat.size:
        return jnp.full((), jnp.nan)
    weights = jnp.exp(flat - jnp.max(flat))
    share = jnp.square(jnp.sum(weights)) / jnp.sum(jnp.square(weights)) / flat.size
    return share.astype(jnp.float32)


def opob_baseline(
    log_weights: jax.Array, rewards: jax.Array, squared_norms: jax.Array
) -> jax.Array:
    """Returns the baseline that makes an off-policy policy gradient vary least.

    ``b = sum(w**2*n*R)/sum(w**2*n)``, ``n`` the squared norm of a trajectory's ``grad log p``: what
    minimises ``sum(w**2*n*(R-b)**2)``. To be subtracted from the rewards.

    Args:
      log_weights: (B,) logarithms of the importance weights.
      rewards: (B,) rewards of the trajectories.
      squared_norms: (B,) squared norms of their score functions, or a proxy of them.

    Returns:
      A float32 scalar; 0 where no trajectory has a score.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rewards, norms = jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0])
      >>> float(optkit.transforms.opob_baseline(jnp.zeros(2), rewards, norms))
      2.0

    Reference:
      Stable Asynchrony, arXiv 2602.17616.
    """
    wide = upcast(log_weights)
    each = jnp.exp(2.0 * (wide - jnp.max(wide))) * upcast(squared_norms)
    total = jnp.sum(each)
    mean = jnp.sum(each * upcast(rewards)) / jnp.where(total > 0, total, 1.0)
    return mean.astype(jnp.float32)


@register(
    kind="part",
    family="step",
    paper=(
        "Stable Asynchrony: Variance-Controlled Off-Policy RL for LLMs",
        "2602.17616",
        2026,
    ),
    state_bytes={"*": 0},
    tags=("vcpo", "off-policy", "reinforcement learning", "learning rate"),
    chain="u sqrt(min(1, ESS/(B base)))",
    example={"required": False},
)
def scale_by_ess(
    base: ScalarOrSchedule = 1.0,
    *,
    rule: Rule = "sqrt",
    required: bool = True,
) -> Transformation:
    """Shortens updates by the effective sample size of the off-policy batch they came from.

    With the extra argument ``log_weights``, for each of ``B`` trajectories the sum over its tokens
    of ``log p_learner - log p_sampler``:

    1. ``ESS = (sum w)**2/sum w**2``, ``w = exp(log_weights)``; ``ratio = ESS/B``;
    2. ``s = min(1, ratio/base)``;
    3. ``u <- sqrt(s)*u`` ("sqrt", for optimizers like Adam) or ``u <- s*u`` ("linear", for SGD).

    Last in a chain, behind the learning rate: moments see the whole gradient, and decoupled decay
    shrinks with the step, as if the learning rate of this step were smaller:
    ``tx = optax.chain(optkit.adamw(1e-6), optkit.scale_by_ess())`` and
    ``tx.update(g, state, params, log_weights=l)``.

    Args:
      base: ratio of a batch that counts as on-policy; 1 or (the paper, several turns) 0.55.
      rule: see step 3.
      required: raise where ``log_weights`` are missing; False lets such updates pass whole, for
        training in which some steps are on-policy.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates; 0 bytes per
      parameter. ``state.ratio`` is the share of the last batch, for logs. Weights that are all 0 or
      not numbers make the update NaN, so that a guard can see it.

    Raises:
      ValueError: ``base`` below 1e-8, an unknown rule, or ``log_weights`` required and missing.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optax.sgd(1.0), optkit.scale_by_ess())
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> l = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])
      >>> float(tx.update({"w": jnp.ones(1)}, state, log_weights=l)[0]["w"][0])
      -0.5

    Reference:
      Stable Asynchrony: Variance-Controlled Off-Policy RL for LLMs, arXiv 2602.17616;
      mit-han-lab/vcpo. The reference adds 1e-8 to ``sum w**2``, which makes the ratio depend on a
      common factor; here it does not. Its caps on the weights belong to the loss.
    """
    check_number("base", base, low=1e-8)
    check_choice("rule", rule, get_args(Rule))

    def init_fn(params: PyTree) -> ScaleByEssState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ScaleByEssState(count, jnp.ones((), jnp.float32), recorded(count, base=base))

    def update_fn(
        updates: PyTree,
        state: ScaleByEssState,
        params: PyTree | None = None,
        *,
        log_weights: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByEssState]:
        del params, extra_args
        record = recorded(state.count, base=base)
        if log_weights is None:
            if required:
                raise ValueError(
                    "scale_by_ess needs the importance weights: call tx.update(grads, state, "
                    "params, log_weights=...), or build it with required=False to let on-policy "
                    "updates pass"
                )
            one = jnp.ones((), jnp.float32)
            return updates, ScaleByEssState(state.count + 1, one, record)
        ratio = effective_share(log_weights)
        scale = jnp.minimum(1.0, ratio / value_at(base, state.count))
        scale = jnp.sqrt(scale) if rule == "sqrt" else scale
        out = map_updates(lambda u: u * scale, updates)
        return out, ScaleByEssState(state.count + 1, ratio, record)

    return Transformation(init_fn, update_fn)
