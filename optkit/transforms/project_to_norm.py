"""Weights scaled back to their norm after each step of any optimizer."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import norm_over
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    check_transformation,
    need_params,
    update_inner,
)
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.transforms.partial_update import only
from optkit.transforms.precision import MasterWeightsState, StochasticRoundState, in_float32
from optkit.transforms.radii import Per, Radius, Spheres, check_alive, check_radius, radii
from optkit.transforms.sphere import SphereProjectState
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    RuleLike,
    Selector,
    leaves_with_paths,
    map_groups,
    selects,
    upcast,
)
from optkit.tree.selection import check_selects

# Bytes of a stack: only leaves that are slow to compile one by one are worth a copy.
_STACK = 2**19
_SCALARS = StateBytes(0, lambda fan_out, fan_in: 4, "4 a matrix")


class ProjectToNormState(NamedTuple):
    """State of ``project_to_norm``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the inner transformation
    radius: PyTree  # float32, a number a sphere: the leaf's batch shape; masked nodes elsewhere
    joint: dict[str, jax.Array]  # module -> float32, norm of its scale and offset: leading axes


def _check_inside(state: PyTree) -> None:
    """Raises ValueError if what is inside has to stand outside, or holds norms itself."""
    kinds = (ProjectToNormState, SphereProjectState, MasterWeightsState, StochasticRoundState)
    is_it = lambda x: isinstance(x, kinds)  # noqa: E731
    for found in jax.tree.leaves(state, is_leaf=is_it):
        if isinstance(found, ProjectToNormState | SphereProjectState):
            raise ValueError(
                f"project_to_norm around a {type(found).__name__}: two projections would undo each "
                "other's step; keep one, or route each to leaves of its own with optkit.route"
            )
        if is_it(found):
            raise ValueError(
                f"project_to_norm around a {type(found).__name__}: 16-bit rounding comes "
                "last, or the projection rounds again; put that wrapper around this one"
            )


def _rescale(
    axes: tuple[int, ...],
    due: jax.Array | bool,
    w: jax.Array,
    u: jax.Array,
    radius: jax.Array,
    norm: jax.Array | None = None,
) -> jax.Array:
    """The step that leads to the radius; where there is no direction, the step that was given."""
    after = w + u
    norm = norm_over(after, axes) if norm is None else norm
    there = radius / jnp.where(norm > 0, norm, 1.0) * after - w
    return jnp.where((norm > 0) & due, there, u)


class _Groups:
    """Vectors of one module that are projected together: by module, paths of the leaves."""

    def __init__(self, tree: PyTree, chosen: Selector | None, roles: Sequence[RuleLike]) -> None:
        self.leaves = dict(leaves_with_paths(tree))
        self.members: dict[str, list[str]] = {}
        for path, leaf in self.leaves.items():
            if chosen is not None and selects(chosen, path, leaf, roles):
                self.members.setdefault(path.rpartition("/")[0], []).append(path)
        for name, paths in self.members.items():
            leading = {path: jnp.shape(self.leaves[path])[:-1] for path in paths}
            if len(set(leading.values())) > 1 or any(not jnp.ndim(self.leaves[p]) for p in paths):
                shapes = ", ".join(f"{p!r} {jnp.shape(self.leaves[p])}" for p in paths)
                raise ValueError(
                    f"joint: the leaves of module {name!r} are no vectors of equal leading axes: "
                    f"{shapes}; name scales and offsets of normalizations only"
                )

    def norms(self, vectors: Mapping[str, jax.Array] | None = None) -> dict[str, jax.Array]:
        """Returns the norm of each module's vectors taken as one, float32 and of leading axes."""
        given = self.leaves if vectors is None else vectors
        out = {}
        for name, paths in self.members.items():
            each = [norm_over(upcast(given[path]), (-1,)) for path in paths]
            out[name] = norm_over(jnp.concatenate(each, -1), (-1,))[..., 0]
        return out

    def project(
        self, out: PyTree, radius: Mapping[str, jax.Array], due: jax.Array | bool
    ) -> PyTree:
        """Returns updates with those of the modules' vectors projected."""
        steps = dict(leaves_with_paths(out))
        after = {
            path: upcast(self.leaves[path]) + upcast(steps[path])
            for paths in self.members.values()
            for path in paths
        }
        for name, norm in self.norms(after).items():
            for path in self.members[name]:
                w, u = upcast(self.leaves[path]), upcast(steps[path])
                ends = (x[..., None] for x in (radius[name], norm))
                steps[path] = _rescale((-1,), due, w, u, *ends).astype(steps[path].dtype)
        return jax.tree.unflatten(jax.tree.structure(out), list(steps.values()))


@register(
    kind="wrapper",
    family="step",
    paper=(
        "Normalization and effective learning rates in reinforcement learning",
        "2407.01800",
        2024,
    ),
    state_bytes={**dict.fromkeys(MATRIX_ROLES, _SCALARS), "*": 0},
    tags=("nap", "weight norm", "plasticity"),
    chain="inner, then p <- rho p/|p|",
)
def project_to_norm(
    inner: optax.GradientTransformation,
    *,
    radius: Radius = "init",
    every: int = 1,
    leaves: Selector = MATRIX_ROLES,
    per: Per = "matrix",
    joint: Selector | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Scales weights back to the norm they had at init, after each step of a whole optimizer.

    1. ``u <- inner(g)``, decay and learning rate included; ``y = p + u``;
    2. in every ``every``-th step ``p <- rho*y/norm(y)``, else ``p <- y``; ``rho = norm(p_0)``, by
       matrix in float32; what is returned is the step from ``p``.

    Behind a normalization the length of weights only divides their learning rate; held constant, it
    leaves the schedule alone to say what the learning rate is. A sum ``y`` of 0 has no direction
    and stays. Unlike ``optkit.sphere_project(step="given")``, a link for trees of matrices that
    projects at every step, it wraps whole optimizers of any tree and chooses its leaves.

    It is a wrapper because the projection has to be last: what a link behind it added would change
    the norm again.

    Args:
      inner: a whole optimizer, such as ``optkit.adamw(1e-3)``.
      radius: ``"init"``, a number for all, or a tree of numbers, see ``optkit.sphere_project``.
      every: steps from one projection to the next; the paper found 1 and 1000 alike.
      leaves: which leaves are projected: by default hidden matrices, and not the head, whose scale
        matters, nor embeddings.
      per: ``"matrix"``: each of a stack, of experts or fused heads has its own norm; ``"leaf"``: a
        leaf of any rank has one.
      joint: scales and offsets of normalizations, such as ``"norm"`` for the role: those of one
        module (its path up to the last part) are scaled by one factor to their joint norm at init,
        ``sqrt(width)`` for scales of 1. Meant for homogeneous activations; None for none.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      4 per projected matrix (or leaf, or module) beside the inner state.

    Raises:
      ValueError: an option out of range, ``radius="current"``, params not given to update, weights
        of norm 0 at init, a selector that names no leaf, or inside it another projection,
        ``master_weights`` or ``stochastic_round``, which belong outside.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"w": jnp.array([[3.0, 4.0]])}
      >>> tx = optkit.project_to_norm(optax.sgd(1.0))
      >>> u, _ = tx.update({"w": jnp.array([[3.0, 0.0]])}, tx.init(params), params)
      >>> (params["w"] + u["w"]).round(4).tolist()
      [[0.0, 5.0]]

    Reference:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, arXiv
      2407.01800. There is no public reference code. Its claim that networks stay plastic holds in
      part: an MLP of two normalized layers goes on learning random labels that are drawn anew (slow
      test in ``tests/transforms/test_project_to_norm.py``). In
      ``python -m benchmarks.claims plasticity`` AdamW learns the last of 25 such tasks better with
      it, 1.750 against 1.900 in the online loss of the last quarter; yet that grows from the first
      one, by 0.180 instead of 0.305.
    """
    check_choice("per", per, get_args(Per))
    check_static_int("every", every)
    check_radius(radius)
    if isinstance(radius, str) and radius == "current":
        raise ValueError("radius='current' projects nothing: give 'init', a number, or a tree")
    inner = check_transformation("inner", inner)

    def chosen(tree: PyTree) -> list[bool]:
        return [selects(leaves, path, leaf, roles) for path, leaf in leaves_with_paths(tree)]

    def init_fn(params: PyTree) -> ProjectToNormState:
        on = chosen(params)
        if joint is not None:
            check_selects("joint", joint, params, roles)
        if leaves is not MATRIX_ROLES:
            check_selects("leaves", leaves, params, roles)
        part = only(params, on)
        spheres = Spheres(part, per, dims, roles)
        norms = spheres.norms(part)
        check_alive(spheres, norms)
        kept = spheres.pack(radii(radius, part, spheres, norms))
        state = inner.init(params)
        _check_inside(state)
        held = _Groups(params, joint, roles).norms()
        return ProjectToNormState(jnp.zeros((), jnp.int32), state, kept, held)

    def projected(
        params: PyTree, out: PyTree, radius: PyTree, on: list[bool], due: jax.Array | bool
    ) -> PyTree:
        """Returns the steps of the chosen leaves, float32; masked nodes elsewhere."""
        spheres = Spheres(only(out, on), per, dims, roles)
        w, u = (spheres.split(jax.tree.map(upcast, only(tree, on))) for tree in (params, out))
        held = [
            jnp.expand_dims(r, axes)
            for r, axes in zip(spheres.unpack(radius), spheres.axes, strict=True)
        ]
        kinds: dict[tuple[int, ...], list[int]] = {}
        for index, axes in enumerate(spheres.axes):
            if spheres.sizes[index]:
                kinds.setdefault(axes, []).append(index)
        moved = list(u)
        for axes, mine in kinds.items():
            columns = ([column[i] for i in mine] for column in (w, u, held))
            work = functools.partial(_rescale, axes, due)
            done = map_groups(work, *columns, group_bytes=_STACK, move=False)
            for index, part in zip(mine, done, strict=True):
                moved[index] = part
        return spheres.merge(moved)

    def update_fn(
        updates: PyTree,
        state: ProjectToNormState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ProjectToNormState]:
        params = need_params(params, "project_to_norm")
        out, new = update_inner(inner, updates, state.inner, params, extra_args)
        check_same_leaves(out, params, "parameters", shapes=True)
        count = state.count + 1
        due = True if every == 1 else count % every == 0
        on = chosen(params)
        some = iter(jax.tree.leaves(projected(params, out, state.radius, on, due)))
        leaves_now = jax.tree.leaves(out)
        moved = jax.tree.unflatten(
            jax.tree.structure(out),
            [
                next(some).astype(u.dtype) if yes else u
                for u, yes in zip(leaves_now, on, strict=True)
            ],
        )
        if joint is not None:
            moved = _Groups(params, joint, roles).project(moved, state.joint, due)
        return moved, ProjectToNormState(count, new, state.radius, state.joint)

    # Rounded to 16 bits, a step would leave nothing exact to be projected.
    return in_float32(Transformation(init_fn, update_fn))
