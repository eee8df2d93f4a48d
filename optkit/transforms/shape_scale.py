"""Factors that depend on a matrix's shape only."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_updates, stateless
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike

Mode = Literal["max1", "rms_op", "match_rms", "none"] | Callable[[int, int], float]

_MODES: dict[str, Callable[[float, float, float], float]] = {
    "max1": lambda fan_out, fan_in, factor: math.sqrt(max(1.0, fan_out / fan_in)),
    "rms_op": lambda fan_out, fan_in, factor: math.sqrt(fan_out / fan_in),
    "match_rms": lambda fan_out, fan_in, factor: factor * math.sqrt(max(fan_out, fan_in)),
    "none": lambda fan_out, fan_in, factor: 1.0,
}


@register(
    kind="part",
    family="direction",
    paper=("Muon is Scalable for LLM Training", "2502.16982", 2025),
    state_bytes={"*": 0},
    tags=("muon",),
    chain="u = scale(fan_out, fan_in) u",
    matrices_only=True,
)
def scale_by_shape(
    mode: Mode = "max1",
    *,
    factor: float = 0.2,
    shape_from: Literal["matrix", "last_two_axes"] = "matrix",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Multiplies each matrix by a number made of its fan_out and fan_in.

    * ``"max1"``: ``sqrt(max(1, fan_out/fan_in))`` (Jordan's Muon);
    * ``"rms_op"``: ``sqrt(fan_out/fan_in)`` (unit RMS-to-RMS operator norm);
    * ``"match_rms"``: ``factor*sqrt(max(fan_out, fan_in))``: an orthogonal factor then has RMS
      ``factor``, like AdamW's update (Moonlight);
    * ``"none"``: 1; or a function of (fan_out, fan_in).

    Args:
      mode: which law.
      factor: RMS of "match_rms"; optax.contrib.muon calls it consistent_rms.
      shape_from: "last_two_axes" takes axis -2 as fan_out and axis -1 as fan_in of the leaf as it
        is: what the reference Muon does with (out, in, kh, kw) convolutions, whose factor is so 1.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes) for trees of matrices.

    Raises:
      ValueError: a leaf is no matrix or the mode is unknown.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_shape("rms_op")
      >>> float(tx.update({"w": jnp.ones((2, 8))}, tx.init(None))[0]["w"][0, 0])
      2.0

    Reference:
      Jordan et al., Muon, 2024 (blog); Liu et al., Muon is Scalable, arXiv 2502.16982.
    """
    if not callable(mode):
        check_choice("mode", mode, tuple(_MODES))
    check_choice("shape_from", shape_from, ("matrix", "last_two_axes"))
    check_number("factor", factor, low=0.0)

    def law(fan_out: int, fan_in: int) -> float:
        if not fan_out or not fan_in:
            return 1.0
        if callable(mode):
            return mode(fan_out, fan_in)
        return _MODES[mode](fan_out, fan_in, factor)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        layout = MatrixLayout(updates, dims, roles)
        if shape_from == "matrix":
            return layout.scale(updates, [law(view.fan_out, view.fan_in) for view in layout.views])
        return map_updates(lambda u: u * law(*u.shape[-2:]), updates)

    return stateless(update)
