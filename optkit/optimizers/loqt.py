"""LoQT between its merges: AdamW on the trained factor of each adapter."""

from typing import Any

import jax
import numpy as np
import optax

from optkit.catalogue import register
from optkit.lora.find import Adapter, AdapterTree
from optkit.lora.loqt import trains_b
from optkit.lora.naming import AdapterLayout, Naming, Patterns
from optkit.lora.route import Other, checking_mask, split_adapters
from optkit.transforms import Transformation, descend, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.recording import RouteRecord
from optkit.transforms.route import FROZEN, Rules, assign, build_route
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import PyTree, leaves_with_paths


def _check_frozen(found: list[Adapter], params: PyTree) -> None:
    """Raises ValueError for a frozen factor of zeros, where values are known."""
    leaves = dict(leaves_with_paths(params))
    for adapter in found:
        frozen, trained = (adapter.a, adapter.b)[:: 1 if trains_b(adapter) else -1]
        leaf = leaves[frozen]
        known = isinstance(leaf, np.ndarray) or (
            isinstance(leaf, jax.Array)
            and not isinstance(leaf, jax.core.Tracer)
            and leaf.is_fully_addressable
        )
        if known and leaf.size and not np.any(np.asarray(leaf)):
            raise ValueError(
                f"{frozen!r}, which loqt freezes, is 0 everywhere, so that {trained!r} would have "
                "gradients of 0 for ever: call optkit.lora.merge_and_reinit first, which gives it "
                "directions of the weight's gradient"
            )


@register(
    kind="recipe",
    family="lora",
    paper=("LoQT: Low-Rank Adapters for Quantized Pretraining", "2405.16528", 2024),
    state_bytes={"adapter": 8, "*": 0},
    tags=("lora", "adapter", "quantized", "pretraining", "low rank", "adam"),
    chain="adamw on the factor of the longer side; all else frozen",
    example={"required": False, "other": "adamw"},
)
def loqt(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    other: Other = "frozen",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW on one factor of each adapter of a quantized weight, the other one frozen.

    ``W = W' + s B A``: with fan_in <= fan_out B trains and A is frozen, else the other way round;
    W' rests between two merges, ``optkit.lora.merge_and_reinit``, which give the frozen factor the
    leading directions of W's gradient:

    1. every so often (``optkit.lora.merge_steps``): merge, and start the trained factor anew; a
       merge comes before step 0, and before init;
    2. ``u`` = Adam's direction of the trained factor; ``B <- (1 - lr*weight_decay)*B - lr*u``.

    All other leaves are frozen, or go to ``other``.

    Choose it to pretrain where neither weights nor moments fit: the base takes as many bits as its
    codec has, and only r numbers for each longer-side channel have moments. Not for adapters as
    ``flax.nnx.LoRA`` starts them, B at 0, without a merge: where fan_in > fan_out B is the frozen
    one, and A would never move. Evidence: training at
    a loss close to full precision on one GPU is the paper's claim, which is not examined here.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights.
      mask: trained leaves that decay.
      other: what becomes of all other leaves: "frozen", "adamw" at the same learning rate, or a
        whole optimizer.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter of trained
      factors, ``8*r*max(fan_in, fan_out)`` for each weight.

    Raises:
      ValueError: an option out of range; at init what ``optkit.lora.adapters`` refuses, and a
        frozen factor of zeros, if its values are known there.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> up = {"kernel": jnp.ones((4, 6)), "lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 6))}
      >>> tx = optkit.loqt(1e-3)
      >>> [(row.path, row.method, row.state_bytes) for row in optkit.plan(tx, up).rows]
      [('kernel', 'frozen', 0), ('lora_a', 'frozen', 0), ('lora_b', 'loqt/trained', 96)]

    Reference:
      Loeschcke et al., LoQT, arXiv 2405.16528.
    """
    naming = Naming(a, b, None, layout, required)
    adam = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    descent = descend(adam, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
    trained = checking_mask(mask, descent)

    def build(tree: PyTree) -> Transformation:
        found = AdapterTree(naming, tree).adapters
        paths = frozenset(x.b if trains_b(x) else x.a for x in found)
        rules: Rules = [(lambda path, leaf: path in paths, "trained"), ("**", FROZEN)]
        return build_route(
            {"trained": trained}, rules, (), lambda params: RouteRecord(assign(params, rules, ()))
        )

    def init_fn(params: PyTree) -> PyTree:
        _check_frozen(AdapterTree(naming, params).adapters, params)
        return build(params).init(params)

    inner = optax.GradientTransformationExtraArgs(
        init_fn,
        lambda updates, state, params=None, **extra: build(updates).update(
            updates, state, params, **extra
        ),
    )
    return split_adapters("loqt", inner, other, naming, learning_rate, state_dtype)
