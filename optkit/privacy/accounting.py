"""What a run costs in privacy: epsilon of its noise, its sampling and its steps."""

import contextlib
import importlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from optkit.transforms.hyperparams import (
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
)

Accountant: TypeAlias = Literal["rdp", "pld"]
Sampling: TypeAlias = Literal["poisson", "fixed"]

# Between which noise multipliers one is looked for.
_LEAST, _MOST = 0.05, 1e6

_SHUFFLED = (
    "sampling='shuffled': batches cut from a shuffled epoch have no guarantee of amplification by "
    "sampling, so that no accountant here can tell their epsilon; draw them with "
    "optkit.privacy.PoissonBatches and account with sampling='poisson'"
)


def epsilon(
    noise_multiplier: float,
    *,
    steps: int,
    delta: float,
    sampling_rate: float | None = None,
    examples: int | None = None,
    batch: float | None = None,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> float:
    """Returns the epsilon of a run of DP-SGD.

    The run is ``steps`` times: draw a batch, clip each gradient to C, add noise of standard
    deviation ``noise_multiplier*C`` to the sum, divide by a number fixed in advance.

    Args:
      noise_multiplier: standard deviation of the noise on the sum, in units of C; above 0.
      steps: how many gradients are taken.
      delta: probability that the bound may fail with; below one over the number of examples.
      sampling_rate: probability of each example in each step; or give the two that follow.
      examples: how many there are.
      batch: how many a batch has, on average.
      sampling: "poisson", each example is drawn by itself (``optkit.privacy.PoissonBatches``), and
        datasets differ by one more or one fewer; "fixed", ``batch`` different examples are drawn
        from all at each step, and datasets differ by one replaced. Shuffled epochs are neither.
      accountant: "rdp" (Renyi) or "pld" (privacy loss distributions: tighter and slower, no fixed
        sampling).

    Returns:
      Epsilon; infinity without noise.

    Raises:
      ImportError: dp-accounting is not installed; names the extra.
      ValueError: values out of range, or a sampling that the accountant has no bound for.

    Example:
      >>> import optkit
      >>> round(optkit.privacy.epsilon(1.1, examples=60000, batch=256, steps=10000, delta=1e-5), 4)
      2.1616

    Reference:
      Google's dp-accounting; Mironov, Renyi Differential Privacy, arXiv 1702.07476; without
      replacement: Wang et al., arXiv 1808.00087. Where one example replaces another the sum moves
      by up to 2C, and the noise counts half; the library leaves that to its caller.
    """
    check_static_number("noise_multiplier", noise_multiplier)
    check_number("noise_multiplier", noise_multiplier, low=0.0)
    rate, size = _sampled(sampling, accountant, sampling_rate, examples, batch)
    check_static_int("steps", steps)
    _check_delta(delta, examples)
    if noise_multiplier == 0:
        return math.inf
    return _spent(noise_multiplier, steps, delta, sampling, accountant, rate, size)


def calibrate_noise(
    epsilon: float,
    *,
    steps: int,
    delta: float,
    sampling_rate: float | None = None,
    examples: int | None = None,
    batch: float | None = None,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> float:
    """Returns the noise multiplier with which a run of DP-SGD has an epsilon.

    Args:
      epsilon: what the run may cost; above 0.
      steps: how many gradients are taken.
      delta: probability that the bound may fail with.
      sampling_rate: probability of each example in each step; or give the two that follow.
      examples: how many there are.
      batch: how many a batch has, on average.
      sampling: "poisson" or "fixed", as in ``optkit.privacy.epsilon``.
      accountant: "rdp" or "pld".

    Returns:
      The smallest noise multiplier, to 1e-6 (1e-4 with "pld"), that costs no more than ``epsilon``.

    Raises:
      ImportError: dp-accounting is not installed; names the extra.
      ValueError: values out of range, or an epsilon for which 0.05 is too much noise or a million
        too little.

    Example:
      >>> import optkit
      >>> run = {"examples": 60000, "batch": 256, "steps": 10000, "delta": 1e-5}
      >>> round(optkit.privacy.calibrate_noise(3.0, **run), 4)
      0.9248

    Reference:
      Google's dp-accounting, ``calibrate_dp_mechanism``.
    """
    check_static_number("epsilon", epsilon)
    check_number("epsilon", epsilon, low=0.0, open_low=True)
    rate, size = _sampled(sampling, accountant, sampling_rate, examples, batch)
    check_static_int("steps", steps)
    _check_delta(delta, examples)
    run = (steps, delta, sampling, accountant, rate, size)
    # Between neighbours of a geometric series: far from the answer accountants take long.
    renyi = accountant == "rdp"
    high, ratio = 1.0, 2.0
    if not renyi:
        high, ratio = calibrate_noise(epsilon, steps=steps, delta=delta, sampling_rate=rate), 1.1
    while _spent(high, *run) > epsilon:
        high *= ratio
        if high > _MOST:
            raise ValueError(
                f"epsilon={epsilon!r} with delta={delta!r} is reached by no noise up to {_MOST:g}: "
                "give a larger epsilon, fewer steps or smaller batches"
            )
    while _spent(high / ratio, *run) <= epsilon:
        high /= ratio
        if high < _LEAST:
            raise ValueError(
                f"epsilon={epsilon!r} with delta={delta!r} needs less noise than {_LEAST:g}: "
                "no such number protects anybody; give a smaller epsilon"
            )
    library = _library()
    with _quiet():
        found = library.calibrate_dp_mechanism(
            lambda: _accountant(accountant, sampling),
            lambda noise: _event(noise, steps, sampling, rate, size),
            epsilon,
            delta,
            library.ExplicitBracketInterval(high / ratio, high),
            tol=1e-6 if renyi else 1e-4,
        )
    return float(found)


def _spent(
    noise: float,
    steps: int,
    delta: float,
    sampling: Sampling,
    accountant: Accountant,
    rate: float,
    size: tuple[int, int],
) -> float:
    """Epsilon of a run whose numbers are checked."""
    spent = _accountant(accountant, sampling)
    with _quiet():
        spent.compose(_event(noise, steps, sampling, rate, size))
        return float(spent.get_epsilon(delta))


def _check_delta(delta: float, examples: int | None) -> None:
    check_number("delta", delta, low=0.0, high=1.0, open_high=True)
    if delta == 0:
        raise ValueError("delta=0: Gaussian noise has no such bound; give a small number like 1e-6")
    if examples is not None and delta >= 1.0 / examples:
        raise ValueError(
            f"delta={delta!r} with examples={examples}: publishing one example whole would pass "
            f"for private; give less than {1.0 / examples:.3g}"
        )


def _sampled(
    sampling: Any,
    accountant: Any,
    rate: float | None,
    examples: int | None,
    batch: float | None,
) -> tuple[float, tuple[int, int]]:
    """Returns the rate, and of fixed sampling how many of how many."""
    if sampling in ("shuffled", "shuffle", "epochs"):
        raise ValueError(_SHUFFLED)
    check_choice("sampling", sampling, ("poisson", "fixed"))
    check_choice("accountant", accountant, ("rdp", "pld"))
    if sampling == "fixed" and accountant == "pld":
        raise ValueError(
            "accountant='pld' has no bound for sampling='fixed'; give accountant='rdp', or draw "
            "with optkit.privacy.PoissonBatches and give sampling='poisson'"
        )
    if (rate is None) == (examples is None or batch is None):
        raise ValueError(
            f"sampling_rate={rate!r}, examples={examples!r}, batch={batch!r}: give sampling_rate, "
            "or examples and batch"
        )
    if examples is not None:
        check_static_int("examples", examples)
    if rate is None and examples is not None and batch is not None:
        check_number("batch", batch, low=0.0, high=examples)
        rate = batch / examples
        if sampling == "fixed":
            if batch != int(batch) or batch < 1:
                raise ValueError(f"batch={batch!r}: fixed sampling draws a whole number")
            return rate, (examples, int(batch))
    elif sampling == "fixed":
        raise ValueError("sampling='fixed' draws batch out of examples: give both")
    check_number("sampling_rate", rate, low=0.0, high=1.0, open_low=True)
    return float(rate or 0.0), (0, 0)


def _event(noise: float, steps: int, sampling: Sampling, rate: float, size: tuple[int, int]) -> Any:
    """The run in the words of dp-accounting."""
    library = _library()
    if sampling == "poisson":
        one = library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))
    else:
        # The library takes the noise in units of what one example moves; replaced, it moves 2C.
        gaussian = library.GaussianDpEvent(noise / 2.0)
        one = library.SampledWithoutReplacementDpEvent(*size, gaussian)
    return library.SelfComposedDpEvent(one, steps)


def _accountant(accountant: Accountant, sampling: Sampling) -> Any:
    library = _library()
    relation = library.NeighboringRelation
    kind = relation.ADD_OR_REMOVE_ONE if sampling == "poisson" else relation.REPLACE_ONE
    make: Callable[..., Any]
    if accountant == "rdp":
        make = library.rdp.RdpAccountant
    else:
        make = library.pld.PLDAccountant
    return make(neighboring_relation=kind)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the library's word on each Renyi order that it leaves out.

    Of the orders' bounds the least is taken: one fewer is a bound all the same.
    """
    logger = logging.getLogger("absl")

    def other(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _library() -> Any:
    """Imports dp-accounting, or raises ImportError with the extra that has it."""
    try:
        library = importlib.import_module("dp_accounting")
        for part in ("rdp", "pld", "mechanism_calibration"):
            importlib.import_module(f"dp_accounting.{part}")
    except ImportError as error:
        raise ImportError(
            'privacy accounting needs dp-accounting: pip install "optkit[privacy]"'
        ) from error
    return library
