"""Gradient-free training: populations of any JAX model, and what learns from their fitness."""

from optkit.evolution import integer, search, shaping
from optkit.evolution.ask_tell import AskTell, SearchState, ask_tell
from optkit.evolution.estimate import PerturbState
from optkit.evolution.evaluation import evaluate
from optkit.evolution.forward_gradient import forward_gradient, project_guess, random_guess
from optkit.evolution.guided import guided_es
from optkit.evolution.interpreter import (
    ExplainedLeaf,
    Explanation,
    MaterializedWarning,
    apply_perturbed,
    discover_axes,
    explain,
    population_apply,
)
from optkit.evolution.local_gradient import activation_gradient, local_guess, local_losses
from optkit.evolution.merging import Merge, evo_merge, keep_largest, merge_lora
from optkit.evolution.noise import Factors
from optkit.evolution.perturb import PopulationPerturb, population_perturb, replay
from optkit.evolution.perturbed import Perturbed, Varied
from optkit.evolution.polystep import (
    AdaptiveRadius,
    cosine_annealing,
    count_probes,
    linear_annealing,
    polystep,
    polystep_es,
    polytope_vertices,
)
from optkit.evolution.recipes import ars, eggroll, mezo, openai_es, spsa_value_and_grad
from optkit.evolution.separable import pgpe, snes
from optkit.evolution.strategy import Strategy
from optkit.evolution.unrolling import nres, pes, truncated_es

__all__ = [
    "AdaptiveRadius",
    "AskTell",
    "ExplainedLeaf",
    "Explanation",
    "Factors",
    "MaterializedWarning",
    "Merge",
    "PerturbState",
    "Perturbed",
    "PopulationPerturb",
    "SearchState",
    "Strategy",
    "Varied",
    "activation_gradient",
    "apply_perturbed",
    "ars",
    "ask_tell",
    "cosine_annealing",
    "count_probes",
    "discover_axes",
    "eggroll",
    "evaluate",
    "evo_merge",
    "explain",
    "forward_gradient",
    "guided_es",
    "integer",
    "keep_largest",
    "linear_annealing",
    "local_guess",
    "local_losses",
    "merge_lora",
    "mezo",
    "nres",
    "openai_es",
    "pes",
    "pgpe",
    "polystep",
    "polystep_es",
    "polytope_vertices",
    "population_apply",
    "population_perturb",
    "project_guess",
    "random_guess",
    "replay",
    "search",
    "shaping",
    "snes",
    "spsa_value_and_grad",
    "truncated_es",
]
