"""Taking the radial component out of updates of weights whose length does not matter."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    check_transformation,
    map_updates,
    need_params,
    update_inner,
)
from optkit.transforms.channels import Axes, Channels, Numbers, projected
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_number, recorded, value_at
from optkit.transforms.precision import in_float32
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import Dims, PyTree, RuleLike, Selector, leaves_with_paths, map_groups
from optkit.tree.selection import check_selects

# Bytes of a stack: only leaves that are slow to compile one by one are worth a copy.
_STACK = 2**19


class ProjectRadialState(NamedTuple):
    """State of ``project_radial``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    inner: PyTree  # state of the inner transformation
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="wrapper",
    family="direction",
    paper=(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "2006.08217",
        2020,
    ),
    state_bytes={"*": 0},
    tags=("adamp", "sgdp", "projection", "scale invariance"),
    chain="u - q <q,u>, q = p/|p|, where <g,p> is about 0",
)
def project_radial(
    inner: optax.GradientTransformation,
    *,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    b1: ScalarOrSchedule = 0.0,
    carry: str | None = None,
    mask: Mask = None,
    leaves: Selector | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Takes the component along the weights out of an update where their length does not matter.

    The gradient of weights that a normalization follows is perpendicular to them. Their update with
    momentum is not: it makes them longer, and the same step turns longer weights less. With the raw
    gradient ``g``, weights ``p`` and ``q = p/(norm(p) + eps)``, for each matrix:

    1. ``u <- inner(g)``;
    2. by channel (all that feeds one output), ``c_i = |<g_i,p_i>|/(norm(g_i)*norm(p_i))``, norms at
       least ``eps``: if ``max_i c_i < delta/sqrt(channel size)``: ``u_i <- u_i - q_i*<q_i,u_i>``;
    3. else by the whole matrix in the same way, with ``delta/sqrt(matrix size)``;
    4. ``u <- u + weight_decay/(1-b1)*r*p``, where ``r = wd_ratio`` if 2 or 3 took place and else 1.

    A gradient of 0, or far below ``eps``, counts as perpendicular. Vectors and scalars pass
    unchanged (``r = 1``). Both views are computed and one is selected; on a mesh only sums of
    channels travel.

    It is a wrapper because the test looks at the raw gradient and the projection at the result.

    Args:
      inner: a direction such as ``optkit.scale_by_adam()``: it points along the gradient, and decay
        and learning rate stand outside.
      delta: bound of the cosine in units of that of random vectors; 0 projects nothing.
      wd_ratio: what is left of the weight decay where the length does not matter, in [0, 1].
      eps: lower bound of the norms, in the units of gradients and weights.
      weight_decay: coefficient, before the learning rate; 0 adds nothing.
      b1: decay rate of a heavy ball inside, whose steps are 1/(1-b1) times as long as the gradients
        are: decay grows alike. 0 for an average.
      carry: field of the inner state that becomes the projected direction, "momentum" for a heavy
        ball without look-ahead: the reference of SGDP projects its buffer in place.
      mask: leaves that decay, see ``optkit.decay_weights``.
      leaves: which leaves are read as matrices; None for embeddings, heads and hidden matrices, or
        where ``dims`` is a tree for those that it names.
      dims: see ``optkit.orthogonalize``. A channel is an output; of an embedding without dimension
        numbers it is a token.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the inner state (no bytes of its own) that
      keeps the dtype of the updates. Every matrix of a stack is tested by itself.

    Raises:
      ValueError: an option out of range, params not given to update, the inner state has no field
        ``carry``, a selector that names no leaf or one that is no matrix.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.project_radial(optax.trace(0.5))
      >>> p, g = {"w": jnp.array([[2.0], [0.0]])}, {"w": jnp.array([[0.0], [1.0]])}
      >>> _, state = tx.update({"w": jnp.array([[4.0], [0.0]])}, tx.init(p), p)
      >>> tx.update(g, state, p)[0]["w"].ravel().tolist()
      [0.0, 1.0]

    Reference:
      Heo et al., AdamP, arXiv 2006.08217. The reference takes axis 0 of any tensor for the channel;
      here it is the output, wherever it lies.
    """
    check_number("delta", delta, low=0.0)
    check_number("wd_ratio", wd_ratio, low=0.0, high=1.0)
    check_number("eps", eps, low=0.0)
    check_number("weight_decay", weight_decay, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    inner = check_transformation("inner", inner)
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(
            count, delta=delta, wd_ratio=wd_ratio, eps=eps, weight_decay=weight_decay, b1=b1
        )

    def init_fn(params: PyTree) -> ProjectRadialState:
        if leaves is not None:
            check_selects("leaves", leaves, params, roles)
        decay_mask(mask, params, roles)  # to refuse a mask that does not fit
        Channels(params, leaves, dims, roles)  # and leaves that are no matrices
        state = inner.init(params)
        if carry is not None and carry not in getattr(state, "_fields", ()):
            raise ValueError(
                f"carry={carry!r}: the inner state, a {type(state).__name__}, has no field of that "
                "name; wrap the accumulator itself, such as optkit.momentum(0.9)"
            )
        count = jnp.zeros((), jnp.int32)
        return ProjectRadialState(count, state, record(count))

    def numbers_at(count: jax.Array) -> Numbers:
        coefficient: Scalar | None = None
        if decays:
            coefficient = value_at(weight_decay, count) / (1.0 - value_at(b1, count))
        bound, left, low = (value_at(value, count) for value in (delta, wd_ratio, eps))
        return Numbers(bound, left, low, coefficient)

    def update_fn(
        updates: PyTree,
        state: ProjectRadialState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ProjectRadialState]:
        params = need_params(params, "project_radial")
        out, new = update_inner(inner, updates, state.inner, params, extra_args)
        check_same_leaves(updates, params, "parameters", shapes=True)
        numbers = numbers_at(state.count)
        read = Channels(updates, leaves, dims, roles)
        on = decay_mask(mask, params, roles) if decays else jax.tree.map(lambda p: False, params)
        decaying = dict(leaves_with_paths(on))
        columns = [read.split(tree) for tree in (params, updates, out)]
        kinds: dict[tuple[Axes, Axes, bool], list[int]] = {}
        for index, (path, axes) in enumerate(zip(read.paths, read.axes, strict=True)):
            kinds.setdefault((*axes, decaying[path]), []).append(index)
        done: list[Any] = list(columns[2])
        for (summed, whole, yes), mine in kinds.items():
            work = functools.partial(projected, summed, whole, numbers, yes, carry is not None)
            parts = [[column[i] for i in mine] for column in columns]
            results = map_groups(work, *parts, group_bytes=_STACK, move=False)
            for index, result in zip(mine, results, strict=True):
                done[index] = result
        if carry is not None:
            bare = read.merge([both[0] for both in done], getattr(new, carry))
            new = new._replace(**{carry: bare})
            done = [both[1] for both in done]
        moved = read.merge(done, _decayed(out, params, on, numbers))
        return moved, ProjectRadialState(state.count + 1, new, record(state.count))

    # Rounded to 16 bits, a step would leave nothing exact to be projected.
    return in_float32(Transformation(init_fn, update_fn))


def _decayed(updates: PyTree, params: PyTree, on: PyTree, numbers: Numbers) -> PyTree:
    """Updates with the plain decay of leaves that are no matrices; others are replaced anyway."""
    coefficient = numbers.coefficient
    if coefficient is None:
        return updates
    return jax.tree.map(
        lambda u, p, yes: map_updates(lambda u, p: u + coefficient * p, u, p) if yes else u,
        updates,
        params,
        on,
    )
