"""MuonH: Muon on spheres, with the head on a sphere of its own."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import optax

from optkit import linalg
from optkit.catalogue import StateBytes, register
from optkit.transforms import (
    Transformation,
    decay_weights,
    descend,
    in_float32,
    momentum,
    orthogonalize,
    scale_by_adam,
    sphere_project,
)
from optkit.transforms.base import check_transformation
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.orthogonalize import Method
from optkit.transforms.radii import Per, Radius
from optkit.transforms.split import route_matrices
from optkit.transforms.step import Decay, Mask
from optkit.tree import MATRIX_ROLES, Dims, Role, RuleLike, rule_of
from optkit.tree.costs import Sharding

_RADIUS = "4 a matrix"
_MATRIX = StateBytes(4, lambda fan_out, fan_in: 4, _RADIUS)


@register(
    kind="recipe",
    family="matrix",
    paper=(
        "Rethinking Language Model Scaling under Transferable Hypersphere Optimization",
        "2603.28743",
        2026,
    ),
    state_bytes={
        "matrix": _MATRIX,
        "stacked": _MATRIX,
        "expert": _MATRIX,
        "conv": _MATRIX,
        "head": StateBytes(8, lambda fan_out, fan_in: 4, _RADIUS),
        "*": 8,
    },
    tags=("muon", "muonh", "hypersphere", "newton-schulz", "transfer"),
    chain="heavy ball > orthogonalize > sphere_project; adam > sphere_project on heads; adamw",
)
def hyperp(
    learning_rate: ScalarOrSchedule = 0.015,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "quintic_you",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    radius: Radius = "init",
    per: Per = "matrix",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_eps: float = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon whose matrices keep their norm: the learning rate is an angle, and weight decay idle.

    With ``N(x) = x/||x||`` (Frobenius) and ``R = ||W_0||``:

    1. ``m <- b1*m + g``; ``u = g + b1*m`` (Nesterov);
    2. ``O = NS(u)``: five Newton-Schulz steps; their shape factor would not matter;
    3. ``W <- R*N(N(W) - lr*N(O))``.

    Heads take step 3 with Adam's debiased direction in place of ``O`` (AdamH). Embeddings, norms
    and biases go to AdamW, or to ``other``. One learning rate serves all.

    ``lr`` turns ``W`` by ``atan(lr)`` if ``O`` is perpendicular to it, and by ``asin(lr)`` at most,
    whatever the width: ``optkit.schedules.hyperp_learning_rate`` carries the best rate of a small
    model over to depth, tokens and batch size, and ``hyperp_residual_scale`` belongs to it. The
    reference trains without warm-up and with a linear decay to a tenth.

    Beside Muon's matrix work, 5 steps of ``4 m^2 n + 2 m^3`` FLOPs for an m x n matrix, ``m <= n``,
    it takes three norms a matrix: on a mesh that is three numbers to add up. Choose it to tune on
    small models. The paper claims 1.58 times Muon's compute efficiency at 6e21 FLOPs with the laws,
    and 0.70 times without them; we have not reproduced either at that scale. In
    ``python -m benchmarks.claims hyperp`` the best rate of a perceptron on bytes moves by a factor
    of 2 over widths 32 to 256, Muon's by 8, and weight decay changes nothing.

    Args:
      learning_rate: relative step of matrices and heads, a number or a schedule.
      b1: decay rate of the heavy ball.
      nesterov: look one step ahead.
      coefficients: Newton-Schulz coefficients, see ``optkit.orthogonalize``.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm in Newton-Schulz, and lower bound of those in step 3 (the reference:
        1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      radius: ``"init"``, ``"current"`` (what the reference's code does: it differs if weights
        decay), or numbers; see ``optkit.sphere_project``.
      per: ``"matrix"``, or ``"leaf"`` for one sphere to each expert stack, as in the reference.
      weight_decay: coefficient for the matrices; with ``radius="init"`` a decay of all entries
        alike changes nothing.
      decay: kind of decay of every group; "cautious" looks at ``O``.
      mask: matrices that decay.
      adam_learning_rate: step of heads, embeddings, norms and biases; None for ``learning_rate``.
      adam_b1: decay rate of their first moment.
      adam_b2: decay rate of their second moment.
      adam_eps: eps of their Adam.
      adam_weight_decay: their decay.
      other: a whole optimizer for embeddings, norms and biases instead of AdamW.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter and 4 per
      matrix; 8 per parameter of a head and 4 more; else 8.

    Raises:
      ValueError: an option out of range; at init a matrix or head of zeros, which could never
        leave its sphere of radius 0 (initialise it with a standard deviation of 0.02), or a leaf
        that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.zeros(2)}}
      >>> grads = {"dense": {"kernel": jnp.array([[0.0, -1.0], [1.0, 0.0]]), "bias": jnp.ones(2)}}
      >>> u, _ = (tx := optkit.hyperp(0.75)).update(grads, tx.init(params), params)
      >>> turned = (params["dense"]["kernel"] + u["dense"]["kernel"]) / 5
      >>> [round(float(x), 3) for x in (turned[0, 0], jnp.sum(turned**2))]  # cos(atan(0.75)) = 0.8
      [0.48, 1.0]

    Reference:
      Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization,
      arXiv 2603.28743; Wen et al., Hyperball, arXiv 2606.16899. The reference measures the radius
      anew in each step, in the weights' dtype, and per leaf.
    """
    check_choice("decay", decay, get_args(Decay))
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate

    def on_sphere(
        direction: Sequence[optax.GradientTransformation],
        rate: ScalarOrSchedule,
        coefficient: ScalarOrSchedule,
        decays: Mask,
    ) -> Transformation:
        links, kind = list(direction), decay
        if kind == "coupled":
            links.insert(0, decay_weights(coefficient, kind=kind, mask=decays, roles=roles))
            coefficient, kind = 0.0, "decoupled"
        projection = sphere_project(
            rate,
            radius=radius,
            per=per,
            eps=eps,
            weight_decay=coefficient,
            decay=kind,
            mask=decays,
            dims=dims,
            roles=roles,
            group_bytes=group_bytes,
        )
        return in_float32(optax.chain(*links, projection))

    muon = (
        momentum(b1, kind="heavy_ball", nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dims=dims,
            roles=roles,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
    )
    adam = scale_by_adam(adam_b1, adam_b2, adam_eps, state_dtype=state_dtype)
    if other is None:
        rest = descend(adam, adam_rate, weight_decay=adam_weight_decay, decay=decay)
    else:
        rest = check_transformation("other", other)
    name = "adamw" if other is None else "other"

    def is_head(path: str, leaf: Any) -> bool:
        return np.ndim(leaf) >= 2 and rule_of(path, leaf, roles).role == Role.HEAD

    return route_matrices(
        {
            "hyperp": on_sphere(muon, learning_rate, weight_decay, mask),
            "adamh": on_sphere([adam], adam_rate, adam_weight_decay, None),
            name: rest,
        },
        [(MATRIX_ROLES, "hyperp"), (is_head, "adamh"), ("**", name)],
        matrices=("hyperp", "adamh"),
        dims=dims,
        roles=roles,
    )
