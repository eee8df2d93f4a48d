"""Steepest descent under a norm: linear minimisation over a ball."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.norms import norm_over, unit_over
from optkit.transforms.balls import (
    NormBall,
    NormName,
    as_ball,
    ball_rules,
    fans,
    is_normalized,
    named_rules,
    spectral_factor,
)
from optkit.transforms.base import Transformation, stateless
from optkit.transforms.hyperparams import check_choice, check_number, check_static_number
from optkit.transforms.orthogonalize import Method, orthogonalize
from optkit.transforms.split import route_matrices
from optkit.tree import Dims, MatrixLayout, MatrixView, PyTree, RuleLike, Selector, upcast
from optkit.tree.costs import Sharding


class LmoOptions(NamedTuple):
    """What all norms of one tree share; see ``optkit.lmo``."""

    method: Method = "auto"
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "jordan"
    steps: int | None = None
    eps: float | None = None
    dims: Dims = None
    roles: Sequence[RuleLike] = ()
    dtype: Any | None = None
    group_bytes: int | None = None
    sharding: Sharding = "auto"


def _spectral(ball: NormBall, options: LmoOptions) -> Transformation:
    direction = orthogonalize(**options._asdict())

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        wide = jax.tree.map(upcast, updates)
        out, state = direction.update(wide, state, params, **extra_args)
        layout = MatrixLayout(updates, options.dims, options.roles)
        out = layout.scale(out, [spectral_factor(ball, view) for view in layout.views])
        return jax.tree.map(lambda x, u: (ball.scale * x).astype(u.dtype), out, updates), state

    return Transformation(direction.init, update_fn)


def _divided(x: jax.Array, axes: tuple[int, ...], factor: float, eps: float | None) -> jax.Array:
    """``x / (factor * norm(x) + eps)`` over some axes; without eps at any scale."""
    if eps:
        return x / (factor * norm_over(x, axes) + eps)
    return unit_over(x, axes) / factor


def _matrix_norm(x: jax.Array, view: MatrixView, ball: NormBall, eps: float | None) -> jax.Array:
    """The point of a unit ball for matrices as they lie in memory."""
    if not x.size:
        return x
    fan_out, fan_in = fans(ball, view)
    if ball.norm == "sign":
        return jnp.sign(x) / fan_in
    out_axes, in_axes = view.out_axes, view.in_axes
    if ball.transpose:
        out_axes, in_axes = in_axes, out_axes
    if ball.norm == "col_norm":
        columns = fan_in if is_normalized(ball) else 1
        return _divided(x, out_axes, columns / math.sqrt(fan_out), eps)
    return _divided(x, in_axes, math.sqrt(fan_in) if is_normalized(ball) else 1.0, eps)


def _vector_norm(x: jax.Array, ball: NormBall, eps: float | None) -> jax.Array:
    if not x.size or ball.norm == "sign":
        return jnp.sign(x)
    size = x.shape[-1] if x.ndim else 1
    return _divided(x, (-1,) if x.ndim else (), 1.0 / math.sqrt(size), eps)


def ball_lmo(ball: NormBall, options: LmoOptions) -> Transformation:
    """Returns ``optkit.lmo`` of one ball for all leaves."""
    if ball.norm in ("spectral", "spectral_conv"):
        return _spectral(ball, options)
    whole = ball.norm == "bias_rms" or (ball.norm == "sign" and not is_normalized(ball))

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        wide = jax.tree.map(upcast, updates)
        if whole:
            out = jax.tree.map(lambda x: _vector_norm(x, ball, options.eps), wide)
        else:
            layout = MatrixLayout(updates, options.dims, options.roles)
            parts = zip(layout.split(wide, "kept"), layout.views, strict=True)
            out = layout.merge(
                [_matrix_norm(x, view, ball, options.eps) for x, view in parts], "kept"
            )
        return jax.tree.map(lambda x, u: (ball.scale * x).astype(u.dtype), out, updates)

    return stateless(update)


def lmo_by_rules(rules: Sequence[tuple[Selector, NormBall]], options: LmoOptions) -> Transformation:
    """Returns a route of ``ball_lmo``: the first rule that names a leaf gives its ball."""
    balls, named = named_rules(rules)
    return route_matrices(
        {name: ball_lmo(ball, options) for name, ball in balls.items()},
        named,
        matrices=[name for name, ball in balls.items() if ball.norm != "bias_rms"],
        dims=options.dims,
        roles=options.roles,
    )


@register(
    kind="part",
    family="direction",
    paper=("Training Deep Learning Models with Norm-Constrained LMOs", "2502.07529", 2025),
    state_bytes={"*": 0},
    tags=("scion", "norm", "newton-schulz", "sign"),
    chain="u = argmax <d, u> over the ball norm(u) <= scale",
)
def lmo(
    norm: NormName | Literal["auto"] = "auto",
    *,
    scale: float | jax.Array = 1.0,
    normalized: bool | None = None,
    transpose: bool = False,
    max1: bool = False,
    method: Method = "auto",
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Replaces updates by the point of a norm's ball that lies furthest along them.

    For ``d`` with A = fan_out and B = fan_in the result is ``scale`` times

    * ``"spectral"``: ``sqrt(A/B)*U V^T``; ``sqrt(A)*U V^T`` if not ``normalized``; with ``max1``
      the factor is at least 1;
    * ``"spectral_conv"``: ``sqrt(A/C)/K * U V^T`` of the kernel as an A x B matrix, with C input
      channels and K = B/C positions;
    * ``"sign"``: ``sign(d)/B``; ``sign(d)`` if not ``normalized``;
    * ``"col_norm"``: each input's column divided by its root mean square over the outputs, and by
      B if ``normalized``: for an embedding, each token's vector;
    * ``"row_norm"``: each output's row divided by its length, and by ``sqrt(B)`` if
      ``normalized``;
    * ``"bias_rms"``: ``d`` divided by its root mean square over the last axis, for leaves of any
      rank: stacked layers are divided one by one;
    * ``"auto"``: by role: spectral for matrices, stacked layers and experts, spectral_conv for
      convolutions, sign for heads, col_norm for embeddings, bias_rms for all else and for every
      vector and scalar.

    Norms are taken in float32 at any scale. A zero matrix, column or vector gives zeros.

    Args:
      norm: which norm.
      scale: radius of the ball.
      normalized: count the size of the input in; None for the reference's own choice: True, for
        col_norm False.
      transpose: take fan_in for fan_out and the other way round, for a table whose ``dims`` call
        the tokens outputs.
      max1: see "spectral".
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      coefficients: Newton-Schulz coefficients.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to each norm (the reference: 1e-8, and 1e-7 in Newton-Schulz); None divides safely.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes); keeps dtypes.

    Raises:
      ValueError: an unknown norm, an option that means nothing to it, or a leaf that is no matrix
        below a norm of matrices.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> d = {"dense": {"kernel": jnp.array([[2.0, 0.0], [0.0, -3.0]]), "bias": jnp.array([4.0])}}
      >>> u, _ = (tx := optkit.lmo("auto", scale=2.0, method="svd")).update(d, tx.init(d))
      >>> u["dense"]["kernel"].tolist(), u["dense"]["bias"].tolist()
      ([[2.0, 0.0], [0.0, -2.0]], [2.0])

    Reference:
      Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, arXiv 2502.07529.
      The reference's Auto goes by rank alone: a 2-D head or embedding is spectral there, and any
      3-D or 4-D leaf a convolution, whose kernel it takes for square.
    """
    check_static_number("eps", eps)
    check_number("eps", 0.0 if eps is None else eps, low=0.0)
    check_choice("norm", norm, (*get_args(NormName), "auto"))
    options = LmoOptions(
        method, coefficients, steps, eps, dims, roles, dtype, group_bytes, sharding
    )
    if norm != "auto":
        return ball_lmo(as_ball(NormBall(norm, scale, normalized, transpose, max1)), options)
    if normalized is not None or transpose or max1:
        raise ValueError("norm='auto' takes scale only; name the norm to set its other options")
    rules = ball_rules(scale=scale, head_scale=scale, embedding_scale=scale)
    return lmo_by_rules(rules, options)
