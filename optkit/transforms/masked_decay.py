"""SR-STE's decay: what an N:M mask leaves out is drawn towards zero."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.linalg.sparsity import check_groups
from optkit.transforms.adams import mask_of
from optkit.transforms.base import Transformation, map_updates, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.split import split_matrices
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike


class MaskedDecayState(NamedTuple):
    """State of ``add_masked_decay``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="decay",
    paper=("Learning N:M Fine-grained Structured Sparse Neural Networks", "2102.04010", 2021),
    state_bytes={"*": 0},
    tags=("sparsity", "n:m", "weight decay"),
    chain="g + decay (1 - k) p, k the N:M mask of p",
)
def add_masked_decay(
    decay: ScalarOrSchedule = 2e-4,
    pattern: tuple[int, int] = (2, 4),
    *,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Adds a decay to the gradients of the weights that an N:M mask leaves out.

    For hidden matrices ``g <- g + decay*(1-k)*p``, ``k`` the N:M mask of ``p`` along its inputs as
    ``optkit.linalg.nm_mask`` gives it, anew at every step; other leaves pass. First in a chain, it
    is SR-STE around a model whose forward pass uses ``optkit.decayed_mask(p, 0.0, n, m)``.

    Args:
      decay: coefficient, a number or a schedule, at least 0.
      pattern: N and M: weights kept of a group, and its size.
      dims: see ``optkit.orthogonalize``; says which side of a matrix is its input.
      roles: your own ``(pattern, role)`` rules; they say what is a hidden matrix.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; 0 bytes per parameter.

    Raises:
      ValueError: a negative coefficient, no pattern, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"kernel": jnp.array([[4.0], [1.0], [-2.0], [3.0]])}
      >>> tx = optkit.add_masked_decay(0.5)
      >>> g = {"kernel": jnp.zeros((4, 1))}
      >>> tx.update(g, tx.init(params), params)[0]["kernel"][:, 0].tolist()
      [0.0, 0.5, -1.0, 0.0]

    Reference:
      Zhou et al., arXiv 2102.04010, as the baseline of Progressive Gradient Flow, arXiv 2402.04744.
    """
    check_number("decay", decay, low=0.0)
    if not isinstance(pattern, tuple) or len(pattern) != 2:
        raise ValueError(f"pattern={pattern!r} must be two numbers, (N, M), such as (2, 4)")
    check_groups(*pattern)

    def init_fn(params: PyTree) -> MaskedDecayState:
        del params
        count = jnp.zeros((), jnp.int32)
        return MaskedDecayState(count, recorded(count, decay=decay))

    def update_fn(
        updates: PyTree, state: MaskedDecayState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MaskedDecayState]:
        del extra_args
        params = need_params(params, "add_masked_decay")
        layout = MatrixLayout(params, dims, roles)
        parts = zip(layout.split(params, "kept"), layout.views, strict=True)
        kept = layout.merge([mask_of(x, view, *pattern) for x, view in parts], "kept")
        rate = value_at(decay, state.count)

        def add(g: jax.Array, p: jax.Array, k: jax.Array) -> jax.Array:
            return g + rate * jnp.where(k > 0, 0.0, p)

        out = map_updates(add, updates, params, kept)
        new = recorded(state.count, decay=decay)
        return out, MaskedDecayState(state.count + 1, new)

    return split_matrices(
        Transformation(init_fn, update_fn),
        optax.identity(),
        names=("masked_decay", "passed"),
        dims=dims,
        roles=roles,
    )
