"""Functions of whole sets of weights: extrapolation along a training run, and how far it pays."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import Scalar, check_number
from optkit.tree import PyTree, upcast

__all__ = ["LineSearch", "accept_line_search", "extrapolate"]


def extrapolate(params: PyTree, reference: PyTree, weight: Scalar) -> PyTree:
    """Returns weights moved on, along the way that leads to them from a reference.

    ``p + weight*(p - p_ref)``. A weight of 0 is ``params``, -1 the reference; between the two it
    interpolates. Two methods are this formula:

    * EffOPD moves on along the training's own way: ``p_ref`` is an older checkpoint;
    * Neon moves away from a model that was trained on its own samples: with ``params`` the model
      and ``reference`` its self-trained copy it is ``(1+w)*theta - w*theta_self``.

    Args:
      params: a tree of arrays.
      reference: a tree of the same leaves and shapes.
      weight: how far, in units of the distance; a number or a scalar array.

    Returns:
      A tree like ``params``, dtypes kept; arithmetic in float32.

    Raises:
      ValueError: the weight is not finite, or the trees differ; lists the paths.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> now, before = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([1.0, 1.0])}
      >>> optkit.extrapolate(now, before, 2.0)["w"].tolist()
      [4.0, -2.0]

    Reference:
      EffOPD: Learning to Foresee, arXiv 2605.11739; Neon: Negative Extrapolation from
      Self-Training, arXiv 2510.03597.
    """
    check_number("weight", weight)
    check_same_leaves(params, reference, "reference", shapes=True)

    def leaf(p: jax.Array, r: jax.Array) -> jax.Array:
        wide = upcast(p)
        return (wide + weight * (wide - upcast(r))).astype(p.dtype)

    return jax.tree.map(leaf, params, reference)


_Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _while_loop(
    going: Callable[[_Carry], jax.Array], step: Callable[[_Carry], _Carry], carry: _Carry
) -> _Carry:
    """``jax.lax.while_loop`` in Python."""
    while going(carry):
        carry = step(carry)
    return carry


class LineSearch(NamedTuple):
    """What ``accept_line_search`` found."""

    params: PyTree  # the accepted weights
    weight: jax.Array  # float32 scalar, how far was gone; 0 if nothing was accepted
    score: jax.Array  # float32 scalar, score of params
    evaluations: jax.Array  # int32 scalar, calls of the score, that of the base included


def accept_line_search(
    score: Callable[[PyTree], jax.Array],
    params: PyTree,
    reference: PyTree,
    weights: Sequence[float] = (2.0, 4.0, 6.0, 8.0, 10.0),
    *,
    on_device: bool = True,
) -> LineSearch:
    """Extrapolates as far as a score does not fall.

    1. ``best = score(params)``;
    2. for each ``w`` in turn: the candidate is ``p + w*(p - p_ref)``, always from the same ``p``;
       it is accepted while its score is at least ``best``, which it then sets; the first one that
       fails ends the search.

    EffOPD calls it at the steps 1, 2, 4, 8, ... with the checkpoint of half as many steps for a
    reference, goes on from the accepted weights and leaves the optimizer's state as it is. One
    checkpoint is all that it keeps.

    Args:
      score: pure function of the weights, larger is better; NaN fails.
      params: the base, a tree of arrays.
      reference: where the way began, a tree of the same leaves and shapes.
      weights: candidates in order. EffOPD's paper writes ``2k`` for k = 1..5, the default; a
        third-party code doubles.
      on_device: run the search as one loop on the device, under ``jit`` too, for which JAX has to
        trace the score; False calls it from Python, as for one that generates text.

    Returns:
      A ``LineSearch``; its score is never below that of ``params``.

    Raises:
      ValueError: no weights, one that is not finite, or trees that differ.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> score = lambda p: -jnp.abs(p["w"] - 6.0).sum()
      >>> found = optkit.accept_line_search(score, {"w": jnp.ones(1)}, {"w": jnp.zeros(1)})
      >>> found.params["w"].tolist(), float(found.weight), int(found.evaluations)
      ([7.0], 6.0, 5)

    Reference:
      EffOPD: Learning to Foresee, arXiv 2605.11739.
    """
    if not len(weights):
        raise ValueError("accept_line_search needs candidates: weights=() is empty")
    for weight in weights:
        check_number("weights", weight)
    check_same_leaves(params, reference, "reference", shapes=True)
    steps = jnp.asarray(weights, jnp.float32)
    loop = jax.lax.while_loop if on_device else _while_loop

    def scored(weight: jax.Array) -> jax.Array:
        return jnp.asarray(score(extrapolate(params, reference, weight)), jnp.float32)

    def going(carry: _Carry) -> jax.Array:
        index, _, _, passed = carry
        return passed & (index < len(weights))

    def look(carry: _Carry) -> _Carry:
        index, reached, best, _ = carry
        found = scored(steps[index])
        passed = found >= best
        return (
            index + 1,
            jnp.where(passed, steps[index], reached),
            jnp.where(passed, found, best),
            passed,
        )

    base = jnp.asarray(score(params), jnp.float32)
    start = (jnp.zeros((), jnp.int32), jnp.zeros(()), base, jnp.array(True))
    tried, reached, best, _ = loop(going, look, start)
    return LineSearch(extrapolate(params, reference, reached), reached, best, tried + 1)
