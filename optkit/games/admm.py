"""Consensus without dual variables (experimental)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.catalogue import register
from optkit.distributed.workers import AxisName, check_axis_name
from optkit.games.base import (
    Operator,
    Solver,
    alike,
    average,
    less,
    shared,
    starting,
    zeros_of,
)
from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.tree import PyTree

Solve = Callable[[PyTree, PyTree], PyTree]


class DualFreeState(NamedTuple):
    """State of ``dual_free_admm``."""

    z: PyTree  # (nodes, ...): what the nodes have, float32 or better
    mean: PyTree  # without the nodes' axis: w_n
    last: PyTree  # w_(n-1)
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished steps


@register(
    kind="solver",
    family="games",
    paper=(
        "Noise-Robust and Resource-Efficient ADMM-based Federated Learning",
        "2409.13451",
        2024,
    ),
    state_bytes={"*": 12},
    tags=("distributed", "consensus", "admm", "experimental"),
    chain="z = argmin f - <F, z> + rho/2 (z - 2w + w_last)^2; w = mean(z)",
)
def dual_free_admm(
    penalty: float,
    *,
    solve: Solve | None = None,
    step_size: float | None = None,
    inner_steps: int = 20,
    axis_name: AxisName = None,
) -> Solver:
    """Consensus ADMM whose duals are eliminated, so that nodes receive one model (experimental).

    For ``min sum_i f_i(z)``; the operator is the nodes' gradients ``F_i``. From ``w_0``:

    1. The server sends ``a = 2*w_n - w_(n-1)``; at first ``w_0``.
    2. ``z_i <- argmin f_i(z) - <F_i(z_i), z> + (rho/2)*|z - a|^2``; at first without the inner
       product.
    3. ``w_(n+1) = mean_i(z_i)``.

    ``step`` is called as ``step(state, operator)``, or ``step(state, operator, noise)`` with a tree
    like z of what is added to ``a`` on its way to each node.

    Low confidence: of the paper only the abstract was read; the recursion was derived from dual
    ADMM, which it equals to rounding if step 2 is exact and all nodes take part without noise.
    Steps that are not exact leave an error that stays. The abstract's gain over ADMM with noise
    was not reproduced.

    Args:
      penalty: rho.
      solve: ``(linear, a) -> z`` with ``F_i(z) + rho*(z - a) = linear``, all (nodes, ...): step 2
        exactly. One of ``solve`` and ``step_size`` has to be given.
      step_size: of gradient descent on step 2, below ``2/(L + rho)``.
      inner_steps: of gradient descent.
      axis_name: a mesh axis inside ``jax.shard_map`` that nodes are laid along; None for all on a
        leading axis.

    Returns:
      An ``optkit.games.Solver`` of ``DualFreeState``. State bytes: 4 a float32 parameter and node,
      8 a parameter.

    Raises:
      ValueError: ``penalty`` or ``step_size`` not above 0, or not one of ``solve`` and
        ``step_size``; in step an operator or ``solve`` that returns another tree or other shapes.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> target = jnp.array([[1.0], [5.0]])
      >>> exact = lambda linear, a: (linear + target + a) / 2  # F(z) = z - target, rho = 1
      >>> solver = optkit.games.dual_free_admm(1.0, solve=exact)
      >>> state = solver.init(jnp.zeros((2, 1)))
      >>> for _ in range(40):
      ...     state = solver.step(state, lambda z: z - target)
      >>> [round(float(x), 3) for x in state.z[:, 0]]
      [3.0, 3.0]

    Reference:
      After arXiv 2409.13451; own derivation.
    """
    check_number("penalty", penalty, low=0.0, open_low=True)
    if (solve is None) == (step_size is None):
        raise ValueError(
            "give solve= for an exact step, or step_size= for gradient descent, and not both"
        )
    if step_size is not None:
        check_number("step_size", step_size, low=0.0, open_low=True)
    check_static_int("inner_steps", inner_steps)
    check_axis_name(axis_name)

    def init(z: PyTree) -> DualFreeState:
        start = starting(z)
        mean = average(start, axis_name)
        return DualFreeState(start, mean, mean, jnp.zeros((), jnp.int32))

    def descend(operator: Operator, z: PyTree, linear: PyTree, centre: PyTree) -> PyTree:
        def body(_: int, z: PyTree) -> PyTree:
            pull = jax.tree.map(
                lambda f, b, x, a: f - b + penalty * (x - a), operator(z), linear, z, centre
            )
            return less(z, step_size, pull)

        return lax.fori_loop(0, inner_steps, body, z)

    def step(state: DualFreeState, operator: Operator, noise: Any = None) -> DualFreeState:
        operator = alike(operator, "operator")
        sent = jax.tree.map(lambda new, old: 2.0 * new - old, state.mean, state.last)
        centre = shared(sent, state.z, axis_name)
        if noise is not None:
            centre = jax.tree.map(jnp.add, centre, noise)
        begun = state.count > 0
        own = operator(state.z)
        linear = jax.tree.map(lambda f, o: jnp.where(begun, f, o), own, zeros_of(own, axis_name))
        z = (
            alike(solve, "solve", 1)(linear, centre)
            if solve
            else descend(operator, state.z, linear, centre)
        )
        return DualFreeState(z, average(z, axis_name), state.mean, state.count + 1)

    return Solver(init, step)
