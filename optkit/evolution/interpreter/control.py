"""Rules of what contains other jaxprs: calls, loops, branches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from optkit import _jaxprs
from optkit.evolution.interpreter.carried import Carried, Record, dense
from optkit.evolution.interpreter.engine import evaluate, forwards, rule
from optkit.evolution.perturbed import Perturbed


@rule(*_jaxprs.CALLS)
def _call(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    return evaluate(_jaxprs.inner(eqn), values, record, live)


@rule("cond")
def _cond(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    branches = eqn.params["branches"]
    index = dense(values[0], record, "cond", _jaxprs.source(eqn))
    operands = values[1:]
    same = [set(sources) for sources in zip(*map(forwards, branches), strict=True)]
    through = [
        operands[next(iter(sources))] if len(sources) == 1 and None not in sources else None
        for sources in same
    ]
    kept = [isinstance(value, Carried) for value in through]
    emitted = [flag and not keep for flag, keep in zip(live, kept, strict=True)]

    def branch(jaxpr: Any) -> Callable[[], list[Any]]:
        def run() -> list[Any]:
            outs = evaluate(jaxpr, operands, record, emitted)
            return _dense(outs, emitted, record, "cond", eqn)

        return run

    outs = jax.lax.switch(index, [branch(jaxpr) for jaxpr in branches])
    return [value if keep else out for value, keep, out in zip(through, kept, outs, strict=True)]


@rule("while")
def _while(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    params = eqn.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    tests, consts, init = values[:first], values[first:second], values[second:]
    fixed, init = _fixed(params["body_jaxpr"], len(consts), init, record, eqn)

    def test(carry: Sequence[Any]) -> Any:
        out = evaluate(params["cond_jaxpr"], [*tests, *_full(fixed, carry)], record)[0]
        return dense(out, record, "while", _jaxprs.source(eqn))

    def body(carry: Sequence[Any]) -> Sequence[Any]:
        moving = [value is None for value in fixed]
        outs = evaluate(params["body_jaxpr"], [*consts, *_full(fixed, carry)], record)
        return _dense(outs, moving, record, "while", eqn)

    return _full(fixed, jax.lax.while_loop(test, body, init))


@rule("scan")
def _scan(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    params, jaxpr = eqn.params, eqn.params["jaxpr"]
    n_consts, n_carry = _jaxprs.scan_counts(eqn)
    consts, xs = values[:n_consts], values[n_consts + n_carry :]
    fixed, init = _fixed(jaxpr, n_consts, values[n_consts : n_consts + n_carry], record, eqn)
    cuts = [_unstacked(x) if isinstance(x, Carried) else (x, _itself) for x in xs]
    # Stacked results that are a stacked input as it came in, as updated modules return theirs.
    through = [
        xs[source - n_consts - n_carry]
        if source is not None and source >= n_consts + n_carry
        else None
        for source in forwards(jaxpr)[n_carry:]
    ]
    moving = [value is None for value in fixed]
    emitted = [
        flag and not isinstance(x, Carried) for flag, x in zip(live[n_carry:], through, strict=True)
    ]

    def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        state = [
            value if value is not None else new for value, new in zip(fixed, carry, strict=True)
        ]
        rows = [rebuild(cut) for (_, rebuild), cut in zip(cuts, slices, strict=True)]
        outs = evaluate(jaxpr, [*consts, *state, *rows], record, [True] * n_carry + emitted)
        outs = _dense(outs, moving + emitted, record, "scan", eqn)
        return outs[:n_carry], outs[n_carry:]

    carry, ys = jax.lax.scan(
        *(body, init, [cut for cut, _ in cuts]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [
        *_full(fixed, carry),
        *(x if isinstance(x, Carried) else y for x, y in zip(through, ys, strict=True)),
    ]


def _fixed(
    jaxpr: Any, before: int, init: list[Any], record: Record, eqn: Any
) -> tuple[list[Any], list[Any]]:
    """Returns carried parameters that a loop hands on untouched, and what else it starts from."""
    sources = forwards(jaxpr)
    fixed = [
        value if isinstance(value, Carried) and sources[index] == before + index else None
        for index, value in enumerate(init)
    ]
    return fixed, _dense(init, [value is None for value in fixed], record, eqn.primitive.name, eqn)


def _full(fixed: Sequence[Any], moving: Sequence[Any]) -> list[Any]:
    """Returns what a loop has in hand: what it hands on untouched, and the rest."""
    return [kept if kept is not None else new for kept, new in zip(fixed, moving, strict=True)]


def _dense(
    values: Sequence[Any], wanted: Sequence[bool], record: Record, name: str, eqn: Any
) -> list[Any]:
    """Returns plain arrays, None for what is not wanted."""
    where = _jaxprs.source(eqn)
    return [
        dense(value, record, name, where) if flag else None
        for value, flag in zip(values, wanted, strict=True)
    ]


def _itself(x: Any) -> Any:
    return x


def _unstacked(x: Carried) -> tuple[Any, Callable[[Any], Carried]]:
    """Returns what a scan cuts along the first axis, and what makes a parameter of a cut."""
    v = x.value
    in_a, in_b = 0 not in v.right, 0 not in v.left
    parts = (v.base, v.a if in_a else None, v.b if in_b else None)
    left = tuple(axis - 1 for axis in v.left if axis)
    right = tuple(axis - 1 for axis in v.right if axis)

    def rebuild(cut: Any) -> Carried:
        base, a, b = cut
        value = Perturbed(base, a if in_a else v.a, b if in_b else v.b, v.scale, left, right)
        return replace(x, value=value, origin=x.origin[1:])

    return parts, rebuild
