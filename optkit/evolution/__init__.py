"""Gradient-free training: populations of any JAX model, and what learns from their fitness."""

from optkit.evolution import search, shaping
from optkit.evolution.ask_tell import AskTell, SearchState, ask_tell
from optkit.evolution.estimate import PerturbState
from optkit.evolution.noise import Factors
from optkit.evolution.perturb import PopulationPerturb, population_perturb, replay
from optkit.evolution.perturbed import Perturbed, Varied
from optkit.evolution.recipes import ars, eggroll, mezo, openai_es, spsa_value_and_grad
from optkit.evolution.separable import pgpe, snes
from optkit.evolution.strategy import Strategy

__all__ = [
    "AskTell",
    "Factors",
    "PerturbState",
    "Perturbed",
    "PopulationPerturb",
    "SearchState",
    "Strategy",
    "Varied",
    "ars",
    "ask_tell",
    "eggroll",
    "mezo",
    "openai_es",
    "pgpe",
    "population_perturb",
    "replay",
    "search",
    "shaping",
    "snes",
    "spsa_value_and_grad",
]
