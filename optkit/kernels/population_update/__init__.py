"""The update of a whole population: the weighted sum of its members' low-rank noise."""

from optkit.kernels.population_update.api import (
    Counters,
    Implementation,
    population_update,
    why_not,
)

__all__ = ["Counters", "Implementation", "population_update", "why_not"]
