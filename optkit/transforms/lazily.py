"""A function evaluated output by output, its inputs made when they are needed and not before."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

from optkit.transforms.elementwise import Elementwise, is_elementwise


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
        self._jaxpr: Any = _inlined(closed.jaxpr)
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

    def elementwise(self, outputs: Sequence[int], inputs: Sequence[int]) -> Elementwise | None:
        """Returns how outputs follow, entry by entry, from inputs that have not been made.

        What is not element-wise and does not depend on them is evaluated.

        Returns:
          None if an output depends on another input that has not been made, or on these otherwise
          than entry by entry; or if these have been made after all.
        """
        given = [self._jaxpr.invars[index] for index in inputs]
        atoms = [self._jaxpr.outvars[index] for index in outputs]
        eqns, reached = self._towards(atoms)
        shape = given[0].aval.shape
        if any(var in self._values for var in given):
            return None  # something that couples leaves has needed them in full
        if not reached <= {*given} or any(x.aval.shape != shape for x in atoms):
            return None
        depends, others = set(given), []
        for eqn in eqns:
            held = any(not isinstance(x, core.Literal) and x in depends for x in eqn.invars)
            if held:
                depends.update(eqn.outvars)
            if not is_elementwise(eqn, shape):
                if held:
                    return None
                others += eqn.outvars
        self._evaluate(self._missing([x for x in others if not isinstance(x, core.DropVar)]))
        inside = [eqn for eqn in eqns if not self._values.keys() >= {*eqn.outvars}]
        return Elementwise(inside, given, atoms, self._values)

    def _missing(self, atoms: Sequence[Any]) -> list[Any]:
        """Makes the inputs that lead to some variables, and returns the equations on the way."""
        eqns, reached = self._towards(atoms)
        # In the order of the program, whatever a set's is.
        for var in sorted(reached, key=self._inputs.__getitem__):
            self._values[var] = self._make(self._inputs[var])
        return eqns

    def _towards(self, atoms: Sequence[Any]) -> tuple[list[Any], set[Any]]:
        """The equations that lead to some variables, and the inputs among what they start from."""
        found: set[int] = set()
        reached: set[Any] = set()
        wanted = list(atoms)
        while wanted:
            var = wanted.pop()
            if isinstance(var, core.Literal) or var in self._values:
                continue
            if var in self._inputs:
                reached.add(var)
            elif self._source[var] not in found:
                found.add(self._source[var])
                wanted.extend(self._jaxpr.eqns[self._source[var]].invars)
        return [self._jaxpr.eqns[index] for index in sorted(found)], reached

    def _evaluate(self, eqns: Sequence[Any]) -> None:
        made = [x for eqn in eqns for x in eqn.outvars if not isinstance(x, core.DropVar)]
        inside = set(made)
        used = [x for eqn in eqns for x in eqn.invars if not isinstance(x, core.Literal)]
        given = [x for x in dict.fromkeys(used) if x not in inside]
        part = self._jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=eqns)
        run = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
        self._values.update(zip(made, run(*(self._values[x] for x in given)), strict=True))


def _inlined(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """Writes calls of jitted functions out: one of a whole tree would couple its leaves."""
    renamed: dict[Any, Any] = {}

    def of(x: Any, names: dict[Any, Any]) -> Any:
        return x if isinstance(x, core.Literal) else names.get(x, x)

    def written(eqns: Sequence[Any], names: dict[Any, Any], inside: bool) -> Iterator[Any]:
        for eqn in eqns:
            given = [of(x, names) for x in eqn.invars]
            body = _body(eqn)
            if body is not None:
                own = dict(zip(body.invars, given, strict=True))
                yield from written(body.eqns, own, inside=True)
                names.update(zip(eqn.outvars, (of(x, own) for x in body.outvars), strict=True))
                continue
            if inside:  # a function that is called twice has the same variables twice
                names.update({x: core.Var(x.aval) for x in eqn.outvars if type(x) is core.Var})
            yield eqn.replace(invars=given, outvars=[of(x, names) for x in eqn.outvars])

    eqns = list(written(jaxpr.eqns, renamed, inside=False))
    return jaxpr.replace(eqns=eqns, outvars=[of(x, renamed) for x in jaxpr.outvars])


def _body(eqn: Any) -> core.Jaxpr | None:
    """The program of a jitted function that says nothing of where its arrays lie."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return None
    closed, places = eqn.params["jaxpr"], ("in_shardings", "out_shardings")
    placed = any(isinstance(x, jax.sharding.Sharding) for name in places for x in eqn.params[name])
    return None if placed or closed.consts else closed.jaxpr
