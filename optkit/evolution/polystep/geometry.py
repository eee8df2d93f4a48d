"""Polytopes around a particle, and how they are turned."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from optkit.linalg.one_by_one import one_by_one
from optkit.transforms.hyperparams import check_choice, check_static_int

Polytope = Literal["orthoplex", "simplex", "cube"]

# A cube of more dimensions has over 65536 corners.
MOST_CUBE = 16


def polytope_vertices(polytope: Polytope, dim: int) -> np.ndarray:
    """Returns the corners of a regular polytope of radius 1 around the origin.

    Args:
      polytope: "orthoplex" for plus and minus each axis, "simplex" for the fewest corners, "cube"
        for all signs.
      dim: number of dimensions d.

    Returns:
      ``(v, d)`` in float32: v is 2d, d + 1 or 2**d; the corners sum to 0.

    Raises:
      ValueError: another name, no positive dimension, or a cube of more than 16 dimensions.

    Example:
      >>> from optkit.evolution.polystep import polytope_vertices
      >>> polytope_vertices("orthoplex", 2).tolist()
      [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    """
    check_choice("polytope", polytope, ("orthoplex", "simplex", "cube"))
    check_static_int("particle_dim", dim)
    if polytope == "orthoplex":
        corners = np.concatenate([np.eye(dim), -np.eye(dim)]) + 0.0  # no negative zeros
    elif polytope == "simplex":
        shared = (np.sqrt(dim + 1) + 1) / dim**1.5
        first = np.sqrt(1 + 1 / dim) * np.eye(dim) - shared
        corners = np.concatenate([first, np.full((1, dim), dim**-0.5)])
        corners -= corners.mean(0)
    else:
        if dim > MOST_CUBE:
            raise ValueError(
                f"a cube of particle_dim={dim} has 2**{dim} corners; give at most {MOST_CUBE}, or "
                "polytope='orthoplex'"
            )
        bits = np.arange(2**dim)[:, None] >> np.arange(dim) & 1
        corners = (1 - 2 * bits) / np.sqrt(dim)
    return corners.astype(np.float32)


def haar_rotations(key: jax.Array, count: int, dim: int, dtype: jnp.dtype) -> jax.Array:
    """Returns ``(count, dim, dim)`` rotations of determinant 1, uniform on SO(dim)."""
    if dim == 1:
        return jnp.ones((count, 1, 1), dtype)
    if dim == 2:
        angle = jax.random.uniform(key, (count,), dtype, 0.0, 2.0 * np.pi)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    q, r = one_by_one(jnp.linalg.qr, jax.random.normal(key, (count, dim, dim), dtype))
    # Without the signs Q depends on how LAPACK reflects, and is not uniform.
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(dtype)
    return _proper(q * signs[:, None, :], 0)


def toward(rotations: jax.Array, directions: jax.Array) -> jax.Array:
    """Turns each rotation so that its first axis points along a direction.

    Args:
      rotations: ``(count, dim, dim)``.
      directions: ``(count, dim)`` of any length; a zero leaves its rotation as it is.
    """
    dim = rotations.shape[-1]
    if dim == 1:
        return rotations  # SO(1) is the identity alone
    largest = jnp.max(jnp.abs(directions), axis=-1, keepdims=True)
    unit = directions / jnp.where(largest > 0, largest, 1.0)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-10)
    q, r = one_by_one(jnp.linalg.qr, rotations.at[:, :, 0].set(unit))
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(q.dtype)
    turned = _proper(q * signs[:, None, :], -1)
    usable = (largest[..., None] > 0) & jnp.all(jnp.isfinite(turned), (-2, -1), keepdims=True)
    return jnp.where(usable, turned, rotations)


def _proper(orthogonal: jax.Array, column: int) -> jax.Array:
    """Flips one column where the determinant is -1."""
    flip = jnp.where(jnp.linalg.det(orthogonal) < 0, -1.0, 1.0).astype(orthogonal.dtype)
    return orthogonal.at[:, :, column].multiply(flip[:, None])
