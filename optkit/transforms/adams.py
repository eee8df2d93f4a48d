"""CAST's direction: Adam that decays the masked weights of an N:M pattern, more and more."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.linalg.sparsity import nm_mask
from optkit.transforms.base import Transformation, map_leaves, need_params, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    debias,
    recorded,
    value_at,
)
from optkit.tree import (
    Dims,
    MatrixLayout,
    MatrixView,
    PyTree,
    RuleLike,
    upcast,
    zeros_like_params,
)
from optkit.tree.sharding import mesh_of, place_stack, spec_of

SecondMoment = Literal["momentum", "gradient"]


class Pattern(NamedTuple):
    """Which entries of a matrix are kept, and how those that are not decay."""

    n: int
    m: int
    interval: int | jax.Array
    total_steps: int | jax.Array
    l1_decay: ScalarOrSchedule


class AdamsState(NamedTuple):
    """State of ``cast_adams`` on matrices, and on the rest."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, state_dtype: first moment of the gradients
    nu: PyTree  # like params, state_dtype: second moment
    kept: PyTree  # like params, bool: the N:M mask of the last update; None on the rest
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def mask_of(x: jax.Array, view: MatrixView, n: int, m: int) -> jax.Array:
    """Returns the mask of a leaf's part as it lies in memory: groups of neighbouring inputs."""
    axes = view.in_axes
    first, count = axes[0], len(axes)
    x, own = _whole_groups(x, axes, m)
    # Neighbouring axes are one already, without a transposed copy.
    apart = axes != tuple(range(first, first + count))
    behind = tuple(range(x.ndim - count, x.ndim))
    moved = jnp.moveaxis(x, axes, behind) if apart else x
    at = x.ndim - count if apart else first
    flat = moved.reshape(*moved.shape[:at], view.fan_in, *moved.shape[at + count :])
    mask = nm_mask(flat, n, m, at).reshape(moved.shape)
    mask = jnp.moveaxis(mask, behind, axes) if apart else mask
    return mask if own is None else place_stack(mask[None], *own)[0]


def _whole_groups(
    x: jax.Array, axes: tuple[int, ...], m: int
) -> tuple[jax.Array, tuple[Any, PartitionSpec] | None]:
    """Brings groups that an Explicit mesh has cut onto one device; returns how ``x`` lay before."""
    mesh, spec = mesh_of(x), spec_of(x)
    if mesh is None or spec is None:
        return x, None
    parts = [*spec, *(None,) * (x.ndim - len(spec))]
    cut = [axis for axis in axes if parts[axis] is not None]
    if not cut:
        return x, None
    names = parts[cut[0]] if isinstance(parts[cut[0]], tuple) else (parts[cut[0]],)
    if len(axes) == 1 and x.shape[cut[0]] // math.prod(mesh.shape[n] for n in names) % m == 0:
        return x, None
    whole = PartitionSpec(*(None if axis in cut else part for axis, part in enumerate(parts)))
    return place_stack(x[None], mesh, whole)[0], (mesh, spec)


def adams(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    pattern: Pattern | None,
    second_moment: SecondMoment = "momentum",
    *,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Returns the direction of ``optkit.cast_adams``, which see.

    It stands alone: the decay goes into the moments, by a mask that it keeps beside them.

    Args:
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      pattern: of the matrices; None for leaves that stay dense.
      second_moment: what is squared of leaves that stay dense.
      dims: how leaves are read as matrices.
      roles: the user's ``(pattern, role)`` rules.
      state_dtype: dtype of both moments.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: two numbers per parameter, and a
      byte with a pattern.
    """

    def numbers(count: jax.Array) -> dict[str, jax.Array]:
        if pattern is None:
            return recorded(count, b1=b1, b2=b2, eps=eps)
        return recorded(count, b1=b1, b2=b2, eps=eps, l1_decay=pattern.l1_decay)

    def init_fn(params: PyTree) -> AdamsState:
        count = jnp.zeros((), jnp.int32)
        mu, nu = (zeros_like_params(params, state_dtype) for _ in range(2))
        kept = None if pattern is None else zeros_like_params(params, jnp.bool_)
        return AdamsState(count, mu, nu, kept, numbers(count))

    def masks(params: PyTree, state: AdamsState, chosen: Pattern) -> PyTree:
        layout = MatrixLayout(params, dims, roles)
        parts = zip(layout.split(params, "kept"), layout.views, strict=True)
        new = layout.merge([mask_of(x, view, chosen.n, chosen.m) for x, view in parts], "kept")
        if isinstance(chosen.interval, int) and chosen.interval == 1:
            return new
        # No branch: a few comparisons of weights that the step reads anyhow.
        now = state.count % chosen.interval == 0
        return map_leaves(lambda k, old: jnp.where(now, k, old), new, state.kept)

    def update_fn(
        updates: PyTree, state: AdamsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdamsState]:
        del extra_args
        a1, a2, e = (value_at(value, state.count) for value in (b1, b2, eps))
        c1, c2 = (debias(value, state.count + 1) for value in (a1, a2))

        def finish(g: jax.Array, mu: Any, nu: Any, m: jax.Array, seen: jax.Array) -> Any:
            """``mu`` becomes m, of which the step is what is seen of it."""
            square = g if pattern is None and second_moment == "gradient" else seen
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(square)
            root = jnp.sqrt(v / c2) + e
            u = seen / c1 / jnp.where(root == 0.0, 1.0, root)
            return u, m.astype(mu.dtype), v.astype(nu.dtype)

        def dense(g: jax.Array, mu: jax.Array, nu: jax.Array) -> Any:
            g32 = upcast(g)
            m = a1 * upcast(mu) + (1.0 - a1) * g32
            u, *moments = finish(g32, mu, nu, m, m)
            return u.astype(g.dtype), *moments

        if pattern is None:
            mapped = map_leaves(dense, updates, state.mu, state.nu)
            kept = None
        else:
            params = need_params(params, "cast_adams")
            kept = masks(params, state, pattern)
            decay = value_at(pattern.l1_decay, state.count)
            share = jnp.minimum(state.count / pattern.total_steps, 1.0)

            def sparse(g: jax.Array, mu: Any, nu: Any, p: jax.Array, k: jax.Array) -> Any:
                g32 = upcast(g)
                m = a1 * upcast(mu) + (1.0 - a1) * g32
                pull = (1.0 - share) * m + share * decay * jnp.sign(upcast(p))
                u, *moments = finish(g32, mu, nu, m, jnp.where(k, m, pull))
                return u.astype(g.dtype), *moments

            mapped = map_leaves(sparse, updates, state.mu, state.nu, params, kept)
        out, mu, nu = unzip(updates, mapped, 3)
        return out, AdamsState(state.count + 1, mu, nu, kept, numbers(state.count))

    return Transformation(init_fn, update_fn)
