"""Q-GaLore: GaLore with weights of 8 bits, bases of 4, moments of 8, and refreshes that wait."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import StateBytes, register
from optkit.codecs import AffineCodec, Codec, IdentityCodec, TableCodec
from optkit.optimizers._low_bits import low_bytes as leaf_bytes
from optkit.optimizers._low_rank import default_rank
from optkit.transforms import (
    LazyRefresh,
    Transformation,
    descend,
    quantize_params,
    quantize_state,
    scale_by_adam,
    split_matrices,
)
from optkit.transforms.grid import GridRounding, Uniforms
from optkit.transforms.hyperparams import ScalarOrSchedule, check_static_int
from optkit.transforms.low_rank import low_rank
from optkit.transforms.low_rank.projection import Rank, Side
from optkit.transforms.quantize import MIN_SIZE, CodecLike
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, RuleLike

_WINDOW = LazyRefresh().window
_MOMENTS = leaf_bytes(2, TableCodec())["*"]
_BASIS = AffineCodec(4, packed=True)


def _matrix(rows: int, columns: int) -> float:
    """Two moments of the projected matrix, its basis, its cosines and what they are measured by."""
    short, rank = min(rows, columns), default_rank(rows, columns)
    basis, first = _BASIS.bytes((rank * short,)), 4 * short
    return _MOMENTS.leaf(rank * max(rows, columns)) + basis + first + 8 + 4 * _WINDOW


_MATRIX = StateBytes(
    0, _matrix, "2.03 r max(sides) (8 below 4096) + (0.53 r + 4) min(sides) + 28 a matrix"
)
_BYTES: dict[str, float] = {"*": _MOMENTS}
_BYTES |= dict.fromkeys(("matrix", "stacked", "expert", "conv"), _MATRIX)


def _none(path: str, leaf: Any) -> bool:
    """Selects no leaf."""
    del path, leaf
    return False


@register(
    kind="recipe",
    family="memory",
    paper=(
        "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
        "2407.08296",
        2024,
    ),
    state_bytes=_BYTES,
    tags=("low rank", "adam", "projection", "quantization", "8-bit", "4-bit"),
    chain="quantize_params(low_rank(adam of 8 bits, lazy, 4 bits) > lr > decay); adam on the rest",
)
def q_galore(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: Rank | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    scale: ScalarOrSchedule = 0.25,
    refresh_every: int | jax.Array = 200,
    lazy: LazyRefresh | None = None,
    basis: Literal["svd", "randomized_svd"] = "svd",
    basis_codec: Any | None = None,
    weight_codec: Codec | None = None,
    rounding: GridRounding = "stochastic",
    store_weights: bool = False,
    moment_codec: CodecLike = "dynamic8",
    min_size: int | None = None,
    side: Side = "std",
    state_on_refresh: Literal["keep", "transport"] = "keep",
    stagger: bool = False,
    key: int | jax.Array | None = None,
    uniforms: Uniforms | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """GaLore in few bits: INT8 weights without a master copy, an INT4 basis, 8-bit moments.

    For hidden matrices G of A = fan_out by B = fan_in, A at least B (else with sides exchanged), n
    the number of the update:

    1. at a refresh ``P`` = the first r right singular vectors of G, stored in 4 bits; where first
       vectors have hardly turned, this matrix's next refreshes come later (``optkit.LazyRefresh``);
    2. ``R = G P``; ``m <- b1*m + (1-b1)*R``; ``v <- b2*v + (1-b2)*R**2``, in 8 bits where R has
       ``min_size`` entries;
    3. ``N = (m/(1-b1**n)) / (sqrt(v/(1-b2**n)) + eps)``;
    4. ``W <- round((1 - lr*weight_decay)*W - lr*scale*N P^T)``, at random, to a grid of 8 bits.

    Embeddings, head, norms and biases go to AdamW with 8-bit moments, without ``scale``, or to
    ``other``; they are not rounded.

    Matrix work of a step: ``4*A*B*r`` operations; a singular value decomposition in a refresh.

    Choose it where not even weights in 16 bits fit, with ``store_weights=True`` and
    ``optkit.stored_params``. Evidence: pre-training of 7B parameters in 16 GB with more than 60%
    fewer decompositions is the paper's claim; in ``python -m benchmarks.claims q_galore``, a small
    language model, it takes 65% fewer at a threshold of 0.4 than with none, and the loss is no
    higher. In ``python -m benchmarks.claims memory_lm``, a byte language model and 250 steps, it
    ends 0.9% below an AdamW whose matrices also have a quarter of the rate, with 10.1% of its
    state.

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the projected side, at least one.
        None for 0.25.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the corrected root.
      scale: factor of the matrices' steps.
      refresh_every: steps between the first two bases.
      lazy: when a matrix's interval grows; ``LazyRefresh()`` if None, and with ``threshold=2.0``
        never.
      basis: "svd" or "randomized_svd", see ``optkit.low_rank``.
      basis_codec: of P; ``AffineCodec(4, packed=True)`` if None. A dtype keeps it in that.
      weight_codec: grid of the weights; ``AffineCodec()``, 8 bits in groups of 256, if None.
      rounding: of weights, "stochastic" or "nearest".
      store_weights: keep the weights' codes in the state, see ``optkit.quantize_params``.
      moment_codec: see ``optkit.quantize_state``; "float32" for exact ones.
      min_size: moments of fewer entries stay in float32; 4096 if None.
      side: which side is projected, see ``optkit.low_rank``; of squares "std" takes fan_in.
      state_on_refresh: "keep", or "transport" of float32 moments, see there.
      stagger: every matrix in its own turn, see there.
      key: seed or PRNG key; None for 0.
      uniforms: what stands in for random numbers of the rounding, see ``optkit.quantize_params``.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as the
        reference does with matrices.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose updates of 16-bit parameters are float32.
      State bytes: per matrix ``2*(1 + 4/256)*r*max(A, B)`` of moments (8 where they are small),
      ``(1/2 + 8/256)*r*min(A, B)`` of P and ``4*min(A, B) + 8`` and 4 a cosine of lazy refreshes;
      with ``store_weights`` ``1 + 8/256`` per parameter; else ``2*(1 + 4/256)`` per parameter.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's side (names the leaf).

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}}
      >>> tx = optkit.q_galore(0.01, rank=128)
      >>> row, = optkit.plan(tx, params).rows
      >>> row.state_bytes - 512 * 4 - 28  # (2 + 8/256)*128*1024 + (1/2 + 8/256)*128*512
      301056

    Reference:
      Zhang et al., Q-GaLore, arXiv 2407.08296. Its code groups without widening the range to 0
      (``AffineCodec(widen=False)``) and compares signed cosines.
    """
    check_static_int("min_size", MIN_SIZE if min_size is None else min_size, low=0)

    def adam() -> Transformation:
        least = MIN_SIZE if min_size is None else min_size
        return quantize_state(scale_by_adam(b1, b2, eps), moment_codec, min_size=least)

    direction = low_rank(
        adam(),
        0.25 if rank is None else rank,
        refresh_every=refresh_every,
        lazy=LazyRefresh() if lazy is None else lazy,
        basis=basis,
        stored_as=AffineCodec(4, packed=True) if basis_codec is None else basis_codec,
        side=side,
        state_on_refresh=state_on_refresh,
        scale=scale,
        stagger=stagger,
        key=key,
        dims=dims,
        roles=roles,
        precision=precision,
        group_bytes=group_bytes,
    )
    matrices = quantize_params(
        descend(
            direction,
            learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            mask=mask,
            roles=roles,
        ),
        weight_codec,
        rounding=rounding,
        leaves="**",
        store=store_weights,
        key=0 if key is None else key,
        uniforms=uniforms,
    )
    name = "adamw_8bit" if other is None else "other"
    if other is None:
        other = descend(adam(), learning_rate, weight_decay=weight_decay, decay=decay)
    # Its updates are float32, too.
    other = quantize_params(other, IdentityCodec(), leaves=_none)
    return split_matrices(matrices, other, names=("q_galore", name), dims=dims, roles=roles)
