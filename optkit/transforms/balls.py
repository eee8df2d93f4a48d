"""Norms of weights and their balls: what each norm divides by, and which leaf gets which."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import MATRIX_ROLES, MatrixView, Role, Selector

NormName = Literal["spectral", "spectral_conv", "sign", "col_norm", "row_norm", "bias_rms"]
# Whether a norm is divided by the size of its input unless asked otherwise: the reference's.
_NORMALIZED = {"spectral": True, "sign": True, "row_norm": True, "col_norm": False}


class NormBall(NamedTuple):
    """All weights whose norm is at most ``scale``; the norms are those of ``optkit.lmo``.

    Attributes:
      norm: "spectral", "spectral_conv", "sign", "col_norm", "row_norm" or "bias_rms".
      scale: radius of the ball.
      normalized: count the size of the input in; None for the norm's own default.
      transpose: take fan_in for fan_out and the other way round.
      max1: "spectral" with a shape factor of at least 1.

    Example:
      >>> import optkit
      >>> optkit.NormBall("row_norm", 3.0).normalized is None
      True
    """

    norm: NormName = "spectral"
    scale: float | jax.Array = 1.0
    normalized: bool | None = None
    transpose: bool = False
    max1: bool = False


BallLike = NormBall | NormName | tuple[NormName, float]
BallRule = tuple[Selector, BallLike]


def as_ball(value: BallLike) -> NormBall:
    """Returns a ball from its name, (name, scale) or itself; raises if it is none."""
    if not isinstance(value, NormBall):
        value = NormBall(value) if isinstance(value, str) else NormBall(*value)
    check_choice("norm", value.norm, get_args(NormName))
    check_number("scale", value.scale, low=0.0)
    if value.normalized is not None and value.norm not in _NORMALIZED:
        raise ValueError(
            f"normalized={value.normalized!r} means nothing to the norm {value.norm!r}; it is for "
            + ", ".join(_NORMALIZED)
        )
    if value.transpose and value.norm not in _NORMALIZED:
        raise ValueError(f"transpose means nothing to the norm {value.norm!r}; leave it out")
    if value.max1 and value.norm != "spectral":
        raise ValueError(f"max1 is for the norm 'spectral', not for {value.norm!r}")
    return value


def is_normalized(ball: NormBall) -> bool:
    """Tells whether the size of the input counts."""
    return _NORMALIZED.get(ball.norm, True) if ball.normalized is None else ball.normalized


def fans(ball: NormBall, view: MatrixView) -> tuple[int, int]:
    """Returns fan_out and fan_in as the ball reads them."""
    both = view.fan_out, view.fan_in
    return both[::-1] if ball.transpose else both


def channel_axis(view: MatrixView) -> int:
    """Returns the input channels' axis of a convolution: the input axis next to the output.

    So it is in Flax, (height, width, in, out), and in torch, (out, in, height, width).
    """
    return min(view.in_axes, key=lambda axis: min(abs(axis - out) for out in view.out_axes))


def spectral_factor(ball: NormBall, view: MatrixView) -> float:
    """Returns the largest singular value of weights on the unit ball of a spectral norm."""
    fan_out, fan_in = fans(ball, view)
    if not fan_out or not fan_in:
        return 1.0
    if ball.norm == "spectral_conv":
        channels = view.shape[channel_axis(view)]
        return math.sqrt(fan_out / channels) * channels / fan_in
    factor = math.sqrt(fan_out / fan_in if is_normalized(ball) else fan_out)
    return max(1.0, factor) if ball.max1 else factor


def _is_vector(path: str, leaf: Any) -> bool:
    del path
    return np.ndim(leaf) < 2


def ball_rules(
    norms: Sequence[BallRule] = (),
    *,
    scale: float | jax.Array,
    head_scale: float | jax.Array,
    embedding_scale: float | jax.Array,
    bias_scale: float | jax.Array | None = None,
) -> tuple[tuple[Selector, NormBall], ...]:
    """Returns which leaf gets which ball: the user's rules, then one for each role.

    Args:
      norms: ``(selector, ball)`` rules of the user.
      scale: radius of hidden matrices and convolutions.
      head_scale: radius of heads.
      embedding_scale: radius of embeddings.
      bias_scale: radius of vectors; None for ``scale``.
    """
    vectors = scale if bias_scale is None else bias_scale
    for name, value in (
        ("scale", scale),
        ("head_scale", head_scale),
        ("embedding_scale", embedding_scale),
        ("bias_scale", vectors),
    ):
        check_number(name, value, low=0.0)
    vector = NormBall("bias_rms", vectors)
    return (
        *((selector, as_ball(ball)) for selector, ball in norms),
        (_is_vector, vector),
        (Role.CONV, NormBall("spectral_conv", scale)),
        (MATRIX_ROLES, NormBall("spectral", scale)),
        (Role.HEAD, NormBall("sign", head_scale)),
        (Role.EMBEDDING, NormBall("col_norm", embedding_scale)),
        ("**", vector),
    )


def named_rules(
    rules: Sequence[tuple[Selector, NormBall]],
) -> tuple[dict[str, NormBall], list[tuple[Selector, str]]]:
    """Returns a name for each ball, and the rules with names in place of the balls."""
    balls: dict[str, NormBall] = {}
    named = []
    for selector, ball in rules:
        name = next((name for name, other in balls.items() if other is ball), None)
        if name is None:
            times = sum(other.norm == ball.norm for other in balls.values())
            name = f"{ball.norm}_{times + 1}" if times else ball.norm
            balls[name] = ball
        named.append((selector, name))
    return balls, named
