"""Kernels: operations written out for accelerators, each beside the plain JAX that it equals."""

from optkit.kernels import block_codec

__all__ = ["block_codec"]
