"""AdaMuon: Muon of signs, with a second moment of each entry behind it."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import (
    Transformation,
    momentum,
    orthogonalize,
    scale_by_entry_moment,
    scale_by_kappa,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=("AdaMuon: Adaptive Muon Optimizer", "2507.11005", 2025),
    state_bytes={"*": 8},
    tags=("muon", "adamuon", "newton-schulz", "second moment", "sign"),
    chain="momentum > sign > orthogonalize > scale_by_entry_moment > decay > lr; adamw on the rest",
)
def adamuon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    sign: bool = True,
    b2: ScalarOrSchedule = 0.95,
    moment_eps: float = 1e-8,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    update_rms: float = 0.2,
    weight_decay: ScalarOrSchedule = 0.01,
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
    """Muon on the signs of the momentum, divided entry by entry by a second moment.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov);
    2. ``O = NS(sign(u))``, with ``sign(0) = 0``;
    3. ``v <- b2*v + (1-b2)*O**2``, entry by entry; ``X = O/(sqrt(v) + moment_eps)``;
    4. ``X <- X*update_rms*sqrt(A*B)/(norm(X) + moment_eps)``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*X``: the root mean square of a step is
       ``lr*update_rms``, whatever the shape.

    The sign is taken before the orthogonalization: step 2 gives the polar factor of ``sign(u)``,
    which has other singular vectors than u and usually a higher rank. Embeddings, head, norms and
    biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or to ``other``. Beyond Muon a step
    takes about ``8*A*B`` operations, no products of matrices, and Adam's memory.

    Choose it to keep learning rate and decay of an AdamW run, if twice Muon's state can be
    afforded. Evidence: the paper's claims of 40% better efficiency than Adam at large scale were
    not repeated by us. ``optkit.normuon`` has the same idea with one number a row.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      sign: take the sign first; without it step 2 is Muon's, as other implementations of the
        method have it.
      b2: decay rate of the second moment; in the reference always that of the momentum.
      moment_eps: added to its root, and to the norm of step 4.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm in Newton-Schulz (the reference: 1e-7); None divides safely at any
        scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      update_rms: root mean square of the update per unit of learning rate.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.array([[0.3, 1.0, 2.0], [-1.0, 0.5, 1.0]])}}
      >>> tx = optkit.adamuon(1.0, weight_decay=0.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> round(float(jnp.sqrt(jnp.mean(u["dense"]["kernel"] ** 2))), 4)
      0.2

    Reference:
      Si et al., AdaMuon, arXiv 2507.11005, and the GPT-2 code of its authors, which uses one decay
      rate for both moments and debiases neither. For 4-D leaves, which it refuses, we take
      convolutions as (fan_out, fan_in).
    """
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    links = (
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        *((scale_by_kappa("l1"),) if sign else ()),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
            **reading,
        ),
        scale_by_entry_moment(
            b2,
            eps=moment_eps,
            update_rms=update_rms,
            state_dtype=state_dtype,
            **reading,
        ),
    )
    rest = adam_for_the_rest(
        other,
        adam_learning_rate,
        eps=1e-10,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    return matrix_recipe(
        "adamuon",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        **reading,
    )
