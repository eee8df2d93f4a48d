"""How the fitnesses of a population become a pseudo-gradient."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution import shaping as shapers
from optkit.evolution.drawing import Drawing
from optkit.evolution.noise import Factors, is_noise, summed, weighted_sum
from optkit.evolution.shaping import NonFinite, Shaping
from optkit.evolution.strategy import fitness_vector
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.tree import PyTree

Scale = Literal["gradient", "paper", "reference", "sum"]
SHAPINGS: dict[str, Shaping] = {
    name: getattr(shapers, name)
    for name in (
        "centered_rank",
        "z_score",
        "standardize",
        "normalize",
        "nes_utilities",
        "pair_sign",
        "pair_difference",
    )
}


class PerturbState(NamedTuple):
    """State of ``population_perturb``: what redraws the present population."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_sigma: jax.Array  # float32 scalar, deviation of the present population


@dataclass(frozen=True)
class Estimate:
    """How fitnesses become weights of the noise, and their sum a pseudo-gradient."""

    drawing: Drawing
    shaping: Shaping | None
    scale: Scale
    maximize: bool
    nonfinite: NonFinite
    signs: bool
    chunk: int | None

    def weights(self, fitness: Any) -> jax.Array:
        """Returns the weight of each pair's noise, ``(pairs,)``: of + less that of -."""
        size = self.drawing.population
        given = fitness if self.drawing.still else fitness_vector(fitness, size)
        values = jnp.asarray(given, jnp.float32) * (1.0 if self.maximize else -1.0)
        values, good = shapers.finite(values, self.nonfinite)
        shaped = values if self.shaping is None else self.shaping(values)
        good = good.reshape(-1, size).all(axis=0)
        if shaped.shape != (size,):
            raise ValueError(
                f"the shaping returned {shaped.shape} for fitnesses of shape {values.shape}; it "
                f"has to return one weight a member, ({size},)"
            )
        if not self.drawing.antithetic:
            return jnp.where(good, shaped, 0.0)
        # Where one of two partners was not judged, the other says nothing about a direction.
        plus, minus = shaped.reshape(-1, 2).T
        return jnp.where(good.reshape(-1, 2).all(axis=1), plus - minus, 0.0)

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


def shaping_of(shaping: str | Shaping | None) -> Shaping | None:
    """Returns the function of a name, or what was given."""
    if isinstance(shaping, str):
        check_choice("shaping", shaping, tuple(SHAPINGS))
        return SHAPINGS[shaping]
    if shaping is not None and not callable(shaping):
        raise TypeError(f"shaping={shaping!r} is neither a name, nor a function, nor None")
    return shaping


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
