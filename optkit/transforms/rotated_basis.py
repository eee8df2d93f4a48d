"""Any entry-wise method in the eigenbasis of Shampoo's statistics: what SOAP is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg.eigenbasis import Refresh
from optkit.transforms.base import (
    Transformation,
    branch,
    check_gradients,
    check_transformation,
    keep_dtypes,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.transforms.rotated_steps import (
    Following,
    Options,
    first_bases,
    grown_statistics,
    packed,
    unpacked,
)
from optkit.transforms.rotated_units import (
    FACTOR_ROLES,
    Axes,
    Moments,
    Move,
    check_transport,
    sizes_of,
)
from optkit.transforms.tensor_groups import multiple
from optkit.tree import (
    AxisLayout,
    Dims,
    PyTree,
    RuleLike,
    accumulator_dtype,
    upcast,
)

FirstStep = Literal["skip", "step"]
_LONGEST = 10000


def eigenbasis_bytes(parameter: float) -> StateBytes:
    """State bytes of statistics and bases, and so many per parameter."""
    return StateBytes(
        parameter,
        lambda rows, columns: sum(8 * d * d for d in (rows, columns) if d <= _LONGEST),
        "8 (rows^2 + columns^2)",
    )


class EigenbasisState(NamedTuple):
    """Averages of Gram matrices, and bases: one tree an axis, None where an axis has no factor."""

    statistics: tuple[PyTree, ...]  # (*batch, d, d), float32 for 16-bit parameters
    bases: tuple[PyTree, ...]  # the same shapes, orthonormal columns


class RotatedBasisState(NamedTuple):
    """State of ``in_rotated_basis``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    failures: jax.Array  # int32 scalar, bases that were not finite and left the old ones in place
    kronecker: EigenbasisState
    inner: PyTree  # state of the inner transformation, moments in rotated coordinates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="wrapper",
    family="curvature",
    paper=("SOAP: Improving and Stabilizing Shampoo using Adam", "2409.11321", 2024),
    state_bytes=dict.fromkeys(FACTOR_ROLES, eigenbasis_bytes(0)) | {"*": 0},
    tags=("soap", "shampoo", "kronecker", "eigenbasis", "second order"),
    chain="L, R averages of G G^T, G^T G; Q their eigenvectors; Q_L inner(Q_L^T G Q_R) Q_R^T",
)
def in_rotated_basis(
    inner: optax.GradientTransformation,
    *,
    statistics_decay: ScalarOrSchedule = 0.95,
    refresh_every: int = 10,
    refresh: Refresh = "qr",
    stagger: bool = False,
    first_step: FirstStep = "skip",
    max_precond_dim: int = _LONGEST,
    precondition_1d: bool = False,
    merge_small_dims: bool = False,
    transport: Mapping[str, Move] | None = None,
    axes: Axes = "matrix",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    r"""Runs an entry-wise transformation in the slowly turning eigenbasis of Shampoo's statistics.

    For a matrix G with inputs along rows, ``b`` the statistics' decay and ``n`` the number of the
    update from 1:

    1. ``L <- b*L + (1-b)*G G^T``; ``R <- b*R + (1-b)*G^T G``;
    2. at the first update: Q_L, Q_R the eigenvectors of L, R, by decreasing eigenvalue;
    3. ``N = inner(Q_L^T G Q_R)``, less what is rounding in there; ``u = Q_L N Q_R^T``;
    4. if ``n % refresh_every == 0``, for each side: the columns of Q ordered by decreasing
       ``diag(Q^T L Q)``, then ``Q <- qr(L Q)`` ("qr") or the eigenvectors of L ("eigh"); moments
       of ``inner`` that are averages of gradients are turned into the new coordinates, those of
       squares are ordered like the columns, and not turned.

    Entry-wise methods only, such as ``optkit.scale_by_adam()``, or the parts of Lion: with
    anything that is equivariant under rotations this wrapper changes nothing. Parameters, where
    ``inner`` asks for them, are turned too, so that decoupled weight decay may stand inside.

    Step 4 stands in a branch of the compiled program, which other steps do not pay for; with
    ``stagger`` every factor has its own turn within ``refresh_every`` steps, so that none is slow.
    A step costs ``6*m*n*(m + n)`` operations in products for a matrix. A basis that is not finite
    is dropped, the last good one stays, and ``failures`` counts it; of zero statistics the basis
    stays as it is.

    Hidden matrices, convolutions (inputs as one axis), embeddings and heads have two factors,
    stacked layers and experts their own; norms, biases and scalars go to ``inner`` as they are.

    Args:
      inner: an entry-wise transformation; its moments start in the coordinates of zeros.
      statistics_decay: b, in [0, 1).
      refresh_every: steps from one basis to the next.
      refresh: how a basis follows.
      stagger: see above.
      first_step: "skip": the first gradient makes the basis only, nothing moves and ``inner`` does
        not see it, as SOAP's code does; n counts from the second. Or "step" as above: in its own
        eigenbasis a gradient is diagonal, so that Adam's first step is about a polar factor.
      max_precond_dim: longer axes have no factor and are not turned.
      precondition_1d: vectors have a factor, too.
      merge_small_dims: with ``axes="all"``, neighbouring axes are read as one while their product
        is at most ``max_precond_dim``.
      transport: what happens to a field of the inner state at a refresh, by its name: "rotate",
        "permute" or "keep". Known are mu, m, momentum, trace, exp_avg, buf (rotate) and nu, v,
        nu_max, exp_avg_sq (permute).
      axes: "matrix" as above, or "all" for a factor of every axis of every leaf, whatever its role.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of tensors.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: those of ``inner``
      and 8 d^2 for each axis of d entries: ``8*(fan_in**2 + fan_out**2)`` a matrix. Statistics and
      bases are float32 for 16-bit parameters.

    Raises:
      ValueError: an option out of range; at init a moment of ``inner`` that ``transport`` does not
        tell of, or that is not stored entry by entry (names the leaf).
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.in_rotated_basis(optkit.scale_by_adam(eps=1e-3), first_step="step")
      >>> params = {"w": jnp.outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))}
      >>> u, _ = tx.update(params, tx.init(params))  # of rank 1: one entry in its eigenbasis
      >>> [[round(abs(float(x)), 2) for x in row] for row in u["w"]]
      [[0.0, 0.6], [0.0, 0.8]]

    Reference:
      Vyas et al., SOAP, arXiv 2409.11321, and its code, which turns every axis of at most
      ``max_precond_dim`` entries of any leaf, embeddings too; so do we, but for norms of stacked
      layers. Its moments are turned back and forth at every step, ours when a basis changes. Of
      a turned gradient we take entries below 8 roundings of the largest as 0, which Adam may lift.
    """
    inner = check_transformation("inner", inner)
    check_number("statistics_decay", statistics_decay, low=0.0, high=1.0, open_high=True)
    check_static_int("refresh_every", refresh_every)
    check_static_int("max_precond_dim", max_precond_dim)
    check_choice("refresh", refresh, get_args(Refresh))
    check_choice("first_step", first_step, get_args(FirstStep))
    check_choice("axes", axes, get_args(Axes))
    check_transport(transport)
    if merge_small_dims and axes != "all":
        raise ValueError(
            "merge_small_dims merges the axes of a leaf that is read axis by axis; leaves are read "
            "as matrices here: give axes='all' as well, or leave it out"
        )
    asked = Options(
        max_precond_dim,
        precondition_1d,
        merge_small_dims,
        axes == "all",
        dims,
        tuple(roles),
        precision,
        group_bytes,
    )
    following = Following(refresh_every, refresh, stagger)
    skips = first_step == "skip"

    def init_fn(params: PyTree) -> RotatedBasisState:
        layout, plan = asked.read(params)
        bases, zeros = [], []
        for view, leaf, own in zip(plan.views, layout.leaves(params), plan.axes, strict=True):
            batch = view.batch if view.axes else view.shape[:-1]
            eyes = [jnp.eye(sizes_of(view)[a], dtype=accumulator_dtype(leaf)) for a in own]
            bases.append(tuple(multiple(leaf, batch, eye) for eye in eyes))
            zeros.append(tuple(multiple(leaf, batch, 0.0 * eye) for eye in eyes))
        held = inner.init(params)
        Moments(held, params, plan, transport)  # to refuse what cannot be taken along
        count = jnp.zeros((), jnp.int32)
        return RotatedBasisState(
            count,
            jnp.zeros((), jnp.int32),
            EigenbasisState(packed(layout, plan, zeros), packed(layout, plan, bases)),
            held,
            recorded(count, statistics_decay=statistics_decay),
        )

    def update_fn(
        updates: PyTree, state: RotatedBasisState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RotatedBasisState]:
        check_gradients(updates, params)
        layout, plan = asked.read(updates)
        tensors = layout.split(jax.tree.map(upcast, updates))
        old = unpacked(layout, plan, state.kronecker.statistics)
        basis = unpacked(layout, plan, state.kronecker.bases)
        statistics = grown_statistics(plan, tensors, old, value_at(statistics_decay, state.count))
        first = state.count == 0
        basis, failed = branch(
            first,
            lambda statistics, basis: first_bases(plan, statistics, basis, tensors),
            lambda statistics, basis: (basis, jnp.zeros((), jnp.int32)),
            statistics,
            basis,
        )
        turned = _as_leaves(layout, plan.rotated(tensors, basis, clean=True), updates)
        own = None
        if params is not None:
            wide = layout.split(jax.tree.map(upcast, params))
            own = _as_leaves(layout, plan.rotated(wide, basis), params)
        direction, after = update_inner(inner, turned, state.inner, own, extra_args)
        after = keep_dtypes(after, state.inner)
        parts = layout.split(jax.tree.map(upcast, direction))
        out = _as_leaves(layout, plan.rotated(parts, basis, back=True), direction)
        if skips:
            out = jax.tree.map(lambda u: jnp.where(first, jnp.zeros_like(u), u), out)
            after = jax.tree.map(lambda new, was: jnp.where(first, was, new), after, state.inner)
        n = state.count if skips else state.count + 1
        moments = Moments(after, updates, plan, transport)
        basis, after, lost = following.run(plan, moments, n, tensors, statistics, basis, after)
        new = RotatedBasisState(
            state.count + 1,
            state.failures + failed + lost,
            EigenbasisState(packed(layout, plan, statistics), packed(layout, plan, basis)),
            after,
            recorded(state.count, statistics_decay=statistics_decay),
        )
        return out, new

    return Transformation(init_fn, update_fn)


def _as_leaves(layout: AxisLayout, tensors: list[jax.Array], like: PyTree) -> PyTree:
    """Tensors as the leaves of a tree, in their dtypes."""
    return jax.tree.map(lambda x, u: x.astype(u.dtype), layout.merge(tensors), like)
