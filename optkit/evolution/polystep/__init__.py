"""PolyStep: training by optimal transport from particles of parameters to polytopes' corners."""

from optkit.evolution.polystep.annealing import cosine_annealing, linear_annealing
from optkit.evolution.polystep.geometry import polytope_vertices
from optkit.evolution.polystep.moving import AdaptiveRadius
from optkit.evolution.polystep.population import PolyStep, count_probes
from optkit.evolution.polystep.probing import PolyStepState
from optkit.evolution.polystep.strategy import polystep
from optkit.evolution.polystep.swarm import PolyStepES, PolyStepESState, polystep_es

__all__ = [
    "AdaptiveRadius",
    "PolyStep",
    "PolyStepES",
    "PolyStepESState",
    "PolyStepState",
    "cosine_annealing",
    "count_probes",
    "linear_annealing",
    "polystep",
    "polystep_es",
    "polytope_vertices",
]
