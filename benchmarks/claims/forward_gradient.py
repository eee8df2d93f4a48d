"""Forward gradients: do guesses from local losses beat random guesses, at equal steps?

The paper (Fournier et al., arXiv 2306.06968) trains a ResNet-18 in blocks. Here: a convolutional
network of three blocks on 8x8 digits, the heads of the blocks single linear maps; all methods train
with SGD and momentum for as many steps, each at its best rate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims.engine import Outcome, Setting, number, spread
from benchmarks.claims.streams import tuned
from optkit.evolution import (
    activation_gradient,
    forward_gradient,
    local_guess,
    random_guess,
)
from optkit.tasks import digits_data

CHANNELS, BATCH = 16, 64
Gradient = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]  # -> gradients of blocks and heads


def conv(params: Any, x: jax.Array) -> jax.Array:
    """A 3x3 convolution that halves the image, and its nonlinearity."""
    out = jax.lax.conv_general_dilated(
        x, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(out + params["bias"][None, None, None])


def head(params: Any, x: jax.Array) -> jax.Array:
    """Logits of everything that a block puts out."""
    return x.reshape(x.shape[0], -1) @ params["kernel"] + params["bias"][None]


BLOCKS, HEADS = (conv, conv, head), (head, head)


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies of the examples."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def network(params: Any, images: jax.Array) -> jax.Array:
    """The logits of the whole network."""
    for block, own in zip(BLOCKS, params, strict=True):
        images = block(own, images)
    return images


def loss(params: Any, batch: Any) -> jax.Array:
    """Its mean loss."""
    return jnp.mean(losses(network(params, batch[0]), batch[1]))


def initial(key: jax.Array) -> tuple[Any, Any]:
    """Returns parameters of the blocks and of the heads."""
    keys = iter(jax.random.split(key, 5))

    def layer(*shape: int) -> dict[str, jax.Array]:
        fan_in = int(np.prod(shape[:-1]))
        kernel = jax.random.normal(next(keys), shape) * (2.0 / fan_in) ** 0.5
        return {"kernel": kernel, "bias": jnp.zeros(shape[-1])}

    width = CHANNELS
    blocks = (layer(3, 3, 1, width), layer(3, 3, width, 2 * width), layer(4 * 2 * width, 10))
    return blocks, (layer(16 * width, 10), layer(4 * 2 * width, 10))


def backward(params: Any, heads: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """Backpropagation, what is to be matched."""
    del key
    return jax.grad(loss)(params, batch), jax.tree.map(jnp.zeros_like, heads)


def local_only(params: Any, heads: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """Each block by its own loss: the guesses themselves."""
    del key
    return local_guess(BLOCKS, HEADS, losses)(params, batch, heads)


def by_random(params: Any, heads: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """A random direction for the weights of each block, unbiased."""
    f = forward_gradient(loss, random_guess, per="block", normalize=False)
    return f(params, batch, key)[1], jax.tree.map(jnp.zeros_like, heads)


def by_local_weights(params: Any, heads: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """One slope along the local gradient of each block's weights."""
    del key
    f = forward_gradient(loss, local_guess(BLOCKS, HEADS, losses), per="block", has_aux=True)
    (_, of_heads), gradient = f(params, batch, heads)
    return gradient, of_heads


def by_local_activations(params: Any, heads: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """A slope of each example along the local gradient of each block's output."""
    del key
    (_, of_heads), gradient = activation_gradient(BLOCKS, HEADS, losses)(params, batch, heads)
    return gradient, of_heads


METHODS: dict[str, tuple[Gradient, tuple[float, ...]]] = {
    "backpropagation": (backward, (0.01, 0.03, 0.1)),
    "random guess": (by_random, (1e-5, 1e-4, 1e-3)),
    "local guess, weights": (by_local_weights, (0.01, 0.03, 0.1)),
    "local guess, activations": (by_local_activations, (0.01, 0.03, 0.1)),
    "local losses alone": (local_only, (0.01, 0.03, 0.1)),
}


def learner(gradient: Gradient, steps: int) -> Callable[..., dict[str, Any]]:
    """Returns (rate, seed) -> numbers at the end of a run."""
    data = digits_data.load()
    train, held_out = ((part["images"], part["labels"]) for part in (data.train, data.held_out))

    @jax.jit
    def run(rate: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, second = jax.random.split(jax.random.key(seed))
        tx = optax.sgd(rate, momentum=0.9)

        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            (params, heads), state = carry
            rows = jax.random.choice(key, len(train[1]), (BATCH,), replace=False)
            batch = tuple(jnp.asarray(x)[rows] for x in train)
            found = gradient(params, heads, batch, jax.random.fold_in(key, 1))
            similar = alike(found[0][:-1], params, batch)
            updates, state = tx.update(found, state)
            return (optax.apply_updates((params, heads), updates), state), similar

        start = initial(first)
        ((params, _), _), similar = jax.lax.scan(
            step, (start, tx.init(start)), jax.random.split(second, steps)
        )
        wrong = jnp.mean(jnp.argmax(network(params, held_out[0]), -1) != held_out[1])
        return loss(params, held_out), wrong, jnp.mean(similar)

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        value, wrong, similar = run(jnp.float32(rate), jnp.uint32(seed))
        return {"loss": value, "error": wrong, "cosine": similar}

    return numbers


def alike(found: Any, params: Any, batch: Any) -> jax.Array:
    """Cosine of a gradient of all blocks but the last with the true one."""
    true = jax.grad(loss)(params, batch)[:-1]
    a, b = (jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(t)]) for t in (found, true))
    return jnp.vdot(a, b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)


def experiment(setting: Setting) -> Outcome:
    """Trains the network with every kind of gradient."""
    steps = setting.pick(400, 3)
    rows, errors = [], {}
    for name, (gradient, rates) in METHODS.items():
        rate, _, found = tuned(
            learner(gradient, steps), rates[: setting.pick(None, 1)], setting, "loss"
        )
        errors[name] = found["error"]
        rows.append(
            (name, number(rate), *(spread(found[key]) for key in ("loss", "error", "cosine")))
        )
    guesses = ("local guess, weights", "local guess, activations")
    gains = {name: errors["random guess"] - errors[name] for name in guesses}
    return Outcome(
        claim="on a small convolutional network guesses from local losses end with fewer errors "
        "than random guesses after as many steps, in weight and in activation space",
        holds=all(bool(gain.mean() > gain.std(ddof=1)) for gain in gains.values()),
        finding="; ".join(
            f"{name}: {errors[name].mean():.3f} wrong, {gain.mean():+.3f} fewer than by random"
            for name, gain in gains.items()
        )
        + f"; backpropagation {errors['backpropagation'].mean():.3f}, "
        f"local losses alone {errors['local losses alone'].mean():.3f}",
        header=(
            "gradient",
            "learning rate",
            "held-out loss",
            "held-out error",
            "cosine with the true",
        ),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
