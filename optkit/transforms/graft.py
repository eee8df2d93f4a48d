"""Grafting as a wrapper: the way of one method, with the length of another's steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.linalg.norms import norm_over
from optkit.transforms.base import Transformation, check_transformation, update_inner
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.radii import Per, Spheres
from optkit.tree import Dims, PyTree, RuleLike, upcast


class GraftState(NamedTuple):
    """State of ``graft``: those of both methods."""

    direction: PyTree
    magnitude: PyTree


@register(
    kind="wrapper",
    family="step",
    paper=("Disentangling Adaptive Gradient Methods from Learning Rates", "2002.11803", 2020),
    state_bytes={"*": 0},
    tags=("grafting", "norm", "learning rate transfer"),
    chain="inner(g) * norm(magnitude(g))/norm(inner(g)), a leaf or matrix at a time",
)
def graft(
    inner: optax.GradientTransformation,
    magnitude: optax.GradientTransformation | None = None,
    *,
    per: Per = "leaf",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Takes steps in the direction of one method that are as long as another's.

    Both see the same gradients and keep their own states:

    1. ``u = inner(g)``; ``a = magnitude(g)``;
    2. ``u * norm(a)/norm(u)`` for each leaf, or each matrix of stacked layers and experts; 0 where
       u is 0.

    So a learning rate and its schedule that were tuned for the magnitude's method serve a new
    direction. ``optkit.shampoo`` does the same block by block, of directions made from its own
    momentum, which a wrapper of two methods that see the gradient cannot share.

    Args:
      inner: whose way is gone, the direction.
      magnitude: whose length; None for the gradient's own.
      per: norms "leaf" by leaf, or "matrix" by matrix of stacked or fused ones, for trees of
        matrices alone (``optkit.route``).
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps the direction's dtypes. State bytes: those
      of both methods.

    Raises:
      ValueError: ``per`` unknown; at init a leaf that is no matrix where these are asked for.
      TypeError: one of both is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.graft(optax.scale_by_sign(), optax.sgd(0.5))
      >>> u, _ = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init({"w": jnp.zeros(2)}))
      >>> u["w"].round(3).tolist()  # as long as (-1.5, -2)
      [1.7680001258850098, 1.7680001258850098]

    Reference:
      Agarwal et al., Disentangling Adaptive Gradient Methods from Learning Rates, arXiv 2002.11803.
    """
    inner = check_transformation("inner", inner, swapped_with=magnitude)
    given = optax.identity() if magnitude is None else magnitude
    other = check_transformation("magnitude", given)
    check_choice("per", per, get_args(Per))

    def init_fn(params: PyTree) -> GraftState:
        Spheres(params, per, dims, roles)  # to refuse dimension numbers that do not fit
        return GraftState(inner.init(params), other.init(params))

    def update_fn(
        updates: PyTree, state: GraftState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, GraftState]:
        u, first = update_inner(inner, updates, state.direction, params, extra_args)
        a, second = update_inner(other, updates, state.magnitude, params, extra_args)
        spheres = Spheres(updates, per, dims, roles)
        parts = []
        for x, y, axes in zip(spheres.split(u), spheres.split(a), spheres.axes, strict=True):
            short, long = (norm_over(upcast(z), axes) for z in (x, y))
            # Divided first: the quotient of two norms may leave float32.
            unit = upcast(x) / jnp.where(short > 0, short, jnp.inf)
            parts.append((unit * long).astype(x.dtype))
        return spheres.merge(parts), GraftState(first, second)

    return Transformation(init_fn, update_fn)
