"""Weights that keep their norm: steps along spheres."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import norm_over
from optkit.linalg.sphere import retract, turn
from optkit.transforms.base import Transformation, check_same_leaves, need_params
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_number,
    recorded,
    value_at,
)
from optkit.transforms.radii import Per, Radius, Spheres, check_alive, check_radius, radii
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import Dims, PyTree, RuleLike, leaves_with_paths, map_groups, upcast

Step = Literal["relative", "given"]
SphereDecay = Literal["decoupled", "cautious", "independent"]
Axes = tuple[int, ...]


class SphereProjectState(NamedTuple):
    """State of ``sphere_project``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    radius: PyTree  # float32, a number a sphere: the leaf's batch shape; None for "current"
    hyperparams: dict[str, jax.Array]  # float32 scalars: learning rate and scheduled values


@dataclass(frozen=True, eq=False)  # compared by identity: it holds traced numbers
class _Move:
    """How the parts of one kind move.

    Attributes:
      axes: axes of one vector, counted from the end.
      rate: the relative step; None for a given one.
      coefficient: share of the weights that decays; None if they do not.
      cautious: only entries decay that the step shrinks.
      eps: lower bound of the norm of the direction.
    """

    axes: tuple[int, ...]
    rate: Scalar | None
    coefficient: Scalar | None
    cautious: bool
    eps: float

    def __call__(self, w: jax.Array, u: jax.Array, *radius: jax.Array) -> jax.Array:
        """Returns ``W' - W`` of a batch of weights; without radii their norms are kept."""
        start = w
        if self.coefficient is not None:
            aligned = jnp.sign(w) * jnp.sign(u) >= 0 if self.cautious else 1.0
            start = w - self.coefficient * (w * aligned)
        kept = jnp.expand_dims(radius[0], self.axes) if radius else norm_over(start, self.axes)
        if self.rate is None:
            target, moves = retract(start, u, kept, self.axes)
        else:
            target, moves = turn(start, u, self.rate, kept, self.axes, self.eps)
        return jnp.where(moves, target, w if radius else start) - w


def _check_step(step: Step, learning_rate: Any, decays: bool) -> None:
    check_choice("step", step, get_args(Step))
    if step == "relative":
        if learning_rate is None:
            raise ValueError(
                "step='relative' needs a learning_rate: sphere_project(0.01); behind a whole "
                "optimizer write sphere_project(step='given')"
            )
        check_number("learning_rate", learning_rate, low=0.0)
    elif learning_rate is not None or decays:
        raise ValueError(
            "step='given' takes the step as it comes: leave out learning_rate and weight_decay, "
            "which belong to the optimizer in front"
        )


@register(
    kind="part",
    family="step",
    paper=(
        "Rethinking Language Model Scaling under Transferable Hypersphere Optimization",
        "2603.28743",
        2026,
    ),
    state_bytes={"*": StateBytes(0, lambda fan_out, fan_in: 4, "4 a matrix")},
    tags=("hypersphere", "muonh", "weight norm"),
    chain="w <- R N(w - lr R N(u))",
    example={"learning_rate": 0.05},
    matrices_only=True,
)
def sphere_project(
    learning_rate: ScalarOrSchedule | None = None,
    *,
    radius: Radius = "init",
    per: Per = "matrix",
    step: Step = "relative",
    eps: float | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: SphereDecay = "decoupled",
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    group_bytes: int | None = None,
) -> Transformation:
    r"""Keeps the norm of every matrix and makes the learning rate an angle; last in a chain.

    With ``N(x) = x/||x||`` (Frobenius) and ``R`` the radius:

    1. ``V = (1 - lr*weight_decay)*W``, by entry or not at all as ``decay`` and ``mask`` say;
    2. ``Y = N(V) - lr*N(u)``; with ``step="given"`` ``Y = V + u``;
    3. ``W' = R*N(Y)``; what is returned is ``W' - W``.

    ``W`` turns by the angle ``t`` with ``tan t = lr*sin(a)/(1 - lr*cos(a))``, where ``a`` is the
    angle between ``W`` and ``u``: by ``atan(lr)`` if they are perpendicular, and never by more than
    ``asin(lr)``. The size of ``u`` is irrelevant, and so is a decay of all entries alike. ``u = 0``
    moves nothing.

    A norm of 0 cannot be kept: init raises if the values are known. While tracing (``jit``,
    ``vmap``, ``eval_shape``) they are not; then such weights stay zero for ever.

    Args:
      learning_rate: the relative step, a number or a schedule; None for ``step="given"``.
      radius: ``"init"`` keeps the norms that the weights have at init, measured once in float32:
        rounding of 16-bit weights cannot add up. ``"current"`` keeps the norm that they have after
        the decay of the step, so that they shrink by it (what the reference's code does). A number
        for all, or a tree of numbers (or a prefix of one).
      per: ``"matrix"`` gives a sphere to each matrix, so that scanned layers, experts and fused
        blocks train as they would apart; ``"leaf"`` one to each leaf of any rank (the reference: an
        expert stack is one vector, within which norm may move from expert to expert).
      step: ``"relative"`` takes a direction that points along the gradient, as in
        ``optax.chain(optax.scale_by_adam(), sphere_project(0.01))``; ``"given"`` a finished step,
        as in ``optax.chain(optax.adam(1e-3), sphere_project(step="given"))``.
      eps: lower bound of ``||u||`` (the reference: 1e-8); None divides safely at any scale.
      weight_decay: coefficient, a number or a schedule; it acts as ``decay`` says.
      decay: ``"decoupled"``: above; ``"cautious"``: only entries with ``W*u >= 0``, which does
        change the direction; ``"independent"``: without the factor ``lr``.
      mask: leaves that decay, see ``optkit.decay_weights``.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      group_bytes: bytes of one stack of leaves of one shape; None for the platform's default.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; arithmetic in float32, updates keep their dtype.
      State bytes: 4 per matrix (or leaf); none with ``"current"``.

    Raises:
      ValueError: an option out of range, a learning rate missing or too many, weights of norm 0 at
        init, params not given to update; with ``per="matrix"`` a leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
      >>> tx = optkit.sphere_project(0.1)
      >>> u, state = tx.update({"w": 1e9 * jnp.ones((2, 2))}, tx.init(params), params)
      >>> float(state.radius["w"]), round(float(jnp.linalg.norm(params["w"] + u["w"])), 5)
      (5.0, 5.0)

    Reference:
      Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization,
      arXiv 2603.28743; Wen et al., Hyperball, arXiv 2606.16899.
    """
    check_choice("per", per, get_args(Per))
    check_choice("decay", decay, get_args(SphereDecay))
    check_number("weight_decay", weight_decay, low=0.0)
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    _check_step(step, learning_rate, decays)
    check_radius(radius)
    floor = 0.0 if eps is None else eps
    check_static_number("eps", floor)
    check_number("eps", floor, low=0.0)
    measured = isinstance(radius, str) and radius == "current"

    def record(count: jax.Array) -> dict[str, jax.Array]:
        out = {} if learning_rate is None else recorded(count, True, learning_rate=learning_rate)
        return out | recorded(count, weight_decay=weight_decay)

    def kinds(spheres: Spheres, params: PyTree) -> dict[tuple[Axes, bool], list[int]]:
        """Parts with entries that one function moves: equal axes, and whether they decay."""
        chosen = decay_mask(mask, params, roles) if decays else None
        named = {} if chosen is None else dict(leaves_with_paths(chosen))
        out: dict[tuple[Axes, bool], list[int]] = {}
        for index, (path, axes) in enumerate(zip(spheres.paths, spheres.axes, strict=True)):
            if spheres.sizes[index]:
                out.setdefault((axes, bool(named.get(path))), []).append(index)
        return out

    def init_fn(params: PyTree) -> SphereProjectState:
        spheres = Spheres(params, per, dims, roles)
        decay_mask(mask, params, roles)  # to refuse a mask that does not fit
        norms = spheres.norms(params)
        check_alive(spheres, norms)
        kept = None if measured else spheres.pack(radii(radius, params, spheres, norms))
        count = jnp.zeros((), jnp.int32)
        return SphereProjectState(count, kept, record(count))

    def update_fn(
        updates: PyTree,
        state: SphereProjectState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SphereProjectState]:
        del extra_args
        params = need_params(params, "sphere_project")
        check_same_leaves(updates, params, "parameters", shapes=True)
        spheres = Spheres(updates, per, dims, roles)
        rate = None if learning_rate is None else value_at(learning_rate, state.count)
        coefficient = value_at(weight_decay, state.count)
        if decay != "independent" and rate is not None:
            coefficient = rate * coefficient
        u, w = (spheres.split(jax.tree.map(upcast, tree)) for tree in (updates, params))
        others = [] if measured else [spheres.unpack(state.radius)]
        out: list[Any] = list(u)
        for (axes, on), mine in kinds(spheres, params).items():
            move = _Move(axes, rate, coefficient if on else None, decay == "cautious", floor)
            columns = ([column[i] for i in mine] for column in (w, u, *others))
            done = map_groups(move, *columns, group_bytes=group_bytes, move=False)
            for index, part in zip(mine, done, strict=True):
                out[index] = part
        moved = jax.tree.map(lambda x, u: x.astype(u.dtype), spheres.merge(out), updates)
        return moved, SphereProjectState(state.count + 1, state.radius, record(state.count))

    return Transformation(init_fn, update_fn)
