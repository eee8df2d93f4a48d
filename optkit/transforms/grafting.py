"""Grafting: the length of one direction, the way of another."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optkit.linalg.norms import LARGEST
from optkit.transforms.hyperparams import Scalar
from optkit.transforms.kronecker import weights_sum
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
Per = Literal["block", "tensor"]
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


def ratios(
    wanted: Sequence[Any], held: Sequence[Any], layout: BlockLayout, *, per: Per
) -> list[Any]:
    """What gives blocks the norms that are wanted, of each block or of each whole tensor.

    Both are norms of groups of blocks, ``(*batch, [blocks])``, None of a group that is left out.
    The result can be multiplied with a group; 0 where nothing is held.
    """
    members: dict[int, list[int]] = {}
    for group, tensor in enumerate(layout.tensors):
        if wanted[group] is not None:
            members.setdefault(tensor if per == "tensor" else group, []).append(group)
    out: list[Any] = [None for _ in wanted]
    for own in members.values():
        cut = [per == "tensor" and layout.counts_of[i] > 1 for i in own]
        long, short = (_together([norms[i] for i in own], cut) for norms in (wanted, held))
        # A division comes last: XLA's CPU compiler computes anything cheaper anew in each leaf.
        factor = long / jnp.where(short > 0, short, jnp.inf)
        for i, several in zip(own, cut, strict=True):
            extra = len(layout.blocks[i][1]) + several
            out[i] = factor.reshape(*factor.shape, *(1,) * extra)
    return out


def _together(norms: Sequence[jax.Array], cut: Sequence[bool]) -> jax.Array:
    """The norm of what groups of blocks make up; of a group that is cut, over its blocks too."""
    if len(norms) == 1 and not cut[0]:
        return norms[0]
    parts = [x if several else x[..., None] for x, several in zip(norms, cut, strict=True)]
    whole = jnp.concatenate(parts, -1)
    top = jnp.max(whole, axis=-1, keepdims=True)
    scale = jnp.where(top > 0, top, 1.0)
    return jnp.sqrt(jnp.sum(jnp.square(whole / scale), axis=-1)) * scale[..., 0]


def moments_like(params: PyTree, kind: Magnitude, state_dtype: Any | None) -> PyTree:
    """Fresh second moments; masked nodes where a kind has none."""
    if kind in WITH_MOMENT:
        return zeros_like_params(params, state_dtype)
    return jax.tree.map(lambda _: optax.MaskedNode(), params)


def wide(tree: PyTree) -> PyTree:
    """A tree in its compute dtypes."""
    return jax.tree.map(upcast, tree)
