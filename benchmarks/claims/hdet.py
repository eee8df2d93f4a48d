"""HDET: does its controller find the learning rate from one that is four times off?

The paper trains at nine times its safe rate without divergence, and calls the schedule that the
replicas' losses steer a replacement for searches (Cheng et al., 2026). Here: a two-layer decoder of
width 32 on bytes, AdamW, four replicas of batch 8 beside plain data parallelism with batch 32, from
the tuned constant rate, a quarter of it and four times it. Nothing decays but by the losses. With
20 meetings instead of hundreds the spread is wider than the paper's ninth and the controller is
quicker (momentum 0.9 and gain 0.5 there); the scale of losses was chosen on the search's seed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
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

REPLICAS, EVERY = 4, 20
ALPHA, LOSS_SCALE, MOMENTUM, GAIN = 0.5, 0.05, 0.5, 1.0
RATES = (3e-3, 1e-2, 3e-2)
OFF = (0.25, 1.0, 4.0)


class Ensemble:
    """Trains replicas at any base rate and seed with a single compilation."""

    def __init__(self, problem: Problem, steps: int, steered: bool, alpha: float = ALPHA) -> None:
        """Prepares runs of so many steps; without ``steered`` the base rate stays."""
        self.problem, self.steps = problem, steps
        auto = optkit.AutoRate(steps, 1.0, loss_scale=LOSS_SCALE, momentum=MOMENTUM, gain=GAIN)
        auto = auto if steered else None

        def one(rate: jax.Array, params: Any, batches: Any) -> tuple[jax.Array, jax.Array]:
            tx = optkit.hdet(
                optkit.adamw, rate, axis_name="replica", alpha=alpha, every=EVERY, auto=auto
            )

            def step(batch: Any, state: Any, params: Any) -> Any:
                loss, grads = jax.value_and_grad(problem.loss)(params, batch)
                updates, state = tx.update(grads, state, params, loss=loss)
                return state, optax.apply_updates(params, updates)

            def body(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
                state, params = optkit.on_replicas(step)(batch, *carry)
                return (state, params), state.values["learning_rate"].base[0]

            params = optkit.replicas(params, REPLICAS)
            start = optkit.on_replicas(tx.init)(params), params
            (_, params), bases = jax.lax.scan(body, start, batches)
            end = jax.tree.map(lambda p: p.mean(0), params)
            return problem.loss(end, problem.held_out), bases

        self._run = jax.jit(one)

    def ends(self, rate: float, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns held-out losses, (seeds,), and base rates after each step, (seeds, steps)."""
        losses, bases = [], []
        for seed in seeds:
            batches = self.problem.batches(seed, self.steps)
            own = jax.tree.map(lambda x: x.reshape(len(x), REPLICAS, -1, *x.shape[2:]), batches)
            params = self.problem.init(jax.random.key(seed))
            loss, base = jax.device_get(self._run(jnp.float32(rate), params, own))
            losses.append(loss if np.isfinite(loss) else np.inf)
            bases.append(base)
        return np.array(losses), np.array(bases)


def experiment(setting: Setting) -> Outcome:
    """Compares losses and last rates from three base rates."""
    problem = language_model(*setting.pick((32, 32, 32, 2), (16, 16, 4, 1)))
    steps = setting.pick(400, 40)
    plain = Trainer(problem, optkit.adamw, steps=steps, evaluations=1)
    tuned = plain.tuned(RATES[: setting.pick(None, 1)], setting)
    best = tuned.rates[0]
    rows, nearer, better = [], [], []
    ensembles = {
        name: Ensemble(problem, steps, steered="auto" in name)
        for name in setting.pick(("hdet", "hdet, auto"), ("hdet, auto",))
    }
    for factor in OFF:
        rate = best * factor
        curves = tuned if factor == 1.0 else plain.curves([rate], setting.seeds)
        base_line = curves.held_out[0, :, -1]
        rows.append(("plain", f"{factor:g}", spread(base_line / np.log(2)), ""))
        for name, ensemble in ensembles.items():
            losses, bases = ensemble.ends(rate, setting.seeds)
            way = np.log(bases / best)
            marks = [way[:, steps * part // 4 - 1].mean() for part in (1, 2, 4)]
            cell = ", ".join(f"{np.exp(mark):.2f}" for mark in marks)
            rows.append((name, f"{factor:g}", spread(losses / np.log(2)), cell))
            if "auto" in name and factor != 1.0:
                nearer.append(bool(np.all(np.abs(way).mean(1) < np.log(4.0))))
                better.append(float(base_line.mean() - losses.mean()) / np.log(2))
    low, high = better
    return Outcome(
        claim="From rates four times off the controller moves towards the tuned one, and so to a "
        "lower loss than plain data parallelism has at these rates",
        holds=bool(all(nearer) and min(better) > 0.0),
        finding=f"tuned rate {number(best)}; on average of the steps nearer to it, on all seeds: "
        f"{'yes' if nearer[0] else 'no'} from below, {'yes' if nearer[1] else 'no'} from above; "
        f"bits/byte gained on plain: {low:+.4f} from below, {high:+.4f} from above",
        header=("method", "base rate / tuned", "bits/byte", "after 1/4, 1/2, all steps"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
