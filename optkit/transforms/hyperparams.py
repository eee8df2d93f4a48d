"""Numbers that may be schedules: one step convention, and where to read their present value."""

import collections
import difflib
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.tree import PyTree

Schedule = Callable[[jax.Array], jax.Array]
Scalar = float | jax.Array
ScalarOrSchedule = Scalar | Schedule


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> None:
    """Raises ValueError if a Python number is not finite or outside ``[low, high]``.

    Schedules and arrays pass: their values are not known when the chain is built. ``infinite`` lets
    an infinity pass where it has a meaning, such as a threshold that is never reached.
    """
    if callable(value) and not isinstance(value, jax.Array):
        _check_schedule(name, value)
        return
    if isinstance(value, jax.Array):
        return
    # NumPy's scalars are numbers too; text and sequences are not.
    if (
        isinstance(value, bool | str | list | tuple | dict | type(None))
        or np.ndim(value) != 0
        or np.iscomplexobj(value)
        or not hasattr(value, "__float__")
    ):
        raise ValueError(f"{name} must be a number or a schedule, not {value!r}")
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise ValueError(f"{name}={value!r} is not a finite number")
    if open_low and value <= low:
        raise ValueError(f"{name}={value!r} must be above {low:g}")
    if low <= value <= high and not (open_high and value == high):
        return
    if high == math.inf:
        raise ValueError(f"{name}={value!r} is below {low}; give a number of at least {low}")
    end = ")" if open_high else "]"
    raise ValueError(f"{name}={value!r} is outside [{low}, {high}{end}; give a number inside it")


def _check_schedule(name: str, value: Callable[..., Any]) -> None:
    """Raises TypeError if a function cannot be called with a step, such as a maker of schedules."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return  # a builtin tells nothing of its arguments
    try:
        signature.bind(0)
    except TypeError as error:
        called = getattr(value, "__name__", type(value).__name__)
        raise TypeError(
            f"{name} must be a number or a schedule, a function of the step alone, and {called} "
            f"cannot be called so ({error}); if it makes schedules, give what {called}(...) returns"
        ) from None


def check_static_number(name: str, value: Any) -> None:
    """Raises TypeError if a number that decides the program is not known when it is built."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} decides the compiled program and must be a Python number; under "
            f"optax.inject_hyperparams pass static_args=({name!r},)"
        )


def check_static_int(name: str, value: Any, *, low: int = 1) -> None:
    """Raises if a value that decides the program's shape is not a Python integer."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} decides the compiled program and must be a Python int; under "
            f"optax.inject_hyperparams pass static_args=({name!r},)"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={value!r} must be an integer of at least {low}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError with the allowed values and the closest one if a value is none of them."""
    if value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def value_at(value: ScalarOrSchedule, count: jax.Array) -> Scalar:
    """Returns the value for the update after ``count`` finished ones; a constant as it is.

    Constants stay Python floats: they become part of the program, not inputs of it, so no tracer
    can leak and no extra rounding happens.
    """
    return value(count) if callable(value) else value


def recorded(
    count: jax.Array, always: bool = False, **values: ScalarOrSchedule
) -> dict[str, jax.Array]:
    """Returns the scheduled values (or all, with ``always``) as float32 arrays for the state."""
    return {
        name: jnp.asarray(value_at(value, count), jnp.float32)
        for name, value in values.items()
        if always or callable(value)
    }


def debias(decay: Scalar, steps: jax.Array) -> Scalar:
    """Returns ``1 - decay**steps`` without the cancellation that a decay near 1 brings."""
    if not isinstance(decay, jax.Array):
        if decay <= 0.0:
            return 1.0
        return -jnp.expm1(steps * math.log(decay)) if decay < 1.0 else jnp.zeros(())
    return -jnp.expm1(steps * jnp.log(decay))


class ScaleByLearningRateState(NamedTuple):
    """State of ``scale_by_learning_rate``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # {"learning_rate": float32 scalar}, that of the last update


class _Recorded(NamedTuple):
    route: str  # names of the routes above it, joined by /
    owner: str  # class of the state that records it, #2 for the second one of a route
    name: str
    value: Any


def _collect(node: Any, route: str, seen: dict[tuple[str, str], int]) -> list[_Recorded]:
    """Returns what a state records; ``seen`` counts the states of a class below each route."""
    out: list[_Recorded] = []
    if isinstance(node, dict):
        for key, child in node.items():
            out += _collect(child, f"{route}/{key}" if route else str(key), seen)
    elif isinstance(node, tuple | list):
        fields = getattr(node, "_fields", (None,) * len(node))
        own: list[_Recorded] = []
        for field, child in zip(fields, node, strict=True):
            if field == "hyperparams" and isinstance(child, dict):
                kind = type(node).__name__
                seen[route, kind] = number = seen.get((route, kind), 0) + 1
                owner = kind if number == 1 else f"{kind}#{number}"
                own = [_Recorded(route, owner, name, value) for name, value in child.items()]
            else:
                out += _collect(child, route, seen)
        # What optax.inject_hyperparams injects, the part that it builds may record once more.
        below = {(hit.route, hit.name) for hit in out}
        out = [*(hit for hit in own if (hit.route, hit.name) not in below), *out]
    return out


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def hyperparams(state: PyTree) -> dict[str, jax.Array]:
    """Returns every hyperparameter that a state records, by name.

    Recorded are the learning rate of every optkit recipe, every value given as a schedule, and
    what ``optax.inject_hyperparams`` injects. Below ``optkit.route`` a name is preceded by its
    route: ``"muon/learning_rate"``. A name that several links of one chain record is preceded by
    the class of the state as well, as ``optkit.export_state`` writes it: ``"MomentumState.b1"``,
    ``"MomentumState#2.b1"``, ``"muon/MomentumState.b1"``.

    Args:
      state: an optimizer state.

    Returns:
      ``{name: value}`` of the last update (before the first: of the first).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> state = optkit.lion(1e-4).init({"w": jnp.zeros(2)})
      >>> {name: float(value) for name, value in optkit.hyperparams(state).items()}
      {'learning_rate': 9.999999747378752e-05}
    """
    found = _collect(state, "", {})
    times = collections.Counter((hit.route, hit.name) for hit in found)
    return {
        _join(
            hit.route, hit.name if times[hit.route, hit.name] == 1 else f"{hit.owner}.{hit.name}"
        ): hit.value
        for hit in found
    }


def get_hyperparam(state: PyTree, name: str) -> jax.Array:
    """Returns the value that a hyperparameter had in the last update.

    Args:
      state: an optimizer state.
      name: ``"learning_rate"``, or as ``optkit.hyperparams`` writes it: with its route
        ``"muon/learning_rate"``, with the state that records it ``"MomentumState.b1"``.

    Returns:
      A scalar array.

    Raises:
      KeyError: the state does not record the name, or several routes or links do, with a value
        each; lists what there is.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.adamw(optax.linear_schedule(0.5, 0.0, 10))
      >>> float(optkit.get_hyperparam(tx.init({"w": jnp.zeros(2)}), "learning_rate"))
      0.5
    """
    found = hyperparams(state)
    if name in found:
        return found[name]
    hits = [key for key in found if re.search(rf"(^|[/.]){re.escape(name)}$", key)]
    if len(hits) == 1:
        return found[hits[0]]
    if hits:
        raise KeyError(
            f"{name!r} is recorded for several routes or links; ask for one of "
            + ", ".join(sorted(hits))
        )
    raise KeyError(
        f"the state records no {name!r}; it records {', '.join(sorted(found)) or 'nothing'}. "
        "Constants other than the learning rate are part of the compiled program: pass a schedule "
        "or use optax.inject_hyperparams to have them in the state"
    )
