"""APOLLO's direction: an optimizer in a random subspace says how long the gradient should be."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import norm_over
from optkit.transforms.adam import scale_by_adam
from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice, check_number, value_at
from optkit.transforms.low_rank.engine import Rule, Step, build
from optkit.transforms.low_rank.inner import OnRefresh
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.low_rank.residual import scaled_norms
from optkit.transforms.low_rank.subspace import Subspaces
from optkit.tree import Dims, PyTree, RuleLike

Per = Literal["channel", "matrix"]


def _rule(per: Per, eps: ScalarOrSchedule) -> Rule:
    def init(spaces: Subspaces, params: PyTree) -> PyTree:
        del spaces, params
        return ()

    def before(spaces: Subspaces, grads: list[jax.Array], state: PyTree) -> list[jax.Array]:
        del spaces, state
        return grads

    def combine(step: Step, state: PyTree) -> tuple[list[jax.Array], PyTree]:
        small = value_at(eps, step.step)
        if per == "channel":
            factors = scaled_norms(step, small)
        else:
            norms = zip(step.direction, step.low, strict=True)
            factors = [norm_over(n, (-2, -1)) / (norm_over(r, (-2, -1)) + small) for n, r in norms]
        out = [g * jnp.where(jnp.isfinite(s), s, 0.0) for g, s in _pairs(step, factors)]
        return out, state

    return Rule(init, before, combine)


def _pairs(step: Step, factors: list[jax.Array]) -> Any:
    return zip(step.grads, factors, strict=True)


@register(
    kind="part",
    family="memory",
    paper=("APOLLO: SGD-like Memory, AdamW-level Performance", "2412.05270", 2024),
    state_bytes={
        "*": StateBytes(
            0,
            lambda rows, columns: 8 * max(rows, columns) * min(rows, columns, 1),
            "8 r max(sides)",
        )
    },
    tags=("low rank", "apollo", "projection"),
    chain="R = P^T g, N = inner(R), u = g |N_j| / |R_j| by channels",
    example={"rank": 1},
    matrices_only=True,
)
def scale_by_subspace_norm(
    inner: optax.GradientTransformation | None = None,
    rank: Rank = 0.25,
    *,
    per: Per = "channel",
    eps: ScalarOrSchedule = 1e-8,
    refresh_every: int | jax.Array = 200,
    basis: BasisKind = "gaussian",
    side: Side = "std",
    state_on_refresh: OnRefresh = "keep",
    stagger: bool = False,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    stored_as: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Scales the channels of raw gradients as an optimizer would in a small random subspace.

    For a matrix G of A = fan_out by B = fan_in, A at least B (else with sides exchanged):

    1. every ``refresh_every`` steps a new P of shape (B, r), from a key: it is not stored;
    2. ``R = G P``; ``N = inner(R)``;
    3. ``s_j = norm(N_j)/(norm(R_j) + eps)`` of each row, or one of the whole matrix;
    4. ``u = s*G``.

    Args:
      inner: any transformation; None for Adam with eps 1e-6 whose moments are not corrected.
      rank: directions r; as a float their share of the projected side, at least one.
      per: one factor a "channel", an index of the longer side, or a "matrix".
      eps: added to the norm.
      refresh_every: steps between two bases.
      basis: where P comes from, see ``optkit.low_rank``; lengths of R matter in no other way than
        to ``inner``.
      side: which side is projected, see there.
      state_on_refresh: what a new basis does to the inner state, see there.
      stagger: every matrix in its own turn, see there.
      key: seed or PRNG key; None for 0.
      draw: what stands in for the basis, see there.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      stored_as: dtype of a stored P.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State bytes:
      ``4*r*max(A, B)`` for each array that ``inner`` keeps like a matrix, two of them with Adam.

    Raises:
      ValueError: an option out of range, channels of two projected sides, a rank above a matrix's
        side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.scale_by_subspace_norm(optax.scale_by_sign(), 1, basis="columns")
      >>> g = {"w": jnp.array([[2.0, 8.0], [4.0, 8.0]])}  # one input of the two says it all
      >>> tx.update(g, tx.init(g))[0]["w"].round(3).tolist()
      [[1.0, 1.0], [2.0, 1.0]]

    Reference:
      Zhu et al., APOLLO, arXiv 2412.05270.
    """
    if inner is None:
        inner = scale_by_adam(eps=1e-6, debias=False)
    inner = check_transformation("inner", inner, swapped_with=rank)
    check_choice("per", per, get_args(Per))
    check_number("eps", eps, low=0.0)
    if side == "full" or basis == "randk":
        raise ValueError("norms of channels need one projected side: not side='full' or 'randk'")
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
    )
    return build(inner, asked, _rule(per, eps), state_on_refresh, {"eps": eps})
