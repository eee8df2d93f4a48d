"""LoRA-Pro as a whole optimizer."""

from typing import Any

from optkit.catalogue import register
from optkit.lora.naming import AdapterLayout, Naming, Patterns, Scale
from optkit.lora.pro import FULL_SIZE, Counter, FirstStep, scale_by_lora_pro
from optkit.lora.route import Other, checking_mask, split_adapters
from optkit.transforms import Transformation, descend
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask, StepDecay


@register(
    kind="recipe",
    family="lora",
    paper=("LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", "2407.18242", 2024),
    state_bytes=FULL_SIZE,
    tags=("lora", "adapter", "fine-tuning", "low rank", "adam"),
    chain="scale_by_lora_pro > decay > learning rate; all else frozen",
    replicated="moments of the weight that is adapted, whose axes are not the factors'",
    example={"required": False, "other": "adamw"},
)
def lora_pro(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    scale: Scale = 1.0,
    delta: ScalarOrSchedule = 1e-8,
    counter: Counter = "fixed",
    first_step: FirstStep = "general",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    other: Other = "frozen",
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
    required: bool = True,
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Trains LoRA adapters so that their weight moves as under full fine-tuning with Adam.

    For each adapter ``W + s B A``:

    1. E, the gradient of W projected onto what B and A together can change, from their gradients;
    2. ``U`` = Adam's direction of E, with moments of full size;
    3. (a, b), the changes of A and B whose ``s (B a + b A)`` is closest to U, split so that they
       are closest to the factors' own gradients;
    4. ``A <- A - lr*a``; ``B <- B - lr*b``.

    ``optkit.scale_by_lora_pro`` has the formulas. All other leaves are frozen, or go to ``other``.

    Matrix work of a step, of each adapter: ``8*m*n*r + 10*(m+n)*r**2`` operations, and the
    eigenvalues of two (r, r) matrices.

    Choose it for adapters of a small rank where plain LoRA stays behind full fine-tuning, and where
    Adam's moments of all adapted weights fit: it saves the memory of gradients, not of moments.
    Evidence: that it narrows the gap to full fine-tuning is the paper's claim; in
    ``python -m benchmarks.claims lora``, a regression, the loss ends 3.0 (+- 1.6) decades below
    LoRA's and at that of Adam on W itself, whose state it has.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      scale: s, as the model multiplies with it: 1 for ``flax.nnx.LoRA``; a mapping of patterns of
        A's paths to numbers where adapters differ.
      delta: added to both Gram matrices.
      counter: "official" corrects the moments as the reference does, see
        ``optkit.scale_by_lora_pro``.
      first_step: "zero_b" has the reference's first step, see there.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights.
      mask: adapter leaves that decay.
      other: what becomes of all other leaves: "frozen", "adamw" at the same learning rate, or a
        whole optimizer.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft".
      required: refuse a tree without adapters.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      group_bytes: bytes of one stack of A.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: **8 for each entry of W** of an
      adapter, nothing for frozen leaves.

    Raises:
      ValueError: an option out of range; at init what ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> up = {"kernel": jnp.ones((8, 6)), "lora_a": jnp.ones((8, 2)), "lora_b": jnp.zeros((2, 6))}
      >>> params = {"up": up, "bias": jnp.zeros(6)}
      >>> tx = optkit.lora_pro(1e-3)
      >>> [(row.path, row.state_bytes) for row in optkit.plan(tx, params).rows if row.state_bytes]
      [('up/lora_a', 384)]

      The same of a ``flax.nnx`` model, whose adapters alone are differentiated:

      >>> from flax import nnx
      >>> model = nnx.LoRALinear(8, 6, lora_rank=2, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
      >>> loss = lambda model: (model(jnp.ones((1, 8))) ** 2).mean()
      >>> grads = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
      >>> u = optimizer.update(model, grads)  # the kernel rests

    Reference:
      Wang et al., LoRA-Pro, arXiv 2407.18242; see ``optkit.scale_by_lora_pro`` for departures.
    """
    direction = scale_by_lora_pro(
        b1,
        b2,
        eps,
        scale=scale,
        delta=delta,
        counter=counter,
        first_step=first_step,
        a=a,
        b=b,
        layout=layout,
        required=required,
        state_dtype=state_dtype,
        group_bytes=group_bytes,
    )
    inner = descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
    inner = checking_mask(mask, inner)
    naming = Naming(a, b, None, layout, required)
    return split_adapters("lora_pro", inner, other, naming, learning_rate, state_dtype)
