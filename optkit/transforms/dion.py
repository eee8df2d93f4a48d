"""Dion's direction: a low-rank orthonormalised update whose error stays in the momentum."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import safe_sqrt, to_unit_peak, unit_over
from optkit.linalg.subspace import QrMethod, power_iteration
from optkit.transforms.base import Transformation, map_leaves, prng_key
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
    recorded,
    value_at,
)
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
from optkit.tree.costs import Sharding, as_sharding
from optkit.tree.sharding import place_statistic

InitBasis = Callable[[str, tuple[int, ...]], Any]


class ScaleByDionState(NamedTuple):
    """State of ``scale_by_dion``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    basis: PyTree  # at each leaf (*batch, min(fan_in, fan_out), rank), state_dtype
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _input_first(x: jax.Array, view: MatrixView) -> jax.Array:
    """Of a square matrix the input is the short side, however it lies in memory."""
    return x.mT if view.fan_in == view.fan_out and view.out_first else x


def _dion_step(
    x: jax.Array, q: jax.Array, *, eps: float, options: dict[str, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns update, ``P R^T`` and new Q for buffers (..., m, n), m <= n, and Q (..., m, r)."""
    if x.size == 0:
        return x, x, q
    y, peak = to_unit_peak(x)  # in these units squares neither overflow nor vanish
    p, r = power_iteration(y.mT, q, **options)
    norm = safe_sqrt(jnp.sum(r * r, axis=-2, keepdims=True))
    whole = safe_sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True))
    # What is not above the rounding of the buffer is no direction of it. (NaN stays visible.)
    null = norm <= 8.0 * float(jnp.finfo(y.dtype).eps) * whole
    p, r = jnp.where(null, 0.0, p), jnp.where(null, 0.0, r)
    new_q = jnp.where(null, unit_over(q, (-2,)), r / jnp.where(null, 1.0, norm + eps / peak))
    product = lambda left: jnp.matmul(left, p.mT, precision=options["precision"])  # noqa: E731
    return product(new_q), product(r) * peak, new_q


@register(
    kind="part",
    family="accumulator",
    paper=("Dion: Distributed Orthonormalized Updates", "2504.05295", 2025),
    state_bytes={
        "*": StateBytes(4, lambda rows, columns: 4 * min(rows, columns) ** 2, "4 r min(sides)")
    },
    tags=("muon", "low rank", "error feedback", "power iteration"),
    chain="m <- m + g; m ~ P R^T; m <- m - (1-b1) P R^T; u = P Q^T, Q = R of unit columns",
    matrices_only=True,
)
def scale_by_dion(
    b1: ScalarOrSchedule = 0.95,
    *,
    rank_fraction: float | None = None,
    rank_multiple_of: int | None = None,
    rank: int | None = None,
    power_iterations: int | None = None,
    eps: float | None = None,
    qr_method: QrMethod = "cqr",
    key: int | jax.Array | None = None,
    init_basis: InitBasis | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    r"""Replaces matrices by orthonormalised low-rank approximations of their momentum.

    With B the buffer of a matrix, lying with the long side first (fan_out if square), and Q of
    shape (short side, r):

    1. ``B <- B + G``;
    2. ``P = orth(B Q)``; ``R = B^T P``; as often as ``power_iterations`` says, with R for Q;
    3. columns of R that are rounding noise of B (all of them if B is zero) are null: they and
       their columns of P become 0, and keep their column of Q;
    4. ``B <- B - (1-b1) P R^T``: what was found decays, what was not waits in the buffer;
    5. ``Q <- R / (column norm + eps)``; ``u = P Q^T``.

    P has orthonormal columns, Q unit ones: P Q^T is not the polar factor of rank r. With full rank
    ``P R^T = B``, so that B is a heavy ball with decay b1.

    Args:
      b1: what the buffer keeps of the part that was found, the paper's mu, in [0, 1]; 1 is without
        error feedback.
      rank_fraction: r as a share of the short side, in (0, 1]; None for 1.
      rank_multiple_of: rounds r up to a multiple (never above the short side); None for 1.
      rank: r itself, for every matrix, instead of the two.
      power_iterations: None for 1.
      eps: added to the column norms, in units of the gradient (the reference: 1e-8); None divides
        safely at any scale.
      qr_method: how P is found: "qr" (Householder), "cqr" (Cholesky) or "rcqr" (randomized
        Cholesky), see ``optkit.linalg.orthonormalize``; up to rounding all give the same.
      key: seed or PRNG key of the first Q, which is standard normal; it depends on key and path
        only, not on devices or other leaves. None for 0.
      init_basis: the first Q by path and shape (*batch, short side, r) instead; a fused leaf asks
        for each run of equal blocks.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of B and Q; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State
      bytes: 4 per parameter, and 4 r a row of Q, of which a matrix has min(fan_in, fan_out).

    Raises:
      ValueError: an option out of range, ``rank`` beside a fraction, a rank above a matrix's short
        side or an ``init_basis`` of another shape (both name the leaf), or a leaf that is no
        matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_dion(rank=1)
      >>> params = {"w": jnp.outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0, 0.0]))}
      >>> u, _ = tx.update(params, tx.init(params))
      >>> (u["w"].round(3) + 0.0).tolist()
      [[0.0, 0.6..., 0.0], [0.0, 0.8..., 0.0]]

    Reference:
      Ahn et al., Dion, arXiv 2504.05295. Where the reference orthonormalises rounding noise of a
      rank-deficient buffer, we leave null directions alone. The paper's algorithm does not
      transpose wide matrices; its library does, and so do we.
    """
    spread = as_sharding(sharding)
    check_number("b1", b1, low=0.0, high=1.0)
    eps = 0.0 if eps is None else eps
    check_static_number("eps", eps)
    check_number("eps", eps, low=0.0)
    check_choice("qr_method", qr_method, get_args(QrMethod))
    rank_of = _rank_rule(rank_fraction, rank_multiple_of, rank)
    iterations = 1 if power_iterations is None else power_iterations
    check_static_int("power_iterations", iterations)
    options = {"iterations": iterations, "method": qr_method, "precision": precision}

    def first_basis(path: str, part: int, like: jax.Array) -> jax.Array:
        shape, dtype = like.shape, like.dtype
        if init_basis is None:
            own = jax.random.fold_in(prng_key(key), zlib.crc32(path.encode()))
            return jax.random.normal(jax.random.fold_in(own, part), shape).astype(dtype)
        given = jnp.array(init_basis(path, shape), dtype)
        if given.shape != shape:
            raise ValueError(
                f"init_basis gave leaf {path!r} shape {given.shape}; its basis has shape {shape}: "
                "(*batch, short side, rank)"
            )
        return given

    def init_fn(params: PyTree) -> ScaleByDionState:
        layout = MatrixLayout(params, dims, roles)
        ranks = {v: rank_of(path, v) for path, v in zip(layout.paths, layout.views, strict=True)}
        zeros = layout.zeros(params, lambda v: (v.matrix_shape[0], ranks[v]))
        bases = []
        for index, zero in enumerate(layout.unpack(zeros)):
            path = layout.paths[index]
            # A sum, so that the basis lies where the zeros do.
            start = zero + first_basis(path, index - layout.paths.index(path), zero)
            bases.append(start.astype(zero.dtype if state_dtype is None else state_dtype))
        count = jnp.zeros((), jnp.int32)
        momentum = zeros_like_params(params, state_dtype)
        return ScaleByDionState(count, momentum, layout.pack(bases), recorded(count, b1=b1))

    def update_fn(
        updates: PyTree, state: ScaleByDionState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleByDionState]:
        del params, extra_args
        layout = MatrixLayout(updates, dims, roles)
        keep = value_at(b1, state.count)
        drawn = {"key": jax.random.fold_in(jax.random.key(0), state.count)}
        sketch = drawn if qr_method == "rcqr" else {}

        def step(x: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            return _dion_step(x, q, eps=eps, options={**options, **sketch})

        grown = map_leaves(lambda g, m: upcast(m) + upcast(g), updates, state.momentum)
        split = zip(layout.split(grown), layout.views, strict=True)
        buffers = [_input_first(x, view) for x, view in split]
        old = layout.unpack(state.basis)
        done = map_groups(
            step, buffers, list(map(upcast, old)), group_bytes=group_bytes, sharding=spread
        )

        def tree_of(index: int) -> PyTree:
            parts = zip(done, layout.views, strict=True)
            return layout.merge([_input_first(x[index], view) for x, view in parts])

        # Outside of the groups, so that the buffer stays sharded as it is.
        momentum = map_leaves(
            lambda b, found, m: (b - (1.0 - keep) * found).astype(m.dtype),
            grown,
            tree_of(1),
            state.momentum,
        )
        out = map_leaves(lambda u, g: u.astype(g.dtype), tree_of(0), updates)

        triples = zip(done, old, buffers, strict=True)
        basis = layout.pack([place_statistic(x[2].astype(q.dtype), b) for x, q, b in triples])
        new = recorded(state.count, b1=b1)
        return out, ScaleByDionState(state.count + 1, momentum, basis, new)

    return Transformation(init_fn, update_fn)


def _rank_rule(
    fraction: float | None, multiple: int | None, rank: int | None
) -> Callable[[str, MatrixView], int]:
    """Checks how the rank was given and returns the rank of a leaf."""
    if rank is not None:
        if fraction is not None or multiple is not None:
            raise ValueError(
                f"rank={rank!r} says it all: leave out rank_fraction and rank_multiple_of"
            )
        check_static_int("rank", rank)
    share = 1.0 if fraction is None else fraction
    check_static_number("rank_fraction", share)
    check_number("rank_fraction", share, low=0.0, high=1.0)
    if share == 0.0:
        raise ValueError("rank_fraction=0.0 keeps nothing; give a number in (0, 1]")
    step = 1 if multiple is None else multiple
    check_static_int("rank_multiple_of", step)

    def rule(path: str, view: MatrixView) -> int:
        short = view.matrix_shape[0]
        if rank is None:
            return min(step * math.ceil(share * short / step), short)
        if rank > short and short:
            raise ValueError(
                f"leaf {path!r} is read as {view.fan_out} x {view.fan_in} (fan_out x fan_in), "
                f"which has no rank {rank}; give a rank of at most {short}, or rank_fraction"
            )
        return min(rank, short)

    return rule
