"""Top singular values by power iteration that goes on from where it was."""

import jax
import jax.numpy as jnp

from optkit.linalg.norms import norm_over, unit_over
from optkit.tree import (
    MATRIX_ROLES,
    MatrixLayout,
    PyTree,
    RuleLike,
    leaves_with_paths,
    map_groups,
    rule_of,
)

_GOLDEN = 2.399963  # radians; its multiples are spread evenly, so that no vector is orthogonal


def top_singular(a: jax.Array, v: jax.Array, *, iterations: int = 4) -> tuple[jax.Array, jax.Array]:
    """Returns the largest singular value of each matrix, from below, and the vector to go on with.

    ``iterations`` times ``w = a^T v``, ``v = a w``, each of unit length. Sums of products instead
    of matrix products: a vector is read once either way, and on devices that share a matrix only
    vectors are exchanged.

    Args:
      a: (..., m, n), float32.
      v: (..., m), the vector of last time; zeros start anew.
      iterations: how often; the error of a first call falls as ``(s2/s1)**(4*iterations)``.

    Returns:
      (...) and (..., m); 0 and zeros where a matrix is 0, and NaN and zeros where it is not finite.

    Example:
      >>> a = jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> sigma, v = top_singular(a, jnp.zeros(2))
      >>> round(float(sigma), 3)
      3.0
    """
    start = jnp.cos(_GOLDEN * jnp.arange(1, a.shape[-2] + 1, dtype=a.dtype))
    size = norm_over(a, (-2, -1))
    unit = a / jnp.where(size > 0, size, 1.0)  # products of entries of 1e25 would overflow
    cold = ~jnp.any(v != 0, axis=-1, keepdims=True)
    v = jnp.where(cold, jnp.broadcast_to(start, v.shape), v)
    w_norm = jnp.zeros((*v.shape[:-1], 1), a.dtype)
    for _ in range(iterations):
        w = jnp.sum(unit * unit_over(v, (-1,))[..., :, None], axis=-2)
        w_norm = norm_over(w, (-1,))
        w = w / jnp.where(w_norm > 0, w_norm, 1.0)
        v = jnp.sum(unit * w[..., None, :], axis=-1)
    sigma = jnp.squeeze(w_norm, -1) * jnp.squeeze(size, (-2, -1))
    fine = jnp.isfinite(sigma) & (sigma > 0)
    return sigma, jnp.where(fine[..., None], unit_over(v, (-1,)), 0.0)


def matrices_of(tree: PyTree, roles: tuple[RuleLike, ...] = ()) -> list[bool]:
    """Tells which leaves of a tree are hidden matrices."""
    return [
        jnp.ndim(leaf) >= 2 and rule_of(path, leaf, roles).role in MATRIX_ROLES
        for path, leaf in leaves_with_paths(tree)
    ]


def top_singular_values(
    params: PyTree, *, iterations: int = 20, roles: tuple[RuleLike, ...] = ()
) -> dict[str, jax.Array]:
    """Returns the largest singular value of each hidden matrix.

    Args:
      params: parameters.
      iterations: of the power method.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      Path -> ``()``, or the batch of a stack of matrices; float32. Works under ``jit``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"up": 2.0 * jnp.eye(3), "bias": jnp.ones(3)}
      >>> {k: round(float(v), 3) for k, v in optkit.monitoring.top_singular_values(params).items()}
      {'up': 2.0}
    """
    named = leaves_with_paths(params)
    keep = matrices_of(params, roles)
    names, matrices = [], []
    for (path, leaf), on in zip(named, keep, strict=True):
        parts = MatrixLayout({path: leaf}, None, roles).split({path: leaf}) if on else []
        names += [path if len(parts) == 1 else f"{path}#{n + 1}" for n in range(len(parts))]
        matrices += [part.astype(jnp.float32) for part in parts]

    def top(a: jax.Array) -> jax.Array:
        def step(_: int, held: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return top_singular(a, held[1], iterations=1)

        zeros = jnp.zeros(a.shape[:-1], a.dtype)
        return jax.lax.fori_loop(0, iterations, step, (zeros[..., 0], zeros))[0]

    return dict(zip(names, map_groups(top, matrices, move=False), strict=True))
