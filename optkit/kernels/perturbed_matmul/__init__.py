"""Products of a whole population with weights that its members share, but for low-rank noise."""

from optkit.kernels.perturbed_matmul.api import (
    Counters,
    Implementation,
    perturbed_matmul,
    perturbed_rows,
    why_not,
)

__all__ = ["Counters", "Implementation", "perturbed_matmul", "perturbed_rows", "why_not"]
