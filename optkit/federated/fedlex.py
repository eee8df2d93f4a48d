"""FedLEx: gradients scaled entry by entry by how far scouts went from a base model."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, map_updates, stateless
from optkit.transforms.hyperparams import check_choice
from optkit.tree import PyTree, leaves_with_paths, upcast, values_by_path


@register(
    kind="part",
    family="federated",
    paper=(
        "Federated Loss Exploration for Improved Convergence on Non-IID Data",
        None,
        2024,
    ),
    state_bytes={"*": 0},
    tags=("federated", "scale", "guidance", "fedlex"),
    chain="g * tree",
    example={"tree": 0.5},
)
def scale_by_tree(tree: PyTree) -> Transformation:
    """Multiplies updates by fixed numbers, entry by entry.

    ``u <- tree*u``, such as by the guidance of FedLEx (``optkit.fold_guidance``), whose clients use
    ``optax.chain(optkit.scale_by_tree(guidance), optax.clip_by_global_norm(1.0),
    optax.adam(3e-4))``. Adam takes a constant factor of an entry out again: there it matters
    through the clip and epsilon only.

    Args:
      tree: numbers, or arrays in the shapes of the updates; at the leaves or anywhere above them.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes); keeps dtypes.

    Raises:
      ValueError: in update, a leaf without a factor, or one of another shape.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_tree({"w": jnp.array([0.0, 2.0])})
      >>> tx.update({"w": jnp.array([3.0, 3.0])}, tx.init(None))[0]["w"].tolist()
      [0.0, 6.0]

    Reference:
      Internò et al., FedLEx, IJCNN 2024, doi 10.1109/IJCNN60899.2024.10651455, and its code.
    """

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        held = values_by_path(updates, tree)
        structure: Any = jax.tree.structure(updates)
        factors = []
        for path, leaf in leaves_with_paths(updates):
            if path not in held:
                raise ValueError(
                    f"tree has no factor for leaf {path!r}: give one there or above it, 1.0 to "
                    "leave it as it is"
                )
            factor = jnp.asarray(held[path])
            if factor.ndim and factor.shape != leaf.shape:
                raise ValueError(
                    f"tree has shape {factor.shape} at leaf {path!r} of shape {leaf.shape}: give "
                    "a number or an array of that shape"
                )
            factors.append(jnp.broadcast_to(factor, leaf.shape))
        return map_updates(lambda u, f: u * f, updates, structure.unflatten(factors))

    return stateless(update)


def fold_guidance(
    scouts: PyTree, base: PyTree, normalization: Literal["minmax", "robust"] = "minmax"
) -> PyTree:
    """Returns FedLEx's guidance: where scouts went far from a base model, gradients count more.

    For each leaf:

    1. ``l = mean_s((w_s - w_base)**2)``;
    2. "minmax": ``G = (l - min(l))/(max(l) - min(l))``; "robust": ``G = (l - median(l))/(q75 -
       q25)``, of an even number of entries the lower of the two in the middle.

    A leaf whose ``l`` has no spread tells nothing apart, and gets 1; the code divides 0 by 0. With
    "minmax" the least entry of each leaf is frozen. With "robust" half the factors are negative, as
    in the code: along these entries a step goes uphill.

    Args:
      scouts: tree of arrays (S, ...), parameters that scouts ended with.
      base: parameters of the base model.
      normalization: see above.

    Returns:
      A tree like ``base`` in float32 or better, for ``optkit.scale_by_tree``.

    Raises:
      ValueError: trees or shapes that differ, or an unknown normalization.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> scouts = {"w": jnp.array([[1.0, 2.0, 3.0], [1.0, -2.0, -3.0]])}
      >>> optkit.fold_guidance(scouts, {"w": jnp.array([0.0, 0.0, 0.0])})["w"].tolist()
      [0.0, 0.375, 1.0]

    Reference:
      Internò et al., FedLEx, IJCNN 2024, doi 10.1109/IJCNN60899.2024.10651455. Low confidence: the
      authors' code returns a placeholder of ones for a client's own mask, so that what it ships
      does not explore as the paper says.
    """
    check_choice("normalization", normalization, ("minmax", "robust"))
    check_same_leaves(base, scouts, "parameters of scouts")
    for (path, mine), theirs in zip(leaves_with_paths(base), jax.tree.leaves(scouts), strict=True):
        if np.shape(theirs)[1:] != np.shape(mine) or np.ndim(theirs) == 0:
            raise ValueError(
                f"scouts has shape {np.shape(theirs)} at leaf {path!r} and base {np.shape(mine)}: "
                "stack the scouts along a leading axis"
            )

    def leaf(ends: jax.Array, start: jax.Array) -> jax.Array:
        far = jnp.mean(jnp.square(upcast(ends) - upcast(start)[None]), axis=0)
        if far.size == 0:
            return far
        if normalization == "minmax":
            low, width = jnp.min(far), jnp.max(far) - jnp.min(far)
        else:
            low = jnp.sort(far.ravel())[(far.size - 1) // 2]
            ends_of_box = jnp.quantile(far, jnp.array([0.25, 0.75], far.dtype))
            width = ends_of_box[1] - ends_of_box[0]
        spread = jnp.where(width == 0, 1.0, width)
        return jnp.where(width == 0, 1.0, (far - low) / spread)

    return jax.tree.map(leaf, scouts, base)
