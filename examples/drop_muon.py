"""Dropped layers: each step trains the layers from a drawn one on, and its backward stops there."""

import functools

import jax
import numpy as np
import optax

import optkit
from optkit import tasks

STEPS = 150


def main() -> None:
    """Compares with Muon at equal steps and at equal work; prints layers, work and errors."""
    task = tasks.get("digits")
    tx = optkit.drop_muon(0.02, sampling="uniform", key=1)
    gradients = optkit.partial_value_and_grad(task.loss, has_aux=True)

    # The cut is a Python int here, so every cut is a program, without what lies below it.
    @functools.partial(jax.jit, static_argnames="cut", donate_argnames=("state", "params"))
    def step(batch: dict, state: optax.OptState, params: dict, cut: int) -> tuple:
        _, grads = gradients(params, cut, batch)
        updates, state = tx.update(grads, state, params, cut=cut)
        return state, optax.apply_updates(params, updates)

    start = task.init(jax.random.key(0))
    layers = optkit.layer_order(start)
    print(layers, "\n")
    given = (task.batch(0, 0), jax.eval_shape(tx.init, start), start)
    cuts = range(1, layers.count + 1)
    flops = {s: step.lower(*given, cut=s).compile().cost_analysis()["flops"] for s in cuts}
    share = {s: flops[s] / flops[1] for s in cuts}
    print("work of a step from cut:", ", ".join(f"{s}: {x:.0%}" for s, x in share.items()), "\n")

    def train(whole: bool, steps: int) -> tuple[float, float]:
        params = task.init(jax.random.key(0))
        state, work = tx.init(params), 0.0
        for index in range(steps):
            cut = 1 if whole else int(optkit.next_cut(state))
            frozen = np.asarray(params["input"]["kernel"]) if cut > 1 else None
            state, params = step(task.batch(0, index), state, params, cut=cut)
            assert frozen is None or np.array_equal(frozen, params["input"]["kernel"])
            work += share[cut]
        return work, task.evaluate(params)["error"]

    results = {"muon": train(True, STEPS), "drop_muon, equal steps": train(False, STEPS)}
    more = round(STEPS * STEPS / results["drop_muon, equal steps"][0])
    results["drop_muon, equal work"] = train(False, more)
    for name, (work, error) in results.items():
        print(f"{name:24} work of {work:5.1f} whole steps, held-out error {error:.3f}")
    assert results["drop_muon, equal steps"][0] < 0.85 * STEPS
    assert all(error < 0.1 for _, error in results.values())


if __name__ == "__main__":
    main()
