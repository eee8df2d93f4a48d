"""A hundred clients with a few digits of one or two labels each. Half of them come to a round; some
of those are rounds late, and some are hostile: what these send points the other way, twenty times
as long. A trimmed mean leaves out the largest and the smallest of each coordinate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit import federated, tasks
from optkit.aggregate import Aggregate
from optkit.tasks import digits_data

CLIENTS, ROUNDS, MOST_LATE = 100, 80, 3


def train(task: tasks.Task, rule: Aggregate) -> float:
    """Returns the share of right answers on held-out digits after all rounds."""
    train = digits_data.load().train
    order = np.argsort(train["labels"], kind="stable")[: len(train["labels"]) // CLIENTS * CLIENTS]
    data = {k: jnp.asarray(v[order.reshape(CLIENTS, -1)]) for k, v in train.items()}
    hostile = jnp.arange(CLIENTS) % 14 == 0  # eight of them

    def displacement(start: dict, own: dict, is_hostile: jax.Array) -> dict:  # of one client
        grads = jax.grad(lambda p: task.loss(p, own)[0])(start)
        rate = jnp.where(is_hostile, -4.0, 0.2)
        return jax.tree.map(lambda g: rate * g, grads)

    server = optkit.server_step(rule, optax.sgd(2.0, momentum=0.5))
    convert = federated.dc_asgd(1.0)  # what late clients found, to first order from today

    @jax.jit
    def run(params: dict, state: tuple, history: tuple, late: jax.Array, here: jax.Array) -> tuple:
        started = jax.vmap(lambda rounds: federated.stale_params(history, rounds))(late)
        sent = jax.vmap(displacement)(started, data, hostile)
        sent = optkit.convert_stale(sent, started, params, convert)
        params, state = server.step(params, state, sent, present=here, staleness=late)
        return params, state, federated.push_params(history, params)

    params, random = task.init(jax.random.key(0)), np.random.default_rng(0)
    state, history = server.init(params, CLIENTS), federated.keep_params(params, MOST_LATE)
    for _ in range(ROUNDS):
        late = random.choice(MOST_LATE + 1, CLIENTS, p=[0.7, 0.1, 0.1, 0.1])
        here = random.random(CLIENTS) < 0.5
        params, state, history = run(params, state, history, late, here)
    return 1.0 - task.evaluate(params)["error"]


if __name__ == "__main__":
    digits = tasks.get("digits_linen", width=32)
    plain = train(digits, optkit.aggregate.mean())
    robust = train(digits, optkit.aggregate.trimmed_mean(trim=8))
    print(f"right answers with a mean: {plain:.2f}, with a trimmed mean: {robust:.2f}")
    assert robust > plain + 0.2
