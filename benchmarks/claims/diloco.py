"""DiLoCo and NoLoCo: the loss of synchronous training with fewer bytes on the wire?

DiLoCo's eight replicas that meet every 500 steps match synchronous training at equal tokens
(Douillard et al., 2023); NoLoCo's pairs send less still (Kolehmainen et al., 2025). Here: a
two-layer decoder of width 32 on bytes, AdamW at the rate tuned for synchronous training with batch
32, and four replicas of batch 8 at the same rate, whose mean is judged. The outer optimizers are
the papers' (DiLoCo: Nesterov, 0.7 and 0.9; NoLoCo: alpha 0.5, beta 0.7). Bytes are what a replica
sends, by ring formulas for averages and parameters alone for pairs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import (
    Outcome,
    Problem,
    Setting,
    Trainer,
    language_model,
    number,
    spread,
)
from optkit.outer import OuterStep
from optkit.tree import tree_bytes

REPLICAS = 4
RATES = (3e-3, 1e-2, 3e-2)
CLOSE = 1.01  # of the bits a byte of synchronous training


def ends(
    problem: Problem, outer: OuterStep, rate: float, every: int, steps: int, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns held-out losses of the mean model, and how far replicas are apart, (seeds,) each."""
    tx = optkit.adamw(rate)

    def inner(carry: Any, batch: Any) -> tuple[Any, None]:
        state, params = carry
        grads = jax.grad(problem.loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (state, optax.apply_updates(params, updates)), None

    work = optkit.on_replicas(optkit.local_rounds(inner, every=every))

    def one(carry: Any, batches: Any) -> tuple[Any, None]:
        own, state, params = carry
        (own, params), _ = work((own, params), batches)
        params, state = outer.step(params, state)
        return (own, state, params), None

    @jax.jit
    def run(params: Any, batches: Any) -> tuple[jax.Array, jax.Array]:
        params = optkit.replicas(params, REPLICAS)
        start = optkit.on_replicas(tx.init)(params), outer.init(params), params
        (_, _, params), _ = jax.lax.scan(one, start, batches)
        mean = jax.tree.map(lambda p: p.mean(0), params)
        apart = jax.tree.map(lambda p, m: p - m[None], params, mean)
        return problem.loss(mean, problem.held_out), optkit.transforms.global_norm(apart)

    def laid(x: np.ndarray) -> np.ndarray:
        parts = x.reshape(steps // every, every, REPLICAS, -1, *x.shape[2:])
        return np.swapaxes(parts, 1, 2)

    found = []
    for seed in seeds:
        batches = jax.tree.map(laid, problem.batches(seed, steps))
        found.append(jax.device_get(run(problem.init(jax.random.key(seed)), batches)))
    losses, apart = np.array(found).T
    return np.where(np.isfinite(losses), losses, np.inf), apart


def experiment(setting: Setting) -> Outcome:
    """Compares losses and bytes at equal tokens, by steps between meetings."""
    problem = language_model(*setting.pick((32, 32, 32, 2), (16, 16, 4, 1)))
    steps = setting.pick(400, 8)
    plain = Trainer(problem, optkit.adamw, steps=steps, evaluations=1)
    tuned = plain.tuned(RATES[: setting.pick(None, 1)], setting)
    rate, base = tuned.rates[0], tuned.held_out[0, :, -1]
    size = tree_bytes(jax.eval_shape(problem.init, jax.random.key(0)))
    average = 2 * size * (REPLICAS - 1) / REPLICAS
    rows = [("synchronous", "1", spread(base / np.log(2)), number(steps * average / 2**20), "0")]
    methods = {
        "diloco": (optkit.diloco(), average),
        "noloco": (optkit.noloco(), float(size)),
    }
    means: dict[tuple[str, int], float] = {}
    for name, (outer, sent) in methods.items():
        for every in setting.pick((1, 10, 50), (4,)):
            losses, apart = ends(problem, outer, rate, every, steps, setting.seeds)
            wire = number(steps / every * sent / 2**20)
            rows.append(
                (name, f"{every}", spread(losses / np.log(2)), wire, number(apart.mean(), 2))
            )
            means[name, every] = float(losses.mean())
    ratios = {key: mean / float(base.mean()) for key, mean in means.items()}
    last = max(every for _, every in ratios)
    held = [ratios[name, last] for name in methods]
    told = ", ".join(f"{name} {ratios[name, last]:.3f}" for name in methods)
    return Outcome(
        claim="Meeting at the rarest, DiLoCo and NoLoCo come within 1 % of the bits a byte of "
        "synchronous training at equal tokens",
        holds=bool(max(held) <= CLOSE),
        finding=f"tuned rate {number(rate)}; bits a byte relative to synchronous training with "
        f"{last} steps between meetings: {told}",
        header=("method", "steps between", "bits/byte", "MiB a replica sends", "replicas apart"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
