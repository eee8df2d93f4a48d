"""The operation, by whichever implementation."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optkit.kernels.counters import MOST_COLUMNS, Counters
from optkit.kernels.implementation import Implementation, by_platform, check_implementation
from optkit.kernels.perturbed_matmul import base, gpu, tpu
from optkit.kernels.perturbed_matmul.sharded import on_each_device, why_not_split

__all__ = ["Counters", "Implementation", "perturbed_matmul", "perturbed_rows", "why_not"]

Noise: TypeAlias = Counters | tuple[jax.Array, jax.Array]

# Ranks that kernels multiply one by one; of more the thin products are work for matrix units.
RANKS = 8


def perturbed_matmul(
    x: jax.Array,
    w: jax.Array,
    noise: Noise,
    scale: jax.Array,
    *,
    precision: Any = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Multiplies the rows of each member of a population with its own weights.

    1. ``y_i <- x_i W``, one product for all members; 2. ``t_i <- s_i (x_i B_k)``, ``k`` the pair of
    member i or its own number; 3. ``y_i <- y_i + t_i A_k^T``. All sums are float32. As a kernel
    step 3 is done before anything is written, and generated factors are never in memory. Of members
    on Explicit axes of a mesh each device takes its own.

    What the kernel spares is noise through memory, and passes over rows and results. It has run on
    no device: ``benchmarks.tpu_perturbed_matmul`` sets the compiler's static estimates of both
    beside each other. Where groups have less than 16 rows, the rows are transposed for it.

    Args:
      x: ``(members, rows, n)``; the kernels compute in float32 and bfloat16.
      w: ``(n, m)``, shared, of the dtype of x.
      noise: factors ``(a, b)``, ``(K, m, rank)`` and ``(K, n, rank)``; or ``Counters``, which stand
        for them. K is the number of members, or half of it: members 2k and 2k+1 share theirs then.
      scale: ``(members,)`` or a scalar, with the members' signs.
      precision: of the products, as in ``jax.numpy.matmul``.
      implementation: "xla"; "pallas", the kernel for the platform that the program is lowered for,
        TPUs or NVIDIA's GPUs; "interpret", the TPUs' kernel on any device, slow.

    Returns:
      ``(members, rows, m)`` in the dtype of x.

    Raises:
      ValueError: shapes that do not belong together, what the kernel does not serve
        (``why_not``), or an unknown implementation.
      NotImplementedError: "pallas" on another platform.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.perturbed_matmul import perturbed_matmul
      >>> x, w = jnp.ones((2, 1, 2)), jnp.eye(2)
      >>> factors = jnp.ones((1, 2, 1)), jnp.ones((1, 2, 1))
      >>> perturbed_matmul(x, w, factors, jnp.array([0.5, -0.5])).tolist()
      [[[2.0, 2.0]], [[0.0, 0.0]]]

    Reference: ours, for Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """
    members, rows, n = x.shape
    pairs = members if isinstance(noise, Counters) else noise[0].shape[0]
    if not isinstance(noise, Counters):
        _check_factors(noise, members, n, w.shape[1])
    each = jnp.broadcast_to(jnp.asarray(scale, jnp.float32).reshape(-1, 1), (members, rows))
    shape = (pairs, members // pairs * rows)
    out = perturbed_rows(
        x.reshape(*shape, n),
        w,
        noise,
        each.reshape(shape),
        precision=precision,
        implementation=implementation,
    )
    return out.reshape(members, rows, w.shape[1])


def perturbed_rows(
    x: jax.Array,
    w: jax.Array,
    noise: Noise,
    scale: jax.Array,
    *,
    precision: Any = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Multiplies groups of rows with weights that differ by group: ``perturbed_matmul`` inside.

    Args:
      x: ``(groups, rows, n)``; the rows of a group share their factors.
      w: ``(n, m)``, shared by all.
      noise: factors ``(groups, m, rank)`` and ``(groups, n, rank)``, or ``Counters``, whose draws
        are the groups'.
      scale: ``(groups, rows)``, of each row by itself.
      precision: see ``perturbed_matmul``.
      implementation: see ``perturbed_matmul``.

    Returns:
      ``(groups, rows, m)`` in the dtype of x.

    Raises:
      ValueError: see ``perturbed_matmul``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.kernels.perturbed_matmul import Counters, perturbed_rows
      >>> noise = Counters(jax.random.key_data(jax.random.key(0)), 0, rank=1)
      >>> x = jnp.ones((4, 6, 3))  # four pairs, three rows of each member
      >>> scale = jnp.broadcast_to(jnp.repeat(jnp.array([0.1, -0.1]), 3), (4, 6))
      >>> perturbed_rows(x, jnp.ones((3, 5)), noise, scale).shape
      (4, 6, 5)
    """
    check_implementation(implementation)
    groups, _, n = x.shape
    m = w.shape[1]
    if implementation == "xla":
        if isinstance(noise, Counters):
            noise = noise.factor("a", groups, m), noise.factor("b", groups, n)
        return base.perturbed_matmul(x, w, *noise, scale, precision)
    reason = why_not(x, w, noise)
    if reason is not None:
        raise ValueError(f"no kernel serves this: {reason}; give implementation='xla'")
    if x.size == 0 or m == 0:
        return jnp.zeros((*x.shape[:2], m), x.dtype)

    def call(x: jax.Array, w: jax.Array, noise: Noise, scale: jax.Array) -> jax.Array:
        given, structure = jax.tree.flatten(noise)

        def by(kernel: Any, **options: bool) -> Any:
            def run(x: jax.Array, w: jax.Array, scale: jax.Array, *given: jax.Array) -> jax.Array:
                own = jax.tree.unflatten(structure, given)
                return kernel(x, w, own, scale, precision, **options)

            return run

        if implementation == "interpret":
            return by(tpu.perturbed_matmul, interpret=True)(x, w, scale, *given)
        kernels = {"tpu": by(tpu.perturbed_matmul), "gpu": by(gpu.perturbed_matmul)}
        return by_platform("perturbed_matmul", x, w, scale, *given, **kernels)

    return on_each_device(call, x, w, noise, scale)


def why_not(x: jax.Array, w: jax.Array, noise: Noise) -> str | None:
    """Returns why no kernel serves some rows and weights, with the numbers; None if one does.

    Args:
      x: ``(groups, rows, n)``.
      w: ``(n, m)``.
      noise: factors or ``Counters``.

    Returns:
      A clause for an error message, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.perturbed_matmul import why_not
      >>> factors = jnp.ones((1, 4, 16)), jnp.ones((1, 4, 16))
      >>> why_not(jnp.ones((1, 2, 4)), jnp.ones((4, 4)), factors)
      'rank 16 is above 8'
    """
    rank = noise.rank if isinstance(noise, Counters) else noise[0].shape[2]
    if rank > RANKS:
        return f"rank {rank} is above {RANKS}"
    if x.dtype not in (jnp.float32, jnp.bfloat16) or w.dtype != x.dtype:
        return f"rows are {x.dtype} and weights {w.dtype}: both float32 or both bfloat16 are served"
    if isinstance(noise, Counters) and max(w.shape) > MOST_COLUMNS:
        return f"{max(w.shape)} columns are more than {MOST_COLUMNS} that counters tell apart"
    return why_not_split(x)


def _check_factors(noise: tuple[jax.Array, jax.Array], members: int, n: int, m: int) -> None:
    a, b = noise
    pairs, rank = a.shape[0], a.shape[2]
    if pairs not in (members, members / 2) or a.shape != (pairs, m, rank):
        pairs = 0
    if not pairs or b.shape != (pairs, n, rank):
        raise ValueError(
            f"factors of shapes {a.shape} and {b.shape} do not fit {members} members and weights "
            f"({n}, {m}): give ({members} or {members // 2}, {m}, rank) and the like of {n}"
        )
