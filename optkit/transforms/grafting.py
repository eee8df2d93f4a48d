"""Grafting: the length of one direction, the way of another."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optkit.transforms.hyperparams import Scalar
from optkit.transforms.kronecker import LARGEST, weights_sum
from optkit.tree import BlockLayout, PyTree, upcast, zeros_like_params

Magnitude = Literal[
    "none",
    "sgd",
    "sqrt_n",
    "adagrad",
    "adagrad_normalized",
    "rmsprop",
    "rmsprop_normalized",
    "adam",
]
# Those that divide by the root of a second moment.
WITH_MOMENT = ("adagrad", "adagrad_normalized", "rmsprop", "rmsprop_normalized", "adam")


def unit(g: jax.Array) -> jax.Array:
    """A gradient divided by its norm, 0 if that is 0."""
    most = jnp.max(jnp.abs(g), initial=0.0)
    most = jnp.where(most > 0, most, 1.0)
    small = g / most
    norm = jnp.sqrt(jnp.sum(jnp.square(small)))
    return small / jnp.where(norm > 0, norm, 1.0)


def next_moments(kind: Magnitude, grads: PyTree, moments: PyTree, b2: Scalar) -> PyTree:
    """Second moments after a gradient: sums for AdaGrad, averages for the others."""
    if kind not in WITH_MOMENT:
        return moments

    def step(g: jax.Array, v: jax.Array) -> jax.Array:
        square = jnp.square(jnp.clip(g, -LARGEST, LARGEST))
        return v + square if kind.startswith("adagrad") else b2 * v + (1.0 - b2) * square

    return jax.tree.map(step, grads, wide(moments))


def magnitudes(
    kind: Magnitude, given: PyTree, moments: PyTree, b2: Scalar, eps: Scalar, steps: jax.Array
) -> PyTree:
    """What gives the length: ``u``, its sign, or ``u/(sqrt(v) + eps)``; Adam's v is debiased."""
    if kind == "sqrt_n":
        return jax.tree.map(jnp.sign, given)
    if kind not in WITH_MOMENT:
        return given
    whole = weights_sum(b2, steps) if kind == "adam" else 1.0

    def length(u: jax.Array, v: jax.Array) -> jax.Array:
        root = jnp.sqrt(v / whole) + eps
        return u / jnp.where(root > 0, root, 1.0)

    return jax.tree.map(length, given, moments)


def graft_blocks(
    directions: Sequence[jax.Array],
    lengths: Sequence[jax.Array],
    layout: BlockLayout,
    *,
    per: Literal["block", "tensor"],
) -> list[jax.Array]:
    """Returns the directions with the norms of others, of each block or of each whole tensor."""
    members: dict[int, list[int]] = {}
    for group, tensor in enumerate(layout.tensors):
        members.setdefault(tensor if per == "tensor" else group, []).append(group)
    out = list(directions)
    for own in members.values():
        parts = [(layout.blocks[i][1], layout.counts_of[i], per) for i in own]
        wanted = _norm([lengths[i] for i in own], parts)
        held = _norm([directions[i] for i in own], parts)
        factor = jnp.where(held > 0, wanted / jnp.where(held > 0, held, 1.0), 0.0)
        for i, (sizes, count, _) in zip(own, parts, strict=True):
            extra = len(sizes) + (count > 1 and per == "tensor")
            shaped = factor.reshape(*factor.shape, *(1,) * extra)
            out[i] = directions[i] * shaped
    return out


def _norm(xs: Sequence[jax.Array], parts: Sequence[Any]) -> jax.Array:
    """Norms over blocks, or over all blocks of a tensor, without overflow."""
    axes = [
        tuple(range(-len(sizes) - (count > 1 and per == "tensor"), 0))
        for sizes, count, per in parts
    ]
    tops = [jnp.max(jnp.abs(x), axis=a) for x, a in zip(xs, axes, strict=True)]
    top = tops[0]
    for other in tops[1:]:
        top = jnp.maximum(top, other)
    scale = jnp.where(top > 0, top, 1.0)
    total: Any = 0.0
    for x, a in zip(xs, axes, strict=True):
        shaped = scale.reshape(*scale.shape, *(1,) * len(a))
        total = total + jnp.sum(jnp.square(x / shaped), axis=a)
    return jnp.where(top > 0, scale * jnp.sqrt(total), 0.0)


def moments_like(params: PyTree, kind: Magnitude, state_dtype: Any | None) -> PyTree:
    """Fresh second moments; masked nodes where a kind has none."""
    if kind in WITH_MOMENT:
        return zeros_like_params(params, state_dtype)
    return jax.tree.map(lambda _: optax.MaskedNode(), params)


def wide(tree: PyTree) -> PyTree:
    """A tree in its compute dtypes."""
    return jax.tree.map(upcast, tree)
