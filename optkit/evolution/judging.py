"""From the fitnesses that a user measured to the weights that an estimate needs."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution import shaping as shapers
from optkit.evolution.shaping import NonFinite, Shaping
from optkit.evolution.strategy import fitness_vector
from optkit.transforms.hyperparams import check_choice

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


@dataclass(frozen=True)
class Judge:
    """Shapes the fitnesses of a population.

    Attributes:
      population: number of members.
      shaping: a name, a function from ``(N,)`` fitnesses to weights, or None.
      maximize: False if smaller is better.
      nonfinite: what a member without a finite fitness counts as.
      paired: a member that is left out takes its partner along: alone it says nothing about a
        direction.
      questions: the fitness is ``(questions, N)``.
    """

    population: int
    shaping: str | Shaping | None = None
    maximize: bool = True
    nonfinite: NonFinite = "worst"
    paired: bool = True
    questions: bool = False

    def __post_init__(self) -> None:
        check_choice("nonfinite", self.nonfinite, ("worst", "zero", "propagate"))
        if isinstance(self.shaping, str):
            check_choice("shaping", self.shaping, tuple(SHAPINGS))
        elif self.shaping is not None and not callable(self.shaping):
            raise TypeError(f"shaping={self.shaping!r} is neither a name, nor a function, nor None")

    def __call__(self, fitness: Any) -> jax.Array:
        """Returns the weights of all members, ``(N,)``, larger for better ones."""
        values, good = shapers.finite(self._values(fitness), self.nonfinite)
        if self.questions:
            good = good.all(axis=0)
        shape = SHAPINGS[self.shaping] if isinstance(self.shaping, str) else self.shaping
        shaped = values if shape is None else shape(values)
        if shaped.shape != (self.population,):
            raise ValueError(
                f"the shaping returned {shaped.shape} for fitnesses of shape {values.shape}; it "
                f"has to return one weight a member, ({self.population},)"
            )
        if self.paired:
            good = jnp.repeat(good.reshape(-1, 2).all(axis=1), 2)
        shaped = jnp.where(good, shaped, 0.0)
        if self.nonfinite == "propagate":
            return jnp.where(jnp.isfinite(values).all(), shaped, jnp.nan)
        return shaped

    def _values(self, fitness: Any) -> jax.Array:
        if not self.questions:
            values = fitness_vector(fitness, self.population)
        else:
            values = jnp.asarray(fitness)
            if values.ndim != 2 or values.shape[1] != self.population:
                raise ValueError(
                    f"the fitness is of shape {values.shape}, not (questions, {self.population}): "
                    "with baseline=True each question is asked of all members"
                )
            values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return values if self.maximize else -values
