"""LoRA+: AdamW on adapters, B at a larger learning rate than A."""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.lora.naming import AdapterLayout, Naming, Patterns, words_of
from optkit.lora.route import Other, checking_mask, split_adapters
from optkit.transforms import (
    Transformation,
    decay_weights,
    descend,
    in_float32,
    route,
    scale_by_adam,
    scale_by_learning_rate,
)
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    value_at,
)
from optkit.transforms.step import Mask
from optkit.tree import matches

PlusDecay = Literal["decoupled", "cautious", "coupled"]


def _times(rate: ScalarOrSchedule, ratio: Scalar) -> ScalarOrSchedule:
    """The product of a number or schedule and a number."""
    if not callable(rate):
        return rate * ratio
    return lambda count: jnp.asarray(value_at(rate, count) * ratio)


def _names(patterns: Patterns | None) -> Any:
    words = words_of(patterns)
    return lambda path, leaf: any(matches(word, path) for word in words)


@register(
    kind="recipe",
    family="lora",
    paper=("LoRA+: Efficient Low Rank Adaptation of Large Models", "2402.12354", 2024),
    state_bytes={"adapter": 8, "*": 0},
    tags=("lora", "adapter", "fine-tuning", "adam"),
    chain="adamw, its rate times ratio on B; all else frozen",
    example={"required": False, "other": "adamw"},
)
def lora_plus(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    ratio: Scalar = 16.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: PlusDecay = "decoupled",
    mask: Mask = None,
    embeddings: Patterns | None = None,
    embedding_learning_rate: ScalarOrSchedule = 1e-6,
    other: Other = "frozen",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW on LoRA adapters with a learning rate ``ratio`` times as large for B.

    1. ``u`` = Adam's direction of each factor;
    2. ``A <- (1 - lr*weight_decay)*A - lr*u``;
    3. ``B <- (1 - ratio*lr*weight_decay)*B - ratio*lr*u``.

    B starts at 0 and A does not: at one rate for both, A hardly learns features in a wide model.
    With ``ratio=1`` it is plain LoRA. All other leaves are frozen, or go to ``other``; with
    ``other="adamw"`` vectors among them have B's rate.

    Choose it as the baseline of adapters: it costs what plain LoRA costs. Evidence: the analysis of
    wide networks, and up to twice the speed of fine-tuning, are the paper's claims; in
    ``python -m benchmarks.claims lora``, a regression, it is worse than plain LoRA: the loss falls
    by 1.7 decades, LoRA's by 4.5.

    Args:
      learning_rate: of A, a number or a schedule.
      ratio: how much larger B's is, a number; the paper's 2**4.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient, times each factor's own learning rate.
      decay: "decoupled", "cautious" or "coupled", see ``optkit.decay_weights``.
      mask: adapter leaves that decay.
      embeddings: pattern of adapters of embeddings, or several, which have a rate of their own.
      embedding_learning_rate: that rate, a number or a schedule.
      other: what becomes of all other leaves: "frozen", "adamw", or a whole optimizer.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter of an adapter,
      nothing for frozen leaves.

    Raises:
      ValueError: an option out of range; at init what ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.zeros((2, 3)), "bias": jnp.ones(3)}
      >>> tx = optkit.lora_plus(1e-3)
      >>> u, _ = tx.update(params | {"lora_b": jnp.ones((2, 3))}, tx.init(params), params)
      >>> [round(float(u[k].max()), 4) for k in ("lora_a", "lora_b", "bias")]
      [-0.001, -0.016, 0.0]

    Reference:
      Hayou et al., LoRA+, arXiv 2402.12354, with the groups of the library peft.
    """
    if callable(ratio):
        raise TypeError("ratio must be a number, not a schedule; give learning_rate one")
    check_number("ratio", ratio, low=0.0)
    check_number("learning_rate", learning_rate, low=0.0)
    check_number("embedding_learning_rate", embedding_learning_rate, low=0.0)
    check_choice("decay", decay, get_args(PlusDecay))
    naming = Naming(a, b, None, layout, required)
    fast = _times(learning_rate, ratio)
    rates = {"embeddings": embedding_learning_rate, "a": learning_rate, "b": fast}
    rules = [
        (_names(patterns), name) for name, patterns in zip(rates, (embeddings, a, b), strict=True)
    ]
    adam = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    # The constant 0 adds no link, which would ask for parameters.
    still = isinstance(weight_decay, int | float) and weight_decay == 0
    shrink = [] if still else [decay_weights(weight_decay, kind=decay, mask=mask)]
    steps = route({name: scale_by_learning_rate(rate) for name, rate in rates.items()}, rules)
    links = [*shrink, adam, steps] if decay == "coupled" else [adam, *shrink, steps]
    if isinstance(other, str) and other == "adamw":
        is_vector: Any = lambda path, leaf: jnp.ndim(leaf) < 2  # noqa: E731
        served = {"vectors": descend(adam, fast), "matrices": descend(adam, learning_rate)}
        other = route(served, [(is_vector, "vectors"), ("**", "matrices")])
    inner = checking_mask(mask, in_float32(optax.chain(*links)))
    return split_adapters("lora_plus", inner, other, naming, learning_rate)
