"""Searches that adapt the shape of their distribution: CMA-ES, its diagonal form, and xNES."""

from optkit.evolution.search.cma_es import CMAState, cma_es
from optkit.evolution.search.constants import (
    Constants,
    cma_constants,
    default_population,
    sep_cma_constants,
)
from optkit.evolution.search.sep_cma_es import SepCMAState, sep_cma_es
from optkit.evolution.search.xnes import XNESState, xnes

__all__ = [
    "CMAState",
    "Constants",
    "SepCMAState",
    "XNESState",
    "cma_constants",
    "cma_es",
    "default_population",
    "sep_cma_constants",
    "sep_cma_es",
    "xnes",
]
