"""Coefficient sets of the Newton-Schulz polynomials, and the Polar Express generator.

A row (a, b, c) stands for the odd quintic p(x) = a x + b x^3 + c x^5. A set is a list of rows, a
policy for steps past its end, and the normalisation that it was made for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np

Row = tuple[float, float, float]
Repeat = Literal["cycle", "last", "none"]


@dataclass(frozen=True)
class CoefficientSet:
    """A named list of quintic rows with an explicit rule for running past its end.

    Attributes:
      name: key in `COEFFICIENTS`.
      rows: the (a, b, c) of each step, as Python floats.
      repeat: what follows the last row: "cycle" starts over, "last" repeats the last row, "none"
        refuses.
      steps: how many steps to take when the caller does not say.
      margin: the input is divided by margin * norm, so that its singular values stay <= 1 / margin.
      requires: name of the only preconditioning under which the set is safe, or None.
      source: where the numbers come from.
    """

    name: str
    rows: tuple[Row, ...]
    repeat: Repeat
    steps: int
    margin: float = 1.0
    requires: str | None = None
    source: str = ""

    def expand(self, steps: int | None = None) -> tuple[Row, ...]:
        """Returns one row for each step.

        Args:
          steps: number of steps; None takes the set's own.

        Returns:
          A tuple of `steps` rows.

        Raises:
          ValueError: `steps` is negative, or larger than the set when `repeat` is "none".

        Example:
          >>> COEFFICIENTS["cans"].expand(7)[-1] == COEFFICIENTS["cans"].rows[-1]
          True
        """
        count = self.steps if steps is None else steps
        if count < 0:
            raise ValueError(f"steps must be >= 0, got {count}")
        have = len(self.rows)
        if count <= have:
            return self.rows[:count]
        if self.repeat == "none":
            raise ValueError(
                f"coefficient set {self.name!r} has {have} rows and no rule to repeat them, "
                f"but {count} steps were asked for: pass steps <= {have}, or rows of your own"
            )
        if self.repeat == "cycle":
            return tuple(self.rows[i % have] for i in range(count))
        return self.rows + (self.rows[-1],) * (count - have)


def _solve_quintic(lower: float, upper: float) -> Row:
    """Odd quintic of least sup-distance to 1 on [lower, upper], by equi-oscillation."""
    if lower / upper >= 1 - 5e-6:
        # The exchange below loses all its digits on so short an interval; the Taylor polynomial
        # of the sign function at `upper` is the limit.
        return 1.875 / upper, -1.25 / upper**3, 0.375 / upper**5
    q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    a = b = c = 0.0
    previous = float("inf")
    for _ in range(200):
        nodes = np.array([lower, q, r, upper])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([nodes, nodes**3, nodes**5, signs], axis=1)
        a, b, c, error = (float(v) for v in np.linalg.solve(system, np.ones(4)))
        if abs(error - previous) < 1e-15:
            break
        previous = error
        root = sqrt(max(9 * b * b - 20 * a * c, 0.0))
        q = sqrt((-3 * b - root) / (10 * c))
        r = sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def polar_express_coefficients(
    lower: float,
    *,
    upper: float = 1.0,
    cushion: float = 0.02407327424182761,
    safety: float = 0.0,
    steps: int = 5,
) -> tuple[Row, ...]:
    """Greedy minimax composition of odd quintics towards 1 on [lower, upper] (Polar Express).

    Step t takes the best quintic on [max(l, cushion u), u], recentres it around 1 with the true l
    where the cushion was active, divides (a, b, c) by (s, s^3, s^5) with s = 1 + safety except at
    the last step, and goes on with l <- p(l), u <- 2 - l.

    Args:
      lower: smallest singular value to be served, in (0, upper].
      upper: largest singular value.
      cushion: the left end of the design interval is never below cushion * upper.
      safety: headroom of each step against round-off, inside the recursion.
      steps: number of rows.

    Returns:
      `steps` rows (a, b, c), computed in float64.

    Raises:
      ValueError: the interval, the cushion, the safety or the number of steps make no sense.

    Example:
      >>> polar_express_coefficients(1e-3, steps=1)[0][0]  # doctest: +ELLIPSIS
      8.287212018...

    Reference: Amsel et al., The Polar Express, arXiv 2505.16932.
    """
    if not 0 < lower <= upper:
        raise ValueError(f"need 0 < lower <= upper, got lower={lower}, upper={upper}")
    if not 0 <= cushion < 1 or safety < 0 or steps < 0:
        raise ValueError(
            f"need 0 <= cushion < 1, safety >= 0, steps >= 0, got {cushion=}, {safety=}, {steps=}"
        )
    low, high, rows = float(lower), float(upper), []
    for step in range(steps):
        left = max(low, cushion * high)
        a, b, c = _solve_quintic(left, high)
        if left > low:
            centre = 2.0 / (_quintic(a, b, c, low) + _quintic(a, b, c, high))
            a, b, c = a * centre, b * centre, c * centre
        if step < steps - 1:
            scale = 1.0 + safety
            a, b, c = a / scale, b / scale**3, c / scale**5
        rows.append((a, b, c))
        low = _quintic(a, b, c, low)
        high = 2.0 - low
    return tuple(rows)


def _quintic(a: float, b: float, c: float, x: float) -> float:
    return a * x + b * x**3 + c * x**5


def _fold(rows: Sequence[Row], scale: float) -> tuple[Row, ...]:
    """Folds the division of the input by `scale` into each row."""
    return tuple((a / scale, b / scale**3, c / scale**5) for a, b, c in rows)


# Keller Jordan, "Muon: an optimizer for hidden layers" (2024): slope at zero before accuracy.
_JORDAN = ((3.4445, -4.7750, 2.0315),)

# You Jiacheng's five-step tuning; the preset "dion" of optax, "quintic" of Emerging-Optimizers.
_QUINTIC_YOU = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Amsel et al., arXiv 2505.16932: polar_express_coefficients(1e-3, cushion=0.02407327424182761).
# The last row is the fixed point of the recursion.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.267995827194587, 0.3768040894852484),
    (1.8750014808655846, -1.250001645424251, 0.3750001645595907),
    (1.8749999980503391, -1.2499999961006782, 0.3749999980503392),
    (1.875, -1.25, 0.375),
)

# Emerging-Optimizers: the rows above folded by 1.01 and rounded; the last row is left unscaled.
_POLAR_EXPRESS_1P01 = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.8750, -1.2500, 0.3750),
)

# modded-nanogpt and microsoft/dion: polar_express_coefficients(1e-3, cushion=0.02, safety=0.02).
# The safety lies inside the recursion: folding 1.02 in afterwards gives another table.
_POLAR_EXPRESS_1P02 = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Grishina et al., arXiv 2506.10935: Chebyshev-type acceleration.
_CANS = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)

# Boissin et al., arXiv 2512.04632, as tabulated by Emerging-Optimizers. p_1(1) = -0.585: with
# Frobenius normalisation a dominant direction comes out with its sign flipped.
_AOL_EMERGING = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)

# The same preconditioning with the rows of microsoft/dion.
_AOL_FLASH = (
    (4.6051, -9.6552, 5.6769),
    (4.7505, -6.0861, 2.1790),
    (2.7763, -2.3190, 0.5523),
    (2.4231, -2.2861, 0.8193),
)

# arXiv 2606.00371: five cubic steps (c = 0 saves the square of the Gram matrix).
_CUBIC5 = (
    (3.3656576, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
    (2.2230472, -0.9630650, 0.0),
)

# Convergent textbook iterations. Their own step counts lift a singular value of 1e-3 about as far
# as five Jordan steps do (slope at zero 438, 537 and 512 against 485).
_CLASSIC_CUBIC = ((1.5, -0.5, 0.0),)
_CLASSIC_QUINTIC = ((1.875, -1.25, 0.375),)
_QUINTIC_2 = ((2.0, -1.5, 0.5),)

_PAPER = "arXiv 2505.16932"
_SETS = (
    CoefficientSet("jordan", _JORDAN, "cycle", 5, source="Jordan, Muon (2024)"),
    CoefficientSet("quintic_you", _QUINTIC_YOU, "cycle", 5, source="You Jiacheng (2024)"),
    CoefficientSet("polar_express", _POLAR_EXPRESS, "last", 5, source=_PAPER),
    CoefficientSet("polar_express_1p01", _POLAR_EXPRESS_1P01, "last", 8, source=_PAPER),
    CoefficientSet("polar_express_1p02", _POLAR_EXPRESS_1P02, "none", 5, 1.02, source=_PAPER),
    # The default of Gram Newton-Schulz (Zhang, Amsel, Chen, Dao, 2026): all five rows folded.
    CoefficientSet("polar_express_1p05", _fold(_POLAR_EXPRESS[:5], 1.05), "none", 5, source=_PAPER),
    CoefficientSet("cans", _CANS, "last", 5, source="arXiv 2506.10935"),
    CoefficientSet(
        "aol_emerging", _AOL_EMERGING, "cycle", 4, requires="aol", source="arXiv 2512.04632"
    ),
    CoefficientSet("aol_flash", _AOL_FLASH, "none", 4, requires="aol", source="arXiv 2512.04632"),
    # Eight fast steps, then two that converge.
    CoefficientSet(
        "deepseek_v4", _JORDAN * 8 + _QUINTIC_2 * 2, "last", 10, source="DeepSeek-V4 report"
    ),
    CoefficientSet("cubic5", _CUBIC5, "none", 5, source="arXiv 2606.00371"),
    CoefficientSet("classic_cubic", _CLASSIC_CUBIC, "cycle", 15, source="Bjorck and Bowie (1971)"),
    CoefficientSet("classic_quintic", _CLASSIC_QUINTIC, "cycle", 10, source="Higham (2008), ch. 8"),
    CoefficientSet("quintic_2", _QUINTIC_2, "cycle", 9, source="Jordan, Muon (2024)"),
)

COEFFICIENTS: dict[str, CoefficientSet] = {entry.name: entry for entry in _SETS}

Coefficients = str | CoefficientSet | Sequence[Sequence[float]]


def as_coefficient_set(spec: Coefficients) -> CoefficientSet:
    """Turns a name, a set or a list of rows into a `CoefficientSet`.

    Args:
      spec: a key of `COEFFICIENTS`, a `CoefficientSet`, or rows (a, b, c). One row is a fixed
        polynomial and cycles; several rows are not repeated.

    Returns:
      The set.

    Raises:
      ValueError: the name is unknown, or the rows are not finite triples.
    """
    if isinstance(spec, CoefficientSet):
        return spec
    if isinstance(spec, str):
        if spec not in COEFFICIENTS:
            known = ", ".join(COEFFICIENTS)
            raise ValueError(f"unknown coefficient set {spec!r}: use one of {known}, or pass rows")
        return COEFFICIENTS[spec]
    rows = [tuple(float(v) for v in row) for row in spec]
    for row in rows:
        if len(row) != 3 or not all(isfinite(v) for v in row):
            raise ValueError(f"a coefficient row is three finite numbers (a, b, c), got {row}")
    triples = tuple((a, b, c) for a, b, c in rows)
    return CoefficientSet("rows", triples, "cycle" if len(rows) == 1 else "none", len(rows))


def get_coefficients(spec: Coefficients, steps: int | None = None) -> tuple[Row, ...]:
    """Returns the rows of a set, one for each step.

    Args:
      spec: name, `CoefficientSet` or rows, see `as_coefficient_set`.
      steps: number of steps; None takes the set's own.

    Returns:
      A tuple of (a, b, c).

    Raises:
      ValueError: unknown name, malformed rows, or more steps than the set provides.

    Example:
      >>> get_coefficients("jordan", 2)
      ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    """
    return as_coefficient_set(spec).expand(steps)
