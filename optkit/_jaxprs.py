"""All that depends on how a version of JAX spells its jaxprs."""

from collections.abc import Sequence
from typing import Any

# Equations that only wrap a jaxpr: names change with versions, and a new one is a line here.
CALLS = frozenset(
    (
        *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"),
    )
)
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LIBRARIES = ("/jax/", "/flax/", "/optkit/", "/optax/", "/haiku/", "/equinox/")


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Returns a jaxpr and the values of its constants, whether it was closed or not."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def inner(eqn: Any) -> Any:
    """Returns the jaxpr that a call wraps."""
    return next(eqn.params[name] for name in _INNER if name in eqn.params)


def bind(eqn: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Evaluates an equation, some of its parameters changed, and returns the list of results."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Returns how many inputs of a scan are constants, and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(list(consts.vals)), len(list(carry.vals))


def source(eqn: Any) -> str:
    """Returns ``file.py:line`` of the user's code that made an equation, or ``""``."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not any(part in frame.file_name for part in _LIBRARIES):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}"
    return ""
