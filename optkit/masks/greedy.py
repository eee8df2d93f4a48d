"""Gauss-Southwell rules: the blocks that promise the largest decrease."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.linalg.largest import largest_of
from optkit.masks.lines import Lines, view_of
from optkit.masks.policy import (
    Active,
    Look,
    Policy,
    Rest,
    at_masked,
    masked_leaves,
    masked_paths_of,
    scope,
)
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import (
    Dims,
    PyTree,
    RuleLike,
    Selector,
    dims_by_path,
    leaves_with_paths,
    upcast,
)
from optkit.tree.paths import values_by_path

__all__ = ["greedy_blocks"]

Rule = Literal["gs", "gsl", "gsd", "gsq"]


class _Blocks:
    """How one leaf is cut into blocks."""

    def __init__(self, path: str, leaf: Any, blocks: str | int, lines: Lines | None) -> None:
        self.path, self.shape, self.lines = path, tuple(np.shape(leaf)), lines
        self.chunk = blocks if isinstance(blocks, int) else None
        self.size = math.prod(self.shape)
        if self.chunk is not None:
            self.number = -(-self.size // self.chunk)
        else:
            self.number = 1 if lines is None else lines.batch * lines.count

    @property
    def mask_shape(self) -> tuple[int, ...]:
        if self.chunk is not None:
            return self.shape
        return (1,) * len(self.shape) if self.lines is None else self.lines.shape

    def rows(self, x: jax.Array) -> jax.Array:
        """Returns ``(blocks, entries)``; a last chunk is filled up with zeros."""
        if self.lines is not None:
            return self.lines.flat(x).reshape(self.number, -1)
        if self.chunk is None:
            return x.reshape(1, -1)
        missing = self.number * self.chunk - self.size
        return jnp.pad(x.reshape(-1), (0, missing)).reshape(self.number, self.chunk)

    def mask(self, chosen: jax.Array) -> jax.Array:
        """Returns the leaf's mask from one bool a block."""
        if self.lines is not None:
            return self.lines.mask(chosen.reshape(self.lines.batch, -1))
        if self.chunk is None:
            return chosen.reshape(self.mask_shape)
        return jnp.repeat(chosen, self.chunk)[: self.size].reshape(self.shape)


def _score(rule: Rule, block: _Blocks, g: jax.Array, bound: Any) -> jax.Array:
    """Twice the decrease that is promised, one number a block."""
    rows = block.rows(g)
    if rule in ("gs", "gsl"):
        norms = jnp.sum(jnp.square(rows), axis=-1)
        if rule == "gs":
            return norms
        return norms / _fit(bound, (block.number,), block, "a number, or one a block")
    if rule == "gsd":
        wide = _fit(bound, block.shape, block, "a number, or one an entry")
        return jnp.sum(block.rows(jnp.square(g) / wide), axis=-1)
    size = rows.shape[-1]
    matrix = _fit(bound, (block.number, size, size), block, "a matrix a block")
    factor = jnp.linalg.cholesky(matrix)
    half = jax.lax.linalg.triangular_solve(factor, rows[..., None], left_side=True, lower=True)
    return jnp.sum(jnp.square(half[..., 0]), axis=-1)


def _fit(bound: Any, shape: tuple[int, ...], block: _Blocks, what: str) -> jax.Array:
    given = jnp.asarray(bound, jnp.float32)
    if given.ndim and given.shape != shape:
        raise ValueError(
            f"the curvature of leaf {block.path!r} has shape {given.shape}; give {what}, {shape}"
        )
    if not given.ndim and len(shape) == 3:
        return given * jnp.broadcast_to(jnp.eye(shape[-1]), shape)
    return jnp.broadcast_to(given, shape)


@cached_factory
def greedy_blocks(
    count: int = 1,
    *,
    rule: Rule = "gs",
    blocks: Literal["leaf", "row"] | int = "leaf",
    curvature: PyTree = None,
    interval: int = 1,
    where: Selector = "**",
    rest: Rest = "train",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses the blocks whose update promises the largest decrease (Gauss-Southwell).

    With the gradient ``g_b`` of a block, the ``count`` blocks of all leaves train that have the
    largest:

    * ``"gs"``: ``norm(g_b)``;
    * ``"gsl"``: ``norm(g_b)**2 / L_b``, ``L_b`` the largest curvature of the block;
    * ``"gsd"``: ``sum(g_i**2 / D_i)`` over the block, ``D`` a diagonal that bounds its Hessian;
    * ``"gsq"``: ``g_b' H_b^-1 g_b``, ``H_b`` a matrix that bounds its Hessian.

    The updates to match are ``-g_b/L_b``, ``-g_i/D_i`` and ``-H_b^-1 g_b``: each then lowers the
    loss by at least half of the number that was compared. Gradients are scaled by the largest of
    all for the comparison, so that squares neither overflow nor vanish together.

    Args:
      count: blocks that train at a step.
      rule: see above.
      blocks: "leaf"; "row", what leads to one output of a matrix, and vectors whole; or a number of
        entries that are neighbours in memory (1 chooses single coordinates).
      curvature: the bound, a tree like the parameters or a prefix of one: for "gsl" numbers or
        ``(blocks,)``, for "gsd" numbers or arrays like the parameters, for "gsq" numbers (times
        the identity) or ``(blocks, size, size)``.
      interval: steps between two choices, the first at step 0.
      where: leaves that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      dims: see ``optkit.orthogonalize``; says what a row is.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``, by itself with ``state="hold"``; it keeps nothing.

    Raises:
      ValueError: an option out of range, a curvature where none is used or none where it is; at
        init more blocks than there are, or a curvature that does not fit.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.greedy_blocks(1))
      >>> params = {"a": jnp.array([3.0]), "b": jnp.array([2.0, 2.0])}
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> u["a"].tolist(), u["b"].tolist()
      ([-3.0], [0.0, 0.0])

    Reference:
      Nutini, Laradji and Schmidt, Let's Make Block Coordinate Descent Converge Faster, arXiv
      1712.08859.
    """
    check_static_int("count", count)
    check_static_int("interval", interval)
    check_choice("rule", rule, get_args(Rule))
    if isinstance(blocks, str):
        check_choice("blocks", blocks, ("leaf", "row"))
    else:
        check_static_int("blocks", blocks)
    if (curvature is None) != (rule == "gs"):
        raise ValueError(
            f"rule={rule!r} with curvature={'None' if curvature is None else 'given'}: 'gs' "
            "compares gradients alone, the other rules need a bound of the curvature"
        )
    area = scope(where, rest, roles)

    def cut(params: PyTree) -> list[_Blocks]:
        named = dims_by_path(params, dims)
        out = []
        for (path, leaf), on in zip(leaves_with_paths(params), area.masked(params), strict=True):
            if not on:
                continue
            is_row = blocks == "row" and np.ndim(leaf) >= 2
            lines = Lines(view_of(path, leaf, dims, named, roles), "out") if is_row else None
            out.append(_Blocks(path, leaf, blocks, lines))
        total = sum(block.number for block in out)
        if out and count > total:
            raise ValueError(
                f"count={count} is more than the {total} blocks of all masked leaves; give at "
                f"most {total}"
            )
        return out

    def active(params: PyTree) -> PyTree:
        found = {block.path: block for block in cut(params)}
        choose = lambda path, leaf: Active(found[path].mask_shape, None)  # noqa: E731
        return area.active(params, choose)

    def mask(state: PyTree, look: Look) -> tuple[PyTree, PyTree]:
        slots = active(look.params)
        (grads,) = masked_leaves(slots, look.params, look.grads)[1:]
        bounds = {} if curvature is None else values_by_path(look.params, curvature)
        lost = [p for p in masked_paths_of(slots, look.params) if p not in bounds]
        if curvature is not None and lost:
            raise ValueError(f"the curvature has no entry for leaf {lost[0]!r}; add one")
        wide = [upcast(g) for g in grads]
        if not wide:
            return look.kept, state
        most = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in wide]))
        scale = jnp.where((most > 0) & jnp.isfinite(most), most, 1.0)
        cuts = cut(look.params)
        scores = [
            _score(rule, block, g / scale, bounds.get(block.path))
            for block, g in zip(cuts, wide, strict=True)
        ]
        chosen = largest_of(scores, count)
        masks = [block.mask(own) for block, own in zip(cuts, chosen, strict=True)]
        return at_masked(look.params, slots, masks), state

    due: Any = True if interval == 1 else lambda step: step % interval == 0
    return Policy("greedy_blocks", active, mask, due=due, needs_gradients=True)
