"""Weights that keep their norm: steps along spheres."""

from collections.abc import Sequence
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
from optkit.tree import Dims, PyTree, RuleLike, upcast

Step = Literal["relative", "given"]
SphereDecay = Literal["decoupled", "cautious", "independent"]
Axes = tuple[int, ...]


class SphereProjectState(NamedTuple):
    """State of ``sphere_project``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    radius: PyTree  # float32, a number a sphere: the leaf's batch shape; None for "current"
    hyperparams: dict[str, jax.Array]  # float32 scalars: learning rate and scheduled values


def _moved(
    w: jax.Array,
    start: jax.Array,
    u: jax.Array,
    radius: jax.Array | None,
    axes: Axes,
    rate: Scalar | None,
    eps: float,
) -> jax.Array:
    """``W' - W`` of one sphere or a batch of them; ``start`` is ``W`` after its decay."""
    if not u.size:
        return u
    kept = norm_over(start, axes) if radius is None else jnp.expand_dims(radius, sorted(axes))
    if rate is None:
        target, moves = retract(start, u, kept, axes)
    else:
        target, moves = turn(start, u, rate, kept, axes, eps)
    return jnp.where(moves, target, start if radius is None else w) - w


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

    def decayed(updates: PyTree, params: PyTree, rate: Scalar | None, count: jax.Array) -> PyTree:
        if not decays:
            return params
        coefficient = value_at(weight_decay, count)
        if decay != "independent" and rate is not None:
            coefficient = rate * coefficient

        def leaf(w: jax.Array, u: jax.Array, on: bool) -> jax.Array:
            if not on:
                return w
            aligned = jnp.sign(w) * jnp.sign(u) >= 0 if decay == "cautious" else 1.0
            return w - coefficient * (w * aligned)

        return jax.tree.map(leaf, params, updates, decay_mask(mask, params, roles))

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
        u, w = (jax.tree.map(upcast, tree) for tree in (updates, params))
        start = decayed(u, w, rate, state.count)
        held = [None] * len(spheres.axes) if measured else spheres.unpack(state.radius)
        parts = zip(*map(spheres.split, (w, start, u)), held, spheres.axes, strict=True)
        moved = [_moved(w, v, u, r, axes, rate, floor) for w, v, u, r, axes in parts]
        out = spheres.merge(moved)
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        return out, SphereProjectState(state.count + 1, state.radius, record(state.count))

    return Transformation(init_fn, update_fn)
