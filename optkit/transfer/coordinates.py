"""The coordinate check: do activations move by as much at every width?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from optkit.monitoring.diagnose import root_mean_square
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, leaves_with_paths, upcast

_FLAT = 0.25


class Trial(NamedTuple):
    """A model of one width, and how it is trained."""

    init: Callable[[jax.Array], PyTree]  # key -> parameters
    tx: optax.GradientTransformation
    loss: Callable[[PyTree, Any], Any]  # (params, batch) -> scalar, or a pair that begins with it
    batch: Callable[[int, int], Any]  # (seed, step) -> batch, arrays of one shape
    activations: Callable[[PyTree, Any], Mapping[str, jax.Array]]  # (params, batch) -> by name


@dataclass(frozen=True)
class Coordinates:
    """Sizes over widths, each the root mean square, averaged over seeds; ``print`` is a table.

    Attributes:
      widths: the widths.
      steps: training steps before the last measurement.
      initial: activation -> (widths,), its size before the first step.
      changes: activation -> (steps, widths), how far it is from where it began.
      updates: leaf -> (widths,), the size of its update, averaged over steps.
      tolerance: the largest slope that counts as flat.
    """

    widths: tuple[int, ...]
    steps: int
    initial: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    tolerance: float = _FLAT

    @property
    def slopes(self) -> dict[str, float]:
        """Activation -> slope of log(change after the last step) over log(width)."""
        return {name: _slope(self.widths, rows[-1]) for name, rows in self.changes.items()}

    @property
    def update_slopes(self) -> dict[str, float]:
        """Leaf -> slope of log(size of its updates) over log(width)."""
        return {path: _slope(self.widths, sizes) for path, sizes in self.updates.items()}

    @property
    def flat(self) -> bool:
        """Whether no activation's change has a slope beyond the tolerance."""
        return not self.steep

    @property
    def steep(self) -> dict[str, float]:
        """The activations whose change grows or shrinks with the width, with their slopes."""
        return {n: s for n, s in self.slopes.items() if not abs(s) <= self.tolerance}

    @property
    def verdict(self) -> str:
        """One sentence."""
        slopes, steep = self.slopes, self.steep
        if not steep:
            worst = max(slopes.values(), key=abs, default=0.0)
            return f"flat: the steepest of {len(slopes)} activations has slope {worst:+.2f}"
        name = max(steep, key=lambda n: abs(steep[n]) if math.isfinite(steep[n]) else math.inf)
        return (
            f"not flat: {len(steep)} of {len(slopes)} activations change with the width, "
            f"{name or 'the output'} by width^{steep[name]:+.2f}"
        )

    def record(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            "widths": list(self.widths),
            "steps": self.steps,
            "tolerance": self.tolerance,
            "flat": self.flat,
            "verdict": self.verdict,
            "slopes": self.slopes,
            "update_slopes": self.update_slopes,
            **{
                name: {key: np.asarray(value).tolist() for key, value in table.items()}
                for name, table in (
                    ("initial", self.initial),
                    ("changes", self.changes),
                    ("updates", self.updates),
                )
            },
        }

    def __str__(self) -> str:
        heads = [f"at {width}" for width in self.widths]
        last = {name: rows[-1] for name, rows in self.changes.items()}
        lines = _table(f"change after {self.steps} steps", heads, last, self.slopes, self.tolerance)
        lines += ["", *_table("size of updates", heads, self.updates, self.update_slopes, None)]
        return "\n".join([*lines, "", self.verdict])


def _table(
    title: str,
    heads: Sequence[str],
    rows: Mapping[str, np.ndarray],
    slopes: Mapping[str, float],
    tolerance: float | None,
) -> list[str]:
    cells = [[title, *heads, "slope", ""]]
    for name, sizes in rows.items():
        steep = tolerance is not None and not abs(slopes[name]) <= tolerance
        mark = ("grows" if slopes[name] > 0 else "shrinks") if steep else ""
        numbers = [f"{size:.2e}" for size in sizes]
        cells.append([name or "(output)", *numbers, f"{slopes[name]:+.2f}", mark])
    columns = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    return [
        "  ".join(
            [row[0].ljust(columns[0])]
            + [c.rjust(n) for c, n in zip(row[1:-1], columns[1:-1], strict=True)]
            + [row[-1]]
        ).rstrip()
        for row in cells
    ]


def _slope(widths: Sequence[int], sizes: np.ndarray) -> float:
    """Least squares through the logarithms; NaN where a size is not positive and finite."""
    sizes = np.asarray(sizes, np.float64)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        return math.nan
    x, y = np.log(np.asarray(widths, np.float64)), np.log(sizes)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def coordinate_check(
    build: Callable[[int], Trial],
    widths: Sequence[int],
    *,
    steps: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    tolerance: float = _FLAT,
) -> Coordinates:
    """Trains a model at several widths for a few steps and measures how far activations move.

    1. for each width and seed: ``a_0``, the activations on the first batch before the first step;
    2. ``steps`` updates, each on a batch of its own; after each, ``rms(a_t - a_0)`` on that first
       batch, and ``rms`` of each leaf's update;
    3. means of logarithms over seeds; slopes over the logarithm of the width.

    A parametrisation in which learning rates transfer moves every activation by as much at every
    width: slopes of 0. With one learning rate for all leaves Adam moves a hidden layer in
    proportion to its width.

    Args:
      build: from a width to a ``Trial``: ``init(key)``, ``tx``, ``loss(params, batch)``,
        ``batch(seed, step)`` and ``activations(params, batch)``; see
        ``optkit.transfer.linen_activations`` and ``nnx_activations``.
      widths: at least two.
      steps: updates; a few, as long as the learning rate is small for all widths.
      seeds: of parameters and batches.
      tolerance: the largest slope, up or down, that counts as flat.

    Returns:
      ``Coordinates``: ``slopes``, ``flat``, ``verdict``, and everything that was measured.
      Activations that never change (inputs) are left out.

    Raises:
      ValueError: fewer than two widths, or activations that differ in name between widths.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> def build(width):
      ...   return optkit.transfer.Trial(
      ...     lambda key: {"w": jax.random.normal(key, (width, 2)) / width},
      ...     optax.sgd(1.0), lambda p, x: jnp.sum(p["w"] @ x), lambda seed, step: jnp.ones(2),
      ...     lambda p, x: {"sum": p["w"].sum(0) @ x})
      >>> checked = optkit.transfer.coordinate_check(build, (4, 8), steps=1, seeds=(0,))
      >>> round(checked.slopes["sum"], 3), checked.flat
      (1.0, False)

    Reference:
      Yang et al., arXiv 2203.03466, appendix D.1; the tolerance is ours.
    """
    check_static_int("steps", steps)
    widths = tuple(widths)
    if len(set(widths)) < 2:
        raise ValueError(f"widths={widths} has to hold at least two different widths")
    found = [_measure(build(width), steps, seeds) for width in widths]
    for other in found[1:]:
        if [*other[0]] != [*found[0][0]]:
            lost = {*other[0]} ^ {*found[0][0]}
            raise ValueError(
                f"activations differ between widths: {', '.join(sorted(lost))}; build models that "
                "differ in width alone"
            )
    initial, changes, updates = (
        {name: np.stack([table[name] for table in tables], axis=-1) for name in tables[0]}
        for tables in zip(*found, strict=True)
    )
    moving = {name: rows for name, rows in changes.items() if rows.any()}
    still = {name: sizes for name, sizes in initial.items() if name in moving}
    return Coordinates(widths, steps, still, moving, updates, tolerance)


def _measure(
    trial: Trial, steps: int, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sizes of initial activations, of their changes after each step, and of updates."""
    if not isinstance(trial, Trial):
        raise TypeError(
            "build must return an optkit.transfer.Trial(init, tx, loss, batch, activations) for a "
            f"width, and returned {trial!r}"
        )
    tx = optax.with_extra_args_support(trial.tx)

    def scalar(params: PyTree, batch: Any) -> jax.Array:
        value = trial.loss(params, batch)
        return value[0] if isinstance(value, tuple) else value

    @jax.jit
    def run(params: PyTree, batches: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], batches)
        begin = dict(trial.activations(params, first))

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(scalar)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
            now = trial.activations(params, first)
            moved = {n: root_mean_square(upcast(now[n]) - upcast(a)) for n, a in begin.items()}
            return (params, state), (moved, jax.tree.map(root_mean_square, updates))

        _, (moved, updates) = jax.lax.scan(step, (params, tx.init(params)), batches)
        return jax.tree.map(root_mean_square, begin), moved, updates

    each = []
    for seed in seeds:
        batches = [trial.batch(seed, step) for step in range(steps)]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
        initial, moved, updates = run(trial.init(jax.random.key(seed)), stacked)
        sizes = {path: np.mean(value) for path, value in leaves_with_paths(updates)}
        each.append(jax.device_get((initial, moved, sizes)))
    return tuple(_geometric([part[index] for part in each]) for index in range(3))  # type: ignore[return-value]  # three


def _geometric(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of logarithms; 0 where one is 0."""

    def mean(name: str) -> Any:
        values = np.stack([np.asarray(table[name], np.float64) for table in tables])
        with np.errstate(divide="ignore"):
            return np.exp(np.mean(np.log(values), axis=0))

    return {name: mean(name) for name in tables[0]}
