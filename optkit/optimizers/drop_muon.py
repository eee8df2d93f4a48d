"""Muon on the layers from a drawn one to the last."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import (
    Transformation,
    drop_layers,
    momentum,
    orthogonalize,
    scale_by_shape,
)
from optkit.transforms.cuts import Sampling
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike, Selector
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=("Drop-Muon: Update Less, Converge Faster", "2510.02239", 2025),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz", "layers", "progressive"),
    chain="drop_layers(momentum > orthogonalize > scale_by_shape > decay > learning rate)",
    example={"order": ("embedding", "norm", "**")},
)
def drop_muon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    order: Sequence[Selector] | None = None,
    sampling: Sampling = "uniform",
    shift_steps: int | None = None,
    clock: Literal["global", "layer"] = "global",
    key: int | jax.Array = 0,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    nuclear: bool = False,
    scale: Mode = "max1",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon that updates the layers from a drawn one to the last, so that backward stops there.

    With ``b`` layers, a cut ``s`` drawn for this step, and A = fan_out and B = fan_in:

    1. layers ``i < s``: weights and momentum stay bit for bit what they were;
    2. layers ``i >= s``: ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov);
    3. ``O = NS(u)``; with ``nuclear`` ``O <- <O, u>*O``, the sharp operator of the spectral norm;
    4. ``O <- O*sqrt(max(1, A/B))``; ``W <- (1 - lr*weight_decay)*W - lr*O``;
    5. draw the next ``s``.

    ``sampling=1`` is ``optkit.muon``, to the bit; ``nesterov=False, scale="none"`` is the paper's
    update. Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or
    to ``other``, in the steps in which their layer is trained.

    Extra matrix work a step: that of ``muon`` for the trained layers, ``sum_i P(s <= i)*NS_i`` on
    average, which is (b+1)/(2b) of Muon's for uniform cuts and equal layers. The backward pass is
    shortened by ``optkit.partial_value_and_grad`` only; see ``optkit.drop_layers`` for the training
    step.

    To choose where steps are cheap to take and backward and Newton-Schulz rule their cost; at an
    equal number of steps it learns less than Muon. The evidence is thin: the paper reports up to
    1.4 times less time to an equal training accuracy for a CNN on MNIST, and that favouring deep
    cuts throughout was worse. In ``python -m benchmarks.claims drop_muon``, a perceptron on digits,
    uniform cuts reach a training loss in two thirds of Muon's time; at equal steps and at equal
    seconds they test worse.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      order: selectors of the layers from input to output; None reads it off the names, see
        ``optkit.layer_order``.
      sampling: law of the cuts, see ``optkit.drop_layers``.
      shift_steps: steps of the law "epoch_shifted".
      clock: whether frozen layers' counters go on, see ``optkit.drop_layers``.
      key: seed or PRNG key of the draws.
      coefficients: Newton-Schulz coefficients, a name in ``optkit.linalg.COEFFICIENTS`` or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm; None divides safely at any scale of gradients.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      nuclear: multiply by the nuclear norm, approximated by ``<O, u>``; the step then depends on
        the scale of the gradient, and the learning rate with it.
      scale: shape factor, see ``optkit.scale_by_shape``.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8, and
      a key and two counters.

    Raises:
      ValueError: an option out of range; at init names that do not tell the order of the layers, or
        a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {f"dense_{i}": {"kernel": jnp.ones((8, 8))} for i in range(3)}
      >>> tx = optkit.drop_muon(0.02, sampling={1: 0.25, 3: 0.75})
      >>> state, cuts = tx.init(params), []
      >>> for _ in range(40):
      ...   _, state = tx.update(params, state, params)
      ...   cuts.append(int(optkit.next_cut(state)))
      >>> sorted(set(cuts)), 2 * cuts.count(1) < cuts.count(3)
      ([1, 3], True)

    Reference:
      Gruntkowska, Maziane, Qu and Richtárik, Drop-Muon, arXiv 2510.02239. Written from the paper's
      equations as a summary gives them; no reference implementation was found to replay, so no
      recorded trajectory backs this recipe, unlike ``muon``.
    """
    links = (
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            adaptive=nuclear,
            dims=dims,
            roles=roles,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
        scale_by_shape(scale, dims=dims, roles=roles),
    )
    rest = adam_for_the_rest(
        other,
        adam_learning_rate,
        eps=1e-10,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    whole = matrix_recipe(
        "muon",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
    return drop_layers(
        whole,
        order=order,
        sampling=sampling,
        shift_steps=shift_steps,
        clock=clock,
        key=key,
        roles=roles,
    )
