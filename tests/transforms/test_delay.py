"""Gradients that arrive late, against a list of all that were given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

GRADS = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)


def updates(tx, delays=None):
    """What a transformation makes of the gradients, (8, 2)."""
    step = jax.jit(tx.update)
    state, out = tx.init({"w": jnp.zeros(2)}), []
    for t, g in enumerate(GRADS):
        extra = {} if delays is None else {"delay": jnp.asarray(delays[t])}
        u, state = step({"w": jnp.asarray(g)}, state, None, **extra)
        out.append(np.asarray(u["w"]))
    return np.array(out)


def arrived(late, warmup):
    """The gradients that an inner transformation sees; None where it is not called."""
    missing = {"skip": lambda t: None, "zeros": lambda t: 0 * GRADS[t], "fresh": lambda t: GRADS[t]}
    return [GRADS[t - d] if t >= d else missing[warmup](t) for t, d in enumerate(late)]


def momentum_of(seen):
    m, out = np.zeros(2), []
    for g in seen:
        m = m if g is None else 0.5 * m + g
        out.append(np.zeros(2) if g is None else -m)
    return np.array(out)


@pytest.mark.parametrize("warmup", ["skip", "zeros", "fresh"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_of_some_updates_ago_arrives(steps, warmup):
    tx = optkit.delay_gradients(optax.sgd(1.0, momentum=0.5), steps, warmup=warmup)
    want = momentum_of(arrived([steps] * 8, warmup))
    np.testing.assert_allclose(updates(tx), want, atol=1e-6)


@pytest.mark.parametrize("warmup", ["skip", "zeros", "fresh"])
def test_delays_may_vary(warmup):
    delays = [3, 0, 2, 1, 3, 0, 2, 9]
    tx = optkit.delay_gradients(optax.sgd(1.0, momentum=0.5), 3, warmup=warmup)
    want = momentum_of(arrived(np.minimum(delays, 3), warmup))
    np.testing.assert_allclose(updates(tx, delays), want, atol=1e-6)


def test_a_linear_loss_is_descended_later():
    late, prompt = (
        updates(tx) for tx in (optkit.delay_gradients(optax.sgd(0.1), 2), optax.sgd(0.1))
    )
    np.testing.assert_array_equal(late[2:], prompt[:-2])


def test_no_delay_is_the_inner_one_and_options_are_checked():
    inner = optkit.signsgd(0.1)
    assert optkit.delay_gradients(inner, 0) == inner
    with pytest.raises(ValueError, match="warmup='stale' is not one of"):
        optkit.delay_gradients(inner, 1, warmup="stale")


def test_it_runs_in_a_scan():
    tx = optkit.delay_gradients(optax.sgd(1.0), 2)

    def body(state, g):
        u, state = tx.update({"w": g}, state)
        return state, u["w"]

    got = jax.lax.scan(body, tx.init({"w": jnp.zeros(2)}), jnp.asarray(GRADS))[1]
    np.testing.assert_array_equal(got[2:], -GRADS[:-2])
