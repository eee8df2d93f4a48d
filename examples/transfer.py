"""A learning rate tuned on a narrow network serves a wide one: muP's factors, and their check."""

import jax
import jax.numpy as jnp

import optkit
from optkit import transfer

BASE, RATE = 16, 2e-3


def init(key: jax.Array, width: int) -> dict:
    """Any initialisation; ``match_init`` gives it the deviations that the laws ask for."""
    keys = jax.random.split(key, 3)
    shapes = {"in": (8, width), "up": (width, width), "out": (width, 4)}
    normal = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    return {name: {"kernel": x / x.shape[0] ** 0.5} for name, x in normal.items()}


def activations(params: dict, x: jax.Array) -> dict:
    """The output of every layer."""
    first = x @ params["in"]["kernel"]
    second = jnp.tanh(first) @ params["up"]["kernel"]
    return {"in": first, "up": second, "out": jnp.tanh(second) @ params["out"]["kernel"]}


def loss(params: dict, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(activations(params, x)["out"] - jnp.sin(x[:, :4])))


def batch(seed: int, step: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), step), (32, 8))


def laws_of(width: int) -> transfer.Laws:
    """Reads which axes grow off the shapes of two models; nothing is allocated."""
    base, wide = (jax.eval_shape(lambda k, w=w: init(k, w), batch_key) for w in (BASE, width))
    return transfer.mup(base, wide) * transfer.weight_decay_transfer(base, wide, wider=wider)


batch_key = jax.random.key(0)
wider = jax.eval_shape(lambda k: init(k, 2 * BASE), batch_key)
laws = laws_of(256)
print(laws, "\n")
tx = laws.route(lambda f: optkit.adamw(RATE * f.learning_rate, weight_decay=0.1 * f.weight_decay))
print(optkit.plan(tx, init(batch_key, 256)), "\n")


def trial(width: int) -> transfer.Trial:
    own = laws_of(width)
    tx = own.route(lambda f: optkit.adamw(RATE * f.learning_rate, eps=1e-8 * f.eps))
    fresh = lambda key: transfer.match_init(init(key, width), init(key, BASE), own)  # noqa: E731
    return transfer.Trial(fresh, tx, loss, batch, activations)


checked = transfer.coordinate_check(trial, (BASE, 64, 256), steps=3, seeds=(0,))
print(checked)
assert checked.flat
