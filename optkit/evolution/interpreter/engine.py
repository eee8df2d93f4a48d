"""Evaluates a jaxpr with perturbed parameters in it, equation by equation."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import Literal

from optkit import _jaxprs
from optkit.evolution.interpreter.carried import Carried, Record, dense

# A rule takes the record, the equation, its inputs and which of its outputs are read, and returns
# the outputs, or None if it can't keep the parameter apart here.
Rule = Callable[[Record, Any, list[Any], list[bool]], list[Any] | None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of the primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def evaluate(
    jaxpr: Any, values: Sequence[Any], record: Record, wanted: Sequence[bool] | None = None
) -> list[Any]:
    """Evaluates a jaxpr on arrays and carried parameters; returns such.

    Args:
      jaxpr: closed or open.
      values: one for each input.
      record: where uses are noted down.
      wanted: which of the outputs are read; None in place of the others, where that saves work.
    """
    jaxpr, consts = _jaxprs.opened(jaxpr)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env.get(atom)

    for eqn, live in _live(jaxpr, wanted):
        outs = _step(record, eqn, [read(atom) for atom in eqn.invars], live)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    if not any(isinstance(value, Carried) for value in values):
        return _jaxprs.bind(eqn, values)
    found = RULES.get(eqn.primitive.name)
    outs = found(record, eqn, values, live) if found else None
    if outs is not None:
        return outs
    name, where = eqn.primitive.name, _jaxprs.source(eqn)
    return _jaxprs.bind(eqn, [dense(value, record, name, where) for value in values])


def _live(jaxpr: Any, wanted: Sequence[bool] | None) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that matter, and which outputs of each are read."""
    outs = jaxpr.outvars
    flags = [True] * len(outs) if wanted is None else wanted
    needed = {
        var for var, flag in zip(outs, flags, strict=True) if flag and not isinstance(var, Literal)
    }
    kept = []
    for eqn in reversed(jaxpr.eqns):
        live = [var in needed for var in eqn.outvars]
        if any(live) or eqn.effects:
            kept.append((eqn, live))
            needed.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    return kept[::-1]


def forwards(jaxpr: Any) -> list[int | None]:
    """Returns for each output of a jaxpr which input it is, untouched, or None."""
    jaxpr, _ = _jaxprs.opened(jaxpr)
    source = {var: index for index, var in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in _jaxprs.CALLS:
            continue
        for var, index in zip(eqn.outvars, forwards(_jaxprs.inner(eqn)), strict=True):
            atom = eqn.invars[index] if index is not None else None
            if atom is not None and not isinstance(atom, Literal) and atom in source:
                source[var] = source[atom]
    return [None if isinstance(var, Literal) else source.get(var) for var in jaxpr.outvars]
