"""Kahan's compensated sum: 16-bit parameters that lose no step, with 16 bits more each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    map_leaves,
    need_params,
    unzip,
    update_inner,
)
from optkit.tree import PyTree


class KahanState(NamedTuple):
    """State of ``kahan``."""

    compensation: PyTree  # what rounding has withheld from 16-bit parameters, in their dtype
    inner: PyTree  # state of the inner transformation


def _is_low(p: jax.Array) -> bool:
    return jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize == 2


@register(
    kind="wrapper",
    family="precision",
    paper=("Revisiting BFloat16 Training", "2010.06192", 2020),
    state_bytes={"*": 0},
    tags=("mixed precision", "rounding"),
    chain="inner, and what rounding withheld from 16-bit parameters, 2 bytes each",
)
def kahan(inner: optax.GradientTransformation) -> Transformation:
    """Adds steps to 16-bit parameters with Kahan's compensation, so that small ones are not lost.

    1. ``u <- inner(g)``; 2. ``c <- c + u``; 3. ``p' = round(p + c)``; 4. ``c <- c + (p - p')``.

    What rounding withholds waits in ``c`` until it is enough to move the parameter: ``p + c`` is
    about what a float32 parameter would be. Half the bytes of ``optkit.master_weights``, and no
    random numbers as in ``optkit.stochastic_round``. The updates of 16-bit leaves leave in float32,
    as from ``master_weights``; those of others pass.

    Args:
      inner: a whole optimizer (with its learning rate).

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 2 per 16-bit parameter and the
      inner state.

    Raises:
      ValueError: params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, p = optkit.kahan(optax.sgd(1e-3)), jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(p)
      >>> for _ in range(200):
      ...   u, state = tx.update(jnp.ones(1, jnp.bfloat16), state, p)
      ...   p = optax.apply_updates(p, u)
      >>> p.dtype, round(float(p[0]), 2)
      (dtype(bfloat16), 0.8)

    Reference:
      Zamirai et al., Revisiting BFloat16 Training, arXiv 2010.06192; torch-optimi, whose order of
      operations this is.
    """
    inner = check_transformation("inner", inner)

    def init_fn(params: PyTree) -> KahanState:
        held = jax.tree.map(
            lambda p: jnp.zeros_like(p) if _is_low(p) else optax.MaskedNode(), params
        )
        return KahanState(held, inner.init(params))

    def update_fn(
        updates: PyTree, state: KahanState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, KahanState]:
        params = need_params(params, "kahan")
        steps, new = update_inner(inner, updates, state.inner, params, extra_args)

        def add(u: jax.Array, p: jax.Array, held: Any) -> tuple[jax.Array, Any]:
            if not _is_low(p):
                return u, held
            p32 = p.astype(jnp.float32)
            waits = (held.astype(jnp.float32) + u.astype(jnp.float32)).astype(p.dtype)
            moved = (p32 + waits.astype(jnp.float32)).astype(p.dtype).astype(jnp.float32)
            left = (waits.astype(jnp.float32) + (p32 - moved)).astype(p.dtype)
            return moved - p32, left

        structure: Any = jax.tree.structure(params)
        held = structure.flatten_up_to(state.compensation)
        boxed = jax.tree.unflatten(structure, [_Box(x) for x in held])
        mapped = map_leaves(lambda u, p, box: add(u, p, box.value), steps, params, boxed)
        out, left = unzip(params, mapped, 2)
        return out, KahanState(left, new)

    return Transformation(init_fn, update_fn)


class _Box:
    """A leaf that holds a node."""

    def __init__(self, value: Any) -> None:
        self.value = value
