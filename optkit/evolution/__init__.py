"""Gradient-free training: populations of any JAX model, and what learns from their fitness."""

from optkit.evolution.perturbed import Perturbed
from optkit.evolution.strategy import Strategy

__all__ = ["Perturbed", "Strategy"]
