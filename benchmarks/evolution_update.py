"""What a population's update costs: ``python -m benchmarks.evolution_update [CASE ...]``.

The populations of ``benchmarks.evolution_forward``: 256 members of a model of width 256 with
low-rank noise on the kernels. 1.00 is the forward of all members with weights that they share. An
update goes from fitnesses to the pseudo-gradient: it shapes them, draws the noise of all pairs once
more, and sums it. ``jax`` and ``counters`` say what the noise is drawn by; ``hoisted``: it was kept
from the forward. The runs of a case take turns; ``best`` is the ratio of the best times, ``median``
that of the ratios within each round. ``scratch`` is what the compiled update allots beside its
result, beside the noise that all members together have.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common
from benchmarks.evolution_forward import CASES, SIGMA
from optkit.evolution import population_perturb

# Of the forward, with noise drawn in the update.
TARGETS = {("block, 32 tokens", "rank 1, jax"): 0.3, ("block, 32 tokens", "rank 1, counters"): 0.3}


def runs(
    name: str, members: int, width: int, ranks: tuple[int, ...]
) -> tuple[dict[str, Callable[[], Any]], dict[str, tuple[int, int]]]:
    """Returns the programs that are compared, and of updates their scratch and all noise, bytes."""
    case = CASES[name]
    x = common.random_like(jax.ShapeDtypeStruct((members, case.rows, width), jnp.float32), 1, 1.0)
    params = jax.jit(case.model.init)(jax.random.key(0), x[0])
    fitness = common.random_like(jax.ShapeDtypeStruct((members,), jnp.float32), 2, 1.0)
    shared = jax.jit(jax.vmap(case.model.apply, in_axes=(None, 0)))
    out: dict[str, Callable[[], Any]] = {"plain": functools.partial(shared, params, x)}
    scratch = {}

    def add(label: str, es: Any, state: Any, noise: Any = None) -> None:
        def update(fitness: Any, state: Any, params: Any, noise: Any) -> Any:
            return es.update(fitness, state, params, noise=noise)[0]

        given = (fitness, state, params, noise)
        compiled = jax.jit(update).lower(*given).compile()
        whole = jax.eval_shape(es.noise, params, state)
        numbers = sum(leaf.size * 4 for leaf in jax.tree.leaves(whole))
        scratch[label] = compiled.memory_analysis().temp_size_in_bytes, numbers
        out[label] = functools.partial(compiled, *given)

    for rank in ranks:
        for draws in ("jax", "counters"):
            es = population_perturb(members, sigma=SIGMA, rank=rank, draws=draws)
            add(f"rank {rank}, {draws}", es, es.init(params))
        es = population_perturb(members, sigma=SIGMA, rank=rank)
        state = es.init(params)
        add(f"rank {rank}, hoisted", es, state, jax.jit(es.noise)(params, state))
    return out, scratch


def measure(name: str, quick: bool, rounds: int, clock: str) -> dict[str, Any]:
    """Returns the numbers of one case."""
    sizes: Any = (4, 8, (1,)) if quick else (256, 256, (1, 4))
    programs, scratch = runs(name, *sizes)
    return {"name": name, **common.against_plain(programs, rounds, clock), "scratch": scratch}


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns a table a case, and verdicts."""
    out = []
    for row in rows:
        cells = []
        for run, ratio in row["ratios"].items():
            target = TARGETS.get((row["name"], run))
            said = common.verdict(ratio["best"], target, at_least=False) if target else ""
            used, whole = (f"{size / 2**20:.1f}" for size in row["scratch"][run])
            shown = f"{ratio['best']:.2f}", f"{ratio['median']:.2f}", f"{used} of {whole}"
            cells.append((run, *shown, said))
        head = f"{row['name']} (plain: {row['milliseconds']:.2f} ms)"
        out.append(common.table((head, "best", "median", "scratch MiB", "verdict"), cells))
    return "\n\n".join(out)


def main(arguments: list[str] | None = None) -> None:
    """Measures the cases one after another and prints the tables."""
    common.run_cases("evolution_update", __doc__, CASES, measure, as_text, arguments)


if __name__ == "__main__":
    main()
