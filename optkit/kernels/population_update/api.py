"""The operation, by whichever implementation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from optkit.kernels.counters import MOST_COLUMNS, Counters
from optkit.kernels.implementation import Implementation, by_platform, check_implementation
from optkit.kernels.meshes import AUTO, free_axes, placed
from optkit.kernels.population_update import base, gpu, tpu

__all__ = ["Counters", "Implementation", "population_update", "why_not"]


def population_update(
    weights: jax.Array,
    noise: Counters,
    shape: tuple[int, int],
    *,
    signs: bool = False,
    precision: Any = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Sums the low-rank noise of a population, weighted by what its members are worth.

    ``U <- sum_k w_k B_k A_k^T``, summed in float32. The factors are those that ``perturbed_matmul``
    gives its members for the same counters. As a kernel they never leave the chip: each tile of U
    is kept there while it goes through all pairs, and makes what it needs of their factors. XLA's
    form draws them in chunks of 64 MiB, and multiplies.

    What the kernel spares is noise through memory; tiles beside each other make the same noise
    again. It has run on no device: ``benchmarks.tpu_perturbed_matmul`` sets the TPU compiler's
    static estimates of both beside each other. On GPUs tiles are small, so that numbers are made
    again much more often than XLA makes them: take the kernel there for its memory.

    Args:
      weights: ``(pairs,)``, of the pair k or of the member k, with all that scales the sum.
      noise: what the factors follow from: ``A_k`` ``(m, rank)``, ``B_k`` ``(n, rank)``.
      shape: ``(n, m)`` of the sum.
      signs: sum the signs of B and A instead of themselves.
      precision: of the products, as in ``jax.numpy.matmul``.
      implementation: "xla"; "pallas", the kernel for the platform that the program is lowered for,
        TPUs or NVIDIA's GPUs; "interpret", the TPUs' kernel on any device, slow.

    Returns:
      ``(n, m)`` in float32; on Explicit axes of a mesh the same on all devices.

    Raises:
      ValueError: what the kernel does not serve (``why_not``), or an unknown implementation.
      NotImplementedError: "pallas" on another platform.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.kernels.population_update import Counters, population_update
      >>> noise = Counters(jax.random.key_data(jax.random.key(0)), 0, rank=1)
      >>> weights = jnp.array([0.5, -1.0])
      >>> u = population_update(weights, noise, (3, 5))
      >>> a, b = noise.factor("a", 2, 5)[:, :, 0], noise.factor("b", 2, 3)[:, :, 0]
      >>> bool(jnp.allclose(u, 0.5 * jnp.outer(b[0], a[0]) - jnp.outer(b[1], a[1]), atol=1e-6))
      True

    Reference: ours, for Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """
    check_implementation(implementation)
    if weights.ndim != 1:
        raise ValueError(f"weights of shape {weights.shape}: give one number a pair, (pairs,)")
    if implementation != "xla" and (reason := why_not(noise, shape, weights)) is not None:
        raise ValueError(f"no kernel serves this: {reason}; give implementation='xla'")
    if 0 in (*weights.shape, *shape):
        return jnp.zeros(shape, jnp.float32)
    if implementation == "xla":
        return base.population_update(weights, noise, shape, signs, precision)
    options = {"shape": shape, "rank": noise.rank, "signs": signs, "precision": precision}
    if implementation == "interpret":
        call = partial(tpu.population_update, **options, interpret=True)
    else:
        kernels = {
            name: partial(kernel.population_update, **options)
            for name, kernel in (("tpu", tpu), ("gpu", gpu))
        }
        call = partial(by_platform, "population_update", **kernels)
    return _on_all_devices(call, weights.astype(jnp.float32), noise.words())


def why_not(
    noise: Counters, shape: tuple[int, int], weights: jax.Array | None = None
) -> str | None:
    """Returns why no kernel serves an update, with the numbers; None if one does.

    Args:
      noise: what the factors follow from.
      shape: ``(n, m)`` of the sum.
      weights: ``(pairs,)``; None if it is not known yet where they lie.

    Returns:
      A clause for an error message, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.kernels.population_update import Counters, why_not
      >>> why_not(Counters(jnp.zeros(2, jnp.uint32), 0), (2**26, 8))
      '67108864 columns are more than 33554432 that counters tell apart'
    """
    if max(shape) > MOST_COLUMNS:
        return f"{max(shape)} columns are more than {MOST_COLUMNS} that counters tell apart"
    if weights is None:
        return None
    mesh, kinds = free_axes(weights)
    return AUTO.format(mesh=dict(mesh.shape)) if AxisType.Auto in kinds.values() else None


def _on_all_devices(call: Any, weights: jax.Array, words: jax.Array) -> jax.Array:
    """The kernel on one device, or on each of a mesh: the compiler can't partition it."""
    mesh, kinds = free_axes(weights)
    if not kinds:
        return call(weights, words)
    whole = PartitionSpec()
    mapped = jax.shard_map(
        call,
        mesh=mesh,
        in_specs=(whole, whole),
        out_specs=whole,
        axis_names=set(kinds),
        check_vma=False,  # all devices sum the same, which the check cannot see
    )
    return mapped(*(placed(x, mesh, whole) for x in (weights, words)))
