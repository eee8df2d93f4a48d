"""Dion2's direction: orthogonalise the rows or columns that have waited longest."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.norms import to_unit_peak
from optkit.transforms.base import Transformation, map_leaves
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_number,
    recorded,
    value_at,
)
from optkit.transforms.matrix_map import try_factor
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

Slices = Literal["short", "rows"]


class SelectSubmatrixState(NamedTuple):
    """State of ``select_submatrix``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    row_moment: PyTree  # with normalize_rows (*batch, fan_out) at each leaf, float32; else None
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def choose(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses the rows of largest L1 norm; of equal ones those of lower index.

    Args:
      x: (..., m, n).
      count: how many rows.

    Returns:
      Their indices (..., count) in increasing order; for every row whether it was chosen,
      (..., m), and where it then stands among the chosen.
    """
    y, _ = to_unit_peak(x)
    norms = jnp.sum(jnp.abs(y), axis=-1)
    order = jnp.argsort(-norms, axis=-1)  # stable: among equals the lower index comes first
    chosen = jnp.argsort(order, axis=-1) < count
    place = jnp.maximum(jnp.cumsum(chosen, axis=-1) - 1, 0)
    return jnp.sort(order[..., :count], axis=-1), chosen, place


def rescale_rows(
    x: jax.Array, moment: jax.Array, decay: Scalar, eps: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Divides rows by their root mean square over time, and keeps the Frobenius norm.

    Args:
      x: (..., k, n), of orthogonal factors: their squares are of size 1 at most.
      moment: (..., k), mean squares so far.
      decay: what the moment keeps.
      eps: added to its root.

    Returns:
      Rows and moment.
    """
    mean = jnp.mean(x * x, axis=-1)
    moment = decay * moment + (1.0 - decay) * mean
    below = jnp.sqrt(moment) + eps
    inverse = jnp.where(below > 0, 1.0 / jnp.where(below > 0, below, 1.0), 0.0)
    # A row has one factor, so that the norm afterwards follows from those of the rows.
    after = jnp.sqrt(jnp.sum(mean * inverse * inverse, axis=-1, keepdims=True))
    before = jnp.sqrt(jnp.sum(mean, axis=-1, keepdims=True))
    factor = inverse * before / jnp.where(after > 0, after, 1.0)
    return x * factor[..., None], moment


def _select(
    x: jax.Array,
    *moments: jax.Array,
    fraction: float,
    factor: Callable[[jax.Array], jax.Array],
    kept: Scalar,
    row_rule: Sequence[Scalar],
) -> tuple[jax.Array, jax.Array]:
    """Returns the update, and numbers of rows (..., m, 1 or 2): what the buffer keeps, moments."""
    if x.size == 0:
        rows = [jnp.ones(x.shape[:-1], x.dtype), *moments]
        return x, jnp.stack(rows, axis=-1)
    index, chosen, place = choose(x, max(1, math.ceil(fraction * x.shape[-2])))
    block = factor(jnp.take_along_axis(x, index[..., None], axis=-2)).astype(x.dtype)
    rows = [jnp.where(chosen, kept, 1.0).astype(x.dtype)]
    for moment in moments:
        own = jnp.take_along_axis(moment, index, axis=-1)
        block, own = rescale_rows(block, own, *row_rule)
        rows.append(jnp.where(chosen, jnp.take_along_axis(own, place, axis=-1), moment))
    # Brought back by reading and not by writing, which runs row after row on most devices.
    out = jnp.take_along_axis(block, place[..., None], axis=-2)
    return jnp.where(chosen[..., None], out, 0.0), jnp.stack(rows, axis=-1)


@register(
    kind="part",
    family="accumulator",
    paper=("Dion2: A Simple Method to Shrink Matrix in Muon", "2512.16928", 2025),
    state_bytes={"*": 4},
    tags=("muon", "newton-schulz", "error feedback"),
    chain="m <- m + g; S = rows of largest L1 norm; u_S = NS(m_S); m_S <- ef_decay m_S",
    matrices_only=True,
)
def select_submatrix(
    fraction: float | None = None,
    *,
    ef_decay: ScalarOrSchedule = 0.95,
    slices: Slices = "short",
    normalize_rows: bool = False,
    b2: ScalarOrSchedule = 0.95,
    row_eps: ScalarOrSchedule = 1e-8,
    coefficients: str | Sequence[Sequence[float]] = "polar_express_1p02",
    steps: int | None = None,
    eps: float | None = None,
    method: linalg.Method = "auto",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Orthogonalizes the largest rows or columns of the momentum; all others wait.

    1. ``M <- M + G``;
    2. the k slices of largest L1 norm are chosen, ``k = max(1, ceil(fraction*size))``, of slices
       of equal norm those of lower index;
    3. ``u = NS(M_chosen)`` there, 0 elsewhere;
    4. with ``normalize_rows`` ``v <- b2*v + (1-b2)*mean(u^2)`` for each chosen row,
       ``u <- u/(sqrt(v) + row_eps)``, rescaled to the Frobenius norm that it had;
    5. ``M_chosen <- ef_decay*M_chosen``. Slices that were not chosen do not decay.

    With fraction 1 this is a heavy ball that decays after it was read.

    A sharded matrix is chosen from as a whole, so that any sharding gives the same run; it is moved
    to one device for that, as by ``optkit.orthogonalize``.

    Args:
      fraction: share of the slices in (0, 1]; None for 0.25.
      ef_decay: what the chosen slices keep, in [0, 1].
      slices: "short" for rows where fan_out <= fan_in and else columns (rows index outputs), or
        "rows".
      normalize_rows: step 4; needs ``slices="rows"``.
      b2: decay rate of the row moments, in [0, 1).
      row_eps: added to their roots.
      coefficients: Newton-Schulz coefficients, a name in ``optkit.linalg.COEFFICIENTS`` or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: guards the division by the norm; None divides safely at any scale.
      method: how to orthogonalize the k x n blocks, see ``optkit.orthogonalize``.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of M; float32 for 16-bit parameters if None. That of v is float32.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices; keeps dtypes. State
      bytes: 4 per parameter, and with ``normalize_rows`` 4 a row.

    Raises:
      ValueError: an option out of range or unknown, or a leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.select_submatrix(0.5, method="svd")
      >>> g = {"w": jnp.diag(jnp.array([1.0, 3.0]))}
      >>> u, state = tx.update(g, tx.init(g))
      >>> (u["w"] + 0.0).tolist(), state.momentum["w"].round(2).tolist()
      ([[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.8...]])

    Reference:
      Ahn, Amsel, Langford, Dion2, arXiv 2512.16928; the row moments are those of NorMuon, Li et
      al., arXiv 2510.05491. The reference may choose from each shard by itself ("local"), which
      makes the run depend on the number of devices; that is not offered.
    """
    spread = as_sharding(sharding)
    share = 0.25 if fraction is None else fraction
    check_static_number("fraction", share)
    check_number("fraction", share, low=0.0, high=1.0)
    if share == 0.0:
        raise ValueError("fraction=0.0 chooses nothing; give a number in (0, 1]")
    check_number("ef_decay", ef_decay, low=0.0, high=1.0)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_choice("slices", slices, get_args(Slices))
    if normalize_rows and slices != "rows":
        raise ValueError('normalize_rows=True needs whole rows: give slices="rows"')
    check_number("row_eps", row_eps, low=0.0)
    eps = 0.0 if eps is None else eps
    check_static_number("eps", eps)
    check_number("eps", eps, low=0.0)
    numbers: dict[str, Any] = {"ef_decay": ef_decay, "b2": b2, "row_eps": row_eps}
    given = coefficients if isinstance(coefficients, str) else tuple(map(tuple, coefficients))
    options: dict[str, Any] = {"coefficients": given, "steps": steps, "eps": eps}
    options["compute_dtype"] = dtype
    entry = jnp.bfloat16 if dtype is not None and jnp.dtype(dtype) == jnp.bfloat16 else None

    def factor(x: jax.Array) -> jax.Array:
        return linalg.orthogonal_factor(x.astype(entry or x.dtype), method, **options)

    try_factor(factor)

    def turn(x: jax.Array, view: MatrixView) -> jax.Array:
        """From rows that are outputs to rows that are the slices, and back."""
        return x.mT if slices == "short" and view.fan_out > view.fan_in else x

    def init_fn(params: PyTree) -> SelectSubmatrixState:
        count = jnp.zeros((), jnp.int32)
        rows = None
        if normalize_rows:
            layout = MatrixLayout(params, dims, roles)
            rows = layout.zeros(params, lambda view: (view.fan_out,))
        momentum = zeros_like_params(params, state_dtype)
        return SelectSubmatrixState(count, momentum, rows, recorded(count, **numbers))

    def update_fn(
        updates: PyTree,
        state: SelectSubmatrixState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SelectSubmatrixState]:
        del params, extra_args
        layout = MatrixLayout(updates, dims, roles)
        kept, *rule = (value_at(x, state.count) for x in numbers.values())

        def step(x: jax.Array, *moments: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _select(x, *moments, fraction=share, factor=factor, kept=kept, row_rule=rule)

        grown = map_leaves(lambda g, m: upcast(m) + upcast(g), updates, state.momentum)
        parts = zip(layout.split(grown, "out"), layout.views, strict=True)
        matrices = [turn(x, view) for x, view in parts]
        old = layout.unpack(state.row_moment) if normalize_rows else []
        others = [list(map(upcast, old))] if normalize_rows else []
        done = map_groups(step, matrices, *others, group_bytes=group_bytes, sharding=spread)
        known = [place_statistic(x[1], m) for x, m in zip(done, matrices, strict=True)]

        def tree_of(values: Sequence[jax.Array], like: PyTree) -> PyTree:
            turned = [turn(x, view) for x, view in zip(values, layout.views, strict=True)]
            tree = layout.merge(turned, "out")
            return jax.tree.map(lambda x, other: x.astype(other.dtype), tree, like)

        rows = state.row_moment
        if normalize_rows:
            rows = layout.pack([x[..., 1].astype(v.dtype) for x, v in zip(known, old, strict=True)])
        buffers = [m * x[..., :1] for m, x in zip(matrices, known, strict=True)]
        new = SelectSubmatrixState(
            state.count + 1,
            tree_of(buffers, state.momentum),
            rows,
            recorded(state.count, **numbers),
        )
        return tree_of([x[0] for x in done], updates), new

    return Transformation(init_fn, update_fn)
