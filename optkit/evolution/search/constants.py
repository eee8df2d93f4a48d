"""Weights and learning rates of covariance matrix adaptation, in the sets that are in use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from optkit.transforms.hyperparams import check_choice, check_static_int

Source = Literal["cmaes", "evosax", "paper", "pycma"]
SOURCES: tuple[Source, ...] = ("cmaes", "evosax", "paper", "pycma")


@dataclass(frozen=True)
class Constants:
    """What covariance matrix adaptation multiplies with, for one dimension and population.

    Attributes:
      dimension: number of parameters d.
      weights: one a rank, the best first; those of the better half sum to 1.
      mu_eff: variance effective selection mass of the weights above 0.
      cc: rate of the path of the covariance.
      c1: rate of the rank-one update.
      cmu: rate of the rank-mu update.
      c_sigma: rate of the path of the step size.
      d_sigma: damping of the step size.
      chi_n: expected length of a standard normal vector.
      cm: rate of the mean.
    """

    dimension: int
    weights: tuple[float, ...]
    mu_eff: float
    cc: float
    c1: float
    cmu: float
    c_sigma: float
    d_sigma: float
    chi_n: float
    cm: float = 1.0

    @property
    def population(self) -> int:
        """Number of members."""
        return len(self.weights)


def default_population(dimension: int) -> int:
    """Returns ``4 + floor(3 ln d)``, the population that is usual without a reason for another.

    Args:
      dimension: number of parameters d.

    Returns:
      Number of members.

    Example:
      >>> from optkit.evolution import search
      >>> search.default_population(16)
      12
    """
    return 4 + int(3.0 * math.log(max(1, dimension)))


def cma_constants(
    dimension: int,
    population: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    **changes: float,
) -> Constants:
    """Returns the constants of CMA-ES with negative weights, of Hansen's tutorial.

    Args:
      dimension: number of parameters d.
      population: number of members N, at least 2; None for ``4 + floor(3 ln d)``.
      weights: N numbers instead of the logarithmic ones, best first. ``mu_eff`` follows from those
        above 0, and the rates from it.
      **changes: other values of ``cc``, ``c1``, ``cmu``, ``c_sigma``, ``d_sigma``, ``chi_n``,
        ``cm`` or ``mu_eff``.

    Returns:
      ``Constants``, which ``cma_es(constants=...)`` takes.

    Raises:
      ValueError: a population below 2, another number of weights, or an unknown name.

    Example:
      >>> from optkit.evolution import search
      >>> round(search.cma_constants(16, 12).mu_eff, 3)
      3.729

    Reference:
      Hansen, The CMA Evolution Strategy: A Tutorial, https://arxiv.org/abs/1604.00772
    """
    d, size = _sizes(dimension, population, weights)
    raw = _log_weights(size, (size + 1) / 2) if weights is None else np.asarray(weights, np.float64)
    mu_eff, mu_eff_minus = (_mass(x) for x in (raw[: size // 2], raw[size // 2 :]))
    if weights is not None:
        mu_eff = _mass(raw[raw > 0])
    c1, cmu, cc = _full_rates(d, mu_eff)
    if weights is None:
        below = 1.0 + c1 / cmu if cmu > 0 else math.inf
        definite = (1.0 - c1 - cmu) / (d * cmu) if cmu > 0 else math.inf
        least = min(below, 1.0 + 2.0 * mu_eff_minus / (mu_eff + 2.0), definite)
        losses = np.sum(np.abs(raw[raw < 0]))
        raw = np.where(raw >= 0, raw / np.sum(raw[raw > 0]), raw * (least / losses))
    c_sigma = (mu_eff + 2.0) / (d + mu_eff + 5.0)
    return _made(d, raw, mu_eff, cc, c1, cmu, c_sigma, changes)


def sep_cma_constants(
    dimension: int,
    population: int | None = None,
    source: Source = "cmaes",
    *,
    weights: Sequence[float] | None = None,
    **changes: float,
) -> Constants:
    """Returns the constants of CMA-ES with a diagonal covariance, of one of four sources.

    Args:
      dimension: number of parameters d.
      population: number of members N, at least 2; None for ``4 + floor(3 ln d)``.
      source: "cmaes" scales the rank-mu rate of the paper by ``(d+2)/3`` and leaves the rank-one
        rate alone; "paper" scales both, as Ros and Hansen write; "pycma" has rates of its own, for
        both of order 1/d; "evosax" has those of the full method, which learn slowly where d is
        large, and is there to compare.
      weights: N numbers instead, none below 0, best first.
      **changes: other values of ``cc``, ``c1``, ``cmu``, ``c_sigma``, ``d_sigma``, ``chi_n``,
        ``cm`` or ``mu_eff``.

    Returns:
      ``Constants``, which ``sep_cma_es(constants=...)`` takes.

    Raises:
      ValueError: an unknown source or name, a population below 2, or weights that do not fit.

    Example:
      >>> from optkit.evolution import search
      >>> sources = ("cmaes", "paper", "pycma", "evosax")
      >>> [round(search.sep_cma_constants(268, 16, s).cmu, 5) for s in sources]
      [0.00961, 0.00772, 0.00982, 8e-05]

    Reference:
      Ros and Hansen, A Simple Modification in CMA-ES, PPSN 2008; "pycma" without its negative
      weights.
    """
    check_choice("source", source, SOURCES)
    d, size = _sizes(dimension, population, weights)
    half = size // 2
    if weights is None:
        offset = half + 1 if source in ("cmaes", "paper") else (size + 1) / 2
        raw = np.maximum(_log_weights(size, offset), 0.0)
        raw[half:] = 0.0
        raw = raw / np.sum(raw)
    else:
        raw = np.asarray(weights, np.float64)
        if np.any(raw < 0):
            raise ValueError(
                f"weights have the negative number {raw.min()}: a diagonal covariance would not "
                "stay positive; give numbers of at least 0"
            )
    mu_eff = _mass(raw)
    c1, cmu, cc = _sep_rates(d, mu_eff, source)
    c_sigma = (mu_eff + 2.0) / (d + mu_eff + (5.0 if source == "evosax" else 3.0))
    return _made(d, raw, mu_eff, cc, c1, min(cmu, 1.0 - c1), c_sigma, changes)


def _sizes(
    dimension: int, population: int | None, weights: Sequence[float] | None
) -> tuple[int, int]:
    check_static_int("dimension", dimension)
    if population is not None:
        check_static_int("population", population, low=2)
    size = default_population(dimension) if population is None else population
    if weights is not None and len(weights) != size:
        raise ValueError(
            f"weights has {len(weights)} numbers for a population of {size}; give one for each rank"
        )
    return dimension, size


def _log_weights(size: int, offset: float) -> Any:
    return math.log(offset) - np.log(np.arange(1, size + 1))


def _mass(weights: Any) -> float:
    squares = float(np.sum(np.square(weights)))
    return float(np.sum(weights)) ** 2 / squares if squares > 0 else 1.0


def _full_rates(d: int, mu_eff: float) -> tuple[float, float, float]:
    """Rates c1, cmu and cc of a full covariance."""
    c1 = 2.0 / ((d + 1.3) ** 2 + mu_eff)
    cmu = min(1.0 - c1 - 1e-8, 2.0 * (mu_eff - 2.0 + 1.0 / mu_eff) / ((d + 2.0) ** 2 + mu_eff))
    cc = (4.0 + mu_eff / d) / (d + 4.0 + 2.0 * mu_eff / d)
    return c1, max(cmu, 0.0), cc


def _sep_rates(d: int, mu_eff: float, source: Source) -> tuple[float, float, float]:
    """Rates c1, cmu and cc of a diagonal covariance."""
    if source == "evosax":
        return _full_rates(d, mu_eff)
    if source == "pycma":
        root = math.sqrt(d)
        c1 = 1.0 / (d + 2.0 * root + mu_eff / d)
        cmu = (0.25 + mu_eff + 1.0 / mu_eff - 2.0) / (d + 4.0 * root + mu_eff / 2.0)
        cc = (1.0 + 1.0 / d + mu_eff / d) / (root + 1.0 / d + 2.0 * mu_eff / d)
        return c1, cmu, cc
    rank_mu = min(1.0, (2.0 * mu_eff - 1.0) / ((d + 2.0) ** 2 + mu_eff))
    rate = 2.0 / (mu_eff * (d + math.sqrt(2.0)) ** 2) + (1.0 - 1.0 / mu_eff) * rank_mu
    scaled, cc = (d + 2.0) / 3.0 * rate, 4.0 / (d + 4.0)
    if source == "cmaes":
        return _full_rates(d, mu_eff)[0], scaled, cc
    scaled = min(1.0, scaled)
    return scaled / mu_eff, scaled * (1.0 - 1.0 / mu_eff), cc


def _made(
    d: int,
    weights: Any,
    mu_eff: float,
    cc: float,
    c1: float,
    cmu: float,
    c_sigma: float,
    changes: dict[str, float],
) -> Constants:
    d_sigma = 1.0 + 2.0 * max(0.0, math.sqrt(max(0.0, mu_eff - 1.0) / (d + 1.0)) - 1.0) + c_sigma
    chi_n = math.sqrt(d) * (1.0 - 1.0 / (4.0 * d) + 1.0 / (21.0 * d * d))
    given = tuple(float(w) for w in weights)
    made = Constants(d, given, mu_eff, cc, c1, cmu, c_sigma, d_sigma, chi_n)
    known = set(Constants.__dataclass_fields__) - {"dimension", "weights"}
    if unknown := set(changes) - known:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no such constant; there are {sorted(known)}"
        )
    changed: dict[str, Any] = {name: float(value) for name, value in changes.items()}
    return replace(made, **changed)
