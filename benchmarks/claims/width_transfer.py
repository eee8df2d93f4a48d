"""Does the learning rate of a narrow model serve wider ones, and which decay keeps their gains?

Fan et al., arXiv 2510.15262: under muP the top singular value of a hidden matrix goes as
sqrt(lr/wd)*m^0.75 in the steady state, so that wd*sqrt(m) keeps it. Here: the two-block byte
language model at widths 32, 64 and 128 with heads of 16, AdamW at a constant rate and wd = 1:
lr*wd*steps is about 1.5 at the best rates, on the way to a steady state. One rate and decay for all
leaves against muP with wd, wd*sqrt(m) and wd*m; rates are swept at each width with one seed, and
the sizes of matrices are those of runs at the narrowest width's best rate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import SEARCH, Outcome, Problem, Setting, Trainer, number
from optkit import tasks, transfer
from optkit.monitoring import top_singular_values
from optkit.tasks.bytelm import windows
from optkit.tasks.corpus import standard_library

WIDTHS = (32, 64, 128)
RATES = tuple(2.0**k for k in range(-10, -4))
HEAD, CONTEXT, DECAY = 16, 64, 1.0
# Name -> exponent of m in the decay; None trains all leaves alike.
RULES: dict[str, float | None] = {"one rate": None, "wd": 0.0, "wd*sqrt(m)": 0.5, "wd*m": 1.0}


def model(width: int, batch: int, layers: int = 2) -> tuple[Problem, Any]:
    """Returns the language model of a width, and the shapes of its parameters."""
    task = tasks.get(
        "bytelm",
        width=width,
        heads=width // HEAD,
        context=CONTEXT,
        batch=batch,
        layers=layers,
        held_out_windows=8,
    )
    text = standard_library().held_out
    starts = np.linspace(0, text.size - CONTEXT - 1, 64).astype(np.int64)

    def batches(seed: int, steps: int) -> Any:
        drawn = [task.batch(seed, step) for step in range(steps)]
        return jax.tree.map(lambda *parts: np.stack(parts), *drawn)

    problem = Problem(
        task.init, lambda p, b: task.loss(p, b)[0], batches, windows(text, starts, CONTEXT)
    )
    return problem, jax.eval_shape(task.init, jax.random.key(0))


def trainer(
    problem: Problem, shapes: Any, first: tuple[Problem, Any], wider: Any, rule: str, steps: int
) -> Trainer:
    """Returns what trains a width by a rule."""
    exponent = RULES[rule]

    def probe(state: Any, params: Any) -> dict[str, jax.Array]:
        del state
        return {"top": jnp.stack(list(top_singular_values(params).values()))}

    if exponent is None:

        def build(rate: Any) -> Any:
            return optkit.adamw(rate, weight_decay=DECAY)

        return Trainer(problem, build, steps=steps, evaluations=1, probe=probe)
    laws = transfer.mup(first[1], shapes, wider=wider) * transfer.weight_decay_transfer(
        first[1], shapes, exponent=exponent, wider=wider
    )

    def routed(rate: Any) -> Any:
        return laws.route(
            lambda f: optkit.adamw(
                rate * f.learning_rate, weight_decay=DECAY * f.weight_decay, eps=1e-8 * f.eps
            )
        )

    def init(key: jax.Array) -> Any:
        return transfer.match_init(problem.init(key), first[0].init(key), laws)

    scaled = Problem(init, problem.loss, problem.batches, problem.held_out)
    return Trainer(scaled, routed, steps=steps, evaluations=1, probe=probe)


def experiment(setting: Setting) -> Outcome:
    """Sweeps rates over widths for each rule, and compares matrices at the narrowest one's."""
    widths = setting.pick(WIDTHS, (16, 32))
    steps, batch = setting.pick((400, 4), (2, 1))
    rates = RATES[: setting.pick(None, 1)]
    rules = list(RULES)[: setting.pick(None, 3)][:: setting.pick(1, 2)]
    layers = setting.pick(2, 1)
    models = [model(width, batch, layers) for width in widths]
    wider = model(4 * HEAD, 1, layers)[1]
    drift, tops, rows = {}, {}, []
    for rule in rules:
        best = {}
        for width, (problem, shapes) in zip(widths, models, strict=True):
            runs = trainer(problem, shapes, models[0], wider, rule, steps)
            swept = runs.curves(rates, SEARCH)
            best[width] = swept.best
            chosen = runs.curves([rates[best[widths[0]]]], setting.seeds)
            tops[rule, width] = np.exp(np.mean(np.log(chosen.probes["top"])))
            ratio = tops[rule, width] / tops[rule, widths[0]]
            cells = [number(x) for x in swept.final]
            ends = (number(chosen.final[0]), f"{ratio:.2f}")
            rows.append((rule, str(width), f"{rates[swept.best]:.2g}", *ends, *cells))
        drift[rule] = abs(best[widths[-1]] - best[widths[0]])
    growth = {r: float(tops[r, widths[-1]] / tops[r, widths[0]]) for r in rules}
    off = {rule: abs(np.log(value)) for rule, value in growth.items()}
    told = "wd*sqrt(m)" if "wd*sqrt(m)" in rules else rules[-1]
    said = ", ".join(f"{r} moves {drift[r]} points, gains x{growth[r]:.2f}" for r in rules)
    return Outcome(
        claim=f"from width {widths[0]} to {widths[-1]} muP with wd*sqrt(m) leaves the best rate "
        "within one grid point (factor 2), and changes top singular values least",
        holds=bool(drift[told] <= 1 and off[told] == min(off.values())),
        finding=f"the best rate and the top singular values over widths: {said}",
        header=("rule", "width", "best", "loss at the first's", "gain", *map(number, rates)),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
