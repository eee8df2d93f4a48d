"""Solvers whose nodes step on their own and meet now and then."""

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
    check_flag,
    less,
    shared,
    starting,
    zeros_of,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    check_static_number,
    value_at,
)
from optkit.tree import PyTree

Prox = Callable[[PyTree, Any], PyTree]


class ProxSkipState(NamedTuple):
    """State of ``proxskip_vip``."""

    z: PyTree  # (nodes, ...), float32 or better
    control: PyTree  # like z: what a node's operator is believed to be at the solution
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished steps


class LocalState(NamedTuple):
    """State of ``local_gda``, ``extragradient`` and ``fedgda_gt``."""

    z: PyTree  # (nodes, ...), float32 or better
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished steps


@register(
    kind="solver",
    family="games",
    paper=(
        "Communication-Efficient Gradient Descent-Accent Methods for Distributed "
        "Variational Inequalities",
        "2306.05100",
        2023,
    ),
    state_bytes={"*": 8},
    tags=("distributed", "variational inequality", "minimax", "control variates", "local steps"),
    chain="u = z - gamma (F - h); meeting: z = mean(u - gamma/p h), h += p/gamma (z - u)",
)
def proxskip_vip(
    step_size: ScalarOrSchedule,
    probability: float,
    *,
    prox: Prox | None = None,
    axis_name: AxisName = None,
) -> Solver:
    """ProxSkip-VIP: local steps with control variates, and a mean with a small probability.

    For ``sum_i F_i(z) = 0``, with constraints ``prox``; of ``min_x max_y f`` the operator is
    ``(grad_x f, -grad_y f)``, of ``min f`` its gradient (then it is ProxSkip, or Scaffnew). From
    controls ``h_i = 0``:

    1. ``u_i = z_i - gamma*(F_i(z_i) - h_i)``.
    2. Without a meeting ``z_i <- u_i``.
    3. With one ``z_i <- prox(mean_j(u_j - (gamma/p)*h_j))`` and
       ``h_i <- h_i + (p/gamma)*(z_i - u_i)``.

    The controls sum to 0; at the solution ``h_i = F_i(z)``, so that nothing pulls nodes apart
    between meetings. ``step`` is called as ``step(state, operator, meets)``: ``meets`` is a bool
    scalar, the same on all nodes, such as one of
    ``jax.random.bernoulli(key, probability, (steps,))``; the operator maps (nodes, ...) to the
    same, and may draw samples or be one of ``optkit.games.loopless``.

    Args:
      step_size: gamma; in theory one by the largest cocoercivity constant of the nodes.
      probability: p of a meeting, in (0, 1]; in theory ``sqrt(gamma * mu)``.
      prox: (point without the nodes' axis, gamma/p) -> point, such as a projection.
      axis_name: a mesh axis inside ``jax.shard_map`` that nodes are laid along; None for all on a
        leading axis.

    Returns:
      An ``optkit.games.Solver`` of ``ProxSkipState``. State bytes: 8 a float32 parameter and node.

    Raises:
      ValueError: ``step_size`` not above 0, ``probability`` outside (0, 1]; in step an operator or
        ``prox`` that returns another tree or other shapes, ``meets`` that is no boolean scalar.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> target = jnp.array([[1.0], [5.0]])
      >>> solver = optkit.games.proxskip_vip(0.5, 0.5)
      >>> state = solver.init(jnp.zeros((2, 1)))
      >>> for meets in [False, True] * 12:
      ...     state = solver.step(state, lambda z: z - target, meets)
      >>> [round(float(x), 3) for x in state.z[:, 0]]
      [3.0, 3.0]

    Reference:
      Zhang, Choudhury, Stich, Loizou, arXiv 2306.05100.
    """
    check_number("step_size", step_size, low=0.0, open_low=True)
    check_static_number("probability", probability)
    check_number("probability", probability, low=0.0, high=1.0, open_low=True)
    check_axis_name(axis_name)

    def init(z: PyTree) -> ProxSkipState:
        start = starting(z)
        return ProxSkipState(start, zeros_of(start, axis_name), jnp.zeros((), jnp.int32))

    def step(state: ProxSkipState, operator: Operator, meets: Any) -> ProxSkipState:
        check_flag("meets", meets)
        gamma = value_at(step_size, state.count)
        far = gamma / probability
        pull = jax.tree.map(jnp.subtract, alike(operator, "operator")(state.z), state.control)
        u = less(state.z, gamma, pull)

        def meet() -> tuple[PyTree, PyTree]:
            mean = average(less(u, far, state.control), axis_name)
            z = shared(mean if prox is None else alike(prox, "prox")(mean, far), u, axis_name)
            moved = jax.tree.map(lambda h, x, y: h + (x - y) / far, state.control, z, u)
            return z, moved

        z, control = lax.cond(meets, meet, lambda: (u, state.control))
        return ProxSkipState(z, control, state.count + 1)

    return Solver(init, step)


@register(
    kind="solver",
    family="games",
    paper=(
        "Local Stochastic Gradient Descent Ascent: Convergence Analysis and Communication "
        "Efficiency",
        "2102.13152",
        2021,
    ),
    state_bytes={"*": 4},
    tags=("distributed", "minimax", "local steps"),
    chain="z - gamma F; meeting: mean",
)
def local_gda(step_size: ScalarOrSchedule, *, axis_name: AxisName = None) -> Solver:
    """Local gradient descent-ascent: steps of each node, and a mean where they meet.

    1. ``u_i = z_i - gamma*F_i(z_i)``.
    2. ``z_i <- u_i``, or with a meeting ``z_i <- mean_j(u_j)``.

    With nodes that differ and several steps between meetings it stays away from the solution, for
    which ``optkit.games.proxskip_vip`` and ``optkit.games.fedgda_gt`` have corrections. ``step`` is
    called as ``step(state, operator, meets)``.

    Args:
      step_size: gamma.
      axis_name: a mesh axis inside ``jax.shard_map`` that nodes are laid along; None for all on a
        leading axis.

    Returns:
      An ``optkit.games.Solver`` of ``LocalState``. State bytes: 4 a float32 parameter and node.

    Raises:
      ValueError: ``step_size`` not above 0; in step an operator that returns another tree or other
        shapes, ``meets`` that is no boolean scalar.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> solver = optkit.games.local_gda(0.5)
      >>> state = solver.init(jnp.array([[0.0], [4.0]]))
      >>> solver.step(state, lambda z: z, True).z.tolist()
      [[1.0], [1.0]]

    Reference:
      Deng and Mahdavi, Local Stochastic Gradient Descent Ascent, arXiv 2102.13152.
    """
    check_number("step_size", step_size, low=0.0, open_low=True)
    return _local(lambda z, f, count: less(z, value_at(step_size, count), f(z)), axis_name)


@register(
    kind="solver",
    family="games",
    paper=(
        "Distributed Saddle-Point Problems: Lower Bounds, Near-Optimal and Robust Algorithms",
        "2010.13112",
        2020,
    ),
    state_bytes={"*": 4},
    tags=("distributed", "variational inequality", "minimax", "local steps"),
    chain="z - gamma F(z - gamma F); meeting: mean",
)
def extragradient(
    step_size: ScalarOrSchedule,
    second: ScalarOrSchedule | None = None,
    *,
    axis_name: AxisName = None,
) -> Solver:
    """Extragradient, on each node alone between meetings.

    1. ``v_i = z_i - gamma_1*F_i(z_i)``.
    2. ``u_i = z_i - gamma_2*F_i(v_i)``.
    3. ``z_i <- u_i``, or with a meeting ``z_i <- mean_j(u_j)``.

    One node is the method of Korpelevich, which converges where descent-ascent turns in circles.
    ``step`` is called as ``step(state, operator, meets)``.

    Args:
      step_size: gamma_1.
      second: gamma_2; as ``step_size`` if None.
      axis_name: a mesh axis inside ``jax.shard_map`` that nodes are laid along; None for all on a
        leading axis.

    Returns:
      An ``optkit.games.Solver`` of ``LocalState``. State bytes: 4 a float32 parameter and node.

    Raises:
      ValueError: a step size not above 0; in step what ``optkit.games.local_gda`` raises.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> solver = optkit.games.extragradient(0.5)
      >>> state = solver.init(jnp.array([[1.0, 0.0]]))  # min over x, max over y of x*y
      >>> solver.step(state, lambda z: jnp.stack([z[:, 1], -z[:, 0]], 1), True).z.tolist()
      [[0.75, 0.5]]

    Reference:
      Beznosikov et al., Distributed Local Methods, arXiv 2010.13112, for the local form.
    """
    check_number("step_size", step_size, low=0.0, open_low=True)
    last = step_size if second is None else second
    check_number("second", last, low=0.0, open_low=True)

    def moved(z: PyTree, f: Operator, count: jax.Array) -> PyTree:
        ahead = less(z, value_at(step_size, count), f(z))
        return less(z, value_at(last, count), f(ahead))

    return _local(moved, axis_name)


@register(
    kind="solver",
    family="games",
    paper=(
        "A Communication-efficient Algorithm with Linear Convergence for Federated Minimax "
        "Learning",
        "2206.01132",
        2022,
    ),
    state_bytes={"*": 4},
    tags=("distributed", "minimax", "gradient tracking", "local steps"),
    chain="K times z - gamma (F_i(z) - F_i(w) + mean F(w)); mean",
)
def fedgda_gt(
    step_size: ScalarOrSchedule, local_steps: int, *, axis_name: AxisName = None
) -> Solver:
    """FedGDA-GT: rounds of local steps along a node's operator corrected by the mean of all.

    1. ``F(w) = mean_j(F_j(w))`` where nodes start, ``w``.
    2. ``local_steps`` times ``z_i <- z_i - gamma*(F_i(z_i) - F_i(w) + F(w))``.
    3. ``z_i <- mean_j(z_j)``.

    ``step`` is called as ``step(state, operator)`` and is a whole round with two means; all nodes
    have to start from one point.

    Args:
      step_size: gamma.
      local_steps: steps in a round.
      axis_name: a mesh axis inside ``jax.shard_map`` that nodes are laid along; None for all on a
        leading axis.

    Returns:
      An ``optkit.games.Solver`` of ``LocalState``. State bytes: 4 a float32 parameter and node.

    Raises:
      ValueError: ``step_size`` not above 0, ``local_steps`` below 1; in step an operator that
        returns another tree or other shapes.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> target = jnp.array([[1.0], [5.0]])
      >>> solver = optkit.games.fedgda_gt(0.5, 4)
      >>> state = solver.step(solver.init(jnp.zeros((2, 1))), lambda z: z - target)
      >>> state.z.tolist()
      [[2.8125], [2.8125]]

    Reference:
      Sun and Wei, arXiv 2206.01132.
    """
    check_number("step_size", step_size, low=0.0, open_low=True)
    check_static_int("local_steps", local_steps)
    check_axis_name(axis_name)

    def step(state: LocalState, operator: Operator) -> LocalState:
        operator = alike(operator, "operator")
        gamma, own = value_at(step_size, state.count), operator(state.z)
        whole = shared(average(own, axis_name), own, axis_name)
        correction = jax.tree.map(jnp.subtract, whole, own)

        def body(_: int, z: PyTree) -> PyTree:
            return less(z, gamma, jax.tree.map(jnp.add, operator(z), correction))

        z = lax.fori_loop(0, local_steps, body, state.z)
        return LocalState(shared(average(z, axis_name), z, axis_name), state.count + 1)

    return Solver(_init, step)


def _init(z: PyTree) -> LocalState:
    return LocalState(starting(z), jnp.zeros((), jnp.int32))


def _local(moved: Callable[[PyTree, Operator, jax.Array], PyTree], axis_name: AxisName) -> Solver:
    """A solver whose nodes step by ``moved`` and take the mean where they meet."""
    check_axis_name(axis_name)

    def step(state: LocalState, operator: Operator, meets: Any) -> LocalState:
        check_flag("meets", meets)
        u = moved(state.z, alike(operator, "operator"), state.count)
        z = lax.cond(meets, lambda: shared(average(u, axis_name), u, axis_name), lambda: u)
        return LocalState(z, state.count + 1)

    return Solver(_init, step)
