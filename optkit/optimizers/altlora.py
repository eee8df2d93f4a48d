"""AltLoRA and AltLoRA+: the factors of an adapter in turn, each preconditioned by the other."""

from typing import Any

from optkit.catalogue import register
from optkit.lora.alternating import AltDecay, AltSchedule, alternating
from optkit.lora.naming import AdapterLayout, Naming, Patterns, Scale
from optkit.lora.route import Other, split_adapters
from optkit.transforms import Transformation
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask

_PAPER = (
    "AltLoRA: Towards Better Gradient Approximation in Low-Rank Adaptation with Alternating "
    "Projections",
    "2505.12455",
    2025,
)
_TAGS = ("lora", "adapter", "fine-tuning", "low rank")
_EXAMPLE = {"required": False, "other": "adamw"}


@register(
    kind="recipe",
    family="lora",
    paper=_PAPER,
    state_bytes={"adapter": 8, "*": 0},
    tags=(*_TAGS, "momentum"),
    chain="A by (B^T B)^-1, B by (A A^T)^-1, in turn > decay > learning rate; all else frozen",
    example=_EXAMPLE,
)
def altlora(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    scale: Scale = 1.0,
    delta: ScalarOrSchedule = 1e-5,
    schedule: AltSchedule = "alternate",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: AltDecay = "decoupled",
    mask: Mask = None,
    other: Other = "frozen",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Momentum on LoRA adapters, one factor at a time, that follows the weight's own gradient.

    For each adapter ``W + s B A``, A (r, fan_in), B (fan_out, r), k the number of the factor's
    update, in steps 0, 2, ...:

    1. ``R = (B^T B + delta I)^+``; ``g = R gA / s^2``: of all changes of A the one whose ``s B g``
       is closest to W's gradient, if delta is 0;
    2. ``M_A <- b1 * R B^T B_old M_A + (1-b1)*g``, the momentum of W carried over to the new B;
       ``B_old <- B``;
    3. ``A <- (1 - lr*weight_decay)*A - lr/(1-b1**k) * M_A``;

    and in steps 1, 3, ... the same for B, with ``g = gB (A A^T + delta I)^+ / s^2`` and ``M_B <- b1
    * M_B A_old A^T (A A^T + delta I)^+ + (1-b1)*g``. All other leaves are frozen, or go to
    ``other``.

    Matrix work of a step, of each adapter: about ``6*(m+n)*r**2`` operations, half of it when the
    factors alternate, and the eigenvalues of one (r, r) matrix a factor that moves.

    Choose it for adapters where AdamW's dependence on the scale of A and B is a nuisance: with
    delta 0 the path of ``B A`` does not depend on how it is written. Directions are gradients, not
    normalised: the learning rate depends on the loss, see ``optkit.altlora_plus``. Evidence: gains
    over LoRA at its cost are the paper's claim; in ``python -m benchmarks.claims lora``, a
    regression, the loss ends 0.6 (+- 1.8) decades below LoRA's, and with ``schedule="joint"`` at
    that of Adam on W itself.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the moments.
      scale: s, as the model multiplies with it: 1 for ``flax.nnx.LoRA``; a mapping of patterns of
        A's paths to numbers where adapters differ. The reference leaves the division by its square
        to the learning rate.
      delta: added to both Gram matrices. As long as B is nearly 0, a step of A is up to 1/delta
        times its gradient.
      schedule: "alternate" moves one factor a step and leaves the gradient of the other unused;
        "joint" moves A and then B, given the new A and the old gradient; "simultaneous" both from
        where they are.
      weight_decay: coefficient; a factor that rests does not decay.
      decay: "decoupled" as above; "after" decays the stepped factor, as the reference does.
      mask: adapter leaves that decay.
      other: what becomes of all other leaves: "frozen", "adamw" at the same learning rate, or a
        whole optimizer.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of all state; float32 for 16-bit parameters if None.
      group_bytes: bytes of one stack of factors.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter of an adapter (its
      moment, and the factor that the moment belongs to), nothing for frozen leaves.

    Raises:
      ValueError: an option out of range; at init what ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.eye(3, 2), "lora_b": 2 * jnp.eye(2, 3)}
      >>> tx = optkit.altlora(0.1, delta=0.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> (u["lora_a"] / -0.1).round(3).tolist(), u["lora_b"].any().item()  # gA / 4, and B rests
      ([[0.25, 0.0], [0.0, 0.25], [0.0, 0.0]], False)

    Reference:
      Yu et al., AltLoRA, arXiv 2505.12455. Inverses are pseudo-inverses, so that a lost direction
      of a factor rests where delta is 0.
    """
    naming = Naming(a, b, None, layout, required)
    inner = alternating(
        learning_rate,
        naming,
        b1=b1,
        b2=None,
        eps=0.0,
        delta=delta,
        scale=scale,
        schedule=schedule,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        state_dtype=state_dtype,
        group_bytes=group_bytes,
    )
    return split_adapters("altlora", inner, other, naming, learning_rate, state_dtype)


@register(
    kind="recipe",
    family="lora",
    paper=_PAPER,
    state_bytes={"adapter": 12, "*": 0},
    tags=(*_TAGS, "adam"),
    chain="altlora's directions over the root of their second moment; all else frozen",
    example=_EXAMPLE,
)
def altlora_plus(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-4,
    scale: Scale = 1.0,
    delta: ScalarOrSchedule = 1e-5,
    schedule: AltSchedule = "alternate",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: AltDecay = "decoupled",
    mask: Mask = None,
    other: Other = "frozen",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """AltLoRA with Adam's second moment of each factor's preconditioned gradient.

    With g, R and B_old of ``optkit.altlora``, when A's turn has come:

    1. ``m = b1 * R B^T B_old M_A + (1-b1)*g``; kept is ``M_A <- b1*M_A + (1-b1)*g``, not carried;
    2. ``V_A <- b2*V_A + (1-b2)*g**2``, neither carried nor corrected;
    3. ``A <- (1 - lr*weight_decay)*A - lr/(1-b1**k) * m/(sqrt(V_A) + eps)``;

    and the same for B in its turn. As V is not corrected, the first steps are some
    ``1/sqrt(1-b2)`` times as long as later ones.

    Matrix work of a step: as ``optkit.altlora``.

    Choose it over ``optkit.altlora`` where one learning rate has to serve layers of very different
    gradients; what a division by entry costs is that the path of ``B A`` depends on how it is
    written. Evidence: the paper's claim is that it comes closest to full fine-tuning of all methods
    that keep no full-size state; in ``python -m benchmarks.claims lora``, a regression, it is no
    better than LoRA, 0.9 (+- 1.5) decades above it; with ``schedule="joint"`` its loss falls by 6.4
    decades, LoRA's by 4.5.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moments.
      b2: decay rate of the second moments.
      eps: added to the root.
      scale: s, as the model multiplies with it, see ``optkit.altlora``.
      delta: added to both Gram matrices.
      schedule: "alternate", "joint" or "simultaneous", see there.
      weight_decay: coefficient; a factor that rests does not decay.
      decay: "decoupled", or "after", as the reference does.
      mask: adapter leaves that decay.
      other: what becomes of all other leaves: "frozen", "adamw" at the same learning rate, or a
        whole optimizer.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of all state; float32 for 16-bit parameters if None.
      group_bytes: bytes of one stack of factors.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 12 per parameter of an adapter,
      nothing for frozen leaves.

    Raises:
      ValueError: an option out of range; at init what ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.eye(3, 2), "lora_b": 2 * jnp.eye(2, 3)}
      >>> tx = optkit.altlora_plus(1e-3)
      >>> optkit.tree.tree_bytes(tx.init(params)) - 8  # but for the counter and the rate
      144

    Reference:
      Yu et al., AltLoRA, arXiv 2505.12455.
    """
    naming = Naming(a, b, None, layout, required)
    inner = alternating(
        learning_rate,
        naming,
        b1=b1,
        b2=b2,
        eps=eps,
        delta=delta,
        scale=scale,
        schedule=schedule,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        state_dtype=state_dtype,
        group_bytes=group_bytes,
    )
    return split_adapters("altlora_plus", inner, other, naming, learning_rate, state_dtype)
