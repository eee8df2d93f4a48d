"""Programs inside programs: calls, branches and loops on blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from optkit.spmd.blocks import Block, Devices, Parts, as_varying, replicated
from optkit.spmd.rules import on_blocks

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
)


def evaluate(devices: Devices, program: ClosedJaxpr, given: Sequence[Block]) -> list[Block]:
    """Runs a program of whole arrays on blocks."""
    jaxpr = program.jaxpr
    held: dict[Any, Block] = dict(
        zip(jaxpr.constvars, map(replicated, program.consts), strict=True)
    )
    held |= dict(zip(jaxpr.invars, given, strict=True))

    def read(var: Any) -> Block:
        return replicated(var.val) if isinstance(var, Literal) else held[var]

    for eqn in _live(jaxpr):
        ins = [read(var) for var in eqn.invars]
        held |= dict(zip(eqn.outvars, _apply(devices, eqn, ins), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _live(jaxpr: Any) -> list[Any]:
    """The operations that a result needs."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    out = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            out.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, Literal))
    return out[::-1]


def _apply(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        return evaluate(devices, closed, ins)
    if name in _CONTROL and (devices.beside or any(block.is_split for block in ins)):
        return _CONTROL[name](devices, eqn, ins)
    return on_blocks(devices, eqn, ins)


def _shaped(values: Sequence[jax.Array], parts: Sequence[Parts], program: Any) -> list[Block]:
    shapes = [tuple(aval.shape) for aval in program]
    return [Block(*each) for each in zip(values, parts, shapes, strict=True)]


def _out(devices: Devices, blocks: Sequence[Block], parts: Sequence[Parts]) -> list[jax.Array]:
    """Values as they leave a branch or a turn of a loop: of one type whatever made them."""
    return [
        as_varying(devices.laid(block, own).value, devices.beside)
        for block, own in zip(blocks, parts, strict=True)
    ]


def _seen(run: Callable[..., list[Block]], values: Sequence[Any]) -> list[Parts]:
    """How the results of a function of values are laid; nothing is computed."""
    out: list[Parts] = []

    def look(*given: jax.Array) -> list[jax.Array]:
        blocks = run(*given)
        out.extend(block.parts for block in blocks)
        return [block.value for block in blocks]

    jax.eval_shape(look, *values)
    return out


def _joined(first: Sequence[Parts], second: Sequence[Parts]) -> list[Parts]:
    """For each value how it is split, if it is in one of two places; the first counts."""
    return [a if any(a) else b for a, b in zip(first, second, strict=True)]


def _cond(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    index, *rest = ins
    branches = eqn.params["branches"]
    values, parts = [b.value for b in rest], [b.parts for b in rest]

    def run(branch: ClosedJaxpr) -> Callable[..., list[Block]]:
        # Dimensions that are held once come along: a block is made of the values as they are.
        return lambda *given: evaluate(
            devices, branch, _shaped(given, parts, [b.aval for b in branch.jaxpr.invars])
        )

    where = _seen(run(branches[0]), values)
    for branch in branches[1:]:
        where = _joined(where, _seen(run(branch), values))
    functions = [lambda *x, b=branch: _out(devices, run(b)(*x), where) for branch in branches]
    out = lax.switch(index.value, functions, *values)
    return _shaped(out, where, [var.aval for var in eqn.outvars])


def _counts(eqn: Any, body: Any) -> tuple[int, int]:
    """Where the carry of a scan begins and ends among its operands.

    What is scanned over, and stacked, has one dimension more outside than inside. Versions of JAX
    write the counts down in different ways.
    """

    def longer(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(x.aval.ndim > y.aval.ndim for x, y in pairs)

    scanned, stacked = longer(eqn.invars, body.invars), longer(eqn.outvars, body.outvars)
    last = len(eqn.invars) - scanned
    return last - (len(eqn.outvars) - stacked), last


def _scan(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    params, program = eqn.params, eqn.params["jaxpr"]
    avals = [var.aval for var in program.jaxpr.invars]
    first, last = _counts(eqn, program.jaxpr)
    consts, carry = ins[:first], ins[first:last]
    slices = [devices.whole(block, [0]) for block in ins[last:]]
    fixed = [b.parts for b in consts]
    of_slices = [b.parts[1:] for b in slices]

    def turn(parts: list[Parts]) -> Callable[..., list[Block]]:
        def run(held: list[jax.Array], each: list[jax.Array]) -> list[Block]:
            given = [*(b.value for b in consts), *held, *each]
            return evaluate(devices, program, _shaped(given, [*fixed, *parts, *of_slices], avals))

        return run

    def start(parts: list[Parts]) -> list[jax.Array]:
        return _out(devices, carry, parts)

    each = [b.value for b in slices]
    one = [jax.eval_shape(lambda x: x[0], x) for x in each]
    parts = [b.parts for b in carry]
    while True:
        seen = _seen(turn(parts), (start(parts), one))
        joined = _joined(parts, seen[: len(carry)])
        if joined == parts:
            break
        parts = joined
    of_outs = seen[len(carry) :]

    def body(
        held: list[jax.Array], each: list[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        out = turn(parts)(held, each)
        return _out(devices, out[: len(carry)], parts), _out(devices, out[len(carry) :], of_outs)

    length, reverse, unroll = params["length"], params["reverse"], params["unroll"]
    outs: list[jax.Array]
    held, outs = lax.scan(body, start(parts), each, length, reverse=reverse, unroll=unroll)
    stacked: list[Parts] = [((), *part) for part in of_outs]
    return _shaped([*held, *outs], [*parts, *stacked], [var.aval for var in eqn.outvars])


def _while(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    params = eqn.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carry = ins[last:]

    def run(program: ClosedJaxpr, consts: list[Block], parts: list[Parts]) -> Any:
        avals = [var.aval for var in program.jaxpr.invars]

        def turn(held: list[jax.Array]) -> list[Block]:
            given = [*(b.value for b in consts), *held]
            where = [*(b.parts for b in consts), *parts]
            return evaluate(devices, program, _shaped(given, where, avals))

        return turn

    parts = [b.parts for b in carry]
    while True:
        body = run(params["body_jaxpr"], ins[first:last], parts)
        joined = _joined(parts, _seen(body, (_out(devices, carry, parts),)))
        if joined == parts:
            break
        parts = joined
    test = run(params["cond_jaxpr"], ins[:first], parts)
    held = lax.while_loop(
        lambda held: test(held)[0].value,
        lambda held: _out(devices, body(held), parts),
        _out(devices, carry, parts),
    )
    return _shaped(held, parts, [var.aval for var in eqn.outvars])


_CONTROL = {"cond": _cond, "scan": _scan, "while": _while}
