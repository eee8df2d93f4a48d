"""EGGROLL: does noise of rank 1 learn control as fast, in generations, as noise of full rank?

The paper (arXiv 2511.16652) reports learning curves of full-rank evolution strategies on
reinforcement-learning tasks at a fraction of the time. Here policies with two hidden layers play
CartPole and Pendulum; ``openai_es`` is EGGROLL with Gaussian noise of full rank and nothing else
changed. Both take turns in this run: times are compared within it.
"""

import time
from typing import Any

import jax
import numpy as np

import optkit
from benchmarks.claims.engine import Outcome, Setting, spread
from benchmarks.evolution_generation import SIGMA, of_optkit
from optkit.tasks import control

MEMBERS, HIDDEN, GENERATIONS = 256, 128, {"cartpole": 20, "pendulum": 40}
# The mean return of a policy that has not learned, and of one that has: curves are compared as
# shares of the way between.
RANGE = {"cartpole": (20.0, 500.0), "pendulum": (-1300.0, -200.0)}


def strategies(members: int) -> dict[str, Any]:
    """Returns what is compared, by name."""
    shared: dict[str, Any] = {"sigma": SIGMA, "shaping": "centered_rank"}
    return {
        "rank 1": optkit.eggroll(members, **shared),
        "full rank": optkit.openai_es(members, **shared),
    }


def curves(
    task: Any, members: int, generations: int, seeds: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns mean returns (seeds, generations), and the fastest generation in seconds."""
    made = {name: of_optkit(es, task) for name, es in strategies(members).items()}
    found = {name: np.zeros((len(seeds), generations)) for name in made}
    fastest = dict.fromkeys(made, np.inf)
    for row, seed in enumerate(seeds):
        carries = {name: start(jax.random.key(seed)) for name, (start, _) in made.items()}
        for column, key in enumerate(jax.random.split(jax.random.key(100 + seed), generations)):
            for name, (_, generation) in made.items():
                began = time.perf_counter()
                carries[name], mean = generation(carries[name], key)
                found[name][row, column] = float(mean)
                fastest[name] = min(fastest[name], time.perf_counter() - began)
    return found, fastest


def experiment(setting: Setting) -> Outcome:
    """Learns both tasks with each kind of noise."""
    members, hidden = setting.pick(MEMBERS, 8), setting.pick(HIDDEN, 8)
    rows, holds, findings = [], True, []
    for name, generations in GENERATIONS.items():
        task = getattr(control, name)(hidden=hidden, steps=setting.pick(None, 10))
        found, fastest = curves(task, members, setting.pick(generations, 2), setting.seeds)
        low, high = RANGE[name]
        # The area under a curve of shares: 0 has learned nothing, 1 could do it from the start.
        areas = {kind: ((x - low) / (high - low)).mean(1) for kind, x in found.items()}
        for kind, x in found.items():
            shown = [x[:, int(share * (x.shape[1] - 1))].mean() for share in (0, 1 / 4, 1 / 2, 1)]
            rows.append(
                (
                    name,
                    kind,
                    "/".join(f"{value:.0f}" for value in shown),
                    spread(areas[kind]),
                    f"{fastest['full rank'] / fastest[kind]:.2f}",
                )
            )
        behind = float(areas["full rank"].mean() - areas["rank 1"].mean())
        noise = float(areas["full rank"].std() + areas["rank 1"].std())
        faster = fastest["full rank"] / fastest["rank 1"]
        holds &= behind <= noise and faster > 1.0
        findings.append(
            f"{name}: area {behind:+.3f} behind (spread of seeds {noise:.3f}), a generation "
            f"{faster:.1f} times as fast"
        )
    return Outcome(
        claim="noise of rank 1 learns CartPole and Pendulum in as many generations as noise of "
        "full rank, up to what seeds differ by, and each generation is faster",
        holds=bool(holds),
        finding="; ".join(findings),
        header=("task", "noise", "return at 0, 1/4, 1/2, 1", "area under the curve", "faster"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
