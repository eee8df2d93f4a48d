"""Adaptive Braking: momentum that takes less of a gradient the more it points the same way."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.linalg.norms import safe_sqrt, to_unit_peak
from optkit.transforms.base import Transformation, check_same_leaves, map_leaves, unzip
from optkit.transforms.channels import Axes, Channels
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import Dims, PyTree, RuleLike, map_groups, upcast, zeros_like_params

BrakePer = Literal["leaf", "row", "global"]
# Bytes of a stack: only leaves that are slow to compile one by one are worth a copy.
_STACK = 2**19


class AlignmentBrakeState(NamedTuple):
    """State of ``alignment_brake``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    velocity: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _quotient(dot: jax.Array, gg: jax.Array, vv: jax.Array) -> jax.Array:
    below = safe_sqrt(gg) * safe_sqrt(vv)
    return jnp.clip(dot / jnp.where(below > 0, below, 1.0), -1.0, 1.0)


def _cosine(g: jax.Array, v: jax.Array, axes: Axes) -> jax.Array:
    """Cosine of vectors along the axes, which keep size 1; 0 where one of them is 0."""
    a, _ = to_unit_peak(g, axes)
    b, _ = to_unit_peak(v, axes)
    return _quotient(*(jnp.sum(x, axis=axes, keepdims=True) for x in (a * b, a * a, b * b)))


def _global_cosine(grads: PyTree, velocity: PyTree) -> jax.Array:
    """Cosine of two trees."""
    pairs = [
        (upcast(g), upcast(v))
        for g, v in zip(jax.tree.leaves(grads), jax.tree.leaves(velocity), strict=True)
        if g.size
    ]
    if not pairs:
        return jnp.zeros(())
    peaks = [jnp.stack([jnp.max(jnp.abs(x)) for x in side]) for side in zip(*pairs, strict=True)]
    # One exponent for the whole tree: squares of its largest entries neither overflow nor vanish.
    units = [to_unit_peak(peak, (0,))[1][0] for peak in peaks]
    sums = []
    for g, v in pairs:
        a, b = (x / unit for x, unit in zip((g, v), units, strict=True))
        sums.append(jnp.stack([jnp.sum(a * b), jnp.sum(a * a), jnp.sum(b * b)]))
    return _quotient(*jnp.sum(jnp.stack(sums), axis=0))


@register(
    kind="part",
    family="accumulator",
    paper=("Adaptive Braking for Mitigating Gradient Delay", "2007.01397", 2020),
    state_bytes={"*": 4},
    tags=("momentum", "delay", "asynchronous"),
    chain="v <- b1 v + (1 - rho cos(g,v)) g",
)
def alignment_brake(
    b1: ScalarOrSchedule = 0.9,
    *,
    rho: ScalarOrSchedule = 2.0,
    per: BrakePer = "leaf",
    output: Literal["velocity", "gradient"] = "velocity",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Heavy-ball momentum that scales each gradient by how well it agrees with the velocity.

    1. ``a = 1 - rho*cos(g, v)`` with the old ``v``; ``a = 1`` where ``g`` or ``v`` is 0;
    2. ``v <- b1*v + a*g``; ``u = v``, or ``u = a*g`` with ``output="gradient"``.

    With late gradients momentum overshoots: the velocity goes on where the gradients have long
    turned. Those that agree with it are taken in less, those that oppose it more, ``a`` lying in
    ``[1-rho, 1+rho]`` whatever the size of either. ``rho = 0`` is ``optkit.momentum`` of the kind
    "heavy_ball".

    Args:
      b1: decay rate of the velocity, in [0, 1).
      rho: strength, at least 0; above 1 a gradient along the velocity brakes it.
      per: what has one cosine: a "leaf" (of a stack each matrix), a "row" of a matrix (what feeds
        one output; vectors as a whole), or all leaves together ("global").
      output: "velocity", or the scaled "gradient" for an optimizer that follows and keeps a
        momentum of its own, such as ``optkit.scale_by_adam``.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of ``v``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one state_dtype number per parameter.

    Raises:
      ValueError: a number out of range, or an unknown choice.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.alignment_brake(0.5, rho=0.5)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (2.0, 2.0, -2.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(float(u["w"][0]))
      2.0
      2.0
      -2.0

    Reference:
      Venigalla et al., Adaptive Braking for Mitigating Gradient Delay, arXiv 2007.01397. There is
      no public reference code; the paper's ResNets at delays of 32 and more were not trained here.
      On a quadratic with late gradients the largest stable learning rate is several times that of
      plain momentum. On a small MLP the range grows too; that its best loss falls was not seen
      (``tests/transforms/test_alignment_brake.py``). ``rho = 2`` and one cosine a leaf are our
      guesses, and so is ``output="gradient"``.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("rho", rho, low=0.0)
    check_choice("per", per, get_args(BrakePer))
    check_choice("output", output, ("velocity", "gradient"))

    def init_fn(params: PyTree) -> AlignmentBrakeState:
        count = jnp.zeros((), jnp.int32)
        velocity = zeros_like_params(params, state_dtype)
        return AlignmentBrakeState(count, velocity, recorded(count, b1=b1, rho=rho))

    def taken(a: Scalar, decay: Scalar, g: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = decay * upcast(v) + a * upcast(g)
        out = new if output == "velocity" else a * upcast(g)
        return out.astype(g.dtype), new.astype(v.dtype)

    def by_axes(
        axes: Axes, strength: Scalar, decay: Scalar, g: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if not g.size:
            return g, v
        return taken(1.0 - strength * _cosine(g, v, axes), decay, g, v)

    def by_parts(
        updates: PyTree, velocity: PyTree, strength: Scalar, decay: Scalar
    ) -> tuple[PyTree, PyTree]:
        read = Channels(updates, None, dims, roles)
        on = jax.tree.unflatten(jax.tree.structure(updates), read.on)

        def vector(g: jax.Array, v: jax.Array, matrix: bool) -> tuple[jax.Array, jax.Array]:
            axes = tuple(range(g.ndim))
            return (g, v) if matrix else by_axes(axes, strength, decay, g, v)

        pairs = unzip(updates, map_leaves(vector, updates, velocity, on), 2)
        columns = [read.split(tree) for tree in (updates, velocity)]
        done: list[Any] = list(zip(*columns, strict=True))
        kinds: dict[Axes, list[int]] = {}
        for index, (row, matrix) in enumerate(read.axes):
            kinds.setdefault(row if per == "row" else matrix, []).append(index)
        for axes, mine in kinds.items():
            work = functools.partial(by_axes, axes, strength, decay)
            parts = [[column[i] for i in mine] for column in columns]
            results = map_groups(work, *parts, group_bytes=_STACK, move=False)
            for index, result in zip(mine, results, strict=True):
                done[index] = result
        out, new = (read.merge([pair[side] for pair in done], pairs[side]) for side in range(2))
        return out, new

    def update_fn(
        updates: PyTree,
        state: AlignmentBrakeState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AlignmentBrakeState]:
        del params, extra_args
        decay, strength = value_at(b1, state.count), value_at(rho, state.count)
        check_same_leaves(updates, state.velocity, "state", shapes=True)
        if per == "global":
            a = 1.0 - strength * _global_cosine(updates, state.velocity)
            work = functools.partial(taken, a, decay)
            out, new = unzip(updates, map_leaves(work, updates, state.velocity), 2)
        else:
            out, new = by_parts(updates, state.velocity, strength, decay)
        record = recorded(state.count, b1=b1, rho=rho)
        return out, AlignmentBrakeState(state.count + 1, new, record)

    return Transformation(init_fn, update_fn)
