"""What ``--diagnose`` asks for, and what a row of the log says of it."""

from collections.abc import Callable, Collection
from typing import Any

import jax

from optkit.cli.errors import CommandError, suggestion
from optkit.monitoring import attention_diagnostics, diagnostics, spectra
from optkit.tasks import Task
from optkit.transforms.schedule_free import evaluation_params

__all__ = [
    "EVERY",
    "MEASURES",
    "SPECTRA",
    "Measure",
    "measure_for",
    "measure_sizes",
    "read_diagnose",
]

Measure = Callable[[Any, Any], dict[str, Any]]  # (state, params) to entries of a row

SPECTRA, ATTENTION = "spectra", "attention"
MEASURES = (SPECTRA, ATTENTION)
EVERY = 10  # steps, where only measures are named
_DIGITS = 6  # of a singular value in the log: float32 has no more

_attention = jax.jit(attention_diagnostics)


def read_diagnose(value: int | str | None) -> tuple[int | None, tuple[str, ...] | None]:
    """Reads ``[STEPS][,spectra][,attention]``.

    Args:
      value: of ``--diagnose`` or of the configuration; None where neither gave one.

    Returns:
      Steps from one measurement to the next, and what is measured beside sizes and top singular
      values, in the order of ``MEASURES``; each is None if not given.

    Raises:
      CommandError: for another word, a word given twice, or steps that are no integer above 0.

    Example:
      >>> read_diagnose(5), read_diagnose("attention,20"), read_diagnose("spectra")
      ((5, None), (20, ('attention',)), (None, ('spectra',)))
    """
    if value is None:
        return None, None
    every: int | None = None
    named: list[str] = []
    for word in (part.strip() for part in str(value).split(",")):
        if word in MEASURES and word not in named:
            named.append(word)
        elif word.isdecimal() and int(word) > 0 and every is None:
            every = int(word)
        else:
            raise CommandError(
                f"diagnose={value!r}: {word!r} does not fit{suggestion(word, MEASURES)}; give "
                f"steps above 0, any of {' and '.join(MEASURES)}, or both, like "
                f"{EVERY},{','.join(MEASURES)}"
            )
    return every, tuple(name for name in MEASURES if name in named) or None


def measure_sizes(state: Any, params: Any) -> dict[str, Any]:
    """Returns what the optimizer's state holds of measurements, as ``diagnostics``.

    Args:
      state: of the optimizer.
      params: not looked at.

    Returns:
      ``{"diagnostics": {name: value}}``.
    """
    del params
    return {"diagnostics": diagnostics(state)}


def measure_for(task: Task, measures: Collection[str]) -> Measure:
    """Returns the function that tells a row what was measured.

    Attention is measured when the function is called, on the weights that are evaluated and on
    held-out examples, in a program of its own: training steps do not know of it. Everything else
    is read off the state, where ``optkit.diagnose`` left it.

    Args:
      task: what is trained.
      measures: some of ``MEASURES``.

    Returns:
      ``measure(state, params)``: ``diagnostics``, numbers by name, and with spectra ``spectra``,
      the falling singular values of each hidden matrix to six digits.

    Raises:
      CommandError: attention is asked for, and the task's model has none.
    """
    scores_of = task.attention if ATTENTION in measures else None
    if ATTENTION in measures and scores_of is None:
        raise CommandError(
            f"task {task.name!r} has a model without attention: leave attention out of --diagnose, "
            "or take a task that has it, --task bytelm"
        )

    def measure(state: Any, params: Any) -> dict[str, Any]:
        row = measure_sizes(state, params)
        if scores_of is not None:
            found = jax.device_get(_attention(scores_of(evaluation_params(state, params))))
            row["diagnostics"] |= {name: float(value) for name, value in found.items()}
        if SPECTRA in measures:
            row["spectra"] = {
                path: [float(f"{value:.{_DIGITS}g}") for value in values]
                for path, values in spectra(state).items()
            }
        return row

    return measure
