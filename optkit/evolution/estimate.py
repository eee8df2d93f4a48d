"""How the fitnesses of a population become a pseudo-gradient."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.deviation import inverse
from optkit.evolution.drawing import Drawing
from optkit.evolution.judging import Judge
from optkit.evolution.noise import Factors, LeafNoise, is_noise, summed, weighted_sum
from optkit.evolution.spread import Spread
from optkit.evolution.summing import by_kernel, check_leaves, summed_by_kernel
from optkit.kernels.implementation import Implementation
from optkit.tree import PyTree
from optkit.tree.sharding import place_like

Scale = Literal["gradient", "paper", "reference", "sum"]


class PerturbState(NamedTuple):
    """State of ``population_perturb``: what redraws the present population."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # float32 scalar, deviation of the present population


@dataclass(frozen=True)
class Estimate:
    """How fitnesses become weights of the noise, and their sum a pseudo-gradient."""

    drawing: Drawing
    judge: Judge
    scale: Scale
    signs: bool
    chunk: int | None
    spread: Spread | None = None
    implementation: Implementation = "xla"

    def leaves(self, params: PyTree) -> list[LeafNoise]:
        """Returns how the noise of each leaf is drawn, where it can be summed."""
        leaves = self.drawing.leaves(params)
        if self.implementation != "xla":
            check_leaves(leaves)
        return leaves

    def weights(self, fitness: Any) -> jax.Array:
        """Returns the weight of each pair's noise, ``(pairs,)``: of + less that of -."""
        return self.judge(fitness).reshape(self.drawing.pairs, -1) @ self.drawing.signs

    def factor(self, sigma: jax.Array) -> Any:
        """Returns what the weighted sum of unit noise is multiplied by."""
        size = self.drawing.population
        return {
            "gradient": lambda: inverse(sigma) / size,
            "paper": lambda: 1.0 / size,
            "reference": lambda: sigma / np.sqrt(size),
            "sum": lambda: 1.0,
        }[self.scale]()

    def gradient(self, params: PyTree, state: PerturbState, weights: Any, noise: PyTree) -> PyTree:
        """Returns the pseudo-gradient in the dtypes of the parameters."""
        factor = -self.factor(state.es_sigma)
        flat, structure = jax.tree.leaves(params), jax.tree.structure(params)
        leaves = self.leaves(params)
        if noise is not None:
            given = jax.tree.leaves(noise, is_leaf=is_noise)
            totals = [None if own is None else self._sum(own, weights) for own in given]
        elif self.spread is not None and self.spread.sums_apart(len(weights), self.drawing.rank):
            apart = self.spread.added(partial(self._part, leaves))
            totals = apart(weights, state.es_key, state.es_step)
        elif self.spread is not None and self.implementation != "xla":
            alike = self.spread.repeated(partial(self._totals, leaves, first=0))
            totals = alike(weights, state.es_key, state.es_step)
        else:
            totals = self._totals(leaves, weights, state.es_key, state.es_step, 0)
        out = [
            jnp.zeros_like(base)
            if total is None
            else place_like((factor * total).astype(base.dtype), base)
            for base, total in zip(flat, totals, strict=True)
        ]
        return jax.tree.unflatten(structure, out)

    def _part(
        self, leaves: list[LeafNoise], index: Any, weights: jax.Array, key: Any, step: Any
    ) -> list[Any]:
        """The sums over the pairs of one device, ``weights`` being theirs."""
        return self._totals(leaves, weights, key, step, index * len(weights))

    def _totals(
        self, leaves: list[LeafNoise], weights: jax.Array, key: Any, step: Any, first: Any
    ) -> list[Any]:
        """The weighted sum of each leaf's noise over pairs from the first on; None if frozen."""
        keys = self.drawing.keys(len(leaves), key, step)
        return [
            self._total(leaf, own, weights, first) if leaf.moved else None
            for leaf, own in zip(leaves, keys, strict=True)
        ]

    def _total(self, leaf: LeafNoise, key: Any, weights: jax.Array, first: Any) -> Any:
        if self.implementation != "xla" and by_kernel(leaf):
            return summed_by_kernel(leaf, key, weights, self.signs, self.implementation, first)
        return summed(leaf, key, weights, self._sum, self.chunk, first)

    def _sum(self, noise: Any, weights: jax.Array) -> jax.Array:
        if self.signs and isinstance(noise, Factors):
            noise = Factors(jnp.sign(noise.a), jnp.sign(noise.b), noise.left, noise.right)
        return weighted_sum(noise, weights)
