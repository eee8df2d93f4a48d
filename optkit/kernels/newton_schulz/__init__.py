"""The whole Newton-Schulz iteration with the matrix in on-chip memory, or from tiled products."""

from optkit.kernels.newton_schulz.api import iterate

__all__ = ["iterate"]
