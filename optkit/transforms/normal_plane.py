"""One gradient without its component along another: projections onto a normal plane."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.linalg.norms import safe_sqrt, to_unit_peak
from optkit.transforms.base import Transformation, check_same_leaves, map_updates, need_params
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import PyTree, upcast

Scope = Literal["global", "leaf"]


def _sums(g: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(g * unit), jnp.sum(unit * unit)])


def _factor(sums: jax.Array, length: jax.Array, eps: float) -> jax.Array:
    """``<g,r>/max(<r,r>, eps)`` for a reference that was divided by its length."""
    # By roots: the square of a length of 1e-30 is 0.
    below = jnp.maximum(safe_sqrt(sums[1]), math.sqrt(eps) / length)
    below = jnp.where(below > 0, below, 1.0)
    return sums[0] / below / below


def project_away(
    updates: PyTree,
    reference: PyTree,
    *,
    scope: Scope = "global",
    eps: float = 1e-10,
) -> PyTree:
    """Returns a gradient without its component along a reference.

    ``u - k*r`` with ``k = <u,r>/max(<r,r>, eps)``, over all leaves together or leaf by leaf. A step
    along the result changes, to first order, nothing of what ``r`` is the gradient of.

    ODICE adds two gradients of which the second must not undo the first:
    ``g = g_main + g_f + project_away(g_b, g_f)``, before any optimizer.

    Args:
      updates: the gradient ``u``, a tree of arrays.
      reference: ``r``, a tree of the same leaves and shapes.
      scope: "global" takes the inner products over all leaves, "leaf" of each leaf by itself.
      eps: least square of the reference's norm; below it less is taken away. 0 divides safely at
        any scale.

    Returns:
      A tree like ``updates``, dtypes kept; arithmetic in float32. ``updates`` where ``r`` is 0.

    Raises:
      ValueError: an unknown scope, ``eps`` below 0, or a reference of other leaves or shapes.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> along = {"w": jnp.array([2.0, 0.0]), "b": jnp.array([0.0])}
      >>> g = optkit.project_away({"w": jnp.array([3.0, 1.0]), "b": jnp.array([5.0])}, along)
      >>> g["w"].tolist(), g["b"].tolist()
      ([0.0, 1.0], [5.0])

    Reference:
      Mao et al., ODICE, arXiv 2402.00348; maoliyuan/ODICE-Pytorch.
    """
    check_choice("scope", scope, get_args(Scope))
    check_number("eps", eps, low=0.0)
    check_same_leaves(updates, reference, "reference", shapes=True)
    leaves = [
        (upcast(u), upcast(r))
        for u, r in zip(jax.tree.leaves(updates), jax.tree.leaves(reference), strict=True)
        if u.size
    ]
    if not leaves:
        return updates
    peaks = jnp.stack([jnp.max(jnp.abs(r)) for _, r in leaves])
    if scope == "global":
        # One unit for the whole tree: squares neither overflow nor vanish.
        length = to_unit_peak(peaks, (0,))[1][0]
        total = jnp.stack([_sums(u, r / length) for u, r in leaves]).sum(axis=0)
        factors = [_factor(total, length, eps) / length] * len(leaves)
    else:
        lengths = [to_unit_peak(peak[None], (0,))[1][0] for peak in peaks]
        factors = [
            _factor(_sums(u, r / length), length, eps) / length
            for (u, r), length in zip(leaves, lengths, strict=True)
        ]
    given = iter(factors)
    return map_updates(lambda u, r: u - next(given) * r if u.size else u, updates, reference)


@register(
    kind="part",
    family="direction",
    paper=(
        "ODICE: Revealing the Mystery of Distribution Correction Estimation via "
        "Orthogonal-gradient Update",
        "2402.00348",
        2024,
    ),
    state_bytes={"*": 0},
    tags=("odice", "orthograd", "projection"),
    chain="u - r <u,r>/<r,r>",
    example={"of": "params", "scope": "leaf"},
)
def normal_plane(
    of: Literal["reference", "params"] = "reference",
    *,
    scope: Scope = "global",
    eps: float = 1e-10,
) -> Transformation:
    """Projects updates onto the plane normal to another gradient, or to the weights.

    ``u <- u - r*<u,r>/max(<r,r>, eps)``, see ``optkit.project_away``. First in a chain: behind a
    preconditioner the result is perpendicular no more.

    Args:
      of: what ``r`` is: "reference", a gradient that the caller hands over,
        ``tx.update(g, state, params, reference=r)``; or "params": the component that makes weights
        longer goes, whatever the gradient (OrthoGrad's projection, without its rescaling).
      scope: "global" over all leaves together, "leaf" each by itself.
      eps: least square of the norm of ``r``.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes); keeps dtypes.

    Raises:
      ValueError: an unknown choice, ``eps`` below 0, no ``reference`` or params given to update, or
        one of other leaves.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.normal_plane()
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> g, r = {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, 1.0])}
      >>> tx.update(g, state, reference=r)[0]["w"].tolist()
      [1.0, -1.0]

    Reference:
      Mao et al., ODICE, arXiv 2402.00348.
    """
    check_choice("of", of, ("reference", "params"))
    check_choice("scope", scope, get_args(Scope))
    check_number("eps", eps, low=0.0)

    def init_fn(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        reference: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        if of == "params":
            reference = need_params(params, "normal_plane(of='params')")
        elif reference is None:
            raise ValueError(
                "normal_plane needs the gradient to project away from: call "
                "tx.update(grads, state, params, reference=other), or build it with of='params'"
            )
        return project_away(updates, reference, scope=scope, eps=eps), state

    return Transformation(init_fn, update_fn)
