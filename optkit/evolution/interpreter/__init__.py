"""Runs any JAX function on perturbed parameters, of one member or of a whole population.

It interprets the function's own operations: array types that stand for a sum of matrices do not
get through scanned layers, remat, convolutions and kernels of more than two axes, all of which
models have.
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
