"""LDAdam's direction: Adam in a subspace that moves at every step, its moments moving along."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.bases import leading_basis, random_basis, tracked_basis
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import Transformation, branch, check_gradients, map_leaves
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.low_rank.projection import Rank, check_rank, rank_of
from optkit.tree import (
    Dims,
    MatrixLayout,
    MatrixView,
    PyTree,
    RuleLike,
    map_groups,
    upcast,
    zeros_like_params,
)
from optkit.tree.sharding import place_statistic

Tracking = Literal["power_iteration", "svd"]


class ScaleByLdadamState(NamedTuple):
    """State of ``scale_by_ldadam``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    basis: PyTree  # at each leaf (*batch, short side, rank), float32
    mu: PyTree  # (*batch, rank, long side), first moment, float32
    nu: PyTree  # likewise, second moment
    error: PyTree  # like params, what no update has held yet; () without error feedback
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class _Numbers(NamedTuple):
    b1: Any
    b2: Any
    eps: Any
    rho: Any
    done: jax.Array  # finished updates


def _short_first(x: jax.Array, view: MatrixView) -> jax.Array:
    """``(*batch, fan_out, fan_in)`` with the short side first; squares as they are."""
    return x if view.fan_out <= view.fan_in else x.mT


def _step(
    x: jax.Array,
    q: jax.Array,
    m: jax.Array,
    v: jax.Array,
    *,
    numbers: _Numbers,
    tracking: Tracking,
    precision: Any,
) -> tuple[jax.Array, ...]:
    """Direction, what the error loses, basis and moments of gradients with the old error."""
    if x.size == 0:
        return x, x, q, m, v
    product = partial(jnp.matmul, precision=precision)
    b1, b2, eps, rho, count = numbers
    later = count > 0
    old = jnp.maximum(count, 1)
    c1, c2 = debias(b1, old), debias(b2, old)
    held = product(q, m)
    blend = rho * held / c1 + (1.0 - rho) * x

    def follow() -> jax.Array:
        if tracking == "svd":
            return leading_basis(blend, q.shape[-1])
        # A column of zeros would stay one.
        lost = jnp.all(q == 0, axis=-2, keepdims=True)
        return tracked_basis(blend, jnp.where(lost, random_basis(jax.random.key(0), q.shape), q))

    first = lambda: leading_basis(x, q.shape[-1])  # noqa: E731
    p = branch(later, lambda _: follow(), lambda _: first(), later).astype(q.dtype)
    cosines = product(p.mT, q)
    carried = product(cosines, m)
    low = product(p.mT, x)
    back = product(p, low)
    share = b1 / (1.0 - b1)
    taken = back - share * (held - product(p, carried))
    spread = v / c2 - jnp.square(m / c1)
    variance = c2 * (product(jnp.square(cosines), spread) + jnp.square(carried / c1))
    v = jnp.where(later, jnp.abs(variance), v)
    seen = jnp.clip(low, -LARGEST, LARGEST)
    m = b1 * carried + (1.0 - b1) * seen
    v = b2 * v + (1.0 - b2) * jnp.square(seen)
    root = jnp.sqrt(v / debias(b2, count + 1)) + eps
    direction = m / debias(b1, count + 1) / jnp.where(root == 0, 1.0, root)
    return product(p, direction), taken, p, m, v


@register(
    kind="part",
    family="memory",
    paper=(
        "LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics",
        "2410.16103",
        2024,
    ),
    state_bytes={
        "*": StateBytes(
            4,
            lambda rows, columns: (
                (8 * max(rows, columns) + 4 * min(rows, columns)) * min(rows, columns, 1)
            ),
            "8 r max(sides) + 4 r min(sides)",
        )
    },
    tags=("low rank", "adam", "error feedback", "power iteration"),
    chain="P follows blend(m, g), m and v turn with it, Adam on P^T g, the error comes back",
    replicated="moments of projections, of a rank that no axis of the parameter has",
    example={"rank": 1},
    matrices_only=True,
)
def scale_by_ldadam(
    b1: ScalarOrSchedule = 0.908,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    rank: Rank = 16,
    rho: ScalarOrSchedule = 0.908,
    error_feedback: bool = True,
    tracking: Tracking = "power_iteration",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Adam in a low-rank subspace that follows the gradients from step to step.

    For a matrix, with G (short side, long side) and the error E added to it, Q the last basis, t
    the number of finished updates, ``c1 = 1-b1**t`` and ``c2 = 1-b2**t``:

    1. ``B = rho*Q m/c1 + (1-rho)*G``; ``P = orth(B B^T Q)``; at first P from an SVD of G;
    2. ``C = P^T Q``; ``R = P^T G``; ``E <- G - P R + b1/(1-b1)*(Q m - P C m)``;
    3. ``v <- abs(c2*(C**2 (v/c2 - (m/c1)**2) + (C m/c1)**2))``; ``m <- C m``: the statistics in
       the new basis, squares elementwise;
    4. Adam's averages of R, its direction N; ``u = P N``.

    It stands alone because its subspace follows its own momentum.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root.
      rank: directions r; as a float their share of the short side, at least one.
      rho: weight of the momentum in what P follows.
      error_feedback: keep E; without it what P does not span is lost.
      tracking: "power_iteration" as above, or "svd" of B at every step.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State bytes:
      with sides A and B ``8*r*max(A, B) + 4*r*min(A, B)`` per matrix, 4 per parameter for E.

    Raises:
      ValueError: an option out of range, a rank above the short side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_ldadam(rank=1)
      >>> g = {"w": jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, -1.0, 1.0]))}
      >>> u, state = tx.update(g, tx.init(g))
      >>> u["w"].round(3).tolist()  # the one direction there is, and signs of what it carries
      [[0.6..., -0.6..., 0.6...], [0.8..., -0.8..., 0.8...]]

    Reference:
      Robert et al., LDAdam, arXiv 2410.16103. The error lies in the state and not in a buffer of
      gradients. Projected entries beyond 1e15 count as that, since their squares would overflow.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_choice("tracking", tracking, get_args(Tracking))
    check_rank(rank, "svd", "std")
    check_number("rho", rho, low=0.0, high=1.0)
    numbers = {"b1": b1, "b2": b2, "eps": eps, "rho": rho}

    def init_fn(params: PyTree) -> ScaleByLdadamState:
        layout = MatrixLayout(params, dims, roles)
        named = zip(layout.paths, layout.views, strict=True)
        ranks = {view: rank_of(path, view, rank) for path, view in named}
        count = jnp.zeros((), jnp.int32)
        moment = lambda view: (ranks[view], view.matrix_shape[1])  # noqa: E731
        return ScaleByLdadamState(
            count,
            layout.zeros(params, lambda view: (view.matrix_shape[0], ranks[view])),
            layout.zeros(params, moment),
            layout.zeros(params, moment),
            zeros_like_params(params) if error_feedback else (),
            recorded(count, False, **numbers),
        )

    def update_fn(
        updates: PyTree, state: ScaleByLdadamState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleByLdadamState]:
        del extra_args
        check_gradients(updates, params)
        layout = MatrixLayout(updates, dims, roles)
        b, b_, e, r = (value_at(value, state.count) for value in numbers.values())
        now = _Numbers(b, b_, e, r, state.count)
        whole = jax.tree.map(upcast, updates)
        if error_feedback:
            whole = map_leaves(lambda g, e: g + e, whole, state.error)

        def short(tree: PyTree) -> list[jax.Array]:
            return [
                _short_first(x, view)
                for x, view in zip(layout.split(tree, "out"), layout.views, strict=True)
            ]

        def back(matrices: list[jax.Array]) -> PyTree:
            pairs = zip(matrices, layout.views, strict=True)
            return layout.merge([_short_first(x, view) for x, view in pairs], "out")

        grads = short(whole)
        held = [layout.unpack(tree) for tree in (state.basis, state.mu, state.nu)]
        step = partial(_step, numbers=now, tracking=tracking, precision=precision)
        done = map_groups(step, grads, *held, group_bytes=group_bytes)
        columns = [list(column) for column in zip(*done, strict=True)] or [[]] * 5
        out = map_leaves(lambda u, g: u.astype(g.dtype), back(columns[0]), updates)
        error: PyTree = ()
        if error_feedback:
            # Outside of the groups, so that the error stays sharded as it is.
            error = map_leaves(lambda g, taken: g - taken, whole, back(columns[1]))
        basis, mu, nu = (
            layout.pack(list(map(place_statistic, column, grads))) for column in columns[2:]
        )
        new = recorded(state.count, False, **numbers)
        return out, ScaleByLdadamState(state.count + 1, basis, mu, nu, error, new)

    return Transformation(init_fn, update_fn)
