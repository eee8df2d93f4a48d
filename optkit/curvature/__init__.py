"""Curvature of a loss, estimated when an optimizer asks for it; knows no optimizer.

An estimate is a function ``(params, key) -> tree``. It is handed to an update as an extra argument,
``tx.update(grads, state, params, curvature=estimate)``, and the optimizer calls it inside
``jax.lax.cond`` in the steps that refresh: the others do not pay for it.
"""

from optkit.curvature.diagonal import (
    Estimate,
    Probe,
    at,
    constant,
    gauss_newton_bartlett,
    hessian_diagonal,
    hutchinson,
)
from optkit.curvature.layers import LayerMeans, layer_means

__all__ = [
    "Estimate",
    "LayerMeans",
    "Probe",
    "at",
    "constant",
    "gauss_newton_bartlett",
    "hessian_diagonal",
    "hutchinson",
    "layer_means",
]
