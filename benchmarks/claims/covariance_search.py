"""Covariances that a search learns: what do they save, and where do diagonal ones suffice?

The sources of CMA-ES, xNES, Sep-CMA-ES and SNES (arXiv 1604.00772, 1106.4487, Ros and Hansen 2008)
say that learning the covariance tames badly conditioned problems: a full one under any rotation, a
diagonal one along the axes only, in linear time. Here: ellipsoids ``sum_i c^(i/(d-1)) x_i^2`` from
ones with a deviation of 0.5, in float64; of 16 dimensions and condition 1e6, turned or not, with
the usual population of 12; and of 268 dimensions and condition 1e4 with 32 members, where the
constants of the diagonal method differ.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.engine import Outcome, Setting, number
from optkit.evolution import ask_tell, search, snes

TARGET = 1e-8
SMALL, LARGE = (16, 12, 1667, 1e6), (268, 32, 1500, 1e4)  # d, members, generations, condition
Make = Callable[..., Any]  # members, key -> strategy


def searches() -> dict[str, Make]:
    """Returns all methods by name."""

    def sep(source: Any) -> Make:
        return lambda count, key: search.sep_cma_es(
            count, sigma=0.5, constants=source, maximize=False, key=key
        )

    sources = ("cmaes", "paper", "pycma", "evosax")
    return {
        "cma_es": lambda count, key: search.cma_es(count, sigma=0.5, maximize=False, key=key),
        "xnes": lambda count, key: search.xnes(count, sigma=0.5, maximize=False, key=key),
        "snes": lambda count, key: snes(count, std=0.5, maximize=False, key=key),
        **{f"sep_cma_es, {source}": sep(source) for source in sources},
    }


def curves(make: Make, problem: tuple[Any, ...], turned: bool, setting: Setting) -> np.ndarray:
    """Returns the best cost so far, ``(seeds, generations)``."""
    size, count, length, condition = problem
    length = setting.pick(length, 20)
    turn = np.eye(size)
    if turned:
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    scale = condition ** (np.arange(size) / (size - 1))

    def run(key: jax.Array) -> jax.Array:
        loop = ask_tell(make(count, key), maximize=False)

        def generation(state: Any, _: None) -> Any:
            state = loop.tell(state, ((loop.ask(state) @ turn) ** 2) @ scale)
            return state, state.best_fitness[0]

        return jax.lax.scan(generation, loop.init(jnp.ones(size)), length=length)[1]

    keys = jax.vmap(jax.random.key)(jnp.asarray(setting.seeds))
    return np.asarray(jax.jit(jax.vmap(run))(keys))


def reached(best: np.ndarray, members: int) -> float:
    """Returns the mean number of evaluations until the target; infinite if a seed never is."""
    done = best <= TARGET
    if not done[:, -1].all():
        return np.inf
    return float(members * (1 + done.argmax(axis=1)).mean())


def experiment(setting: Setting) -> Outcome:
    """Runs all searches on the three problems."""
    rows, evaluations, ends = [], {}, {}
    for title, problem, turned in (
        ("16, turned", SMALL, True),
        ("16", SMALL, False),
        ("268", LARGE, False),
    ):
        for name, make in searches().items():
            if problem is LARGE and name in ("cma_es", "xnes"):
                continue
            with jax.enable_x64(True):
                best = curves(make, problem, turned, setting)
            evaluations[title, name] = reached(best, problem[1])
            ends[title, name] = float(np.median(best[:, -1]))
            shown = evaluations[title, name]
            cell = f"{shown:.0f}" if np.isfinite(shown) else "never"
            rows.append((title, name, cell, number(ends[title, name], 2)))
    full, plain = evaluations["16, turned", "cma_es"], evaluations["16", "cma_es"]
    diagonal = evaluations["16", "sep_cma_es, cmaes"]
    slow = ends["268", "sep_cma_es, evosax"] / ends["268", "sep_cma_es, cmaes"]
    return Outcome(
        claim="CMA-ES reaches 1e-8 on the ellipsoid of 16 dimensions in less than 1e4 evaluations, "
        "turned or not; the diagonal method only where it is not turned, and then sooner; in 268 "
        "dimensions the constants of evosax are ten times further away than those of cmaes",
        holds=bool(
            max(full, plain) < 1e4
            and diagonal < plain
            and np.isinf(evaluations["16, turned", "sep_cma_es, cmaes"])
            and slow > 10.0
        ),
        finding=f"CMA-ES {full:.0f} evaluations turned and {plain:.0f} not, the diagonal method "
        f"{diagonal:.0f} where it is not turned, xNES at {ends['16, turned', 'xnes']:.1g} and the "
        f"diagonal one at {ends['16, turned', 'sep_cma_es, cmaes']:.2g} on the turned one after "
        f"20000; in 268 dimensions evosax' constants end {slow:.0f} times as high",
        header=("ellipsoid", "method", "evaluations to 1e-8", "best at the end, median"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
