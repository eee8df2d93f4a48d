"""A function evaluated output by output, its inputs made when they are needed and not before."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core


class Lazily:
    """A traced function whose outputs are computed one at a time, each input made when first used.

    Equations are evaluated in the order in which outputs are asked for, and each only once, so that
    what is computed is what a call of the function computes. A function that couples none of its
    inputs is evaluated piece by piece without anybody having to say that it can be.

    Args:
      function: takes a list of arrays and returns a pytree of arrays.
      shapes: their shapes and dtypes.
      make: gives the input of an index.
    """

    def __init__(
        self,
        function: Callable[[list[Any]], Any],
        shapes: Sequence[jax.ShapeDtypeStruct],
        make: Callable[[int], jax.Array],
    ) -> None:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(list(shapes))
        self.structure: Any = jax.tree.structure(shape)
        self._jaxpr = closed.jaxpr
        self._make = make
        self._inputs = {var: index for index, var in enumerate(self._jaxpr.invars)}
        consts = zip(self._jaxpr.constvars, closed.consts, strict=True)
        self._values: dict[Any, Any] = dict(consts)
        self._source = {var: i for i, eqn in enumerate(self._jaxpr.eqns) for var in eqn.outvars}

    def outputs(self, indices: Sequence[int]) -> list[Any]:
        """Returns outputs by their indices, in the order of the leaves of the function's result."""
        atoms = [self._jaxpr.outvars[index] for index in indices]
        self._evaluate(self._missing(atoms))
        return [x.val if isinstance(x, core.Literal) else self._values[x] for x in atoms]

    def replace(self, index: int, value: jax.Array) -> None:
        """Lets all that is computed from now on see a value in place of an output."""
        self._values[self._jaxpr.outvars[index]] = value

    def _missing(self, atoms: Sequence[Any]) -> list[int]:
        """Makes the inputs that lead to some variables, and returns the equations on the way."""
        found: set[int] = set()
        wanted = list(atoms)
        while wanted:
            var = wanted.pop()
            if isinstance(var, core.Literal) or var in self._values:
                continue
            if var in self._inputs:
                self._values[var] = self._make(self._inputs[var])
            elif self._source[var] not in found:
                found.add(self._source[var])
                wanted.extend(self._jaxpr.eqns[self._source[var]].invars)
        return sorted(found)

    def _evaluate(self, indices: Sequence[int]) -> None:
        eqns = [self._jaxpr.eqns[index] for index in indices]
        made = [x for eqn in eqns for x in eqn.outvars if not isinstance(x, core.DropVar)]
        inside = set(made)
        used = [x for eqn in eqns for x in eqn.invars if not isinstance(x, core.Literal)]
        given = [x for x in dict.fromkeys(used) if x not in inside]
        part = self._jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=eqns)
        run = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
        self._values.update(zip(made, run(*(self._values[x] for x in given)), strict=True))
