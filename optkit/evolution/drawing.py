"""How a population is drawn around parameters: by keys alone, so that any part can be redrawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.noise import (
    Compat,
    Draws,
    Factors,
    Law,
    LeafNoise,
    Noise,
    is_noise,
    leaf_keys,
    leaf_noises,
)
from optkit.evolution.perturbed import Perturbed, Varied
from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import Dims, PyTree, RuleLike, Selector, upcast
from optkit.tree.selection import check_selects


@dataclass(frozen=True)
class Drawing:
    """The settings of a population's noise, and what follows from them.

    Attributes:
      population: number of members.
      antithetic: neighbours (2k, 2k+1) have noise of opposite sign.
      law: of the noise; "low_rank" for Gaussian factors.
      rank: of low-rank noise.
      full: leaves with noise in full.
      frozen: leaves without noise.
      dims: which axes of a leaf are its matrix.
      rules: the user's role rules.
      dtype: of the noise; None for float32 or better.
      noise_reuse: steps that have the same noise.
      still: pairs without noise, from the first on.
      compat: whose draws are repeated.
      draws: what low-rank noise is drawn by.
    """

    population: int
    antithetic: bool = True
    law: Law = "gaussian"
    rank: int = 1
    full: Selector = ()
    frozen: Selector = ()
    dims: Dims = None
    rules: Iterable[RuleLike] = ()
    dtype: Any | None = None
    noise_reuse: int = 1
    still: int = 0
    compat: Compat | None = None
    draws: Draws = "jax"

    def __post_init__(self) -> None:
        check_static_int("population", self.population, low=2 if self.antithetic else 1)
        check_static_int("rank", self.rank)
        check_static_int("noise_reuse", self.noise_reuse, low=0 if self.compat else 1)
        check_choice("noise", self.law, ("low_rank", "gaussian", "rademacher"))
        check_choice("draws", self.draws, get_args(Draws))
        if self.compat is not None:
            check_choice("compat", self.compat, ("hyperscalees",))
            if self.draws != "jax":
                raise ValueError(
                    f"compat={self.compat!r} repeats draws of jax.random, and draws={self.draws!r} "
                    "are others; give one of them"
                )
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"population={self.population} is odd, and antithetic members come in pairs; give "
                "an even number, or antithetic=False"
            )

    @property
    def pairs(self) -> int:
        """How many draws there are."""
        return self.population // 2 if self.antithetic else self.population

    @property
    def signs(self) -> np.ndarray:
        """Signs of the members of a pair, or of the one member."""
        return np.array([1.0, -1.0] if self.antithetic else [1.0], np.float32)

    def leaves(self, params: PyTree) -> list[LeafNoise]:
        """Returns how the noise of each leaf is drawn."""
        for name, selector in (("full", self.full), ("frozen", self.frozen)):
            if not isinstance(selector, tuple) or selector:
                check_selects(name, selector, params, self.rules)
        return leaf_noises(
            params,
            self.law,
            self.rank,
            full=self.full,
            frozen=self.frozen,
            dims=self.dims,
            rules=self.rules,
            dtype=self.dtype,
            compat=self.compat,
            draws=self.draws,
        )

    def keys(self, count: int, key: jax.Array, step: jax.Array) -> list[jax.Array]:
        """Returns the keys of all leaves for a step."""
        epoch = step // self.noise_reuse if self.noise_reuse else jnp.zeros_like(step)
        return leaf_keys(key, count, epoch, self.compat)

    def noise(self, params: PyTree, key: jax.Array, step: jax.Array, pairs: jax.Array) -> PyTree:
        """Returns the noise of some pairs: a tree with arrays or ``Factors``."""
        leaves = self.leaves(params)
        keys = self.keys(len(leaves), key, step)
        drawn = [leaf.draw(own, pairs) for leaf, own in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(params), drawn)

    def scales(self, sigma: Any, pairs: jax.Array) -> jax.Array:
        """Returns sigma with the sign of each member of some pairs, ``(members,)``."""
        moved = jnp.where(pairs < self.still, 0.0, sigma) if self.still else sigma
        each = jnp.broadcast_to(jnp.asarray(moved, jnp.float32), pairs.shape)
        return jnp.outer(each, jnp.asarray(self.signs)).reshape(-1)

    def lazy(self, params: PyTree, noise: PyTree, scales: jax.Array) -> PyTree:
        """Returns a population: leaves ``Perturbed``, ``Varied`` or, where left alone, shared."""
        return self._combined(params, noise, lambda base, e: _lazy(base, e, scales))

    def full_members(self, params: PyTree, noise: PyTree, scales: jax.Array) -> PyTree:
        """Returns a population in full: leaves ``(members, *shape)``."""
        return self._combined(params, noise, lambda base, e: _full(base, e, scales))

    def _combined(self, params: PyTree, noise: PyTree, combine: Any) -> PyTree:
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        given = jax.tree.leaves(noise, is_leaf=is_noise)
        if len(given) != len(leaves):
            check_same_leaves(params, noise, "noise")
        return structure.unflatten(map(combine, leaves, given))


def _lazy(base: jax.Array, noise: Noise, scales: jax.Array) -> Any:
    if noise is None:
        return base
    if not isinstance(noise, Factors):
        return Varied(_full(base, noise, scales))
    scale = scales / np.sqrt(noise.a.shape[-1], dtype=np.float32)
    return Perturbed(base, noise.a, noise.b, scale, noise.left, noise.right, noise.draw)


def _full(base: jax.Array, noise: Noise, scales: jax.Array) -> jax.Array:
    if noise is None:
        return jnp.broadcast_to(base, (*scales.shape, *base.shape))
    drawn = noise.full() if isinstance(noise, Factors) else noise
    each = scales.reshape(drawn.shape[0], -1, *[1] * base.ndim)
    moved = upcast(base)[None, None] + each * drawn[:, None]
    return moved.reshape(scales.shape[0], *base.shape).astype(base.dtype)
