"""The case of HDET: replicas of a file side by side, rates after each step of the authors' code."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from tests.golden.meshes import replica_forms
from tests.golden.replay import Comparison, Golden, case, difference

# The tolerances given for them; rates are float32 here and may grow.
RATES, PARAMETERS = 1e-7, 1e-6
ROUNDING = 5e-7


def one_cycle(hyper: dict[str, Any], most: float, steps: int) -> np.ndarray:
    """torch's OneCycleLR in float64, (steps,): up to ``most``, and down."""
    total, share = hyper["total_steps"], hyper.get("pct_start", 0.3)
    first = most / hyper.get("div_factor", 25.0)
    last = first / hyper.get("final_div_factor", 1e4)
    ends, rates = [share * total - 1, total - 1.0], [first, most, last]
    if hyper.get("three_phase", False):
        ends, rates = [ends[0], 2 * share * total - 2, ends[1]], [first, most, first, last]

    def between(a: float, b: float, done: float) -> float:
        if hyper.get("anneal_strategy", "cos") == "linear":
            return a + (b - a) * done
        return b + (a - b) / 2 * (1 + np.cos(np.pi * done))

    out = []
    for step in range(steps):
        phase = next((i for i, end in enumerate(ends) if step <= end), len(ends) - 1)
        start = ends[phase - 1] if phase else 0.0
        done = (step - start) / (ends[phase] - start)
        out.append(between(rates[phase], rates[phase + 1], done))
    return np.array(out)


def build(golden: Golden, groups: dict[str, str], names: list[str], steps: int) -> Any:
    """Plain SGD of each group at the rate that the code's controller has for it."""
    hyper = golden.hyper
    highest = np.broadcast_to(hyper["max_lr"], len(names))
    tables = {
        name: jnp.asarray(one_cycle(hyper, most, steps + 1), jnp.float32)
        for name, most in zip(names, highest, strict=True)
    }
    shrink = hyper.get("div_factor", 25.0) / hyper.get("final_div_factor", 1e4)
    auto = optkit.AutoRate(
        total_steps=hyper["total_steps"],
        shrink=shrink,
        start_step=hyper["auto_lr_warmup_steps"],
        momentum=hyper["momentum_of_lr"],
        gain=hyper["lr_of_lr"],
        loss_scale=hyper["loss_scale"],
    )
    drawn = jnp.asarray(golden.arrays["perms"], jnp.int32)

    def inner(**rates: Any) -> Any:
        return optax.multi_transform({n: optax.sgd(rate) for n, rate in rates.items()}, groups)

    def look_up(table: jax.Array) -> Any:
        return lambda count: table[count]

    return optkit.hdet(
        inner,
        axis_name="replica",
        alpha=hyper["alpha"],
        every=hyper["T"],
        auto=auto if hyper.get("auto_lr", True) else None,
        explore={n: optkit.Spread(look_up(t), shrink=shrink) for n, t in tables.items()},
        dialect="code",
        permute=lambda meetings, index: drawn[meetings * len(names) + index],
    ), auto


@case("hdet_autolr")
def hdet(golden: Golden) -> Iterator[Comparison]:
    hyper, first = golden.hyper, golden.tree("p0")
    losses, rates, ends = golden.arrays["loss"], golden.arrays["lr"], golden.tree("w")
    steps, count, number = rates.shape
    names = [f"group{i}" for i in range(number)]
    groups = {leaf: names[min(i, number - 1)] for i, leaf in enumerate(first)}
    tx, auto = build(golden, groups, names, steps)
    if "gamma_as_computed" in hyper:
        yield Comparison(abs(auto.decay(hyper["T"]) - hyper["gamma_as_computed"]), RATES)

    def step(grads: Any, loss: jax.Array, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, loss=loss)
        return state, optax.apply_updates(params, updates)

    for mapped in replica_forms(count, "replica"):
        run = jax.jit(mapped(step))
        params = optkit.replicas(first, count)
        state = jax.jit(mapped(tx.init))(params)
        for t in range(steps):
            grads = optkit.replicas(golden.tree(f"g/{t}"), count)
            state, params = run(grads, losses[t], state, params)
            for i, name in enumerate(names):
                own = optkit.hdet_value(state, name)
                room = max(RATES, ROUNDING * float(np.max(rates[t, :, i])))
                yield Comparison(difference(own, rates[t, :, i]), room)
            for name, want in ends.items():
                yield Comparison(difference(params[name], want[t]), PARAMETERS)
