"""The adaptive servers against NumPy, in the paper's form and in Flower's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

SENT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
RATE, B1, B2, TAU = 0.3, 0.8, 0.7, 0.05


def walked(tx: Any) -> np.ndarray:
    step, params, out = jax.jit(tx.update), jnp.zeros(3), []
    state = tx.init(params)
    for d in SENT:
        u, state = step(jnp.asarray(d), state, params)
        params = optax.apply_updates(params, u)
        out.append(np.asarray(params))
    return np.array(out)


def slow(rule: str, flower: bool) -> np.ndarray:
    x, m, v = np.zeros(3), np.zeros(3), np.full(3, 0.0 if flower else TAU**2)
    b1, out = 0.0 if flower and rule == "adagrad" else B1, []
    for r, d in enumerate(np.float64(SENT), 1):
        m = b1 * m + (1 - b1) * d
        v = {
            "adam": B2 * v + (1 - B2) * d**2,
            "yogi": v - (1 - B2) * d**2 * np.sign(v - d**2),
            "adagrad": v + d**2,
        }[rule]
        rate = RATE
        if flower and rule == "adam":
            rate *= np.sqrt(1 - B2 ** (r + 1)) / (1 - B1 ** (r + 1))
        x = x - rate * m / (np.sqrt(v) + TAU)
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize("dialect", ["paper", "flwr"])
@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_it_is_its_equations(rule: Any, dialect: Any) -> None:
    tx = optkit.fedopt(RATE, rule=rule, b1=B1, b2=B2, tau=TAU, dialect=dialect)
    np.testing.assert_allclose(walked(tx), slow(rule, dialect == "flwr"), rtol=2e-5, atol=1e-6)


def test_a_large_tau_is_a_server_with_momentum() -> None:
    adaptive = walked(optkit.fedopt(1e3, b1=B1, tau=1e3, dialect="flwr", rule="yogi"))
    momentum = walked(optax.chain(optax.ema(B1, debias=False), optax.sgd(1.0)))
    np.testing.assert_allclose(adaptive, momentum, rtol=5e-3, atol=1e-3)


def test_entries_that_nobody_touched_rest() -> None:
    for dialect in ("paper", "flwr"):
        tx = optkit.fedopt(0.1, tau=0.0, dialect=dialect)
        u, _ = tx.update(jnp.zeros(2), tx.init(jnp.ones(2)), jnp.ones(2))
        assert u.tolist() == [0.0, 0.0]


def test_options_are_checked() -> None:
    wrong: Any = {"rule": "lion"}, {"dialect": "fedjax"}
    with pytest.raises(ValueError, match="rule='lion' is not one of"):
        optkit.fedopt(0.1, **wrong[0])
    with pytest.raises(ValueError, match="dialect='fedjax' is not one of"):
        optkit.fedopt(0.1, **wrong[1])
    with pytest.raises(ValueError, match="is below 0"):
        optkit.fedopt(0.1, tau=-1.0)
