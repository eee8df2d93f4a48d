"""FLOPs of the matrix work in a function, counted from its jaxpr.

XLA's own estimate counts the body of a loop once; this count multiplies. Only matrix products and
factorisations count, a multiplication and an addition as two; where a program has branches, the
dearest one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the FLOPs of products and factorisations in one call.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((8, 4))
      >>> matrix_flops(lambda x: x.T @ x, x)
      256.0
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name = equation.primitive.name
    shapes = [value.aval.shape for value in equation.invars]
    if name == "dot_general":
        ((left, _), _) = equation.params["dimension_numbers"]
        inner = math.prod(shapes[0][axis] for axis in left)
        return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
    if name in _FACTORISATIONS:
        *batch, m, n = shapes[0]
        return math.prod(batch) * _FACTORISATIONS[name](max(m, n), min(m, n), shapes)
    inner = [_count(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "cond":
        return max(inner, default=0.0)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


# Golub and Van Loan, Matrix Computations; m >= n.
_FACTORISATIONS: dict[str, Callable[[int, int, Any], float]] = {
    "qr": lambda m, n, _: 4.0 * n * n * (m - n / 3),
    "geqrf": lambda m, n, _: 2.0 * n * n * (m - n / 3),
    "householder_product": lambda m, n, _: 2.0 * n * n * (m - n / 3),
    "cholesky": lambda m, n, _: n**3 / 3,
    "triangular_solve": lambda m, n, shapes: float(n * math.prod(shapes[1][-2:])),
    "svd": lambda m, n, _: 14.0 * m * n * n + 8.0 * n**3,
    "eigh": lambda m, n, _: 9.0 * n**3,
}


def _inner(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(part, "jaxpr", part)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found
