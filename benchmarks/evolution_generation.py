"""A generation on CartPole against evosax: ``python -m benchmarks.evolution_generation``.

Needs ``pip install evosax`` and ``optkit[evolve]``. 256 members, a policy with two hidden layers of
256, episodes of 500 steps, deviation 0.1, centered ranks, Adam at 0.03: EGGROLL at rank 1 and 4 and
OpenAI-ES of optkit, and OpenAI-ES of evosax. All live in the same jitted environment. First
generations are timed, taking turns (best and median of the rounds); then each method learns, and
the mean return of its population at some generations is the mean over three seeds.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from benchmarks import common
from optkit.tasks.control import cartpole

SIGMA, RATE = 0.1, 0.03
TARGET = 7.0
SHOWN = (0, 5, 10, 19)


def of_optkit(es: Any, task: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns a run's start, and its generation from one carry and a key to the next."""
    tx = optax.chain(es, optax.adam(RATE))

    def start(key: jax.Array) -> Any:
        params = task.init(key)
        return params, optax.tree_utils.tree_set(tx.init(params), es_key=key)

    @jax.jit
    def generation(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        lazy = hasattr(es, "perturb_lazy")
        population = (es.perturb_lazy if lazy else es.perturb)(params, state)
        fitness = task.fitness(population, key)
        updates, state = tx.update(fitness, state, params)
        return (optax.apply_updates(params, updates), state), jnp.mean(fitness)

    return start, generation


def of_evosax(members: int, task: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same for evosax' OpenAI-ES."""
    from evosax.algorithms import Open_ES
    from evosax.core.fitness_shaping import centered_rank_fitness_shaping_fn

    es = Open_ES(
        population_size=members,
        solution=task.init(jax.random.key(0)),
        optimizer=optax.adam(RATE),
        std_schedule=optax.constant_schedule(SIGMA),
        fitness_shaping_fn=centered_rank_fitness_shaping_fn,
    )
    params = es.default_params

    def start(key: jax.Array) -> Any:
        return es.init(key, task.init(key), params)

    @jax.jit
    def generation(state: Any, key: jax.Array) -> Any:
        ask, live, tell = jax.random.split(key, 3)
        population, state = es.ask(ask, state, params)
        fitness = task.fitness(neighbours(population), live)
        given = fitness.reshape(-1, 2).T.reshape(-1)
        state, _ = es.tell(tell, population, -given, state, params)
        return state, jnp.mean(fitness)

    return start, generation


def neighbours(population: Any) -> Any:
    """Its population has + in the first half and - in the second: partners side by side."""

    def order(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(2, -1, *x.shape[1:]), 0, 1).reshape(x.shape)

    return jax.tree.map(order, population)


def methods(members: int, hidden: int, steps: int | None) -> dict[str, Any]:
    """Returns the starts and generations that are compared."""
    task = cartpole(hidden=hidden, steps=steps)
    common_options: dict[str, Any] = {"sigma": SIGMA, "shaping": "centered_rank"}
    return {
        "evosax OpenAI-ES": of_evosax(members, task),
        "eggroll, rank 1": of_optkit(optkit.eggroll(members, **common_options), task),
        "eggroll, rank 4": of_optkit(
            optkit.eggroll(members, rank=4, full="head/*", **common_options), task
        ),
        "openai_es": of_optkit(optkit.openai_es(members, **common_options), task),
    }


def measure(quick: bool, rounds: int, clock: str, seeds: int) -> list[dict[str, Any]]:
    """Returns times and learning curves."""
    members, hidden, steps, count = (8, 8, 10, 2) if quick else (256, 256, None, SHOWN[-1] + 1)
    made = methods(members, hidden, steps)
    key = jax.random.key(0)
    runs = {
        name: functools.partial(generation, start(key), key)
        for name, (start, generation) in made.items()
    }
    seconds = common.interleave(runs, rounds, clock)
    rival = seconds["evosax OpenAI-ES"]
    rows = []
    for name, (start, generation) in made.items():
        curves = []
        for seed in range(seeds):
            carry, curve = start(jax.random.key(seed)), []
            for key in jax.random.split(jax.random.key(100 + seed), count):
                carry, mean = generation(carry, key)
                curve.append(float(mean))
            curves.append(curve)
        ratio = common.Ratio.of(seconds[name], rival)
        rows.append(
            {
                "name": name,
                "milliseconds": 1e3 * min(seconds[name]),
                "faster_best": ratio.best,
                "faster_median": ratio.median,
                "curves": curves,
            }
        )
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table and a verdict."""
    cells = []
    for row in rows:
        shown = [g for g in SHOWN if g < len(row["curves"][0])]
        means = [sum(c[g] for c in row["curves"]) / len(row["curves"]) for g in shown]
        ours = row["name"] == "eggroll, rank 1"
        said = common.verdict(row["faster_best"], TARGET, at_least=True) if ours else ""
        cells.append(
            (
                row["name"],
                f"{row['milliseconds']:.1f}",
                f"{row['faster_best']:.2f}",
                f"{row['faster_median']:.2f}",
                "/".join(f"{mean:.0f}" for mean in means),
                said,
            )
        )
    head = ("method", "ms", "faster (best)", "(median)", "return at " + "/".join(map(str, SHOWN)))
    return common.table((*head, "verdict"), cells)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = common.parser("evolution_generation", __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    rows = measure(args.quick, 1 if args.quick else args.rounds, args.clock, args.seeds)
    common.report(rows, as_text(rows), as_json=args.json)


if __name__ == "__main__":
    main()
