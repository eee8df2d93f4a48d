"""A second moment of each entry of a direction, and what its size is afterwards."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.row_moment import Rescale
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, map_groups, upcast, zeros_like_params


class ScaleByEntryMomentState(NamedTuple):
    """State of ``scale_by_entry_moment``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    moment: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _rms(x: jax.Array) -> jax.Array:
    return linalg.frobenius_norm(x) / math.sqrt(math.prod(x.shape[-2:]))


@register(
    kind="part",
    family="accumulator",
    paper=("AdaMuon: Adaptive Muon Optimizer", "2507.11005", 2025),
    state_bytes={"*": 4},
    tags=("muon", "adamuon", "second moment"),
    chain="v <- b2 v + (1-b2) u^2 -> u / sqrt(v), size restored",
    matrices_only=True,
)
def scale_by_entry_moment(
    b2: ScalarOrSchedule = 0.95,
    *,
    eps: ScalarOrSchedule = 1e-8,
    rescale: Rescale = "match_rms",
    update_rms: float = 0.2,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides each entry of a direction by the root of its second moment, and resizes the matrix.

    For each matrix:

    1. ``v <- b2*v + (1-b2)*u**2``; ``x = u / (sqrt(v) + eps)``;
    2. ``"match_rms"``: ``u = x * update_rms*sqrt(fan_out*fan_in)/(norm(x) + eps)``;
       ``"frobenius"``: ``u = x * norm(u)/(norm(x) + eps)``; ``"none"``: ``u = x``.

    ``v`` starts at 0 and is not debiased: step 2 cancels a common factor. Meant behind
    ``optkit.orthogonalize``: entries beyond 1e+15 are cut off there, and squares below 1e-38 are
    lost. Unlike ``optkit.scale_by_adam`` it sees the direction and not the gradient, and keeps no
    first moment. An entry that is 0 but for rounding is lifted towards the others by step 1.

    Args:
      b2: decay rate of the moment, in [0, 1).
      eps: added to the root and to the norm, which is of the order ``sqrt(fan_out*fan_in)``.
      rescale: see above.
      update_rms: root mean square of the result of "match_rms".
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of ``v``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` for trees of matrices that keeps the dtype of the
      updates. State bytes: one number per parameter.

    Raises:
      ValueError: an option out of range or unknown, or a leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_entry_moment()
      >>> u, _ = tx.update({"w": jnp.array([[3.0, -0.1]])}, tx.init({"w": jnp.ones((1, 2))}))
      >>> [round(float(x), 4) for x in u["w"][0]]
      [0.2, -0.2]

    Reference:
      Si et al., AdaMuon, arXiv 2507.11005.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_number("update_rms", update_rms, low=0.0)
    check_choice("rescale", rescale, get_args(Rescale))

    def init_fn(params: PyTree) -> ScaleByEntryMomentState:
        MatrixLayout(params, dims, roles)  # to refuse a leaf that is no matrix
        count = jnp.zeros((), jnp.int32)
        moment = zeros_like_params(params, state_dtype)
        return ScaleByEntryMomentState(count, moment, recorded(count, b2=b2, eps=eps))

    def resized(layout: MatrixLayout, out: PyTree, updates: PyTree, added: Scalar) -> PyTree:
        if rescale == "none":
            return out
        before = layout.split(jax.tree.map(upcast, updates)) if rescale == "frobenius" else None

        def resize(x: jax.Array, *like: jax.Array) -> jax.Array:
            rms = update_rms if before is None else _rms(like[0])
            return linalg.to_rms(x, rms, eps=added)

        others = () if before is None else (before,)
        return layout.merge(map_groups(resize, layout.split(out), *others, move=False))

    def update_fn(
        updates: PyTree,
        state: ScaleByEntryMomentState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByEntryMomentState]:
        del params, extra_args
        decay, e = value_at(b2, state.count), value_at(eps, state.count)

        def step(u: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = upcast(u)
            x = jax.lax.clamp(x.dtype.type(-LARGEST), x, x.dtype.type(LARGEST))
            new = decay * upcast(v) + (1.0 - decay) * jnp.square(x)
            below = jnp.sqrt(new) + e
            if isinstance(e, jax.Array) or e == 0.0:
                below = jnp.where(below > 0, below, 1.0)  # x is 0, or its square is lost
            return x / below, new.astype(v.dtype)

        out, new = unzip(updates, map_leaves(step, updates, state.moment), 2)
        out = resized(MatrixLayout(updates, dims, roles), out, updates, e)
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        record = recorded(state.count, b2=b2, eps=eps)
        return out, ScaleByEntryMomentState(state.count + 1, new, record)

    return Transformation(init_fn, update_fn)
