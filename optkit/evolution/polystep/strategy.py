"""PolyStep: particles of parameters move to the corners of polytopes where the loss is low."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.polystep.coordinates import Basis
from optkit.evolution.polystep.geometry import Polytope
from optkit.evolution.polystep.moving import AdaptiveRadius, Move, absorbed, advanced
from optkit.evolution.polystep.population import PolyStep
from optkit.evolution.polystep.probing import PolyStepState, Probing, basis_key, generation_keys
from optkit.evolution.polystep.transport import CostScale, NonFinite, Solver, check_cost_scale
from optkit.evolution.strategy import fitness_vector
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import Dims, PyTree, RuleLike


@register(
    kind="strategy",
    family="evolution",
    paper=("Training Non-Differentiable Networks via Optimal Transport", "2605.01928", 2026),
    state_bytes={"*": 0},
    tags=("evolution", "gradient-free", "optimal-transport", "non-differentiable"),
    chain="probes at polytopes' corners, - step to their barycentre",
    example={"population": 16},
)
def polystep(
    population: int | None = None,
    *,
    epsilon: ScalarOrSchedule = 0.5,
    step_radius: ScalarOrSchedule = 2.0,
    probe_radius: ScalarOrSchedule = 1.0,
    rank: int | None = None,
    particle_dim: int | None = None,
    polytope: Polytope = "orthoplex",
    num_probe: int = 1,
    solver: Solver = "softmax",
    scale_cost: CostScale = 1.0,
    momentum: ScalarOrSchedule | None = None,
    velocity_lr: ScalarOrSchedule = 1.0,
    adaptive_radius: AdaptiveRadius | None = None,
    biased_rotation: bool = False,
    probe_radius_jitter: float = 0.0,
    absorb_interval: int | None = None,
    basis: Basis = "auto",
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    dims: Dims = None,
    rules: Iterable[RuleLike] = (),
    key: Key = None,
) -> PolyStep:
    """Moves pairs (or eights) of parameters to the corners of a polytope where the loss is low.

    The parameters, or the coordinates of a subspace, are cut into particles of p numbers.

    1. each particle has a polytope of v corners in its p numbers, turned by ``R_b``, uniform;
    2. it is probed at ``X_b + probe_radius * s_k * R_b v_j``, ``s_k = k/(num_probe + 1)``, the
       others in place, and ``C_bj`` is the mean cost over k: one member a probe;
    3. ``W <- softmax(-C/(scale*epsilon))`` for each particle, or Sinkhorn's plan;
    4. ``X_b <- X_b + step_radius * R_b (W_b V)``; with momentum ``m <- beta*m + move`` and
       ``X <- X + velocity_lr*m``.

    A radius given as a number is multiplied by epsilon, one given as a schedule is not:
    ``optax.constant_schedule(r)`` is a radius that stays. Probes and step have radii of their own,
    and with one probe it lies at half of its radius.

    Each number is judged by losses of its own, so that a generation costs several evaluations a
    coordinate: choose it where evaluations are many, or tell what few parameters change, as in
    MAX-SAT. The paper reports it ahead of evolution strategies on non-differentiable networks,
    which had 100 to 10000 times fewer evaluations there; with as many, and few, it was behind the
    best of them on each of five such networks on digits, by 0.15 to 0.36 of the held-out error
    (``python -m benchmarks.claims polystep``). Of the clauses of 100000 variables it satisfies
    0.982 after 12 generations, hill climbing 0.977 (``python -m benchmarks.claims maxsat``).

    Args:
      population: number of probes of a generation, a multiple of v times ``num_probe``; None for
        those of all particles, as in the paper, which ``count_probes`` tells. With fewer, particles
        are probed and moved in turn.
      epsilon: entropic regularization, a number or a schedule; towards 0 the best corner is taken.
      step_radius: of the polytope that is moved on.
      probe_radius: of the polytope that is probed.
      rank: of a subspace with ``rank*(fan_in + fan_out)`` coordinates a matrix; None for all
        parameters.
      particle_dim: p; None for 2, or 8 in a subspace.
      polytope: "orthoplex" (2p corners), "simplex" (p + 1) or "cube" (2**p).
      num_probe: probes on the way to each corner.
      solver: "softmax", or "sinkhorn" for columns of equal mass too.
      scale_cost: costs are divided by it; "mean" and "max" of their absolute values change with the
        level of the loss.
      momentum: beta, a number or a schedule; None for none.
      velocity_lr: what the velocity is multiplied by.
      adaptive_radius: ``AdaptiveRadius()`` to adapt both radii to the mean cost.
      biased_rotation: turn the first axis of each polytope to the particle's last move.
      probe_radius_jitter: j for a probe radius times a uniform number of [1 - j, 1 + j] in each
        generation; the paper's proof needs more than 0, and 0.05 is its recommendation.
      absorb_interval: generations after which the subspace is drawn anew, and velocity and last
        moves are forgotten; None for never.
      basis: of a subspace: "dense" orthonormal columns, "factored" as ``U A^T + B V^T`` with
        coordinates A and B, or "auto" for dense ones up to 2**22 numbers a leaf.
      maximize: False for losses.
      nonfinite: such costs are put above all others; "penalty" lets them count in the scale.
      dims: which axes of a leaf are its matrix, as for all matrix methods.
      rules: role rules of yours, tried before the built-in ones.
      key: seed or PRNG key; None for 0.

    Returns:
      A ``PolyStep`` strategy that emits minus the step: follow it by ``optax.sgd(1.0)``. Its
      ``evaluate`` needs memory for a part of the probes only. State: scalars, the basis of a
      subspace, and for momentum and biased rotations as many numbers as there are coordinates.

    Raises:
      ValueError: a population that is no multiple, or more than there are probes; Sinkhorn's plan
        of one particle, which never moves; numbers out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optkit.evolution.polystep import cosine_annealing, polystep
      >>> params = {"w": jnp.zeros(4)}
      >>> cost = lambda p: jnp.sum(jnp.floor(4 * (p["w"] - 1.0) ** 2))
      >>> annealed = cosine_annealing(0.5, 0.1, total_steps=30)
      >>> es = polystep(epsilon=annealed, probe_radius=4.0, maximize=False)
      >>> tx = optax.chain(es, optax.sgd(1.0))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def generation(params, state):
      ...     losses = jax.vmap(cost)(es.perturb(params, state))
      ...     updates, state = tx.update(losses, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(30):
      ...     params, state = generation(params, state)
      >>> float(cost(params))
      0.0

    Reference:
      Training Non-Differentiable Networks via Optimal Transport, 2026,
      https://arxiv.org/abs/2605.01928. Their code takes Sinkhorn's plan in full space unless told
      otherwise, penalises non-finite costs before it scales ("penalty"), and has no turns of
      particles.
    """
    for name, radius in (("step_radius", step_radius), ("probe_radius", probe_radius)):
        check_number(name, radius, low=0.0)
    if population is not None:
        check_static_int("population", population)
    check_number("epsilon", epsilon, low=1e-30)
    check_number("velocity_lr", velocity_lr)
    check_static_number("probe_radius_jitter", probe_radius_jitter)
    check_number("probe_radius_jitter", probe_radius_jitter, low=0.0, high=1.0)
    check_static_int("num_probe", num_probe)
    check_choice("solver", solver, ("softmax", "sinkhorn"))
    check_choice("nonfinite", nonfinite, ("worst", "penalty"))
    check_choice("basis", basis, ("auto", "dense", "factored"))
    check_cost_scale(scale_cost)
    check_seed(key)
    if momentum is not None:
        check_number("momentum", momentum, low=0.0, high=1.0)
    if rank is not None:
        check_static_int("rank", rank)
    if absorb_interval is not None:
        check_static_int("absorb_interval", absorb_interval)
        if rank is None:
            raise ValueError("absorb_interval renews a subspace; give a rank, or no interval")
    probing = Probing(
        population,
        epsilon,
        step_radius,
        probe_radius,
        probe_radius_jitter,
        particle_dim or (8 if rank else 2),
        polytope,
        num_probe,
        rank,
        basis,
        biased_rotation,
        dims,
        tuple(rules),
    )
    if population is not None and population % probing.probes:
        raise ValueError(
            f"population={population} is no multiple of the {probing.probes} probes of a particle; "
            "optkit.evolution.count_probes(params) tells how many all particles have"
        )
    move = Move(
        solver,
        scale_cost,
        maximize,
        nonfinite,
        momentum,
        velocity_lr,
        adaptive_radius,
        absorb_interval,
    )
    return _strategy(probing, move, key)


def _strategy(probing: Probing, move: Move, key: Key) -> PolyStep:
    def init(params: PyTree) -> PolyStepState:
        coordinates = probing.coordinates(params)
        shape = (probing.particles(coordinates)[0], probing.particle_dim)
        own = fresh_key(key)
        return PolyStepState(
            own,
            jnp.zeros((), jnp.int32),
            coordinates.draw(basis_key(own, 0)),
            () if move.momentum is None else jnp.zeros(shape, coordinates.dtype),
            jnp.zeros(shape, coordinates.dtype) if probing.biased else (),
            jnp.ones((), jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.asarray(jnp.inf, jnp.float32),
        )

    def update(
        fitness: Any,
        state: PolyStepState,
        params: PyTree | None = None,
        *,
        rotations: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PolyStepState]:
        del extra_args
        params = need_params(params, "polystep")
        coordinates = probing.coordinates(params)
        count, block = probing.particles(coordinates)
        given = fitness_vector(fitness, block * probing.probes)
        rows = probing.rows(state.es_step, count, block)
        turn, shake = generation_keys(state)
        if rotations is None:
            rotations = probing.rotations(turn, state, rows, coordinates.dtype)
        vertices, radii = probing.vertices, probing.radii(state, shake)
        cost = (-given if move.maximize else given).astype(coordinates.dtype)
        cost = cost.reshape(block, len(vertices), probing.num_probe).mean(-1)
        moved = move.displacements(cost, rotations, vertices, radii.epsilon, radii.step)
        state, moved = advanced(move, state, rows, moved, jnp.mean(cost))
        whole = jnp.zeros((count, probing.particle_dim), moved.dtype).at[rows].set(moved)
        step = coordinates.spread(state.es_basis, whole.reshape(1, -1)[:, : coordinates.count])
        updates = jax.tree.map(lambda p, d: -d[0].astype(p.dtype), params, step)
        state = state._replace(es_step=state.es_step + 1)
        return updates, absorbed(move, coordinates, state)

    def members(params: PyTree, state: PolyStepState) -> PyTree:
        return probing.members(params, state, jnp.arange(probing.size(params)))

    out = PolyStep(
        init,
        update,
        population=probing.population,
        members=members,
        state=PolyStepState,
        own_step=True,
        maximize=move.maximize,
    )
    out.probing = probing
    return out
