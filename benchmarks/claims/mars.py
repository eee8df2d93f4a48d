"""MARS-AdamW: does it beat AdamW at equal tokens, and does its momentum have less variance?

The reported gain is 0.036 in validation loss for GPT-2 small on 50 B tokens, and 0.002 more with
exact gradients, which cost a second gradient each step (Yuan et al., arXiv 2411.10438).

The variance is measured directly. Along one fixed path of parameters, the last 60 steps of a short
run of AdamW, the momentum is formed from 12 independent sequences of batches, with and without the
correction and without the clip, which would change lengths. What it should be is the gradient of
1024 sequences at the end of the path: ``variance`` is the mean squared distance of the momenta from
their mean, ``bias`` the squared distance of the mean from that gradient (less what the variance
puts into it), both over the square of the gradient's norm.
"""

from typing import Any

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import optkit
from benchmarks.claims.engine import (
    SEARCH,
    Batch,
    Outcome,
    Params,
    Problem,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
)

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
NUMBERS = {"b1": 0.95, "b2": 0.99, "weight_decay": 1e-2}
GAMMA, PATH_RATE = 0.025, 3e-3
METHODS = ("adamw", "mars_adamw", "mars_adamw, exact")


def contestant(name: str, rate: Any) -> optax.GradientTransformation:
    """AdamW, or MARS on every leaf; one set of numbers for all."""
    if name == "adamw":
        return optkit.adamw(rate, **NUMBERS)
    return optkit.mars_adamw(rate, gamma=GAMMA, exact="exact" in name, optimize_1d=True, **NUMBERS)


class WithOldGradient(Trainer):
    """A trainer that gives the gradient of the batch at the parameters before the last step."""

    def __init__(self, problem: Problem, name: str, *, steps: int, evaluations: int) -> None:
        """Prepares a run; see ``Trainer``."""
        super().__init__(
            problem, lambda rate: contestant(name, rate), steps=steps, evaluations=evaluations
        )

        def one(rate: jax.Array, params: Params, batches: Batch) -> tuple[jax.Array, Any]:
            tx = optax.with_extra_args_support(contestant(name, rate))

            def step(carry: Any, batch: Batch) -> tuple[Any, None]:
                state, params, before = carry
                grads = jax.grad(problem.loss)(params, batch)
                last = jax.grad(problem.loss)(before, batch)
                updates, state = tx.update(grads, state, params, prev_grad=last)
                return (state, optax.apply_updates(params, updates), params), None

            def stretch(carry: Any, batches: Batch) -> tuple[Any, Any]:
                carry, _ = jax.lax.scan(step, carry, batches)
                return carry, (problem.loss(carry[1], problem.held_out), {})

            parts = jax.tree.map(lambda x: x.reshape(evaluations, -1, *x.shape[1:]), batches)
            return jax.lax.scan(stretch, (tx.init(params), params, params), parts)[1]

        self._run = jax.jit(one)


def path(problem: Problem, before: int, length: int) -> Params:
    """Returns parameters of so many consecutive steps of AdamW, on a leading axis."""
    tx = contestant("adamw", PATH_RATE)

    @jax.jit
    def run(params: Params, batches: Batch) -> Params:
        def step(carry: Any, batch: Batch) -> tuple[Any, Params]:
            state, params = carry
            updates, state = tx.update(jax.grad(problem.loss)(params, batch), state, params)
            after = optax.apply_updates(params, updates)
            return (state, after), after

        head = jax.tree.map(lambda x: x[:before], batches)
        tail = jax.tree.map(lambda x: x[before:], batches)
        carry, _ = jax.lax.scan(lambda c, b: (step(c, b)[0], None), (tx.init(params), params), head)
        return jax.lax.scan(step, carry, tail)[1]

    seed = SEARCH[0]
    return run(problem.init(jax.random.key(seed)), problem.batches(seed, before + length))


def estimates(problem: Problem, points: Params, batches: Batch) -> dict[str, jax.Array]:
    """Returns the momenta at the end of a path, as vectors."""
    b1 = NUMBERS["b1"]
    forms = {
        "adamw": optkit.momentum(b1),
        "mars_adamw": optax.chain(optkit.variance_reduce(GAMMA, b1), optkit.momentum(b1)),
        "mars_adamw, exact": optax.chain(
            optkit.variance_reduce(GAMMA, b1, exact=True), optkit.momentum(b1)
        ),
    }
    first = jax.tree.map(lambda x: x[0], points)

    def step(carry: Any, given: Any) -> tuple[Any, None]:
        states, before, _ = carry
        params, batch = given
        grads, last = (jax.grad(problem.loss)(p, batch) for p in (params, before))
        new, out = {}, {}
        for name, tx in forms.items():
            tx = optax.with_extra_args_support(tx)
            extra = {"prev_grad": last} if "exact" in name else {}
            out[name], new[name] = tx.update(grads, states[name], params, **extra)
        return (new, params, out), None

    states = {name: tx.init(first) for name, tx in forms.items()}
    (_, _, out), _ = jax.lax.scan(
        step, (states, first, dict.fromkeys(forms, first)), (points, batches)
    )
    return {name: ravel_pytree(tree)[0] for name, tree in out.items()}


def variances(problem: Problem, setting: Setting) -> dict[str, tuple[float, float]]:
    """Returns variance and bias of each momentum, relative to the gradient."""
    before, length, repeats, many = setting.pick((200, 60, 12, 128), (2, 4, 3, 2))
    points = path(problem, before, length)
    end = jax.tree.map(lambda x: x[-1], points)
    run = jax.jit(lambda batches: estimates(problem, points, batches))
    found = [jax.device_get(run(problem.batches(100 + i, length))) for i in range(repeats)]
    gradient = jax.jit(jax.grad(problem.loss))
    drawn = problem.batches(99, many)
    whole = [gradient(end, jax.tree.map(lambda x, i=i: x[i], drawn)) for i in range(many)]
    target = np.mean([ravel_pytree(tree)[0] for tree in whole], 0)
    out = {}
    for name in METHODS:
        momenta = np.array([one[name] for one in found], np.float64)
        mean = momenta.mean(0)
        variance = np.sum((momenta - mean) ** 2) / (repeats - 1)
        bias = np.sum((mean - target) ** 2) - variance / repeats
        size = np.sum(np.float64(target) ** 2)
        out[name] = float(variance / size), float(bias / size)
    return out


def experiment(setting: Setting) -> Outcome:
    """Trains AdamW and both forms of MARS-AdamW on equal batches of 8 and measures variances."""
    problem = setting.pick(lambda: language_model(batch=8), lambda: language_model(16, 16, 2, 1))()
    steps, evaluations = setting.pick((300, 15), (4, 2))
    sizes = {"steps": steps, "evaluations": evaluations}
    runs = {}
    for name in METHODS:

        def build(rate: Any, name: str = name) -> Any:
            return contestant(name, rate)

        exact = "exact" in name
        plain = (
            WithOldGradient(problem, name, **sizes) if exact else Trainer(problem, build, **sizes)
        )
        runs[name] = plain.tuned(RATES[: setting.pick(None, 1)], setting)
    final = {name: run.held_out[0, :, -1] for name, run in runs.items()}
    gain, further = final["adamw"] - final["mars_adamw"], final["mars_adamw"] - final[METHODS[2]]
    spreads = variances(problem, setting)
    less = {name: 1 - spreads[name][0] / spreads["adamw"][0] for name in METHODS[1:]}
    return Outcome(
        claim="at equal tokens MARS-AdamW has a lower loss than AdamW, by more than the spread "
        "of the difference over seeds, and its momentum has less variance",
        holds=bool(gain.mean() > gain.std(ddof=1)) and less["mars_adamw"] > 0,
        finding=f"loss lower by {gain.mean():.4f} (+- {gain.std(ddof=1):.4f} over seeds), with "
        f"exact gradients, twice the cost, by another {further.mean():.4f} "
        f"(+- {further.std(ddof=1):.4f}); variance of the momentum lower by "
        + " and ".join(f"{100 * share:.1f}% ({name})" for name, share in less.items()),
        header=("method", "learning rate", "held-out loss", "variance of m", "bias of m"),
        rows=tuple(
            (name, number(run.rates[0]), spread(final[name]), *map(number, spreads[name]))
            for name, run in runs.items()
        ),
        seeds=setting.seeds,
    )
