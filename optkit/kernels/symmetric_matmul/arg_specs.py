"""Shapes of real models, which tests and benchmarks share: those of all matrix kernels."""

from optkit.kernels.arg_specs import ARG_SPECS, ArgSpec

__all__ = ["ARG_SPECS", "ArgSpec"]
