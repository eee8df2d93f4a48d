"""A second moment of each row of a direction, and what its size is afterwards."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import Transformation, check_same_leaves
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.matrix_map import try_factor
from optkit.tree import Dims, MatrixLayout, MatrixView, PyTree, RuleLike, map_groups, upcast
from optkit.tree.costs import Sharding, as_sharding
from optkit.tree.sharding import place_statistic

Rescale = Literal["frobenius", "match_rms", "none"]
Axis = Literal["out", "in", "long", "short"]


class ScaleByRowMomentState(NamedTuple):
    """State of ``scale_by_row_moment``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    moment: PyTree  # float32, (*batch, rows) a matrix leaf, a tuple of them a fused one
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _inverse(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0)


def _factors(mean: jax.Array, moment: jax.Array, eps: Scalar, kept: bool, rms: Scalar) -> jax.Array:
    """What each row is multiplied with, from its present mean square and its second moment.

    The entries of a row have one factor, so that the norms of the matrix before and after follow
    from its row norms: the matrix itself is read once.
    """
    inverse = _inverse(jnp.sqrt(moment) + eps)
    after = jnp.mean(mean * jnp.square(inverse), axis=(-2, -1), keepdims=True)
    wanted = jnp.sqrt(jnp.mean(mean, axis=(-2, -1), keepdims=True)) if kept else rms
    return inverse * (wanted * _inverse(jnp.sqrt(after)))


def _of_outputs(view: MatrixView, axis: Axis) -> bool:
    """Tells whether it is the outputs that have one number each, and not the inputs."""
    if axis in ("out", "in"):
        return axis == "out"
    return (axis == "long") == (view.fan_out >= view.fan_in)


def _summed(view: MatrixView, axis: Axis) -> int:
    """The axis of ``(*batch, short, long)`` that is summed over."""
    return -1 if _of_outputs(view, axis) == view.out_first else -2


@register(
    kind="part",
    family="accumulator",
    paper=("NorMuon: Making Muon more efficient and scalable", "2510.05491", 2025),
    state_bytes={"*": StateBytes(0, lambda fan_out, fan_in: 4 * fan_out, "4 a row")},
    tags=("muon", "normuon", "second moment"),
    chain="v_i <- b2 v_i + (1-b2) mean_j u_ij^2 -> u_i / sqrt(v_i), norm restored",
    matrices_only=True,
)
def scale_by_row_moment(
    b2: ScalarOrSchedule = 0.95,
    *,
    axis: Axis = "out",
    eps: ScalarOrSchedule = 1e-10,
    rescale: Rescale = "frobenius",
    update_rms: float = 0.2,
    factor: Callable[[jax.Array], jax.Array] | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Divides each row of a direction by the root of its second moment, one number a neuron.

    For each matrix, rows being outputs (``axis="out"``):

    1. ``u <- factor(u)``; ``s_i = mean_j u_ij**2``; ``v_i <- b2*v_i + (1-b2)*s_i``;
    2. ``x_ij = u_ij / (sqrt(v_i) + eps)``;
    3. ``"frobenius"``: ``u = x * norm(u)/norm(x)``, so that the update is as long as it was;
       ``"match_rms"``: ``u = x * update_rms*sqrt(fan_out*fan_in)/norm(x)``; ``"none"``: ``u = x``.

    The norms are those of whole matrices, also where these are sharded, and of each matrix of a
    stack by itself. ``v`` starts at 0 and is not debiased: step 3 cancels any factor that all rows
    share. Meant behind ``optkit.orthogonalize``, whose entries are at most about 1: entries beyond
    1e+15 are cut off there, and squares below 1e-38 are lost.

    Args:
      b2: decay rate of the moment, in [0, 1).
      axis: what has one number each: "out" (rows, one neuron), "in" (columns), or the "long" or
        the "short" side of the matrix, of which a square one's rows are the long one.
      eps: added to the root.
      rescale: see above.
      update_rms: root mean square of the result of "match_rms".
      factor: function of ``(..., m, n)`` arrays that each matrix, or its transpose, goes through
        first; None for none. What ``optkit.orthogonalize`` does as a link in front, it does without
        a second pass over the matrices.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices that keeps the dtype of the
      updates. State bytes: one float32 number per row (or what ``axis`` says).

    Raises:
      ValueError: an option out of range or unknown, or a leaf that is no matrix.
      TypeError: ``factor`` is no function.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_row_moment()
      >>> updates = {"w": jnp.array([[3.0, 0.0], [4.0, 0.5]])}
      >>> u, state = tx.update(updates, tx.init(updates))
      >>> jnp.linalg.norm(u["w"], axis=0).round(3).tolist(), state.moment["w"].shape
      ([3.553..., 3.553...], (2,))

    Reference:
      Li et al., NorMuon, arXiv 2510.05491. microsoft/dion restores the norm of each shard of a
      row-sharded matrix by itself; our result does not depend on the sharding.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_number("update_rms", update_rms, low=0.0)
    check_choice("axis", axis, get_args(Axis))
    check_choice("rescale", rescale, get_args(Rescale))
    spread = as_sharding(sharding)
    if factor is not None:
        if not callable(factor):
            raise TypeError(f"factor={factor!r} must be a function of (..., m, n) arrays, or None")
        try_factor(factor)

    def init_fn(params: PyTree) -> ScaleByRowMomentState:
        layout = MatrixLayout(params, dims, roles)

        def shape_of(view: MatrixView) -> tuple[int, ...]:
            return (view.fan_out if _of_outputs(view, axis) else view.fan_in,)

        count = jnp.zeros((), jnp.int32)
        moment = layout.zeros(params, shape_of)
        return ScaleByRowMomentState(count, moment, recorded(count, b2=b2, eps=eps))

    def update_fn(
        updates: PyTree,
        state: ScaleByRowMomentState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByRowMomentState]:
        del params, extra_args
        layout = MatrixLayout(updates, dims, roles)
        decay, e = value_at(b2, state.count), value_at(eps, state.count)

        def step(u: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = u if factor is None else factor(u).astype(u.dtype)
            x = jnp.clip(x, -LARGEST, LARGEST)
            # The axis of v that has size 1; both may, and a sum over one entry changes nothing.
            summed = tuple(a for a in (-2, -1) if v.shape[a] == 1)
            mean = jnp.mean(jnp.square(x), axis=summed, keepdims=True).astype(v.dtype)
            # Sums of rows that lie on several devices are gathered once for all leaves.
            gather = place_statistic if factor is None else lambda rows, matrices: rows
            mean = gather(mean, x)
            new = gather(decay * v + (1.0 - decay) * mean, x)
            if rescale == "none":
                return x * _inverse(jnp.sqrt(new) + e), new
            return x * _factors(mean, new, e, rescale == "frobenius", update_rms), new

        axes = [_summed(view, axis) for view in layout.views]
        matrices = layout.split(jax.tree.map(upcast, updates))
        check_same_leaves(layout.pack(matrices), state.moment, "state")
        moments = layout.unpack(state.moment)
        columns = [jnp.expand_dims(v, a) for v, a in zip(moments, axes, strict=True)]
        # A factor needs whole matrices on single devices; sums of rows travel by themselves.
        move = factor is not None
        done = map_groups(
            step, matrices, columns, group_bytes=group_bytes, sharding=spread, move=move
        )
        new = [
            place_statistic(jnp.squeeze(v, a), x)
            for (_, v), a, x in zip(done, axes, matrices, strict=True)
        ]
        out = layout.merge([x for x, _ in done])
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        record = recorded(state.count, b2=b2, eps=eps)
        return out, ScaleByRowMomentState(state.count + 1, layout.pack(new), record)

    return Transformation(init_fn, update_fn)
