"""What sets the members of a population apart: noise of unit variance, drawn leaf by leaf."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.evolution.perturbed import Draw, outer
from optkit.kernels.counters import factor_of
from optkit.kernels.population_update.base import TOGETHER
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    Role,
    RuleLike,
    Selector,
    compute_dtype,
    dims_by_path,
    leaves_with_paths,
    matrix_view,
    rule_of,
    selects,
)

Law = Literal["low_rank", "gaussian", "rademacher"]
Compat = Literal["hyperscalees"]
Draws = Literal["jax", "counters"]


@partial(
    jax.tree_util.register_dataclass, data_fields=("a", "b", "draw"), meta_fields=("left", "right")
)
@dataclass(frozen=True)
class Factors:
    """Low-rank noise of a leaf for several pairs: ``E = sum_r a_r b_r / sqrt(rank)``.

    Attributes:
      a: ``(pairs, *leaf's shape without the right axes, rank)``.
      b: ``(pairs, *leaf's shape without the left axes, rank)``.
      left: axes of the leaf that only ``a`` has.
      right: axes of the leaf that only ``b`` has.
      draw: what they follow from, for a kernel that makes them itself.
    """

    a: Any
    b: Any
    left: tuple[int, ...]
    right: tuple[int, ...]
    draw: Draw | None = None

    def full(self) -> jax.Array:
        """Returns the noise in full, ``(pairs, *shape)``."""
        made = jax.vmap(lambda a, b: outer(a, b, self.left, self.right))(self.a, self.b)
        return made / math.sqrt(self.a.shape[-1])

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """Returns ``sum_k w_k E_k`` by one product over pairs and ranks; no ``E_k`` is made."""
        ndim = self.a.ndim - 2 + len(self.right)
        a_axes = [axis for axis in range(ndim) if axis not in self.right]
        b_axes = [axis for axis in range(ndim) if axis not in self.left]
        pair, rank = ndim, ndim + 1
        scaled = self.a * (weights / math.sqrt(self.a.shape[-1])).reshape(
            -1, *[1] * (self.a.ndim - 1)
        )
        given = (scaled, [pair, *a_axes, rank], self.b, [pair, *b_axes, rank])
        return jnp.einsum(*given, list(range(ndim)))


Noise = jax.Array | Factors | None  # of a leaf; None where it is left as it is


def is_noise(x: Any) -> bool:
    """Tells whether something is the noise of a leaf."""
    return x is None or isinstance(x, Factors)


def weighted_sum(noise: jax.Array | Factors, weights: jax.Array) -> jax.Array:
    """Returns ``sum_k w_k E_k`` over the pairs of a leaf's noise."""
    if isinstance(noise, Factors):
        return noise.weighted_sum(weights)
    return jnp.tensordot(weights, noise, axes=1)


@dataclass(frozen=True)
class LeafNoise:
    """How the noise of one leaf is drawn.

    Attributes:
      path: of the leaf.
      index: position of the leaf among the leaves of the tree.
      shape: of the leaf.
      dtype: of its noise.
      law: of the numbers that are drawn.
      rank: of low-rank noise; 0 for noise in full.
      left: axes of the left factor, the layer's outputs.
      right: axes of the right factor, the layer's inputs.
      moved: the leaf is left as it is if this is false.
      compat: whose draws are repeated.
      draws: what low-rank noise is drawn by.
    """

    path: str
    index: int
    shape: tuple[int, ...]
    dtype: Any
    law: Law
    rank: int = 0
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    moved: bool = True
    compat: Compat | None = None
    draws: Draws = "jax"

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the factors of one pair."""
        axes = range(len(self.shape))
        a, b = (
            tuple(self.shape[axis] for axis in axes if axis not in other)
            for other in (self.right, self.left)
        )
        return (*a, self.rank), (*b, self.rank)

    @property
    def numbers(self) -> int:
        """How many numbers a pair's noise has."""
        return sum(map(math.prod, self.factor_shapes)) if self.rank else math.prod(self.shape)

    def draw(self, key: jax.Array, pairs: jax.Array) -> Noise:
        """Returns the noise of some pairs.

        Args:
          key: of the leaf and the step.
          pairs: ``(K,)`` their numbers.
        """
        if not self.moved:
            return None
        if self.rank and self.draws == "counters":
            return self._counted(key, pairs)
        keys = jax.vmap(partial(jax.random.fold_in, key))(pairs)
        if not self.rank:
            return jax.vmap(partial(self._numbers, shape=self.shape))(keys)
        a, b = jax.vmap(self._factors)(keys)
        return Factors(a, b, self.left, self.right)

    def _counted(self, key: jax.Array, pairs: jax.Array) -> Factors:
        draw = Draw(jax.random.key_data(key), jnp.asarray(pairs, jnp.uint32))
        a, b = (
            factor_of(draw.key, draw.number, side, math.prod(shape[:-1]), self.rank)
            .reshape(len(pairs), *shape)
            .astype(self.dtype)
            for side, shape in zip("ab", self.factor_shapes, strict=True)
        )
        known = draw if self.dtype == jnp.float32 and len(self.shape) == 2 else None
        return Factors(a, b, self.left, self.right, known)

    def _numbers(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if self.law == "rademacher":
            return _signs(key, shape).astype(self.dtype)
        return jax.random.normal(key, shape, self.dtype)

    def _factors(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a_shape, b_shape = self.factor_shapes
        if self.compat is not None:  # rows of one draw: first the inputs, then the outputs
            inputs, outputs = (math.prod(x[:-1]) for x in (b_shape, a_shape))
            drawn = self._numbers(key, (inputs + outputs, self.rank))
            return drawn[inputs:].reshape(a_shape), drawn[:inputs].reshape(b_shape)
        # A draw each: cut from one, the factors of a sharded leaf would have to be moved.
        a_key, b_key = jax.random.split(key)
        return self._numbers(a_key, a_shape), self._numbers(b_key, b_shape)


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random signs, 32 of them from each word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return (2 * bits.astype(jnp.int8) - 1).reshape(-1)[:size].reshape(shape)


def leaf_noises(
    params: PyTree,
    law: Law,
    rank: int,
    *,
    full: Selector = (),
    frozen: Selector = (),
    dims: Dims = None,
    rules: Iterable[RuleLike] = (),
    dtype: Any | None = None,
    compat: Compat | None = None,
    draws: Draws = "jax",
) -> list[LeafNoise]:
    """Returns how the noise of each leaf is drawn, in the order of the leaves.

    Raises:
      ValueError: a leaf that is no array of floats, or a rank above a leaf's smaller side.
    """
    named, rules = dims_by_path(params, dims), tuple(rules)
    out = []
    for index, (path, leaf) in enumerate(leaves_with_paths(params)):
        moved = not selects(frozen, path, leaf, rules)
        if moved and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf {path!r} is of {leaf.dtype}, which noise can't be added to; leave it as it "
                f"is: frozen=({path!r},)"
            )
        own = (
            jnp.dtype(dtype) if dtype is not None else compute_dtype(leaf) if moved else leaf.dtype
        )
        plain: Law = "gaussian" if law == "low_rank" else law
        common: dict[str, Any] = {"path": path, "index": index, "shape": leaf.shape, "law": plain}
        common["dtype"] = jnp.dtype(own)
        sides = None
        if law == "low_rank" and moved and not selects(full, path, leaf, rules):
            sides = _sides(path, leaf, named, dims, rules, rank)
        left, right = sides or ((), ())
        out.append(
            LeafNoise(
                **common,
                rank=rank if sides else 0,
                left=left,
                right=right,
                moved=moved,
                compat=compat,
                draws=draws,
            )
        )
    return out


def _sides(
    path: str, leaf: Any, named: Any, dims: Dims, rules: Sequence[RuleLike], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of outputs and of inputs of a leaf that gets low-rank noise; None for others."""
    rule = rule_of(path, leaf, rules)
    if rule.role not in (*MATRIX_ROLES, Role.EMBEDDING, Role.HEAD) or len(leaf.shape) < 2:
        return None
    given: Any = rule.dims if dims is None else dims if named is None else named[path]
    if named is not None and given is None:
        return None
    view = matrix_view(leaf, given, path=path, role=rule.role)
    side = min(view.fan_in, view.fan_out)
    if rank > side:
        raise ValueError(
            f"leaf {path!r} of shape {tuple(leaf.shape)}: rank {rank} is above its smaller side "
            f"{side}, where noise in full is smaller; give a lower rank, or noise in full for this "
            f"leaf: full=({path!r},)"
        )
    return view.out_axes, view.in_axes


def leaf_keys(key: jax.Array, count: int, epoch: jax.Array, compat: Compat | None) -> list[Any]:
    """Returns the keys of all leaves for an epoch of noise."""
    if compat is None:
        own = [jax.random.fold_in(key, index) for index in range(count)]
    else:
        own = list(jax.random.split(key, count))
    return [jax.random.fold_in(x, epoch) for x in own]


def summed(
    leaf: LeafNoise,
    key: jax.Array,
    weights: jax.Array,
    measure: Callable[[Any, jax.Array], Any],
    chunk: int | None,
    first: Any = 0,
) -> Any:
    """Returns a sum over pairs of ``measure(noise, weights)``, their noise drawn chunk by chunk.

    Args:
      leaf: how the noise is drawn.
      key: of the leaf and the step.
      weights: ``(K, ...)``, rows for pairs.
      measure: what is summed over the pairs of a chunk; linear in the weights.
      chunk: pairs whose noise lives together; None for what fits into 64 MiB.
      first: number of the first pair.
    """
    pairs = weights.shape[0]
    size = min(pairs, chunk or max(1, TOGETHER // max(1, leaf.numbers)))
    count = -(-pairs // size)
    ids = jnp.arange(count * size, dtype=jnp.uint32).reshape(count, size)
    ids = ids + jnp.asarray(first, jnp.uint32)
    if ids.shape[0] == 1:
        return measure(leaf.draw(key, ids[0]), weights)
    padded = jnp.zeros((ids.size, *weights.shape[1:]), weights.dtype).at[:pairs].set(weights)

    def step(total: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        more = measure(leaf.draw(key, given[0]), given[1])
        return jax.tree.map(jnp.add, total, more), None

    rows = padded.reshape(*ids.shape, *weights.shape[1:])
    shapes = jax.eval_shape(lambda: measure(leaf.draw(key, ids[0]), rows[0]))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(step, zeros, (ids, rows))[0]
