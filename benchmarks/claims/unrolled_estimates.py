"""Truncated unrolls: do PES and NRES see what a short truncation hides?

Persistent evolution strategies (arXiv 2112.13835) show it on influence balancing: a linear system
of 23 states, ``s <- A s + (theta, ..., theta, -theta, ..., -theta)``, 10 of them with the plus
sign, whose loss ``(s_1 - 1)^2 / 2`` feels theta with the wrong sign at first and with the right one
later. A truncation of one step sees the first alone, and theta runs away; the estimate that
remembers all noise arrives. Here: 500 pairs, one step a truncation, an inner problem of 200 steps
that pairs begin at different times, plain SGD from theta = 0.5; the mean loss of all steps of an
unperturbed inner problem less the least that any theta has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims.engine import Outcome, Setting, number
from optkit.evolution import nres, pes, truncated_es

STATES, PLUS, HORIZON, PAIRS, SIGMA = 23, 10, 200, 500, 0.1
RATES = (1e-4, 3e-5, 1e-5)
METHODS = {"pes": pes, "nres": nres, "truncated_es": truncated_es}
SIGNS = jnp.where(jnp.arange(STATES) < PLUS, 1.0, -1.0)


def moved(state: jax.Array, theta: jax.Array) -> jax.Array:
    """Returns the next state ``(..., 23)`` of inner problems with parameters ``(...)``."""
    following = jnp.roll(state, -1, axis=-1).at[..., -1].set(0.0)
    return 0.5 * state + 0.5 * following + jnp.einsum("...,s->...s", theta, SIGNS)


def loss(state: jax.Array) -> jax.Array:
    """Returns the loss of states ``(..., 23)``."""
    return 0.5 * jnp.square(state[..., 0] - 1.0)


def whole(theta: jax.Array) -> jax.Array:
    """Returns the mean loss of an unperturbed inner problem."""

    def step(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        state = moved(state, theta)
        return state, loss(state)

    return jnp.mean(jax.lax.scan(step, jnp.ones(STATES), length=HORIZON)[1])


def least() -> float:
    """Returns the least mean loss: it is quadratic in theta, so that three values tell it."""
    low, middle, high = (float(whole(jnp.float32(theta))) for theta in (-0.5, 0.0, 0.5))
    curve, slope = 2.0 * (high + low - 2.0 * middle), high - low
    return middle - slope**2 / (4.0 * curve)


def trained(name: str, rate: Any, key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns theta and its mean loss after so many truncations."""
    es = METHODS[name](
        2 * PAIRS, sigma=SIGMA, horizon=HORIZON, staggered=True, maximize=False, key=key
    )
    tx = optax.chain(es, optax.sgd(rate))

    def truncation(carry: Any, _: None) -> tuple[Any, None]:
        theta, state, inner = carry
        fresh = es.begins(state)[:, None]
        inner = moved(jnp.where(fresh, 1.0, inner), es.perturb(theta, state))
        updates, state = tx.update(loss(inner), state, theta)
        return (theta + updates, state, inner), None

    theta = jnp.float32(0.5)
    carry = (theta, tx.init(theta), jnp.ones((2 * PAIRS, STATES)))
    theta = jax.lax.scan(truncation, carry, length=steps)[0][0]
    return theta, whole(theta)


def experiment(setting: Setting) -> Outcome:
    """Trains theta by each method at each rate."""
    steps = setting.pick(5_000, 5)
    keys = jax.vmap(jax.random.key)(jnp.asarray(setting.seeds))
    over = jax.vmap(jax.vmap(trained, (None, None, 0, None)), (None, 0, None, None))
    run = jax.jit(over, static_argnums=(0, 3))
    bottom, rows, best = least(), [], {}
    start = float(whole(jnp.float32(0.5))) - bottom
    for name in METHODS:
        thetas, losses = map(np.asarray, run(name, jnp.asarray(RATES), keys, steps))
        above = np.where(np.isfinite(losses), losses - bottom, np.inf)
        best[name] = float(above.mean(axis=1).min())
        for rate, theta, end in zip(RATES, thetas, above, strict=True):
            shown = number(float(theta.mean()), 3), number(float(end.mean()), 3)
            rows.append((name, f"{rate:g}", *shown))
    return Outcome(
        claim="on influence balancing PES and NRES bring the mean loss to a hundredth of where it "
        "was above its least, at one of three rates; truncated ES does not lower it at any",
        holds=max(best["pes"], best["nres"]) < start / 100 and best["truncated_es"] >= start,
        finding=f"from {number(start)} above: PES {number(best['pes'])}, NRES "
        f"{number(best['nres'])}, truncated ES {number(best['truncated_es'])} at the best rates",
        header=("method", "rate", "theta", "above the least"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
