"""Runs a transformation over a list of gradients in one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.tree import upcast


def gradients(seed, steps, shapes):
    """``steps`` standard normal trees with the given ``{name: shape}``, float32."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(steps)
    ]


def apply(params, updates):
    """``optax.apply_updates``, which refuses 8-bit parameters with float32 updates."""
    if all(p.dtype.itemsize > 1 for p in jax.tree.leaves(params)):
        return optax.apply_updates(params, updates)
    return jax.tree.map(lambda p, u: (upcast(p) + upcast(u)).astype(p.dtype), params, updates)


def run(tx, params, grads):
    """Returns the updates and the parameters after each step, stacked, and the last state."""
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *grads)

    @jax.jit
    def go(params, stacked):
        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = apply(params, u)
            return (params, state), (u, params)

        (_, state), out = jax.lax.scan(step, (params, tx.init(params)), stacked)
        return *out, state

    return go(jax.tree.map(jnp.asarray, params), stacked)


def compiled(make, look=lambda state: ()):
    """Returns ``run`` of ``make(**numbers)`` as one program for all numbers, which are traced.

    What comes back has, beside the updates and the parameters after each step, what ``look`` sees
    in the state after each.
    """

    @jax.jit
    def go(params, stacked, numbers):
        tx = make(**numbers)

        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = apply(params, u)
            return (params, state), (u, params, look(state))

        return jax.lax.scan(step, (params, tx.init(params)), stacked)[1]

    def call(params, grads, **numbers):
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *grads)
        return jax.tree.map(np.asarray, go(params, stacked, numbers))

    return call


def directions(tx, grads, params=None):
    """Returns the stacked updates of a direction; the parameters do not move."""
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *grads)
    params = jax.tree.map(jnp.zeros_like, grads[0]) if params is None else params

    @jax.jit
    def go(stacked):
        def step(state, g):
            u, state = tx.update(g, state, params)
            return state, u

        return jax.lax.scan(step, tx.init(params), stacked)[1]

    return go(stacked)
