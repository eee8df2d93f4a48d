"""GaLore around Adafactor: low-rank gradients whose second moments are rows and columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.optimizers._low_rank import default_rank
from optkit.optimizers.adafactor import (
    adafactor_rate,
    adafactor_step,
    check_adafactor,
)
from optkit.transforms import Transformation, in_float32, scale_by_factored_rms
from optkit.transforms.base import map_leaves
from optkit.transforms.factored import FACTORED, clip_rms
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, value_at
from optkit.transforms.low_rank import low_rank
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.step import Mask
from optkit.tree import Dims, PyTree, RuleLike, zeros_like_params

_BYTES = StateBytes(
    0,
    lambda rows, columns: (
        4 * (max(rows, columns) + default_rank(rows, columns) * (1 + min(rows, columns)))
    ),
    "4 (max(sides) + r + r min(sides))",
)


class AveragedStepsState(NamedTuple):
    """State of the average of steps inside of ``galore_adafactor``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like what was projected, float32


def _averaged(rate: ScalarOrSchedule, b1: Scalar) -> Transformation:
    """Averages ``rate*u`` and divides by the rate again: a change of it acts as on steps."""

    def init_fn(params: PyTree) -> AveragedStepsState:
        return AveragedStepsState(jnp.zeros((), jnp.int32), zeros_like_params(params))

    def update_fn(
        updates: PyTree, state: AveragedStepsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AveragedStepsState]:
        del params, extra_args
        now = jnp.asarray(value_at(rate, state.count), jnp.float32)
        moved = map_leaves(lambda u, m: b1 * m + (1.0 - b1) * now * u, updates, state.momentum)
        back = jnp.where(now == 0, 1.0, now)
        out = map_leaves(lambda m, u: (m / back).astype(u.dtype), moved, updates)
        return out, AveragedStepsState(state.count + 1, moved)

    return Transformation(init_fn, update_fn)


@register(
    kind="recipe",
    family="memory",
    paper=(
        "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        "2403.03507",
        2024,
    ),
    state_bytes=dict.fromkeys(("matrix", "stacked", "expert", "conv"), _BYTES) | {"*": FACTORED},
    tags=("low rank", "adafactor", "factored", "projection"),
    chain="low_rank(scale_by_factored_rms > clip by rms) > relative step > decay",
)
def galore_adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    *,
    rank: Rank | None = None,
    decay_rate: ScalarOrSchedule = -0.8,
    eps: Scalar | None = None,
    eps2: ScalarOrSchedule = 1e-3,
    clip_threshold: ScalarOrSchedule = 1.0,
    b1: Scalar | None = None,
    scale_parameter: bool = True,
    warmup_init: bool = False,
    scale: ScalarOrSchedule = 0.25,
    refresh_every: int | jax.Array = 200,
    basis: BasisKind = "svd",
    side: Side = "std",
    stagger: bool = False,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Adafactor on gradients projected onto their leading directions: hardly any state but bases.

    For hidden matrices G of A = fan_out by B = fan_in, A at least B (else with sides exchanged):

    1. every ``refresh_every`` steps ``P`` = the first r right singular vectors of G;
    2. ``R = G P``; ``u`` = Adafactor's direction of R, clipped by its root mean square, see
       ``optkit.adafactor``;
    3. ``a = lr``, or the relative one, times ``max(eps2, rms(W))``;
    4. ``W <- (1 - a*weight_decay)*W - a*scale*u P^T``.

    All other leaves go to Adafactor without ``scale``.

    Matrix work of a step: ``4*A*B*r`` operations, and a singular value decomposition of each matrix
    in one step of ``refresh_every``.

    Choose it over ``optkit.galore_adamw`` where even low-rank moments are too many, with ``b1`` in
    between. Over ``optkit.adafactor`` it saves nothing unless that averages its steps, too.
    Evidence: near Adafactor's loss on C4 is the paper's claim.

    Args:
      learning_rate: a number or a schedule; None for the relative step.
      rank: directions r of a matrix; as a float their share of the projected side, at least one.
        None for 0.25.
      decay_rate: see ``optkit.adafactor``.
      eps: see there.
      eps2: see there.
      clip_threshold: see there.
      b1: average of the low-rank steps, taken after the learning rate; needs
        ``scale_parameter=False``.
      scale_parameter: see there; the root mean square is that of the whole W.
      warmup_init: see there.
      scale: factor of the matrices' steps.
      refresh_every: steps between two bases.
      basis: where P comes from, see ``optkit.low_rank``.
      side: which side is projected, see there.
      stagger: every matrix in its own turn, see there.
      key: seed or PRNG key of random bases; None for 0.
      draw: what stands in for the basis, see there.
      weight_decay: coefficient, times a.
      mask: leaves that decay.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of P and of leaves' own moments; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``4*(max(A, B) + r +
      r*min(A, B))`` per matrix; with ``b1`` ``4*r*max(A, B)`` more; else those of Adafactor.

    Raises:
      ValueError: an option out of range or against another; at init a rank above a matrix's side.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.galore_adafactor(0.01, rank=2)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * (16 + 2 + 2 * 8)
      136

    Reference:
      Zhao et al., GaLore, arXiv 2403.03507; Shazeer and Stern, Adafactor, arXiv 1804.04235.
    """
    check_adafactor("hf", learning_rate, b1, warmup_init)
    if b1 is not None and scale_parameter:
        raise ValueError(
            "b1 averages steps inside of the subspace, where the size of the weights is not known: "
            "give scale_parameter=False with it"
        )
    moments = scale_by_factored_rms(decay_rate, eps=eps, state_dtype=state_dtype)
    links = [moments, clip_rms(clip_threshold)]
    if b1 is not None:
        links.append(_averaged(adafactor_rate(learning_rate, "hf", warmup_init), b1))
    direction = low_rank(
        optax.chain(*links),
        0.25 if rank is None else rank,
        refresh_every=refresh_every,
        basis=basis,
        side=side,
        scale=scale,
        stagger=stagger,
        key=key,
        draw=draw,
        dims=dims,
        roles=roles,
        stored_as=state_dtype,
        precision=precision,
        group_bytes=group_bytes,
    )
    step = adafactor_step(
        learning_rate,
        "hf",
        b1=None,
        eps2=eps2,
        scale_parameter=scale_parameter,
        warmup_init=warmup_init,
        weight_decay=weight_decay,
        mask=mask,
        state_dtype=state_dtype,
    )
    return in_float32(optax.chain(direction, step))
