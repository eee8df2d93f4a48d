"""Muon with a randomized low-rank polar factor."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit import linalg
from optkit.catalogue import register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, momentum, orthogonalize, scale_by_shape
from optkit.transforms.base import need_params, stateless
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, upcast
from optkit.tree.costs import Sharding


def _rescale_first(dims: Dims, roles: Sequence[RuleLike]) -> Transformation:
    """Adds to a step what brings each weight to the norm sqrt(fan_out) before it."""

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        params = need_params(params, "muon_randomized(sphere=True)")
        layout = MatrixLayout(params, dims, roles)

        def move(x: jax.Array, fan_out: int) -> jax.Array:
            norm = linalg.frobenius_norm(x)
            # A weight of zeros has no direction to grow in, and stays.
            return jnp.where(
                norm > 0, x / jnp.where(norm > 0, norm, 1.0) * math.sqrt(fan_out) - x, 0
            )

        parts = layout.split(jax.tree.map(upcast, params), "out")
        moves = [move(x, view.fan_out) for x, view in zip(parts, layout.views, strict=True)]
        return jax.tree.map(
            lambda u, d: (upcast(u) + d).astype(u.dtype), updates, layout.merge(moves, "out")
        )

    return stateless(update)


@register(
    kind="recipe",
    family="matrix",
    paper=(
        "Muon with Nesterov Momentum: Heavy-Tailed Noise and (Randomized) Inexact Polar "
        "Decomposition",
        "2605.06884",
        2026,
    ),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz", "low rank", "randomized"),
    chain="heavy ball > randomized polar factor > scale > decay > learning rate; adamw on the rest",
)
def muon_randomized(
    learning_rate: ScalarOrSchedule = 0.03246,
    *,
    b1: ScalarOrSchedule = 0.9665,
    nesterov: bool = True,
    rank: int | float | None = None,
    oversampling: int | None = None,
    power_iterations: int | None = None,
    sketch: linalg.SketchKind = "gaussian",
    side: linalg.Side = "auto",
    qr_method: linalg.QrMethod = "qr",
    key: int | jax.Array | None = None,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "quintic_2",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "randomized",
    scale: Mode = "none",
    sphere: bool = False,
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
    """Muon that orthogonalizes within a random sketch of the momentum, a part of the matrix work.

    For hidden matrices, with A = fan_out and B = fan_in and ``l = rank + oversampling``, at most
    min(A, B):

    1. ``m <- b1*m + g``; ``u = g + b1*m`` (Nesterov) or ``m``;
    2. ``Y = u Omega`` with a random B x l ``Omega`` drawn anew at every step, then h =
       ``power_iterations`` times ``Y <- u u^T Y``; ``Q = qr(Y)`` (with the axes exchanged where
       ``side`` says so);
    3. ``O = Q NS(Q^T u)``, of rank l at most; a zero ``u`` gives zero;
    4. with ``sphere`` ``W <- sqrt(A)*W/||W||``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*O``; ``scale`` multiplies ``O`` before.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or to
    ``other``.

    Matrix work of a step, in FLOPs, with a >= b the sides and q steps: ``2abl(3 + 2h)`` for sketch,
    powers and projections, ``4al^2(1 + h)`` for QR and ``q(4l^2 b + 2l^3)`` for Newton-Schulz,
    in place of ``q(4b^2 a + 2b^3)``. Choose it where the momentum of large matrices is close to low
    rank: what lies outside the sketch gets no step. A Householder QR runs far below the speed of
    products on accelerators, see ``qr_method``.

    Published settings: nanoGPT lr 0.03246, b1 0.9665, rank 200 (of 768), oversampling 10, h 1,
    seven quintic_2 steps; CIFAR-10 lr 0.1047, b1 0.7099, rank 128, oversampling 10, h 2, seven
    steps, side "columns", ``sphere``. That they match full Muon at less cost is the paper's claim.
    A 256 x 256 matrix of rank 16 and noise is learned better by sketches than by the whole factor,
    which steps along the noise too (``python -m benchmarks.claims muon_randomized``).

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the heavy ball.
      nesterov: look one step ahead.
      rank: number of directions, or as a float in (0, 1] their share of the short side; None for
        0.25. A number larger than a matrix is an error.
      oversampling: directions beyond it, clipped to the matrix; None for 10.
      power_iterations: h; None for 1.
      sketch: "gaussian", or "kaczmarz": l columns of ``u``, drawn by their squared length without
        replacement (the reference draws with replacement), in place of ``u Omega``.
      side: "columns" as above, "rows" with A and B exchanged, "auto" the one whose ``Q`` has the
        longer axis.
      qr_method: "qr" (Householder), or by products, for accelerators: "cqr", "rcqr"; see
        ``optkit.linalg.orthonormalize``.
      key: seed or PRNG key; None for 0. ``update(..., sketch=tree)`` takes recorded sketches
        instead, see ``optkit.orthogonalize``.
      coefficients: Newton-Schulz coefficients of the solver, a name in
        ``optkit.linalg.COEFFICIENTS`` or rows: "quintic_2" (the paper's theoretical quintic),
        "classic_cubic", "jordan", "polar_express", ...
      steps: Newton-Schulz steps; None for 7 of "quintic_2", else the set's own number.
      eps: added to the norm (the reference: 1e-7); None divides safely at any scale of gradients.
      method: "randomized", or another of ``optkit.orthogonalize`` for the paper's full variant.
      scale: shape factor, see ``optkit.scale_by_shape``.
      sphere: first rescale each weight to Frobenius norm sqrt(fan_out), as the CIFAR script does.
      weight_decay: coefficient for the matrices; with ``sphere`` of the weight before it.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the Newton-Schulz iteration; None for float32. Sketch and QR are float32.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8; a
      key and a counter.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says, or
        that is smaller than ``rank``.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optkit
      >>> params = {"dense": {"kernel": jnp.eye(8, 16)}}
      >>> tx = optkit.muon_randomized(0.1, rank=2, oversampling=1)
      >>> u, state = tx.update(params, tx.init(params), params)
      >>> int(np.linalg.matrix_rank(u["dense"]["kernel"]))
      3

    Reference:
      Choudhury, Cheng, Takac, Na, Kolar, Muon with Nesterov Momentum, arXiv 2605.06884. Beside the
      drawing without replacement we take a QR before each power iteration, which in exact
      arithmetic changes nothing. The nanoGPT script's variance reduction and cautious decay are not
      part of the method; ``decay="cautious"`` is the latter.
    """
    published = method == "randomized" and steps is None and coefficients == "quintic_2"
    links = (
        momentum(b1, kind="heavy_ball", nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=7 if published else steps,
            eps=eps,
            rank=rank,
            oversampling=oversampling,
            power_iterations=power_iterations,
            sketch=sketch,
            side=side,
            qr_method=qr_method,
            key=key,
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
    return matrix_recipe(
        "muon_randomized",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
        after=(_rescale_first(dims, roles),) if sphere else (),
    )
