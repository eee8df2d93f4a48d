"""How the fitnesses of a population become a pseudo-gradient."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.drawing import Drawing
from optkit.evolution.judging import Judge
from optkit.evolution.noise import Factors, is_noise, summed, weighted_sum
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.tree import PyTree

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

    def weights(self, fitness: Any) -> jax.Array:
        """Returns the weight of each pair's noise, ``(pairs,)``: of + less that of -."""
        return self.judge(fitness).reshape(self.drawing.pairs, -1) @ self.drawing.signs

    def factor(self, sigma: jax.Array) -> Any:
        """Returns what the weighted sum of unit noise is multiplied by."""
        size = self.drawing.population
        return {
            "gradient": lambda: 1.0 / (size * sigma),
            "paper": lambda: 1.0 / size,
            "reference": lambda: sigma / np.sqrt(size),
            "sum": lambda: 1.0,
        }[self.scale]()

    def gradient(self, params: PyTree, state: PerturbState, weights: Any, noise: PyTree) -> PyTree:
        """Returns the pseudo-gradient in the dtypes of the parameters."""
        factor = -self.factor(state.es_sigma)
        flat, structure = jax.tree.leaves(params), jax.tree.structure(params)
        leaves = self.drawing.leaves(params)
        keys = self.drawing.keys(len(leaves), state.es_key, state.es_step)
        given = [None] * len(flat) if noise is None else jax.tree.leaves(noise, is_leaf=is_noise)
        out = []
        for base, leaf, key, own in zip(flat, leaves, keys, given, strict=True):
            if not leaf.moved:
                out.append(jnp.zeros_like(base))
                continue
            if own is not None:
                total = self._sum(own, weights)
            else:
                total = summed(leaf, key, weights, self._sum, self.chunk)
            out.append((factor * total).astype(base.dtype))
        return jax.tree.unflatten(structure, out)

    def _sum(self, noise: Any, weights: jax.Array) -> jax.Array:
        if self.signs and isinstance(noise, Factors):
            noise = Factors(jnp.sign(noise.a), jnp.sign(noise.b), noise.left, noise.right)
        return weighted_sum(noise, weights)


def required(params: PyTree | None) -> PyTree:
    """Returns the parameters, or raises ValueError if there are none."""
    if params is None:
        raise ValueError(
            "a population method redraws its members around the parameters: call "
            "update(fitness, state, params)"
        )
    return params


def next_generation(state: PerturbState, sigma: ScalarOrSchedule) -> PerturbState:
    """Returns the state of the next population; a sigma that is no schedule stays what it is."""
    step = state.es_step + 1
    spread = jnp.asarray(sigma(step), jnp.float32) if callable(sigma) else state.es_sigma
    return state._replace(es_step=step, es_sigma=spread)
