"""What a population's forward costs: ``python -m benchmarks.evolution_forward [CASE ...]``.

256 members of a linen model of width 256, each with inputs of its own, through ``population_apply``
with low-rank noise on the kernels and noise in full on the vectors. 1.00 is the same forward with
weights that all members share. ``hoisted``: the noise was drawn before, as outside a loop over
time; ``with noise``: it is drawn in the forward, once a pair; ``in full``: every member has its own
kernels, made before, through ``jax.vmap``. The runs of a case take turns; ``best`` is the ratio of
the best times, ``median`` that of the ratios within each round.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import common
from optkit.evolution import PopulationPerturb, population_apply, population_perturb

SIGMA = 0.1


class MLP(nn.Module):
    """Four layers of one width."""

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.relu(nn.Dense(x.shape[-1])(x))
        return x


class Block(nn.Module):
    """One block of a transformer, with four heads and a four times wider inner layer."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, the rows of input that each member has, and what the forward may cost at rank 1.

    Attributes:
      model: of one member.
      rows: inputs or tokens of a member.
      target: with noise drawn in the forward.
      hoisted: with the noise at hand; None for no target.
    """

    model: nn.Module
    rows: int
    target: float
    hoisted: float | None = None


CASES = {
    "MLP, 1 input": Case(MLP(), 1, 3.0),
    "MLP, 16 inputs": Case(MLP(), 16, 1.3),
    "block, 32 tokens": Case(Block(), 32, 1.2, 1.15),
}


def perturbation(members: int, rank: int) -> PopulationPerturb:
    """Returns the noise that is measured."""
    return population_perturb(members, sigma=SIGMA, rank=rank)


def runs(
    case: Case, members: int, width: int, ranks: tuple[int, ...] = (1, 4)
) -> dict[str, Callable[[], Any]]:
    """Returns the forwards that are compared, compiled when first called."""
    x = common.random_like(jax.ShapeDtypeStruct((members, case.rows, width), jnp.float32), 1, 1.0)
    params = jax.jit(case.model.init)(jax.random.key(0), x[0])
    out: dict[str, Callable[[], Any]] = {}

    def add(name: str, forward: Callable[..., Any], *args: Any) -> None:
        out[name] = functools.partial(jax.jit(forward), *args)

    shared = jax.vmap(case.model.apply, in_axes=(None, 0))
    add("plain", shared, params, x)
    for rank in ranks:
        es = perturbation(members, rank)
        state = es.init(params)

        def forward(params: Any, noise: Any, x: Any, es: Any = es, state: Any = state) -> Any:
            population = es.perturb_lazy(params, state, noise=noise)
            return population_apply(case.model.apply, population, x)

        noise = jax.jit(es.noise)(params, state)
        add(f"rank {rank}, hoisted", forward, params, noise, x)
        add(f"rank {rank}, with noise", forward, params, None, x)
        add(f"rank {rank}, noise alone", es.noise, params, state)
    kernels = jax.jit(es.perturb)(params, state)
    add("in full", jax.vmap(case.model.apply), kernels, x)
    return out


def measure(name: str, quick: bool, rounds: int, clock: str) -> dict[str, Any]:
    """Returns the numbers of one case."""
    sizes: Any = (4, 8, (1,)) if quick else (256, 256)
    programs = runs(CASES[name], *sizes)
    return {"name": name, **common.against_plain(programs, rounds, clock)}


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns a table a case, and verdicts."""
    out = []
    for row in rows:
        case = CASES[row["name"]]
        targets = {"rank 1, with noise": case.target, "rank 1, hoisted": case.hoisted}
        cells = []
        for run, ratio in row["ratios"].items():
            target = targets.get(run)
            said = common.verdict(ratio["best"], target, at_least=False) if target else ""
            cells.append((run, f"{ratio['best']:.2f}", f"{ratio['median']:.2f}", said))
        head = f"{row['name']} (plain: {row['milliseconds']:.2f} ms)"
        out.append(common.table((head, "best", "median", "verdict"), cells))
    return "\n\n".join(out)


def main(arguments: list[str] | None = None) -> None:
    """Measures the cases one after another and prints the tables."""
    common.run_cases("evolution_forward", __doc__, CASES, measure, as_text, arguments)


if __name__ == "__main__":
    main()
