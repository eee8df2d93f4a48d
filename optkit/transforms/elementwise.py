"""Equations that work on each entry by itself, as a function of any cut of the arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Primitives that look at one entry of each operand. Those of random bits and of indices are not
# among them: what they give depends on where an entry is.
# fmt: off
_PRIMITIVES = frozenset({
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
    "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor",
})
# fmt: on
_IDENTITIES = frozenset({"copy", "copy_p", "optimization_barrier"})


class Elementwise:
    """A function of moments, arrays and scalars that computes some variables of a traced program.

    Args:
      eqns: element-wise equations, in order.
      inputs: the variables of the moments.
      outputs: the variables to compute.
      values: what other variables are.

    Attributes:
      arrays: values that the function is to be given cuts of.
      scalars: values that it is to be given.
    """

    def __init__(
        self,
        eqns: Sequence[Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        values: Mapping[Any, Any],
    ) -> None:
        made = {*inputs, *(x for eqn in eqns for x in eqn.outvars)}
        used = [x for eqn in eqns for x in eqn.invars] + list(outputs)
        free = [x for x in used if not isinstance(x, core.Literal) and x not in made]
        self._free = sorted(dict.fromkeys(free), key=lambda x: x.aval.ndim == 0)
        self._eqns, self._inputs, self._outputs = eqns, inputs, outputs
        self.arrays = [values[x] for x in self._free if x.aval.ndim]
        self.scalars = [values[x] for x in self._free if not x.aval.ndim]

    def __call__(
        self,
        moments: Sequence[jax.Array],
        arrays: Sequence[jax.Array],
        scalars: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """Returns the outputs for cuts of moments and arrays that are of one shape."""
        env = dict(zip(self._inputs, moments, strict=True))
        for var, x in zip(self._free, (*arrays, *scalars), strict=True):
            # Scalars may come as 32 bits, whatever they are.
            env[var] = x if x.dtype == var.aval.dtype else x.astype(var.aval.dtype)
        _run(self._eqns, env, moments[0].shape)
        return [env[x] for x in self._outputs]


def is_elementwise(eqn: Any, shape: tuple[int, ...]) -> bool:
    """Tells whether an equation gives arrays of a shape entry by entry from such and scalars."""
    if any(x.aval.shape != shape for x in eqn.outvars):
        return False
    if any(x.aval.shape not in (shape, ()) for x in eqn.invars):
        return False
    inner = _inner(eqn)
    if inner is not None:
        # Numbers may be worked out on the way.
        each = inner.jaxpr.eqns
        return all(is_elementwise(own, shape) or is_elementwise(own, ()) for own in each)
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.shape == ()
    return eqn.primitive.name in _PRIMITIVES


def _inner(eqn: Any) -> Any:
    """The program that an equation calls; None if it calls none."""
    name = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
    found = eqn.params.get(name.get(eqn.primitive.name, ""))
    return None if found is None or found.consts else found


def _run(eqns: Sequence[Any], env: dict[Any, Any], shape: tuple[int, ...]) -> None:
    """Evaluates equations for arrays of another shape than they were traced for."""
    for eqn in eqns:
        given = [x.val if isinstance(x, core.Literal) else env[x] for x in eqn.invars]
        inner = _inner(eqn)
        if inner is not None:
            local = dict(zip(inner.jaxpr.invars, given, strict=True))
            _run(inner.jaxpr.eqns, local, shape)
            out = [x.val if isinstance(x, core.Literal) else local[x] for x in inner.jaxpr.outvars]
        elif eqn.primitive.name == "broadcast_in_dim":
            out = [jnp.broadcast_to(given[0], shape)]
        elif eqn.primitive.name == "sign":
            # Pallas asks which TPU it is for: a program for another machine has no answer.
            out = [_sign(given[0])]
        elif eqn.primitive.name in _IDENTITIES:
            out = given
        else:
            found = eqn.primitive.bind(*given, **eqn.params)
            out = found if eqn.primitive.multiple_results else [found]
        env.update(zip(eqn.outvars, out, strict=True))


def _sign(x: jax.Array) -> jax.Array:
    one = jnp.ones((), x.dtype)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, x))
