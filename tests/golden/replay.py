"""Reads a golden file, finds its case, runs it and compares."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

DATA = Path(__file__).parent / "data"
TOLERANCE = 5e-6


@dataclass(frozen=True)
class Golden:
    """One file: its arrays, and its meta as the only source of hyperparameters."""

    stem: str
    meta: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def hyper(self) -> dict[str, Any]:
        return self.meta.get("hyperparameters", {})

    @property
    def steps(self) -> int:
        """Steps after which parameters are recorded, common ones or each worker's."""
        return len({key.split("/")[1] for key in self.arrays if key.startswith(("p/", "pw/"))})

    def tree(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays below ``prefix/`` by leaf name."""
        return {
            k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")
        }


@dataclass(frozen=True)
class Comparison:
    """Largest error of one quantity and what it may be."""

    error: float
    tolerance: float

    @property
    def ratio(self) -> float:
        return self.error / self.tolerance if np.isfinite(self.error) else np.inf


@dataclass(frozen=True)
class Result:
    """One printed line."""

    stem: str
    steps: int
    worst: Comparison | None

    @property
    def verdict(self) -> str:
        if self.worst is None:
            return "UNKNOWN"
        return "PASS" if self.worst.ratio <= 1.0 else "FAIL"

    def __str__(self) -> str:
        worst = self.worst or Comparison(np.nan, np.nan)
        numbers = f"{self.steps:>4}  {worst.error:.3e}  {worst.tolerance:.1e}"
        return f"{self.stem:<24} {numbers}  {self.verdict}"


Case = Callable[[Golden], Iterator[Comparison]]
CASES: dict[str, Case] = {}


def case(*names: str) -> Callable[[Case], Case]:
    """Enters a case for the stems or methods of these names."""

    def decorate(function: Case) -> Case:
        CASES.update(dict.fromkeys(names, function))
        return function

    return decorate


def torch_dims(params: Any) -> Any:
    """Dimension numbers of the files' (fan_out, fan_in, ...) layout; None below rank 2."""
    return jax.tree.map(
        lambda p: MuonDimensionNumbers(tuple(range(1, p.ndim)), 0) if p.ndim >= 2 else None, params
    )


def difference(got: Any, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite where shapes or finiteness differ."""
    got = np.asarray(got, np.float64)
    if got.shape != expected.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.max(np.abs(got - expected.astype(np.float64)), initial=0.0))


def trajectory(
    golden: Golden,
    tx: optax.GradientTransformation,
    *,
    tolerance: float = TOLERANCE,
    dtype: Any = jnp.float32,
) -> Iterator[Comparison]:
    """Feeds the recorded gradients and compares the parameters after every step."""

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), golden.tree(f"g/{t}"))
        state, params = step(grads, state, params)
        expected = golden.tree(f"p/{t}")
        yield Comparison(max(difference(params[k], v) for k, v in expected.items()), tolerance)


def load(file: Path) -> Golden:
    """Reads a file whole."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files if key != "meta"}
        meta = json.loads(str(stored["meta"]))
    return Golden(file.stem, meta, arrays)


def replay(file: Path) -> Result:
    """Replays one file; ``worst`` is None if no case knows its stem or ``meta.method``."""
    from tests.golden import (  # noqa: F401  registers their cases
        cases_communication,
        cases_continual,
        cases_diagonal,
        cases_dion,
        cases_evolution,
        cases_evolution_egg,
        cases_evolution_forward,
        cases_evolution_merging,
        cases_evolution_polystep,
        cases_evolution_search,
        cases_evolution_unrolled,
        cases_federated,
        cases_foundation,
        cases_games,
        cases_hdet,
        cases_kronecker,
        cases_lact,
        cases_lora,
        cases_low_rank,
        cases_mars_moments,
        cases_masks,
        cases_memory,
        cases_monitoring,
        cases_namo_mars,
        cases_noise,
        cases_normalized,
        cases_outer,
        cases_privacy,
        cases_projections,
        cases_q_galore,
        cases_randomized,
        cases_rank_one,
        cases_robust,
        cases_schedules,
        cases_shampoo,
        cases_sparse,
        cases_spheres,
    )

    golden = load(file)
    run = CASES.get(golden.stem) or CASES.get(golden.meta.get("method", ""))
    if run is None:
        return Result(golden.stem, golden.steps, None)
    comparisons = list(run(golden))
    worst = max(comparisons, key=lambda c: c.ratio, default=None)
    return Result(golden.stem, golden.steps, worst)
