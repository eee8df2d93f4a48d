"""Runs any JAX function on perturbed parameters, of one member or of a whole population.

An interpreter of our own and not a library of array types: every operation of table 18.4 has to be
carried, scanned and stacked layers among them, and what is not carried has to be told.
"""

from optkit.evolution.interpreter.apply import MaterializedWarning, apply_perturbed
from optkit.evolution.interpreter.explain import (
    ExplainedLeaf,
    Explanation,
    discover_axes,
    explain,
)
from optkit.evolution.interpreter.population import population_apply

__all__ = [
    "ExplainedLeaf",
    "Explanation",
    "MaterializedWarning",
    "apply_perturbed",
    "discover_axes",
    "explain",
    "population_apply",
]
