"""LIFT: the entries that stand out in a low-rank approximation of a weight."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit._calls import cached_factory
from optkit.linalg.largest import largest_in
from optkit.linalg.one_by_one import one_by_one
from optkit.masks.policy import Active, Look, Policy, Rest, Scope, scope
from optkit.transforms.hyperparams import check_static_int
from optkit.transforms.partial_update import only
from optkit.transforms.split import rules_for
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    Selector,
    leaves_with_paths,
    map_groups,
    upcast,
)

__all__ = ["lift"]


def _count(fan_out: int, fan_in: int, rank: int) -> int:
    """As many entries of a matrix as two low-rank factors have, or all."""
    return min((fan_out + fan_in) * rank, fan_out * fan_in)


def _masks(x: jax.Array, rank: int, filter_rank: int, smallest: bool) -> jax.Array:
    """Returns the mask of each matrix of a batch ``(..., m, n)``."""
    m, n = x.shape[-2:]
    low = upcast(x)
    if filter_rank < min(m, n):
        u, s, v = one_by_one(functools.partial(jnp.linalg.svd, full_matrices=False), low)
        left = u[..., :filter_rank] * s[..., None, :filter_rank]
        low = jnp.matmul(left, v[..., :filter_rank, :], precision="highest")
    count = _count(m, n, rank)
    flat = low.reshape(*x.shape[:-2], m * n)
    return largest_in(flat, count, smallest=smallest).reshape(x.shape)


def matrices_of(area: Scope, params: PyTree, dims: Dims) -> tuple[PyTree, MatrixLayout]:
    """Returns the masked leaves of a tree, masked nodes elsewhere, and how they are matrices."""
    part = only(params, area.masked(params))
    return part, MatrixLayout(part, dims, area.roles)


def as_matrices(area: Scope, params: PyTree, dims: Dims) -> Scope:
    """Returns a scope in which ``MATRIX_ROLES`` means what a tree of dimension numbers says."""
    if area.where is not MATRIX_ROLES:
        return area
    ((where, _),) = rules_for(params, [(area.where, "")], dims)
    return area._replace(where=where)


@cached_factory
def lift(
    rank: int = 128,
    filter_rank: int = 128,
    *,
    interval: int | jax.Array = 400,
    smallest: bool = False,
    where: Selector = MATRIX_ROLES,
    rest: Rest = "train",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses the entries that are largest in the best low-rank approximation of a weight.

    For each matrix ``W`` of fan_out rows and fan_in columns:

    1. ``A`` is its best approximation of rank ``filter_rank``, by a singular value decomposition;
    2. the ``min((fan_out + fan_in)*rank, fan_out*fan_in)`` entries of largest ``|A|`` train: as
       many as LoRA of that rank has.

    Masks are chosen by init and anew before the step ``t > 0``, counted from 0, where ``t+1`` is a
    multiple of ``interval``. With a filter as large as the short side ``A`` is ``W``, and the
    policy is ``magnitude``.

    Evidence: in ``python -m benchmarks.claims lift`` a perceptron that learns turned digits with
    this mask errs as often on the old ones as with a random mask (65% and 64%), with ``magnitude``
    in 69%, and in 21% if all weights train.

    Args:
      rank: sets how many entries train.
      filter_rank: rank of the approximation.
      interval: steps between two choices.
      smallest: choose the smallest entries, which the reference's documented setting does.
      where: matrices that are masked: role, glob, function, or a tuple of those.
      rest: what becomes of other leaves, "train" or "freeze".
      dims: see ``optkit.orthogonalize``; a tree of them says what is a matrix.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``; it keeps nothing. A choice is one SVD a matrix, some
      ``20*m*n*min(m, n)`` FLOPs.

    Raises:
      ValueError: a number below 1; at init a masked leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> policy = optkit.masks.lift(rank=1, filter_rank=1)
      >>> params = {"kernel": jnp.outer(jnp.arange(3.0), jnp.arange(3.0)) + 1.0}
      >>> state = optkit.update_mask(optax.sgd(1.0), policy, state="drop").init(params)
      >>> state.kept["kernel"].tolist()
      [2, 4, 5, 6, 7, 8]

    Reference:
      LIFT the Veil for the Truth, arXiv 2506.00772. Its code takes the largest entries if its
      option contains that word only.
    """
    check_static_int("rank", rank)
    check_static_int("filter_rank", filter_rank)
    if not isinstance(interval, jax.Array):  # a number that was injected
        check_static_int("interval", interval)
    given = scope(where, rest, roles)

    def active(params: PyTree) -> PyTree:
        area = as_matrices(given, params, dims)
        _, layout = matrices_of(area, params, dims)
        counts: dict[str, int] = {}
        for path, view in zip(layout.paths, layout.views, strict=True):
            each = _count(view.fan_out, view.fan_in, rank)
            counts[path] = counts.get(path, 0) + math.prod(view.batch_shape) * each
        choose = lambda path, leaf: Active(tuple(leaf.shape), counts[path])  # noqa: E731
        return area.active(params, choose)

    def mask(state: PyTree, look: Look) -> tuple[PyTree, PyTree]:
        part, layout = matrices_of(as_matrices(given, look.params, dims), look.params, dims)
        choose = functools.partial(_masks, rank=rank, filter_rank=filter_rank, smallest=smallest)
        masks = layout.merge(map_groups(choose, layout.split(part)))
        found: dict[str, Any] = dict(leaves_with_paths(masks))
        out = [found.get(path, False) for path, _ in leaves_with_paths(look.params)]
        return jax.tree.unflatten(jax.tree.structure(look.params), out), state

    return Policy("lift", active, mask, due=lambda step: (step > 0) & ((step + 1) % interval == 0))
