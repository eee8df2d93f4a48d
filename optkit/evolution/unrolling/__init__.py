"""Strategies for inner problems that are unrolled piece by piece: PES, NRES and truncated ES."""

from optkit.evolution.unrolling.pairs import UnrolledState
from optkit.evolution.unrolling.recipes import nres, pes, truncated_es
from optkit.evolution.unrolling.strategy import UnrolledStrategy

__all__ = ["UnrolledState", "UnrolledStrategy", "nres", "pes", "truncated_es"]
