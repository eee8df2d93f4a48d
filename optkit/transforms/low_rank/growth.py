"""The norm-growth limiter of Fira and APOLLO: an update may be little longer than the last one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import norm_over
from optkit.transforms.base import Transformation, check_same_leaves, map_leaves
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, recorded, value_at
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, upcast
from optkit.tree.sharding import place_statistic

_EPS = 1e-8


class LimitNormGrowthState(NamedTuple):
    """State of ``limit_norm_growth``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    norm: PyTree  # float32 (*batch,) at each leaf: norm of the last update, 0 before the first
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def limited(
    u: jax.Array, norm: jax.Array, first: jax.Array, growth: Any, official_zero_norm: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns updates ``(*batch, m, n)`` not much longer than ``norm``, and their norms."""
    if u.size == 0:
        return u, norm
    length = norm_over(u, (-2, -1))[..., 0, 0]
    over = jnp.maximum(length / (norm + _EPS), growth) / growth
    free = first if official_zero_norm else (norm == 0) | (length == 0)
    over = jnp.where(free, 1.0, over)
    new = length / over
    if not official_zero_norm:
        new = jnp.where(length == 0, norm, new)
    return u / over[..., None, None], new


@register(
    kind="part",
    family="memory",
    paper=(
        "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
        "2410.01623",
        2024,
    ),
    state_bytes={"*": StateBytes(0, lambda fan_out, fan_in: 4, "4 a matrix")},
    tags=("clipping", "low rank"),
    chain="l = max(|u| / (q + 1e-8), 1.01) / 1.01, u <- u / l, q <- |u|",
    matrices_only=True,
)
def limit_norm_growth(
    growth: ScalarOrSchedule = 1.01,
    *,
    official_zero_norm: bool = False,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Lets the norm of each matrix's update grow by no more than a factor from step to step.

    With q the norm of the last update of a matrix that was not zero:

    1. ``l = max(norm(u)/(q + 1e-8), growth)/growth``;
    2. ``u <- u/l``; ``q <- norm(u)``.

    The first update passes. So does any update after a zero one, with q kept.

    Args:
      growth: the factor, at least 1.
      official_zero_norm: as the references do it, a zero update sets q to 0: then the next ones are
        cut to 1e-8 and grow by 1% a step, which stops the matrix for some 1,700 steps.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State bytes:
      4 per matrix.

    Raises:
      ValueError: ``growth`` below 1, or a leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.limit_norm_growth(2.0)
      >>> state = tx.init({"w": jnp.ones((1, 1))})
      >>> for size in (1.0, 8.0, 0.0, 8.0):
      ...   u, state = tx.update({"w": jnp.full((1, 1), size)}, state)
      ...   print(round(float(u["w"][0, 0]), 3))
      1.0
      2.0
      0.0
      4.0

    Reference:
      Chen et al., Fira, arXiv 2410.01623. What follows a zero update is ours unless
      ``official_zero_norm``.
    """
    check_number("growth", growth, low=1.0)

    def init_fn(params: PyTree) -> LimitNormGrowthState:
        count = jnp.zeros((), jnp.int32)
        norm = MatrixLayout(params, dims, roles).zeros(params, lambda view: ())
        return LimitNormGrowthState(count, norm, recorded(count, growth=growth))

    def update_fn(
        updates: PyTree,
        state: LimitNormGrowthState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, LimitNormGrowthState]:
        del params, extra_args
        # Norms lie at the leaves: a tree of others has another structure.
        check_same_leaves(updates, state.norm, "state")
        layout = MatrixLayout(updates, dims, roles)
        factor, first = value_at(growth, state.count), state.count == 0
        matrices = layout.split(jax.tree.map(upcast, updates))
        pairs = [
            limited(u, q, first, factor, official_zero_norm)
            for u, q in zip(matrices, layout.unpack(state.norm), strict=True)
        ]
        out = layout.merge([u for u, _ in pairs])
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        norms = [place_statistic(q, u) for u, q in pairs]
        new = recorded(state.count, growth=growth)
        return out, LimitNormGrowthState(state.count + 1, layout.pack(norms), new)

    return Transformation(init_fn, update_fn)
