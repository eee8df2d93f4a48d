"""Gauss-Southwell rules: the blocks that promise the largest decrease."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.linalg.largest import Stacks, largest_of
from optkit.masks.blocks import Blocks, blocks_of, check_blocks
from optkit.masks.compact import whole
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
    upcast,
)
from optkit.tree.paths import values_by_path
from optkit.tree.sharding import spec_of

__all__ = ["curvature_search", "greedy_blocks"]

Rule = Literal["gs", "gsl", "gsd", "gsq"]


def _score(rule: Rule, block: Blocks, g: jax.Array, bound: jax.Array) -> jax.Array:
    """Twice the decrease that is promised, one number a block."""
    if rule == "gsd":
        return jnp.sum(block.rows(jnp.square(g) / bound), axis=-1)
    rows = block.rows(g)
    if rule != "gsq":
        return jnp.sum(jnp.square(rows), axis=-1) / bound
    factor = jnp.linalg.cholesky(bound)
    half = jax.lax.linalg.triangular_solve(factor, rows[..., None], left_side=True, lower=True)
    return jnp.sum(jnp.square(half[..., 0]), axis=-1)


def _bound(rule: Rule, block: Blocks, given: Any) -> jax.Array:
    """The bound of a leaf's curvature in the shape that its rule takes."""
    if rule == "gs":
        return jnp.ones((), jnp.float32)
    if rule == "gsl":
        return _fit(given, (block.number,), block, "a number, or one a block")
    if rule == "gsd":
        return _fit(given, block.shape, block, "a number, or one an entry")
    size = -(-block.size // block.number) if block.chunk is None else block.chunk
    return _fit(given, (block.number, size, size), block, "a matrix a block")


def _scores(
    rule: Rule, cuts: list[Blocks], grads: list[jax.Array], bounds: list[jax.Array]
) -> list[jax.Array]:
    """The scores of all leaves, those of one shape together."""
    stacks = Stacks(grads, [(block.lines, block.chunk, np.shape(bound))
                            for block, bound in zip(cuts, bounds, strict=True)])  # fmt: skip
    stacked = stacks.stack(grads)
    most = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in stacked]))
    scale = jnp.where((most > 0) & jnp.isfinite(most), most, 1.0)
    out = []
    for members, g, bound in zip(stacks.members, stacked, stacks.stack(bounds), strict=True):
        score = functools.partial(_score, rule, cuts[members[0]])
        out.append(jax.vmap(score)(g / scale, bound))
    return stacks.split(out)


def _fit(bound: Any, shape: tuple[int, ...], block: Blocks, what: str) -> jax.Array:
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
        the identity) or ``(blocks, size, size)``. ``update(..., curvature=tree)`` takes another
        one, such as what ``optkit.masks.curvature_search`` finds.
      interval: steps between two choices, the first at step 0.
      where: leaves that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      dims: see ``optkit.orthogonalize``; says what a row is.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``, by itself with ``state="hold"``; it keeps nothing.

    Raises:
      ValueError: an option out of range, or a curvature where none is used; at init more blocks
        than there are; at update no curvature where one is needed, or one that does not fit.

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
    check_blocks(blocks)
    if curvature is not None and rule == "gs":
        raise ValueError(
            "rule='gs' compares gradients alone and has no use for a curvature; leave it out, or "
            "give rule='gsl'"
        )
    area = scope(where, rest, roles)

    def cut(params: PyTree) -> list[Blocks]:
        out = blocks_of(params, area.masked(params), blocks, dims, roles)
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
        given = look.extra.get("curvature", curvature)
        bounds = {} if given is None else values_by_path(look.params, given)
        lost = [p for p in masked_paths_of(slots, look.params) if p not in bounds]
        if rule != "gs" and lost:
            raise ValueError(
                f"rule={rule!r} needs a bound of the curvature, and there is none for leaf "
                f"{lost[0]!r}; give curvature=, here or to update"
            )
        # On an Explicit mesh blocks that are cut over devices come together first.
        wide = [upcast(g if spec_of(g) is None else whole(g)) for g in grads]
        if not wide:
            return look.kept, state
        cuts = cut(look.params)
        limits = [_bound(rule, block, bounds.get(block.path)) for block in cuts]
        chosen = largest_of(_scores(rule, cuts, wide, limits), count)
        masks = [block.mask(own) for block, own in zip(cuts, chosen, strict=True)]
        return at_masked(look.params, slots, masks), state

    due: Any = True if interval == 1 else lambda step: step % interval == 0
    return Policy(
        "greedy_blocks", active, mask, due=due, needs_gradients=True, extra=("curvature",)
    )


def curvature_search(
    loss: Callable[[PyTree], jax.Array],
    params: PyTree,
    grads: PyTree,
    curvature: PyTree,
    *,
    blocks: Literal["leaf", "row"] | int = "leaf",
    most: int = 60,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> tuple[PyTree, PyTree]:
    """Doubles the curvature of the blocks that train until their step keeps its promise.

    While ``loss(p - g_b/L_b) > loss(p) - sum(norm(g_b)**2 / (2*L_b))``, but for rounding,
    ``L_b <- 2*L_b`` of all blocks with a gradient that is not zero.

      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> loss = lambda p: 50.0 * jnp.sum(p["w"] ** 2)  # of curvature 100
      >>> params, L = {"w": jnp.ones(4)}, {"w": jnp.ones(2)}
      >>> tx = optkit.update_mask(
      ...   optax.identity(), optkit.masks.greedy_blocks(1, rule="gsl", blocks=2))
      >>> g, state = tx.update(jax.grad(loss)(params), tx.init(params), params, curvature=L)
      >>> L, step = optkit.masks.curvature_search(loss, params, g, L, blocks=2)
      >>> L["w"].tolist(), optax.apply_updates(params, step)["w"].tolist()
      ([128.0, 1.0], [0.21875, 0.21875, 1.0, 1.0])

    Args:
      loss: function of the parameters to a scalar.
      params: the parameters.
      grads: masked gradients: zero in blocks that do not train.
      curvature: a tree like the parameters of ``(blocks,)`` arrays of positive numbers.
      blocks: as given to ``greedy_blocks``.
      most: doublings at most.
      dims: as given to ``greedy_blocks``.
      roles: as given to ``greedy_blocks``.

    Returns:
      The new curvature, and the step ``-g_b/L_b``, a tree like the parameters.

    Raises:
      ValueError: a curvature that does not fit.
    """
    check_blocks(blocks)
    leaves: list[jax.Array] = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    cuts = blocks_of(params, [True] * len(leaves), blocks, dims, roles)
    wide = [upcast(g) for g in jax.tree.leaves(grads)]
    start = [
        _fit(bound, (cut.number,), cut, "one number a block")
        for bound, cut in zip(structure.flatten_up_to(curvature), cuts, strict=True)
    ]
    squares = [jnp.sum(cut.rows(g) ** 2, axis=-1) for cut, g in zip(cuts, wide, strict=True)]
    before = loss(params)
    slack = 4.0 * jnp.finfo(jnp.float32).eps * jnp.abs(before)

    def steps(bounds: list[jax.Array]) -> list[jax.Array]:
        return [
            (-g / cut.mask(bound)).astype(leaf.dtype)
            for g, cut, bound, leaf in zip(wide, cuts, bounds, leaves, strict=True)
        ]

    def fails(carry: tuple[jax.Array, list[jax.Array]]) -> jax.Array:
        count, bounds = carry
        moved = [leaf + step for leaf, step in zip(leaves, steps(bounds), strict=True)]
        parts = [jnp.sum(s / (2.0 * b)) for s, b in zip(squares, bounds, strict=True)]
        reached = loss(structure.unflatten(moved)) <= before - sum(parts) + slack
        return ~reached & (count < most)

    def double(carry: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
        count, bounds = carry
        return count + 1, [
            jnp.where(s > 0, 2.0 * b, b) for s, b in zip(squares, bounds, strict=True)
        ]

    _, found = jax.lax.while_loop(fails, double, (jnp.zeros((), jnp.int32), start))
    return structure.unflatten(found), structure.unflatten(steps(found))
