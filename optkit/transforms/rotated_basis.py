"""Any entry-wise method in the eigenbasis of Shampoo's statistics: what SOAP is made of."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg.eigenbasis import Refresh, eigenbasis
from optkit.linalg.kronecker import tensor_gram
from optkit.transforms.base import (
    Transformation,
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
from optkit.transforms.low_rank.subspace import branch
from optkit.transforms.rotated_units import (
    FACTOR_ROLES,
    Axes,
    Factors,
    Moments,
    Move,
    Plan,
    check_transport,
    refresh_units,
    sizes_of,
)
from optkit.transforms.row_moment import LARGEST
from optkit.transforms.tensor_groups import map_tensors, multiple
from optkit.tree import (
    AxisLayout,
    Dims,
    MatrixFunction,
    PyTree,
    RuleLike,
    accumulator_dtype,
    map_groups,
    merge_dims,
    upcast,
)
from optkit.tree.sharding import place_factor

FirstStep = Literal["skip", "step"]
_BYTES = StateBytes(0, lambda m, n: 8 * (m * m + n * n), "8 (rows^2 + columns^2)")


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


class _Options(NamedTuple):
    """What was asked for, as far as leaves are concerned."""

    max_dim: int
    vectors: bool
    merge: bool
    whole: bool
    dims: Dims
    roles: tuple[RuleLike, ...]
    precision: Any
    group_bytes: int | None

    def read(self, tree: PyTree) -> tuple[AxisLayout, Plan]:
        """How a tree is read, and which axes have factors."""
        merge = functools.partial(merge_dims, limit=self.max_dim, order="first")
        layout = AxisLayout(
            tree, self.dims, self.roles, whole=self.whole, merge=merge if self.merge else None
        )
        axes = []
        for view in layout.views:
            sizes, rank = sizes_of(view), len(view.shape)
            is_vector = rank < 2 or view.stands_alone
            serves = rank > 0 and (self.vectors or not is_vector)
            axes.append(
                tuple(
                    place - len(sizes)
                    for place, size in enumerate(sizes)
                    if serves and size <= self.max_dim
                )
            )
        return layout, Plan(layout.views, tuple(axes), self.precision, self.group_bytes)


def _pack(layout: AxisLayout, plan: Plan, values: Factors) -> tuple[PyTree, ...]:
    """The factors of each leaf as one tree an axis, in the order of the leaf's own axes."""
    placed: list[list[Any]] = []
    for view, axes, own in zip(plan.views, plan.axes, values, strict=True):
        row: list[Any] = [None] * len(sizes_of(view))
        for axis, value in zip(axes, own, strict=True):
            row[axis] = value
        placed.append(row)
    return layout.pack(placed)


def _unpack(layout: AxisLayout, plan: Plan, trees: tuple[PyTree, ...]) -> Factors:
    rows = layout.unpack(trees, [len(sizes_of(view)) for view in plan.views])
    return [tuple(row[a] for a in axes) for row, axes in zip(rows, plan.axes, strict=True)]


def _grown(kind: tuple[int, tuple[int, ...]], *, decay: Any, precision: Any) -> Any:
    rank, axes = kind

    def grow(x: jax.Array, *held: jax.Array) -> tuple[jax.Array, ...]:
        x = jnp.clip(x, -LARGEST, LARGEST)
        return tuple(
            decay * old + (1.0 - decay) * tensor_gram(x, axis, rank, precision=precision)
            for axis, old in zip(axes, held, strict=True)
        )

    return grow


def _statistics(plan: Plan, tensors: list[jax.Array], old: Factors, decay: Any) -> Factors:
    of = plan.chosen
    done = map_tensors(
        functools.partial(_grown, decay=decay, precision=plan.precision),
        [plan.views[i] for i in of],
        [[tensors[i] for i in of]],
        [old[i] for i in of],
        plan.group_bytes,
        idle=lambda _, own: own,
        kinds=[(len(sizes_of(plan.views[i])), plan.axes[i]) for i in of],
    )
    out = list(old)
    for i, own in zip(of, done, strict=True):
        out[i] = tuple(
            place_factor(new.astype(was.dtype), tensors[i])
            for new, was in zip(own, old[i], strict=True)
        )
    return out


def _first_bases(
    plan: Plan, statistics: Factors, old: Factors, tensors: list[jax.Array]
) -> tuple[Factors, jax.Array]:
    """Eigenvectors of the first statistics, and how many of them were not finite."""
    units = plan.units
    seen = [statistics[i][j] for i, j in units]
    work = MatrixFunction(eigenbasis, spread=True)
    done = map_groups(work, seen, group_bytes=plan.group_bytes)
    failed = jnp.zeros((), jnp.int32)
    out = [list(own) for own in old]
    for (i, j), (q, good) in zip(units, done, strict=True):
        out[i][j] = place_factor(q.astype(old[i][j].dtype), tensors[i])
        failed += jnp.sum(~good).astype(jnp.int32)
    return [tuple(own) for own in out], failed


class _Refresh(NamedTuple):
    """How bases are followed."""

    every: int
    method: Refresh
    stagger: bool

    def run(
        self,
        plan: Plan,
        moments: Moments,
        n: jax.Array,
        tensors: list[jax.Array],
        statistics: Factors,
        basis: Factors,
        inner: PyTree,
    ) -> tuple[Factors, PyTree, jax.Array]:
        """The bases and the inner state for the next update, and how many were not finite."""
        leaves, structure = jax.tree.flatten(inner)
        out = [list(own) for own in basis]
        failures = jnp.zeros((), jnp.int32)
        turns = plan.turns(self.every) if self.stagger else [plan.units]
        for turn, units in enumerate(turns):
            if not units:
                continue
            due = (n > 0) & ((n + turn) % self.every == 0)
            touched = {i for i, _ in units}
            held = {k: leaves[k] for k, (i, _) in moments.moves.items() if i in touched}
            own = [out[i][j] for i, j in units]
            seen = [statistics[i][j] for i, j in units]

            def work(
                seen: Any, own: Any, held: Any, units: Any = units
            ) -> tuple[list[jax.Array], dict[int, jax.Array], jax.Array]:
                new, moved, failed = refresh_units(
                    plan, units, self.method, moments, seen, own, held
                )
                placed = [
                    place_factor(q.astype(was.dtype), tensors[i])
                    for q, was, (i, _) in zip(new, own, units, strict=True)
                ]
                return placed, moved, failed

            new, moved, failed = branch(
                due,
                work,
                lambda seen, own, held: (own, held, jnp.zeros((), jnp.int32)),
                seen,
                own,
                held,
            )
            failures += failed
            for (i, j), q in zip(units, new, strict=True):
                out[i][j] = q
            for k, x in moved.items():
                leaves[k] = x
        return [tuple(own) for own in out], jax.tree.unflatten(structure, leaves), failures


@register(
    kind="wrapper",
    family="curvature",
    paper=("SOAP: Improving and Stabilizing Shampoo using Adam", "2409.11321", 2024),
    state_bytes=dict.fromkeys(FACTOR_ROLES, _BYTES) | {"*": 0},
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
    max_precond_dim: int = 10000,
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
    3. ``N = inner(Q_L^T G Q_R)``; ``u = Q_L N Q_R^T``;
    4. if ``n % refresh_every == 0``, for each side: the columns of Q ordered by decreasing
       ``diag(Q^T L Q)``, then ``Q <- qr(L Q)`` ("qr") or the eigenvectors of L ("eigh"); moments
       of ``inner`` that are averages of gradients are turned into the new coordinates, those of
       squares are ordered like the columns, and not turned.

    Entry-wise methods only, such as ``optkit.scale_by_adam()``, or the parts of Lion: with
    anything that is equivariant under rotations this wrapper changes nothing. Parameters, where
    ``inner`` asks for them, are turned too, so that decoupled weight decay may stand inside.

    Step 4 stands in a branch of the compiled program, which other steps do not pay for; with
    ``stagger`` every factor has its own turn within ``refresh_every`` steps, so that none is slow.
    A step costs ``6*m*n*(m + n)`` operations in products, of a square matrix two fifths of what
    ``optkit.muon`` spends. A basis that is not finite is dropped, the last good one stays, and
    ``failures`` counts it; of zero statistics the basis stays as it is.

    Hidden matrices, convolutions (inputs as one axis), embeddings and heads have two factors,
    stacked layers and experts their own; norms, biases and scalars go to ``inner`` as they are.

    Args:
      inner: an entry-wise transformation; its moments start in the coordinates of zeros.
      statistics_decay: b, in [0, 1).
      refresh_every: steps from one basis to the next.
      refresh: how a basis follows.
      stagger: see above.
      first_step: "skip": the first gradient makes the basis only, nothing moves and ``inner`` does
        not see it, as SOAP's code does; n counts from the second. Or "step" as above: but in its
        own eigenbasis a gradient is diagonal, and unless Adam's eps is above the rounding beside
        the diagonal, that becomes entries of unit size.
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
      >>> abs(u["w"]).round(2).tolist()
      [[0.0, 0.6...], [0.0, 0.8...]]

    Reference:
      Vyas et al., SOAP, arXiv 2409.11321, and its code, which turns every axis of at most
      ``max_precond_dim`` entries of any leaf, embeddings too; so do we, but for norms of stacked
      layers. Its moments are turned back and forth at every step, ours when a basis changes.
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
    asked = _Options(
        max_precond_dim,
        precondition_1d,
        merge_small_dims,
        axes == "all",
        dims,
        tuple(roles),
        precision,
        group_bytes,
    )
    following = _Refresh(refresh_every, refresh, stagger)
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
            EigenbasisState(_pack(layout, plan, zeros), _pack(layout, plan, bases)),
            held,
            recorded(count, statistics_decay=statistics_decay),
        )

    def update_fn(
        updates: PyTree, state: RotatedBasisState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, RotatedBasisState]:
        layout, plan = asked.read(updates)
        tensors = layout.split(jax.tree.map(upcast, updates))
        old = _unpack(layout, plan, state.kronecker.statistics)
        basis = _unpack(layout, plan, state.kronecker.bases)
        statistics = _statistics(plan, tensors, old, value_at(statistics_decay, state.count))
        first = state.count == 0
        basis, failed = branch(
            first,
            lambda statistics, basis: _first_bases(plan, statistics, basis, tensors),
            lambda statistics, basis: (basis, jnp.zeros((), jnp.int32)),
            statistics,
            basis,
        )
        turned = _as_leaves(layout, plan.rotated(tensors, basis), updates)
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
            EigenbasisState(_pack(layout, plan, statistics), _pack(layout, plan, basis)),
            after,
            recorded(state.count, statistics_decay=statistics_decay),
        )
        return out, new

    return Transformation(init_fn, update_fn)


def _as_leaves(layout: AxisLayout, tensors: list[jax.Array], like: PyTree) -> PyTree:
    """Tensors as the leaves of a tree, in their dtypes."""
    return jax.tree.map(lambda x, u: x.astype(u.dtype), layout.merge(tensors), like)
