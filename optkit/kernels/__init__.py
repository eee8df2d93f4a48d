"""Kernels: operations written out for accelerators, each beside the plain JAX that it equals.

``implementation="pallas"`` takes the kernel of the platform that a program is lowered for.
"""

from optkit.kernels import (
    block_codec,
    newton_schulz,
    perturbed_matmul,
    population_update,
    symmetric_matmul,
)
from optkit.kernels.implementation import Implementation

__all__ = [
    "Implementation",
    "block_codec",
    "newton_schulz",
    "perturbed_matmul",
    "population_update",
    "symmetric_matmul",
]
