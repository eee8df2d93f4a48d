"""Weights to start ``optkit.scion`` from."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit.linalg.norms import unit_over
from optkit.transforms.balls import (
    BallRule,
    NormBall,
    ball_rules,
    channel_axis,
    fans,
    is_normalized,
    named_rules,
    spectral_factor,
)
from optkit.transforms.route import assign, only
from optkit.transforms.split import rules_for
from optkit.tree import (
    Dims,
    MatrixLayout,
    MatrixView,
    PyTree,
    Role,
    RuleLike,
    map_with_path,
    rule_of,
)
from optkit.tree.selection import check_selects


def scion_init(
    params: PyTree,
    key: jax.Array,
    *,
    scale: float = 50.0,
    head_scale: float = 3000.0,
    embedding_scale: float = 1.0,
    norms: Sequence[BallRule] = (),
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Draws weights on the edges of the balls in which ``optkit.scion`` keeps them.

    Of each leaf, with the norm and the radius that ``optkit.scion`` gives it for the same options
    (A = fan_out, B = fan_in; each matrix of a batch by itself):

    * spectral: a random (semi-)orthogonal matrix times ``scale*sqrt(A/B)``;
    * spectral_conv: at each of the K positions a random orthogonal matrix times
      ``scale*sqrt(A/C)/K``, C input channels;
    * sign: random signs times ``scale/B``;
    * col_norm, row_norm: normal numbers, each column or row scaled to its length on the ball;
    * bias_rms: zeros for biases and the like; gains (role norm) stay as they are.

    Args:
      params: parameters as the model initialised them; shapes and dtypes are taken from them.
      key: PRNG key. A leaf's numbers depend on key and path only.
      scale: radius of hidden matrices and convolutions.
      head_scale: radius of heads.
      embedding_scale: radius of embeddings.
      norms: ``(selector, ball)`` rules, as for ``optkit.scion``.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A tree like ``params``, in its dtypes.

    Raises:
      ValueError: as ``optkit.scion``.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.zeros((9, 4)), "bias": jnp.ones(4)}}
      >>> params = optkit.scion_init(params, jax.random.key(0), scale=6.0)
      >>> round(float(jnp.linalg.norm(params["dense"]["kernel"], 2)), 3)  # 6 * sqrt(4/9)
      4.0

    Reference:
      Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, arXiv 2502.07529;
      the reference's init() sets gains to zero too, having none.
    """
    for selector, _ in norms:
        check_selects("norms", selector, params, roles)
    rules = ball_rules(norms, scale=scale, head_scale=head_scale, embedding_scale=embedding_scale)
    balls, named = named_rules(rules)
    labels = list(assign(params, rules_for(params, named, dims), roles).values())
    out: list[Any] = [None] * len(labels)
    for name, ball in balls.items():
        part = only(params, labels, name)
        if ball.norm == "bias_rms":
            drawn = map_with_path(lambda path, x: _zero_unless_gain(path, x, roles), part)
        else:
            layout = MatrixLayout(part, dims, roles)
            keys = _keys(key, layout.paths)
            pairs = zip(layout.views, keys, strict=True)
            drawn = layout.merge([_on_edge(ball, view, own) for view, own in pairs], "out")
            drawn = jax.tree.map(lambda x, p: x.astype(p.dtype), drawn, part)
        mine = [index for index, label in enumerate(labels) if label == name]
        for index, leaf in zip(mine, jax.tree.leaves(drawn), strict=True):
            out[index] = leaf
    return jax.tree.unflatten(jax.tree.structure(params), out)


def _keys(key: jax.Array, paths: Sequence[str]) -> list[jax.Array]:
    """A key for each part: by path, and by its place among the blocks of one leaf."""
    out = []
    for index, path in enumerate(paths):
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        out.append(jax.random.fold_in(own, paths[:index].count(path)))
    return out


def _zero_unless_gain(path: str, x: jax.Array, roles: Sequence[RuleLike]) -> jax.Array:
    return x if rule_of(path, x, roles).role == Role.NORM else jnp.zeros_like(x)


def _on_edge(ball: NormBall, view: MatrixView, key: jax.Array) -> jax.Array:
    """Random matrices ``(*batch, fan_out, fan_in)`` whose norm is the ball's radius."""
    shape = (*view.batch_shape, view.fan_out, view.fan_in)
    fan_out, fan_in = fans(ball, view)
    if 0 in shape:
        return jnp.zeros(shape)
    if ball.norm == "spectral":
        factor = jax.random.orthogonal(key, view.fan_out, view.batch_shape, m=view.fan_in)
        return ball.scale * spectral_factor(ball, view) * factor
    if ball.norm == "spectral_conv":
        return ball.scale * spectral_factor(ball, view) * _conv_kernels(view, key)
    if ball.norm == "sign":
        size = fan_in if is_normalized(ball) else 1
        return ball.scale / size * jax.random.rademacher(key, shape, jnp.float32)
    columns = ball.norm == "col_norm"
    length = math.sqrt(fan_out) if columns else 1.0
    if is_normalized(ball):
        length = length / (fan_in if columns else math.sqrt(fan_in))
    axis = -2 if columns != ball.transpose else -1
    return ball.scale * length * unit_over(jax.random.normal(key, shape), (axis,))


def _conv_kernels(view: MatrixView, key: jax.Array) -> jax.Array:
    """An orthogonal matrix (fan_out, channels) at each position, as ``(*batch, A, B)``."""
    channel, rank = channel_axis(view), len(view.batch_shape)
    positions = [view.shape[axis] for axis in view.in_axes if axis != channel]
    shape = (*view.batch_shape, *positions)
    kernels = jax.random.orthogonal(key, view.fan_out, shape, m=view.shape[channel])
    kernels = jnp.moveaxis(kernels, -2, rank)
    kernels = jnp.moveaxis(kernels, -1, rank + 1 + view.in_axes.index(channel))
    return kernels.reshape(*view.batch_shape, view.fan_out, view.fan_in)
