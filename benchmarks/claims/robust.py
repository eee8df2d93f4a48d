"""Robust rules: do two hostile workers of nine spoil the training?

Karimireddy et al. (2021) and those before them: the mean bears no hostile worker, and rules that
bear some cost little. Here: a perceptron on digits, nine workers with 16 images a step from the
same data, each sending its momentum (b1 = 0.9), of which the last two are hostile. They reverse the
others' mean and send twenty times that; or hide within the others' spread, 1.5 deviations off the
mean in every coordinate (Baruch et al., 2019); or send what is no number. Each rule has the rate
that was best without hostile workers on a seed of its own; the clipping radius is of that seed too.
Bulyan needs eleven workers for two hostile ones and is run with eleven.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from benchmarks.claims.engine import SEARCH, Outcome, Setting, number, spread
from optkit import tasks
from optkit.aggregate import Aggregate
from optkit.tasks.digits_data import load

WORKERS, HOSTILE, IMAGES, B1 = 9, 2, 16, 0.9
RATES = (0.03, 0.1, 0.3, 1.0)
ATTACKS = ("none", "reversed 20 times", "within the spread", "no number")
rules = optkit.aggregate
RULES: dict[str, tuple[Callable[[], Aggregate], int]] = {
    "mean": (rules.mean, WORKERS),
    "coordinate_median": (rules.coordinate_median, WORKERS),
    "trimmed_mean": (lambda: rules.trimmed_mean(trim=HOSTILE), WORKERS),
    "geometric_median": (rules.geometric_median, WORKERS),
    "krum": (lambda: rules.krum(hostile=HOSTILE), WORKERS),
    "multi_krum": (
        lambda: rules.multi_krum(hostile=HOSTILE, keep=WORKERS - HOSTILE),
        WORKERS,
    ),
    "bulyan": (lambda: rules.bulyan(hostile=HOSTILE), 4 * HOSTILE + 3),
    "centered_clipping": (lambda: rules.centered_clipping(radius=0.3), WORKERS),
}


def attacked(sent: Any, attack: jax.Array) -> Any:
    """What arrives: the last two vectors are those of an attack's number."""

    def leaf(x: jax.Array) -> jax.Array:
        honest = x[:-HOSTILE]
        middle, deviation = jnp.mean(honest, 0), jnp.std(honest, 0)
        kinds = (x[-HOSTILE:], -20.0 * middle, middle - 1.5 * deviation, middle * jnp.nan)
        same = [jnp.broadcast_to(kind, x[-HOSTILE:].shape) for kind in kinds]
        return jnp.concatenate([honest, jax.lax.switch(attack, [lambda k=k: k for k in same])])

    return jax.tree.map(leaf, sent)


class Training:
    """Trains with one rule at any rate, attack and seed with a single compilation."""

    def __init__(self, build: Callable[[], Aggregate], workers: int, steps: int) -> None:
        """Prepares runs of so many steps."""
        self.workers, self.steps, rule = workers, steps, build()
        self.task = tasks.get("digits", width=32, batch=workers * IMAGES)
        held_out = load().held_out

        def loss(params: Any, batch: Any) -> jax.Array:
            return self.task.loss(params, batch)[0]

        def step(carry: Any, batch: Any, rate: jax.Array, attack: jax.Array) -> Any:
            params, momenta, state = carry
            grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
            momenta = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, momenta, grads)
            out = rule.apply(attacked(momenta, attack), state)
            params = jax.tree.map(lambda p, d: p - rate * d, params, out.direction)
            return (params, momenta, out.state), None

        def one(rate: jax.Array, attack: jax.Array, params: Any, batches: Any) -> Any:
            momenta = jax.tree.map(lambda p: jnp.zeros((workers, *p.shape)), params)
            start = params, momenta, rule.init(params, workers)
            (params, _, _), _ = jax.lax.scan(
                lambda carry, batch: step(carry, batch, rate, attack), start, batches
            )
            end, seen = self.task.loss(params, held_out)
            return end, seen["error"]

        self._run = jax.jit(one)

    def ends(self, rate: float, attack: int, seeds: Sequence[int]) -> np.ndarray:
        """Returns held-out loss and share of errors, (seeds, 2)."""
        out = []
        for seed in seeds:
            drawn = [self.task.batch(seed, step) for step in range(self.steps)]
            batches = jax.tree.map(
                lambda *x: np.stack(x).reshape(self.steps, self.workers, IMAGES, *x[0].shape[1:]),
                *drawn,
            )
            params = self.task.init(jax.random.key(seed))
            done = self._run(jnp.float32(rate), jnp.int32(attack), params, batches)
            out.append([float(value) for value in done])
        return np.array(out)

    def best(self, rates: Sequence[float]) -> float:
        """Returns the rate with the lowest loss without hostile workers."""
        losses = [self.ends(rate, 0, SEARCH)[0, 0] for rate in rates]
        return rates[int(np.nanargmin(losses))]


def experiment(setting: Setting) -> Outcome:
    """Trains with every rule under every attack."""
    steps = setting.pick(300, 6)
    names = list(RULES) if not setting.quick else ["mean", "trimmed_mean", "krum"]
    errors: dict[str, list[np.ndarray]] = {}
    rows = []
    for name in names:
        training = Training(*RULES[name], steps)
        rate = training.best(setting.pick(RATES, RATES[1:2]))
        errors[name] = []
        for attack in range(len(ATTACKS)):
            ends = training.ends(rate, attack, setting.seeds)
            # Weights that are no number classify nothing.
            share = np.where(np.isfinite(ends[:, 0]), ends[:, 1], 1.0)
            errors[name].append(100.0 * share)
        rows.append((name, number(rate), *(spread(share) for share in errors[name])))
    honest = errors["mean"][0].mean()
    robust = {name: found for name, found in errors.items() if name != "mean"}
    worst = {
        attack: max(robust, key=lambda n: robust[n][i].mean()) for i, attack in enumerate(ATTACKS)
    }
    told = "; ".join(
        f"{attack}: mean {errors['mean'][i].mean():.1f}, worst rule {worst[attack]} "
        f"{robust[worst[attack]][i].mean():.1f}"
        for i, attack in enumerate(ATTACKS)
    )
    spoilt = all(errors["mean"][i].mean() > 50.0 for i in (1, 3))
    borne = all(found[i].mean() < honest + 3.0 for found in robust.values() for i in (1, 3))
    return Outcome(
        claim="Two of nine workers that reverse gradients or send no numbers spoil the mean, and "
        "cost no robust rule more than 3 percentage points of errors beside the mean without them",
        holds=bool(spoilt and borne),
        finding=f"% of held-out errors: {told}",
        header=("rule", "rate", *(f"% errors, {attack}" for attack in ATTACKS)),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
