"""The sum of a batch's gradients, each clipped by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.base import one_of, over_clients, weighted_sum, zeros_for
from optkit.aggregate.noisy import check_clip
from optkit.aggregate.norms import cut_factors
from optkit.distributed.workers import AxisName, as_varying, axes_of, check_axis_name, check_bound
from optkit.spmd import varying
from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import Scalar, check_number, check_static_int
from optkit.tree import PyTree, leaves_with_paths


class ClippedSum(NamedTuple):
    """What the examples of a batch come to. Only ``total``, with noise on it, is private.

    Attributes:
      total: sum of clipped gradients, like the parameters, in float32 or better.
      examples: int32 scalar, examples that the mask counts.
      clipped: int32 scalar, those of them that were longer than ``clip``.
      refused: int32 scalar, those of them that had no finite norm and added nothing.
      aux: with ``has_aux`` tree of arrays (B, ...), what ``loss_fn`` said of each example, those
        that the mask leaves out too; None without.
    """

    total: PyTree
    examples: jax.Array
    clipped: jax.Array
    refused: jax.Array
    aux: PyTree = None


def per_example_clip(
    loss_fn: Callable[[PyTree, Any], Any],
    clip: Scalar,
    *,
    is_gradient: bool = False,
    has_aux: bool = False,
    microbatch: int | None = None,
    eps: float = 0.0,
    axis_name: AxisName = None,
) -> Callable[..., ClippedSum]:
    """Makes a function that sums the gradients of a batch's examples, each clipped by itself.

    1. ``g_i = grad(loss_fn)(params, example_i)`` for ``microbatch`` examples at a time.
    2. ``total += sum g_i*min(1, clip/(norm(g_i) + eps))``, norms over all leaves together.

    An example that the mask leaves out is not read. One whose gradient is not finite, or too long
    for float32, adds nothing: unclipped it would decide the sum. Microbatches take every k-th
    example, so that a batch spread over devices stays where it is if ``microbatch`` is a multiple
    of them.

    Args:
      loss_fn: (params, one example) -> scalar, an example being the batch without its leading axis.
      clip: the longest gradient, above 0; infinity clips nothing. A number or a scalar array.
      is_gradient: ``loss_fn`` returns a gradient already, a tree like the parameters.
      has_aux: ``loss_fn`` returns a pair of that and of a tree of arrays, as for ``jax.grad``.
      microbatch: examples whose gradients are in memory at once; None for all.
      eps: added to norms, as Opacus does with 1e-6.
      axis_name: a mesh axis inside ``jax.shard_map`` that examples are laid along; each device
        clips its own and sums are added. None for one device, or for arrays that ``jax.jit``
        spreads by itself.

    Returns:
      A function ``(params, batch, mask=None) -> ClippedSum``; ``batch`` a tree of arrays (B, ...),
      ``mask`` bool (B,), False where an example is padding. Memory: ``microbatch`` gradients and a
      sum.

    Raises:
      ValueError: ``clip`` not positive; in the call, leading axes that differ, or inside
        ``shard_map`` an axis that examples or parameters vary along and ``axis_name`` lacks.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> clipped = optkit.privacy.per_example_clip(lambda w, x: w @ x, 1.0)
      >>> out = clipped(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5], [7.0, jnp.nan]]))
      >>> [round(x, 3) for x in out.total.tolist()], int(out.clipped), int(out.refused)
      ([0.6, 1.3], 1, 1)

    Reference:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133, algorithm 1.
    """
    check_clip(clip)
    check_number("eps", eps, low=0.0)
    check_axis_name(axis_name)
    if microbatch is not None:
        check_static_int("microbatch", microbatch)
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn={loss_fn!r} must be a function of (params, one example) that returns a scalar"
        )
    gradient = _pair_of(loss_fn, is_gradient, has_aux)

    def run(params: PyTree, batch: Any, mask: jax.Array | None = None) -> ClippedSum:
        check_bound(axis_name, "per_example_clip")
        count = _examples(batch)
        given = jnp.ones(count, bool) if mask is None else jnp.asarray(mask)
        if given.shape != (count,) or given.dtype != bool:
            raise ValueError(
                f"mask is {given.dtype}{list(given.shape)}: the batch has {count} examples along "
                f"its leading axis; give bool[{count}], False where an example is padding"
            )
        _check_axes(params, batch, axis_name)
        # Of parameters that are equal on all devices JAX would add up gradients before they are
        # clipped, those of examples that have nothing to do with each other.
        own = as_varying(params, axis_name)

        def some(batch: Any, mask: jax.Array) -> ClippedSum:
            grads, aux = jax.vmap(gradient, in_axes=(None, 0))(own, batch)
            check_same_leaves(own, grads, "a gradient")
            factors, norms = cut_factors(grads, clip, mask, eps)
            finite = jnp.isfinite(norms)
            return ClippedSum(
                weighted_sum(factors, grads),
                _number(mask),
                _number(mask & finite & (norms > clip)),
                _number(mask & ~finite),
                aux,
            )

        if microbatch is None or microbatch >= count:
            sums = some(batch, given)
        else:
            parts = jax.tree.map(lambda x: _strided(jnp.asarray(x), microbatch), (batch, given))
            none = as_varying(jnp.zeros((), jnp.int32), axis_name)
            first = ClippedSum(zeros_for(_one(params), axis_name), none, none, none)

            def body(sums: ClippedSum, part: Any) -> tuple[ClippedSum, PyTree]:
                more = some(*part)
                return jax.tree.map(jnp.add, sums, more._replace(aux=None)), more.aux

            sums, aux = lax.scan(body, first, parts)
            sums = sums._replace(aux=jax.tree.map(lambda x: _in_order(x, count), aux))
        out: ClippedSum = over_clients(sums._replace(aux=None), axis_name)
        return out._replace(aux=sums.aux)

    return run


def _pair_of(loss_fn: Callable[..., Any], is_gradient: bool, has_aux: bool) -> Callable[..., Any]:
    """A function of one example that returns a gradient and what comes beside it."""
    if not is_gradient:
        both = jax.grad(loss_fn, has_aux=has_aux)
        return both if has_aux else lambda params, example: (both(params, example), None)

    def pair(params: PyTree, example: Any) -> tuple[PyTree, PyTree]:
        out = loss_fn(params, example)
        if not has_aux:
            return out, None
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                f"loss_fn returned a {type(out).__name__}: with is_gradient=True and has_aux=True "
                "it must return a pair (gradient, aux)"
            )
        return out

    return pair


def _one(params: PyTree) -> PyTree:
    """Shapes of a sum of gradients."""
    return one_of(jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape), p.dtype), params))


def _number(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32)


def _examples(batch: Any) -> int:
    """How many examples a batch has, or ValueError where its arrays differ."""
    named = leaves_with_paths(batch)
    if not named:
        raise ValueError("the batch has no arrays: give one example along each leading entry")
    sizes = {path: jnp.shape(leaf)[:1] for path, leaf in named}
    path, first = next(iter(sizes.items()))
    for other, size in sizes.items():
        if not size or size != first:
            raise ValueError(
                f"the batch has shape {jnp.shape(dict(named)[other])} at leaf {other!r} and "
                f"{jnp.shape(dict(named)[path])} at {path!r}: all need one leading axis of examples"
            )
    return int(first[0])


def _check_axes(params: PyTree, batch: Any, axis_name: AxisName) -> None:
    """Raises ValueError where norms would be of parts, or gradients sums over devices."""
    known = set(axes_of(axis_name))
    for what, tree, remedy in (
        ("examples", batch, "give axis_name={0!r}, the axis that they are laid along"),
        ("parameters", params, "use jax.jit on whole arrays, as norms are over all leaves"),
    ):
        for path, leaf in leaves_with_paths(tree):
            if missing := sorted(varying(leaf) - known):
                raise ValueError(
                    f"per_example_clip has axis_name={axis_name!r}, but the {what} at leaf "
                    f"{path!r} vary along the mesh axis {missing[0]!r}: "
                    + remedy.format(missing[0])
                )


def _strided(x: jax.Array, size: int) -> jax.Array:
    """(B, ...) as (parts, size, ...), of every k-th entry; filled up with zeros."""
    missing = -x.shape[0] % size
    if missing:
        x = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
    return jnp.swapaxes(x.reshape(size, -1, *x.shape[1:]), 0, 1)


def _in_order(x: jax.Array, count: int) -> jax.Array:
    """(parts, size, ...) of ``_strided`` as (count, ...), without what it was filled up with."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:count]
