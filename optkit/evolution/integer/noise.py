"""Noise of integer populations: slices of one table of normal integers, found by key and pair."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.integer.format import FIXED_POINT, LIMIT, IntegerPerturbed
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import PyTree, RuleLike, Selector, leaves_with_paths
from optkit.tree.roles import selects

Rounding = Literal["nearest", "truncate"]

# Of the reference: spreads neighbouring pairs over the table.
_MIX = 0x45D9F3B


def noise_table(
    bits: int = 16,
    *,
    extra: int = 0,
    seed: int = 0,
    rounding: Rounding = "nearest",
    fixed_point: int = FIXED_POINT,
) -> np.ndarray:
    """Draws a table of int8 normal numbers, ``2**fixed_point`` standing for 1.

    Uniform words of 32 bits are compared with the normal law's bounds of each integer, so that the
    table is the same on every machine.

    Args:
      bits: the table has ``2**bits`` places where a slice may begin.
      extra: entries behind them, as many as the longest slice has.
      seed: of the generator.
      rounding: "nearest", as the paper has it, or "truncate" towards 0, as its code does: a
        standard deviation of 15.6 for 16.
      fixed_point: bits behind the point.

    Returns:
      int8 ``(2**bits + extra,)`` in [-127, 127].

    Raises:
      ValueError: sizes that are no integers, or an unknown rounding.

    Example:
      >>> from optkit.evolution.integer import noise_table
      >>> float(noise_table(16).std().round())
      16.0
    """
    check_static_int("bits", bits)
    check_static_int("extra", extra, low=0)
    check_choice("rounding", rounding, ("nearest", "truncate"))
    below = np.arange(-LIMIT, LIMIT)
    bounds = below + 0.5 if rounding == "nearest" else np.where(below < 0, below, below + 1)
    law = NormalDist(0.0, 2.0**fixed_point)
    cuts = np.array([round(2**32 * law.cdf(float(bound))) for bound in bounds], np.uint64)
    # Generators may change what they make of their words from version to version, words not.
    words = np.random.Philox(seed).random_raw(2**bits + extra) >> np.uint64(32)
    return (np.searchsorted(cuts, words, side="right") - LIMIT).astype(np.int8)


@dataclass(frozen=True)
class IntegerNoise:
    """How the noise of one leaf is cut out of the table.

    Attributes:
      path: of the leaf.
      index: position of the leaf among those of the tree.
      shape: of the leaf.
      stacked: how many leading axes are layers, each with noise of its own.
      rank: of a matrix's noise.
    """

    path: str
    index: int
    shape: tuple[int, ...]
    stacked: int
    rank: int

    @property
    def own(self) -> tuple[int, ...]:
        """Shape of the matrix or vector."""
        return self.shape[self.stacked :]

    @property
    def numbers(self) -> int:
        """How many entries of the table the noise of a pair has in one layer."""
        return sum(self.own) * self.rank if len(self.own) == 2 else 2 * math.prod(self.own)

    def keys(self, key: jax.Array) -> jax.Array:
        """Returns the keys of all layers, ``shape[:stacked]``."""
        key = jax.random.fold_in(key, self.index)
        layers = math.prod(self.shape[: self.stacked])
        if not self.stacked:
            return key
        folded = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(layers))
        return folded.reshape(self.shape[: self.stacked])

    def draw(
        self, table: jax.Array, mask: int, keys: jax.Array, epoch: jax.Array, pairs: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns ``a`` and ``b`` of an ``IntegerPerturbed`` leaf.

        Args:
          table: int8 ``(entries,)``.
          mask: places where a slice may begin, less one.
          keys: of the layers, ``shape[:stacked]``.
          epoch: int32 scalar, number of this noise.
          pairs: int32 ``(K,)`` numbers of pairs.
        """

        def of_layer(key: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            words = jax.random.key_data(jax.random.fold_in(key, epoch))
            return self._cut(slices(table, mask, words[0], pairs, self.numbers))

        if not self.stacked:
            return of_layer(keys)
        out = jax.vmap(of_layer)(keys.reshape(-1))
        lead = self.shape[: self.stacked]
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)

    def _cut(self, cut: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if len(self.own) == 2:
            rows = cut.reshape(cut.shape[0], sum(self.own), self.rank)
            return rows[:, self.own[1] :], rows[:, : self.own[1]]
        factors = cut.reshape(cut.shape[0], *self.own, 2).astype(jnp.int16)
        return factors[..., 0] * factors[..., 1], None  # at most 127**2


def slices(
    table: jax.Array, mask: int, word: jax.Array, pairs: jax.Array, length: int
) -> jax.Array:
    """Returns what the table has for some pairs, ``(K, length)``.

    The slice of pair k begins at ``(word ^ mix(k)) & mask``, ``mix(k) = ((k >> 16) ^ k) *
    0x45d9f3b`` modulo 2**32; one that reaches beyond the table ends with it.

    Args:
      table: ``(entries,)``.
      mask: one less than a power of two.
      word: uint32 scalar.
      pairs: integers ``(K,)``.
      length: entries of a slice.
    """
    mixed = (((pairs >> 16) ^ pairs).astype(jnp.uint32)) * jnp.uint32(_MIX)
    starts = ((word ^ mixed) & jnp.uint32(mask)).astype(jnp.int32)
    return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(table, start, length))(starts)


def integer_noises(
    params: PyTree, rank: int, stacked: Selector, rules: Iterable[RuleLike] = ()
) -> list[IntegerNoise]:
    """Returns how the noise of each leaf is drawn, in the order of the leaves.

    Args:
      params: int8 leaves.
      rank: of the noise of matrices.
      stacked: leaves whose first axis is one of layers.
      rules: the user's role rules.

    Raises:
      ValueError: a leaf of another dtype, or one that is neither matrix nor vector.
    """
    rules = tuple(rules)
    out = []
    for index, (path, leaf) in enumerate(leaves_with_paths(params)):
        if leaf.dtype != jnp.int8:
            raise ValueError(
                f"leaf {path!r} is of {leaf.dtype}, and integer noise moves int8; take it out of "
                "the tree, or use optkit.evolution.eggroll for floats"
            )
        ndim = jnp.ndim(leaf)
        layers = 1 if selects(stacked, path, leaf, rules) else 0
        layers = max(layers, ndim - 2)  # of more than two axes the last two are the matrix
        if ndim - layers < 1:
            raise ValueError(
                f"leaf {path!r} of shape {leaf.shape} is neither matrix nor vector beside "
                f"{layers} axes of layers; name leaves of layers by stacked="
            )
        out.append(IntegerNoise(path, index, tuple(leaf.shape), layers, rank))
    return out


def check_table(table: Any, bits: int, longest: int) -> None:
    """Raises ValueError unless a table is int8 and long enough for every slice.

    Args:
      table: int8 ``(entries,)``.
      bits: slices begin at ``2**bits`` places.
      longest: entries of the longest slice.
    """
    if table.dtype != jnp.int8 or table.ndim != 1 or table.shape[0] < 2**bits:
        raise ValueError(
            f"table is {table.dtype}{list(table.shape)}; it must be int8 of one axis with at least "
            f"2**table_bits = {2**bits} entries"
        )
    if table.shape[0] < longest:
        raise ValueError(
            f"the noise of the largest leaf takes {longest} entries and the table has "
            f"{table.shape[0]}; raise table_bits={bits}"
        )


def population_leaf(base: jax.Array, drawn: Any, shift: int) -> IntegerPerturbed:
    """Joins a parameter and what ``IntegerNoise.draw`` returned."""
    return IntegerPerturbed(base, drawn[0], drawn[1], shift)
