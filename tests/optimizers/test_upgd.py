"""UPGD on a stream of tasks: what its docstring says that we measured, in short."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

INPUTS, HIDDEN, TASKS, STEPS, BATCH = 16, 32, 40, 300, 16


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def teacher(x):
    return jnp.tanh(x @ normal(9, INPUTS, 24) * 0.75) @ normal(10, 24, 1) / 3


def network(p, x):
    for name in "ab":
        x = jax.nn.relu(x @ p[name]["kernel"] + p[name]["bias"][None])
    return x @ p["c"]["kernel"] + p["c"]["bias"][None]


def start():
    sizes = {"a": (INPUTS, HIDDEN), "b": (HIDDEN, HIDDEN), "c": (HIDDEN, 1)}
    return {
        name: {
            "kernel": normal(seed, *size) * (2 / size[0]) ** 0.5,
            "bias": jnp.zeros(size[1]),
        }
        for seed, (name, size) in enumerate(sizes.items())
    }


def online_loss(tx):
    """Mean loss before each step, over tasks that differ by a permutation of the inputs."""

    def task(carry, key):
        order = jax.random.permutation(key, INPUTS)

        def step(carry, key):
            params, state = carry
            x = jax.random.normal(key, (BATCH, INPUTS))
            square = lambda p: jnp.mean((network(p, x[:, order]) - teacher(x)) ** 2)  # noqa: E731
            loss, grads = jax.value_and_grad(square)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, carry, jax.random.split(key, STEPS))

    keys = jax.random.split(jax.random.key(5), TASKS)
    run = jax.jit(lambda params: jax.lax.scan(task, (params, tx.init(params)), keys)[1].mean())
    return float(run(start()))


@pytest.mark.slow
def test_it_learns_a_stream_of_permuted_inputs_faster_than_gradient_descent():
    def best(make):
        return np.nanmin([online_loss(make(rate)) for rate in (0.04, 0.08)])

    sgd = best(lambda r: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(r)))
    upgd = best(lambda r: optkit.upgd(r, b=0.9, weight_decay=1e-3))
    local = best(lambda r: optkit.upgd(r, b=0.9, weight_decay=1e-3, profile="experiment_local"))
    assert upgd < 0.95 * sgd
    assert local < 0.95 * upgd
