"""Any optimizer's statistics in a low-rank subspace of the gradients."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optkit.catalogue import StateBytes, register
from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_number
from optkit.transforms.low_rank.engine import build
from optkit.transforms.low_rank.inner import OnRefresh
from optkit.transforms.low_rank.lazy import LazyRefresh
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.low_rank.residual import Residual, residual_rule
from optkit.tree import Dims, RuleLike

# Around Adam: 8 r max(sides) for its moments and 4 r min(sides) for the basis; r is 1 there.
_BYTES = StateBytes(
    -8,
    lambda rows, columns: (8 * max(rows, columns) + 4 * min(rows, columns)) * (rows * columns > 0),
    "8 r max(sides) + 4 r min(sides), over Adam",
)


@register(
    kind="wrapper",
    family="memory",
    paper=(
        "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        "2403.03507",
        2024,
    ),
    state_bytes=dict.fromkeys(("matrix", "stacked", "expert", "conv"), _BYTES) | {"*": 0},
    tags=("low rank", "galore", "projection"),
    chain="R = P^T G, inner(R), back with P; P anew every T steps",
    example={"rank": 1},
)
def low_rank(
    inner: optax.GradientTransformation,
    rank: Rank,
    *,
    refresh_every: int | jax.Array = 200,
    basis: BasisKind = "svd",
    side: Side = "std",
    residual: Residual = "drop",
    state_on_refresh: OnRefresh = "keep",
    scale: ScalarOrSchedule = 1.0,
    residual_scale: ScalarOrSchedule = 1.0,
    residual_share: Scalar = 1.0,
    growth: ScalarOrSchedule | None = 1.01,
    official_zero_norm: bool = False,
    stagger: bool = False,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    stored_as: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
    lazy: LazyRefresh | None = None,
    basis_optimizer: optax.GradientTransformation | None = None,
) -> Transformation:
    r"""Runs any transformation on gradients that are projected onto low-rank subspaces.

    For a hidden matrix G of A = fan_out by B = fan_in, with n the number of finished updates and
    the side of B projected (the other one by transposition):

    1. if ``n % refresh_every == 0``: P of shape (B, r) from the gradient or at random, and what
       ``state_on_refresh`` does to the inner state. Of a zero gradient the old P is kept, and P
       that has seen no other comes with the first one that is not zero;
    2. ``R = G P``, ``N = inner(R)``, both (A, r);
    3. ``u = scale*N P^T + residual_scale*f(G - residual_share*R P^T)``, f after ``residual``.

    All other leaves go to ``inner`` as they are, with a state of their own. The refresh stands in a
    branch of the compiled program: other steps do not pay for it (under ``vmap`` all do).

    ``inner`` sees matrices of the projected shapes, lying as Flax kernels do, in place of the
    hidden ones, and P^T W for parameters (zeros in ``init``): weight decay inside of it acts in the
    subspace only, so better add it outside, with ``optkit.descend``.

    Bases: "svd" (leading singular vectors of G, each with its largest entry positive),
    "randomized_svd" (nearly the same, by products), "power_iteration" (one step from the last one);
    drawn and not stored: "gaussian" of variance 1/r, "orthonormal", "permutation" (r unit
    vectors), "columns" and "rows" of (A, B), inputs and outputs; "randk" (single entries, stored as
    indices); and "online": singular vectors of the first gradient, which then move at the end of
    every step but the first along ``-d norm(G/norm(G) (I - P P^T))**2 / dP``, by
    ``basis_optimizer``.

    Args:
      inner: any transformation, best a direction such as ``optkit.scale_by_adam()``.
      rank: directions r of each matrix; as a float their share of the projected side (of the
        entries for "randk"), at least one unless it is 0.0.
      refresh_every: steps from one basis to the next, T.
      basis: where P comes from.
      side: "std" projects the shorter side (a square's fan_in), "reverse_std" the longer one,
        "right" fan_in, "left" fan_out, "full" both, R being (r, r).
      residual: what happens to the rest of G. "drop" (GaLore); "sign" or "sgd" (FRUGAL);
        "norm_scaled" (Fira: times ``norm(N_j)/norm(R_j)`` of its row, then limited in growth);
        "feedback" (added to the next gradient); or a transformation of it.
      state_on_refresh: "keep" leaves the inner state in stale coordinates, as GaLore does; "reset"
        begins anew; "transport" turns averages called mu, trace or the like into the new basis, and
        those of squares by squared cosines.
      scale: factor of the part inside of the subspace.
      residual_scale: factor of the rest.
      residual_share: how much of the inside is taken out of the rest; Fira's code has its scale.
      growth: bound of a "norm_scaled" rest, see ``optkit.limit_norm_growth``; None for none.
      official_zero_norm: see there.
      stagger: every matrix has its own turn within the T steps, so that no step is slow; they start
        from random orthonormal bases.
      key: seed or PRNG key of random bases; None for 0. A leaf's depends on its path and the
        refresh only.
      draw: what stands in for the basis: ``draw(path, side, shape, refresh)`` returns it, (*batch,
        side, r), or indices of columns, rows or entries; it may be traced.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      stored_as: dtype of a stored P, float32 for 16-bit parameters if None; or a codec such as
        ``optkit.codecs.AffineCodec(4, packed=True)``, whose blocks then lie along each matrix's P.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.
      lazy: which matrices are refreshed less often, and when, for "svd" and "randomized_svd"; None
        for all of them every ``refresh_every`` steps.
      basis_optimizer: a whole optimizer for "online" bases, with its learning rate; AdamW with rate
        ``1/refresh_every`` and decay 0.01 if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: of each array that
      ``inner`` keeps like a matrix ``4*r*max(A, B)`` remain; a stored P has ``4*r*min(A, B)``, or
      what its codec takes; "feedback" keeps 4 per parameter; ``lazy`` 8 and 4 a cosine for each
      matrix, and with a codec ``4*min(A, B)``; "online" what its optimizer keeps of P.

    Raises:
      ValueError: an option out of range or that contradicts another, and at init a rank above a
        matrix's side (names the leaf).
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.descend(optkit.low_rank(optkit.scale_by_adam(), 128, scale=0.25), 0.01)
      >>> params = {"up": {"kernel": jnp.ones((512, 1024))}}
      >>> optkit.plan(tx, params).rows[0].state_bytes  # 8 * 128 * 1024 + 4 * 128 * 512
      1310720

    Reference:
      Zhao et al., GaLore, arXiv 2403.03507; Chen et al., Fira, arXiv 2410.01623; Zmushko et al.,
      FRUGAL, arXiv 2411.07837; Robert et al., LDAdam, arXiv 2410.16103; Zhang et al., Q-GaLore,
      arXiv 2407.08296; Liang et al., Online Subspace Descent, arXiv 2408.12857. GaLore's code
      takes a basis of a zero gradient too, and its form for convolutions drops what Adam does to
      them; here they are matrices.
    """
    inner = check_transformation("inner", inner, swapped_with=rank)
    check_number("scale", scale)
    check_number("residual_scale", residual_scale)
    check_number("residual_share", residual_share)
    if growth is not None:
        check_number("growth", growth, low=1.0)
    if residual == "norm_scaled" and (side == "full" or basis == "randk"):
        raise ValueError(
            "residual='norm_scaled' needs one projected side: not side='full' or basis='randk'"
        )
    asked = Subspace(
        rank,
        basis,
        side=side,
        refresh_every=refresh_every,
        stagger=stagger,
        key=key,
        draw=draw,
        dims=dims,
        roles=roles,
        stored_as=stored_as,
        precision=precision,
        group_bytes=group_bytes,
        lazy=lazy,
        basis_optimizer=basis_optimizer,
    )
    rule = residual_rule(
        residual,
        scale=scale,
        residual_scale=residual_scale,
        share=residual_share,
        growth=growth,
        official_zero_norm=official_zero_norm,
    )
    numbers: dict[str, ScalarOrSchedule] = {"scale": scale, "residual_scale": residual_scale}
    if growth is not None:
        numbers["growth"] = growth
    return build(inner, asked, rule, state_on_refresh, numbers)
