"""Orthogonal factors of matrices whose columns lie on several devices: one sum of Gram matrices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.coefficients import Coefficients, as_coefficient_set
from optkit.linalg.gram import gram_factor
from optkit.linalg.normalise import EpsMode
from optkit.linalg.norms import (
    accumulation_dtype,
    power_of_two_below,
    safe_sqrt,
)
from optkit.linalg.resets import default_resets

Axes = str | Sequence[str]


def can_split(
    coefficients: Coefficients, steps: int | None, resets: Sequence[int] | None = None
) -> bool:
    """Tells whether ``split_factor`` is exact enough: in float32 the rows need no reset.

    Args:
      coefficients: as in `newton_schulz`.
      steps: as in `newton_schulz`.
      resets: resets asked for; any rule it out.

    Returns:
      Whether it is.

    Example:
      >>> can_split("jordan", None), can_split("polar_express", None)
      (True, False)
    """
    rows = as_coefficient_set(coefficients).expand(steps)
    return not resets and default_resets(rows, jnp.float32) == ()


def split_factor(
    x: jax.Array,
    axis_name: Axes,
    coefficients: Coefficients = "jordan",
    steps: int | None = None,
    *,
    eps: float = 0.0,
    eps_mode: EpsMode = "add",
    margin: float | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Newton-Schulz factor of X = [X_1 ... X_d], each block of columns on one device.

    To be called inside ``jax.shard_map`` (or any function mapped over a named axis), where x is
    this device's block:

    1. ``G = sum_i X_i X_i^T``, the only sum over devices beside that of a largest entry;
    2. with ``R = G / (margin * sqrt(trace G) + eps)^2``, ``Q = I``; for each row (a, b, c):
       ``W = a I + b R + c R^2``, ``Q <- W Q``, ``R <- W R W``, in float32;
    3. ``Q X_i / (margin * sqrt(trace G) + eps)``.

    With at least as many matrices as devices each device does step 2 for its share of them and
    gathers the others' Q; with fewer all do all. The result is that of `newton_schulz` up to
    rounding; m may be the longer side.

    Args:
      x: (k, m, n / devices) floating point, this device's columns.
      axis_name: name of the mapped axis, or several.
      coefficients: as in `newton_schulz`, without preconditioning of their own.
      steps: as in `newton_schulz`.
      eps: as in `newton_schulz`.
      eps_mode: as in `newton_schulz`.
      margin: as in `newton_schulz`.
      precision: as in `newton_schulz`.

    Returns:
      This device's columns of the factors, of the shape and dtype of x.

    Example:
      >>> x = jnp.arange(12.0).reshape(1, 2, 6) - 5
      >>> blocks = jnp.stack(jnp.split(x, 3, axis=-1))
      >>> out = jax.vmap(lambda b: split_factor(b, "d"), axis_name="d")(blocks)
      >>> from optkit.linalg import newton_schulz
      >>> bool(jnp.allclose(jnp.concatenate(out, -1), newton_schulz(x), atol=1e-4))
      True
    """
    chosen = as_coefficient_set(coefficients)
    rows = chosen.expand(steps)
    wide = accumulation_dtype(x.dtype)
    # A power of two: x / peak has the digits of x.
    peak = power_of_two_below(
        lax.pmax(jnp.max(jnp.abs(x.astype(wide)), (-2, -1), keepdims=True), axis_name)
    )
    narrow = (x.astype(wide) / peak).astype(x.dtype)
    gram = jnp.matmul(narrow, narrow.mT, precision=precision, preferred_element_type=wide)
    count, devices = x.shape[0], lax.axis_size(axis_name)
    own = -(-count // devices) if count >= devices else None
    if own is None:
        gram = lax.psum(gram, axis_name)
    else:
        gram = jnp.pad(gram, ((0, own * devices - count), (0, 0), (0, 0)))
        gram = lax.psum_scatter(gram, axis_name, scatter_dimension=0, tiled=True)
    norm = safe_sqrt(jnp.trace(gram, axis1=-2, axis2=-1)[:, None, None])
    unit_eps = eps / peak if eps else jnp.zeros_like(peak)
    if own is not None:
        unit_eps = _own(unit_eps, own, devices, axis_name)
    scaled = (chosen.margin if margin is None else margin) * norm
    scaled = scaled + unit_eps if eps_mode == "add" else jnp.maximum(scaled, unit_eps)
    inverse = 1.0 / jnp.where(scaled == 0, 1.0, scaled)
    q = inverse * gram_factor(gram * inverse * inverse, rows, precision=precision)
    if own is not None:
        q = lax.all_gather(q, axis_name, axis=0, tiled=True)[:count]
    out = jnp.matmul(q.astype(x.dtype), narrow, precision=precision, preferred_element_type=wide)
    return out.astype(x.dtype)


def _own(x: jax.Array, own: int, devices: int, axis_name: Axes) -> jax.Array:
    """This device's share of what all devices have."""
    x = jnp.pad(x, ((0, own * devices - x.shape[0]), (0, 0), (0, 0)))
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis_name) * own, own)
