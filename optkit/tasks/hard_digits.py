"""Handwritten digits with networks that no gradient can train: steps, spikes, hard choices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.tasks import base, digits_data

OPERATORS = ("staircase", "int8", "spiking", "attention", "moe")
_TIME, _LEAK = 8, 0.9  # of the spiking neurons
_EXPERTS = 4
Shapes = dict[str, dict[str, tuple[int, ...]]]


def build(*, operator: str = "staircase", width: int = 32, batch: int = 128) -> base.Task:
    """Builds "hard_digits": classify 8x8 digits with an operator whose derivative is 0 or missing.

    - "staircase": a perceptron whose hidden units put out one of five steps;
    - "int8": a perceptron with weights and activations rounded to 8-bit integers times a scale;
    - "spiking": leaky integrate-and-fire neurons, eight time steps, spikes from a hard threshold;
    - "attention": the rows of the image are tokens, and each takes the value of the one token
      whose key fits best;
    - "moe": a hard choice of one of four small perceptrons.

    Args:
      operator: one of the five.
      width: hidden features.
      batch: images per training step, drawn without replacement.
    """
    base.check_positive("hard_digits", width=width, batch=batch)
    if operator not in OPERATORS:
        raise base.TaskOptionError(
            f"task 'hard_digits': option operator={operator!r} must be one of "
            f"{', '.join(OPERATORS)}.{base.suggestion(operator, OPERATORS)}"
        )
    shapes = _SHAPES[operator](width)
    apply = _NETWORKS[operator]

    def init(key: jax.Array) -> base.Params:
        keys = iter(jax.random.split(key, sum(len(layer) for layer in shapes.values())))
        return {
            name: {leaf: _initial(leaf, shape, next(keys)) for leaf, shape in layer.items()}
            for name, layer in shapes.items()
        }

    what = f"8x8 handwritten digits, hard {operator}"
    return digits_data.build("hard_digits", what, jax.jit(init), apply, batch)


def _initial(leaf: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    if leaf == "bias":
        return jnp.zeros(shape, jnp.float32)
    return jax.random.normal(key, shape, jnp.float32) * (2.0 / shape[-2]) ** 0.5


def _dense(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def _linear(layer: base.Params, x: jax.Array) -> jax.Array:
    kernel = layer["kernel"].astype(jnp.float32)
    return x @ kernel + jnp.expand_dims(layer["bias"].astype(jnp.float32), range(x.ndim - 1))


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(images.shape[0], -1).astype(jnp.float32)


def _perceptron(width: int) -> Shapes:
    return {"hidden": _dense(64, width), "head": _dense(width, 10)}


def _staircase(params: base.Params, images: jax.Array) -> jax.Array:
    x = _linear(params["hidden"], _flat(images))
    return _linear(params["head"], jnp.clip(jnp.floor(2.0 * x) / 2.0, 0.0, 2.0))


def _rounded(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Rounds to 255 levels of a common scale."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127.0
    return jnp.round(x / scale) * scale


def _int8(params: base.Params, images: jax.Array) -> jax.Array:
    def layer(name: str, x: jax.Array) -> jax.Array:
        own = {
            **params[name],
            "kernel": _rounded(params[name]["kernel"].astype(jnp.float32), (0, 1)),
        }
        return _linear(own, _rounded(x, (1,)))

    return layer("head", jax.nn.relu(layer("hidden", _flat(images))))


def _spiking(params: base.Params, images: jax.Array) -> jax.Array:
    current = _linear(params["hidden"], _flat(images))

    def step(voltage: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        voltage = _LEAK * voltage + current
        spikes = (voltage > 1.0).astype(jnp.float32)
        return voltage - spikes, spikes

    _, spikes = jax.lax.scan(step, jnp.zeros_like(current), length=_TIME)
    return _linear(params["head"], jnp.mean(spikes, axis=0))


def _attention_shapes(width: int) -> Shapes:
    return {
        "embed": {**_dense(8, width), "position": (8, width)},
        **{name: {"kernel": (width, width)} for name in ("query", "key", "value")},
        "head": _dense(width, 10),
    }


def _attention(params: base.Params, images: jax.Array) -> jax.Array:
    rows = images.reshape(images.shape[0], 8, 8).astype(jnp.float32)
    tokens = _linear(params["embed"], rows)
    tokens = tokens + params["embed"]["position"].astype(jnp.float32)[None]
    query, key, value = (
        tokens @ params[name]["kernel"].astype(jnp.float32) for name in ("query", "key", "value")
    )
    chosen = jnp.argmax(jnp.einsum("bqd,bkd->bqk", query, key), axis=-1)
    taken = jnp.take_along_axis(value, chosen[..., None], axis=1)
    return _linear(params["head"], jnp.mean(jax.nn.relu(tokens + taken), axis=1))


def _moe_shapes(width: int) -> Shapes:
    own = max(1, width // _EXPERTS)
    return {
        "gate": _dense(64, _EXPERTS),
        "experts_in": {"kernel": (_EXPERTS, 64, own)},
        "experts_out": {"kernel": (_EXPERTS, own, 10)},
    }


def _moe(params: base.Params, images: jax.Array) -> jax.Array:
    x = _flat(images)
    chosen = jnp.argmax(_linear(params["gate"], x), axis=-1)
    first, second = (
        params[f"experts_{side}"]["kernel"].astype(jnp.float32) for side in ("in", "out")
    )
    every = jax.nn.relu(jnp.einsum("bi,eih->ebh", x, first))
    logits = jnp.einsum("ebh,eho->beo", every, second)
    return jnp.take_along_axis(logits, chosen[:, None, None], axis=1)[:, 0]


_SHAPES: dict[str, Callable[[int], Shapes]] = {
    "staircase": _perceptron,
    "int8": _perceptron,
    "spiking": _perceptron,
    "attention": _attention_shapes,
    "moe": _moe_shapes,
}
_NETWORKS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "staircase": _staircase,
    "int8": _int8,
    "spiking": _spiking,
    "attention": _attention,
    "moe": _moe,
}
