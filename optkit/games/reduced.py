"""Operators of samples with less variance: loopless SVRG."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.games.base import Operator, alike, check_flag, starting
from optkit.tree import PyTree


class LooplessState(NamedTuple):
    """State of ``loopless``."""

    anchor: PyTree  # w, like z
    whole: PyTree  # F(w), like z


class Loopless(NamedTuple):
    """What ``optkit.games.loopless`` returns.

    Attributes:
      init: (z, operator of all data) -> state.
      operator: (state, operator of a sample) -> operator with less variance.
      move: (state, z, operator of all data, bool scalar) -> state.
    """

    init: Callable[[PyTree, Operator], LooplessState]
    operator: Callable[[LooplessState, Operator], Operator]
    move: Callable[[LooplessState, PyTree, Operator, Any], LooplessState]


def loopless() -> Loopless:
    """L-SVRG for operators: a sample's difference from an anchor, where all data was seen.

    1. ``g(z) = F_s(z) - F_s(w) + F(w)`` for a sample s; feed it to a solver's step.
    2. With a small probability q ``w <- z`` and ``F(w)`` anew, z before that step.

    ``g`` has the mean ``F(z)``, and no variance where z and w are at the solution: with
    ``optkit.games.proxskip_vip`` this is L-SVRGDA.

    Returns:
      ``Loopless``. State bytes: 8 a float32 parameter and node.

    Raises:
      ValueError: in the functions an operator that returns another tree or other shapes; in
        ``move`` a decision that is no boolean scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> data = jnp.array([1.0, 2.0, 3.0, 6.0])
      >>> whole = lambda z: z - data.mean()
      >>> reduced = optkit.games.loopless()
      >>> z = jnp.ones((1, 1))
      >>> state = reduced.init(z, whole)
      >>> reduced.operator(state, lambda z: z - data[2])(z).tolist()
      [[-2.0]]
      >>> reduced.move(state, 3 * z, whole, True).whole.tolist()
      [[0.0]]

    Reference:
      Zhang et al., arXiv 2306.05100, section on L-SVRGDA. The released script moves its anchor with
      every step and divides by the number of nodes; this is the method as stated.
    """

    def init(z: PyTree, whole: Operator) -> LooplessState:
        anchor = starting(z)
        return LooplessState(anchor, alike(whole, "operator of all data")(anchor))

    def operator(state: LooplessState, sample: Operator) -> Operator:
        def reduced(z: PyTree) -> PyTree:
            own = alike(sample, "operator of a sample")
            parts = own(z), own(state.anchor), state.whole
            return jax.tree.map(lambda here, there, full: here - there + full, *parts)

        return reduced

    def move(state: LooplessState, z: PyTree, whole: Operator, moves: Any) -> LooplessState:
        check_flag("moves", moves)

        def anew() -> LooplessState:
            return LooplessState(z, alike(whole, "operator of all data")(z))

        return lax.cond(jnp.asarray(moves), anew, lambda: state)

    return Loopless(init, operator, move)
