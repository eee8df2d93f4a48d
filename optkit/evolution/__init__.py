"""Gradient-free training: populations of any JAX model, and what learns from their fitness."""

from optkit.evolution import shaping
from optkit.evolution.estimate import PerturbState
from optkit.evolution.noise import Factors
from optkit.evolution.perturb import PopulationPerturb, population_perturb, replay
from optkit.evolution.perturbed import Perturbed, Varied
from optkit.evolution.recipes import ars, eggroll, mezo, openai_es, spsa_value_and_grad
from optkit.evolution.strategy import Strategy

__all__ = [
    "Factors",
    "PerturbState",
    "Perturbed",
    "PopulationPerturb",
    "Strategy",
    "Varied",
    "ars",
    "eggroll",
    "mezo",
    "openai_es",
    "population_perturb",
    "replay",
    "shaping",
    "spsa_value_and_grad",
]
