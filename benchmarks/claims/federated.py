"""FedAU, FedVARP, FedStale: does the mean of who comes forget those that seldom come?

FedAU promises what knowing everybody's participation would give, with three numbers a client (Wang
and Ji, 2024); FedVARP takes the noise of who comes out, for a memory of what each client sent last
(Jhunjhunwala et al., 2022); FedStale weighs that memory (Rodio and Neglia, 2024). Here: twenty
clients with digits of about two labels each; those of the labels 0 to 4 come in nine of ten rounds,
the others in one of ten. Five local steps of SGD, a server at rate 1, and the local rate tuned for
each method on a seed of its own. Beside them FedAvg with everybody in every round.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import SEARCH, Outcome, Setting, number, spread
from optkit import tasks
from optkit.aggregate import Aggregate
from optkit.tasks import digits_data

CLIENTS, LOCAL_STEPS, BATCH = 20, 5, 16
OFTEN, SELDOM = 0.9, 0.1
RATES = (0.03, 0.1, 0.3)
LONGEST = 50

METHODS: dict[str, Callable[[], Aggregate]] = {
    "everybody": optkit.aggregate.mean,
    "fedavg": optkit.aggregate.mean,
    "fedau": lambda: optkit.aggregate.fedau(LONGEST),
    "fedstale": lambda: optkit.aggregate.fedstale(0.5, longest=LONGEST),
    "fedvarp": lambda: optkit.aggregate.fedvarp(participation="estimated", longest=LONGEST),
}


def clients_data() -> dict[str, jax.Array]:
    """Digits sorted by label, an equal part for each client: (clients, images, ...)."""
    train = digits_data.load().train
    order = np.argsort(train["labels"], kind="stable")
    each = len(order) // CLIENTS
    rows = order[: each * CLIENTS].reshape(CLIENTS, each)
    return {name: jnp.asarray(values[rows]) for name, values in train.items()}


@dataclasses.dataclass(frozen=True)
class Ends:
    """Runs of one method: (seeds, evaluations) each."""

    rate: float
    loss: np.ndarray
    error: np.ndarray
    mebibytes: np.ndarray

    def needed(self, loss: float) -> float:
        """MiB that clients send until the mean curve is at or below a loss; inf if never."""
        reached = np.flatnonzero(self.loss.mean(0) <= loss)
        return float(self.mebibytes.mean(0)[reached[0]]) if reached.size else np.inf


class Federation:
    """Runs one method at any local rate and seed with a single compilation."""

    def __init__(self, name: str, rounds: int, evaluations: int, width: int) -> None:
        """Prepares runs of so many rounds."""
        task = tasks.get("digits", width=width, batch=BATCH)
        data, held_out = clients_data(), digits_data.load().held_out
        labels = np.asarray(data["labels"])
        chance = np.where(np.median(labels, axis=1) < 5, OFTEN, SELDOM)
        chance = jnp.asarray(np.ones(CLIENTS) if name == "everybody" else chance, jnp.float32)
        server = optkit.server_step(METHODS[name](), optax.sgd(1.0))

        def one(rate: jax.Array, key: jax.Array, params: Any) -> Any:
            def local(params: Any, given: Any) -> Any:
                own, key = given

                def step(params: Any, key: jax.Array) -> tuple[Any, None]:
                    rows = jax.random.randint(key, (BATCH,), 0, own["labels"].shape[0])
                    batch = {k: v[rows] for k, v in own.items()}
                    grads = jax.grad(lambda p: task.loss(p, batch)[0])(params)
                    return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

                return jax.lax.scan(step, params, jax.random.split(key, LOCAL_STEPS))[0]

            run = optkit.federated_round(local, server)

            def body(carry: Any, key: jax.Array) -> tuple[Any, Any]:
                params, state, sent = carry
                coming, working = jax.random.split(key)
                present = jax.random.uniform(coming, (CLIENTS,)) < chance
                work = data, jax.random.split(working, CLIENTS)
                params, state, info = run(params, state, work, present=present)
                return (params, state, sent + info.bytes_up / 2**20), None

            def stretch(carry: Any, keys: jax.Array) -> tuple[Any, Any]:
                carry, _ = jax.lax.scan(body, carry, keys)
                loss, metrics = task.loss(carry[0], held_out)
                return carry, (loss, metrics["error"], carry[2])

            keys = jax.random.split(key, (evaluations, rounds // evaluations))
            start = params, server.init(params, CLIENTS), jnp.zeros(())
            return jax.lax.scan(stretch, start, keys)[1]

        self._run, self._init = jax.jit(one), task.init

    def ends(self, rate: float, seeds: tuple[int, ...]) -> Ends:
        """Trains once for each seed."""
        done = []
        for seed in seeds:
            params = self._init(jax.random.key(seed))
            out = self._run(jnp.float32(rate), jax.random.key(seed + 1), params)
            done.append(jax.device_get(out))
        loss, error, sent = (np.array(each) for each in zip(*done, strict=True))
        return Ends(rate, np.where(np.isfinite(loss), loss, np.inf), error, sent)

    def tuned(self, rates: tuple[float, ...], seeds: tuple[int, ...]) -> Ends:
        """The reported seeds at the rate that is best on the seed of the search."""
        found = {rate: self.ends(rate, SEARCH).loss[0, -1] for rate in rates}
        return self.ends(min(found, key=lambda rate: found[rate]), seeds)


def experiment(setting: Setting) -> Outcome:
    """Compares losses, accuracies and bytes of the methods."""
    rounds, evaluations = setting.pick((400, 40), (8, 2))
    runs = {
        name: Federation(name, rounds, evaluations, setting.pick(32, 8)).tuned(
            RATES[: setting.pick(None, 1)], setting.seeds
        )
        for name in METHODS
    }
    target = float(runs["fedavg"].loss.mean(0).min())
    rows = tuple(
        (
            name,
            number(ends.rate),
            spread(ends.loss[:, -1]),
            spread(1.0 - ends.error[:, -1]),
            number(float(ends.mebibytes[:, -1].mean())),
            number(ends.needed(target)) if np.isfinite(ends.needed(target)) else "never",
        )
        for name, ends in runs.items()
    )
    last = {name: ends.loss[:, -1].mean() for name, ends in runs.items()}
    gained = {name: last["fedavg"] - last[name] for name in ("fedau", "fedstale", "fedvarp")}
    return Outcome(
        claim="Where clients of some labels seldom come, estimating how often, and recalling what "
        "they sent last, each end at a lower held-out loss than the mean of who comes",
        holds=bool(min(gained.values()) > 0.0),
        finding="nats below FedAvg: "
        + ", ".join(f"{name} {value:+.3f}" for name, value in gained.items())
        + f"; with everybody in every round {last['fedavg'] - last['everybody']:+.3f}",
        header=("method", "local rate", "loss", "accuracy", "MiB sent", "MiB to FedAvg's best"),
        rows=rows,
        seeds=setting.seeds,
    )
