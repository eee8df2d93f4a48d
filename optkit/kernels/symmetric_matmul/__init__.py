"""Products known to be symmetric, from tiles on one side of the diagonal; and ``a X + B X``."""

from optkit.kernels.symmetric_matmul.api import (
    add_product,
    gram,
    polynomial,
    symmetric_product,
)

__all__ = ["add_product", "gram", "polynomial", "symmetric_product"]
