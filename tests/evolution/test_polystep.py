"""Laws of PolyStep: where it probes, where it moves, and what it never does."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.evolution.polystep import (
    AdaptiveRadius,
    count_probes,
    linear_annealing,
    polystep,
    polystep_es,
    polytope_vertices,
)
from optkit.evolution.polystep.geometry import haar_rotations, toward
from optkit.evolution.polystep.transport import comparable, plan_weights

PARAMS = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
COUNT = 16  # 8 numbers in pairs, four corners each


@functools.cache
def runner(**options):
    es = polystep(COUNT, **options)
    return es, jax.jit(es.update), jax.jit(es.perturb)


def flat(tree, lead=()):
    return np.concatenate([np.reshape(x, (*lead, -1)) for x in jax.tree.leaves(tree)], -1)


def moves(updates):
    """Displacements of the particles."""
    return -flat(updates).reshape(-1, 2)


@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e25]))
@pytest.mark.slow
def test_no_particle_moves_farther_than_the_step_radius(seed, size):
    losses = np.random.default_rng(seed).standard_normal(COUNT).astype(np.float32) * np.float32(
        size
    )
    es, update, _ = runner(step_radius=3.0, epsilon=0.5, scale_cost="mean")
    moved = moves(update(losses, es.init(PARAMS), PARAMS)[0])
    assert np.all(np.linalg.norm(moved, axis=1) <= 1.5 * (1 + 1e-5))


@given(st.integers(0, 2**31))
def test_towards_no_regularization_the_best_corner_is_taken(seed):
    losses = np.random.default_rng(seed).permutation(COUNT).astype(np.float32)
    es, update, perturb = runner(step_radius=_half, probe_radius=_one, epsilon=1e-4, maximize=False)
    state = es.init(PARAMS)
    moved = moves(update(losses, state, PARAMS)[0])
    probes = flat(perturb(PARAMS, state), (COUNT,)) - flat(PARAMS)
    best = losses.reshape(4, 4).argmin(1)
    for particle, corner in enumerate(best):
        # The probe lies at half of radius 1, the corner at 0.5: the same place.
        own = probes[4 * particle + corner]
        np.testing.assert_allclose(own[2 * particle : 2 * particle + 2], moved[particle], atol=2e-6)
        assert np.count_nonzero(np.abs(own) > 1e-6) <= 2


def _half(count):
    return 0.5 + 0.0 * count


def _one(count):
    return 1.0 + 0.0 * count


@pytest.mark.parametrize("solver", ["softmax", "sinkhorn"])
def test_much_regularization_moves_nothing(solver):
    losses = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    es, update, _ = runner(step_radius=_one, epsilon=1e6, solver=solver)
    assert np.abs(moves(update(losses, es.init(PARAMS), PARAMS)[0])).max() < 1e-5


@pytest.mark.parametrize("solver", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("polytope", ["orthoplex", "simplex", "cube"])
def test_equal_costs_move_nothing(polytope, solver):
    population = count_probes(PARAMS, polytope=polytope)
    es = polystep(population, polytope=polytope, solver=solver)
    update, state = jax.jit(es.update), es.init(PARAMS)
    for level in (0.0, 7.0, np.nan, np.inf):
        updates, _ = update(np.full(population, level, np.float32), state, PARAMS)
        assert np.abs(flat(updates)).max() < 1e-6


@given(st.integers(0, 2**31), st.sampled_from(["softmax", "sinkhorn"]))
def test_the_order_of_corners_does_not_matter(seed, solver):
    rng = np.random.default_rng(seed)
    cost, order = rng.standard_normal((5, 4)), rng.permutation(4)
    corners = polytope_vertices("orthoplex", 2)
    weigh = functools.partial(_weights, solver=solver)
    one = weigh(cost) @ corners
    np.testing.assert_allclose(weigh(cost[:, order]) @ corners[order], one, atol=1e-5)


@functools.partial(jax.jit, static_argnames="solver")
def _weights(cost, solver):
    return plan_weights(cost, 0.5, solver)


@given(st.integers(0, 2**31))
def test_sinkhorns_plan_has_equal_columns_too(seed):
    cost = 3 * np.random.default_rng(seed).standard_normal((5, 4))
    weights = np.asarray(_weights(cost, "sinkhorn"))
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(weights.mean(0), 0.25, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_rotations_are_uniform_and_proper(dim):
    turns = np.asarray(haar_rotations(jax.random.key(1), 4000, dim, jnp.float32))
    np.testing.assert_allclose(np.linalg.det(turns), 1.0, atol=1e-4)
    identity = np.broadcast_to(np.eye(dim), turns.shape)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), identity, atol=1e-5)
    # Under the Haar measure entries have mean 0 and second moment 1/d, and so have those of any
    # fixed rotation of them; the trace has mean 0 and, from d = 3 on, second moment 1.
    assert np.abs(turns.mean(0)).max() < 5 / np.sqrt(4000 * dim)
    assert np.abs((turns**2).mean(0) - 1 / dim).max() < 0.05
    trace = np.trace(turns, axis1=1, axis2=2)
    assert abs((trace**2).mean() - (2.0 if dim == 2 else 1.0)) < 0.15


@pytest.mark.parametrize("dim", [2, 4])
def test_a_biased_rotation_looks_where_it_went(dim):
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((6, dim)).astype(np.float32) * np.float32(1e-12)
    directions[2] = 0.0
    drawn = haar_rotations(jax.random.key(2), 6, dim, jnp.float32)
    turned = np.asarray(toward(drawn, jnp.asarray(directions)))
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    moved = np.arange(6) != 2
    np.testing.assert_allclose(
        turned[moved, :, 0], (directions / np.maximum(lengths, 1e-30))[moved], atol=1e-5
    )
    np.testing.assert_allclose(turned[2], drawn[2], atol=0)
    np.testing.assert_allclose(np.linalg.det(turned), 1.0, atol=1e-5)


def test_a_schedule_is_not_multiplied_by_epsilon_and_a_number_is():
    losses = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    lengths = []
    for step, probe in ((_half, _one), (0.5, 1.0)):
        es, update, perturb = runner(epsilon=0.1, step_radius=step, probe_radius=probe)
        state = es.init(PARAMS)
        lengths.append(
            (
                np.linalg.norm(flat(perturb(PARAMS, state), (COUNT,)) - flat(PARAMS), axis=1).max(),
                np.linalg.norm(moves(update(losses, state, PARAMS)[0])),
            )
        )
    np.testing.assert_allclose(np.array(lengths[0]) * 0.1, lengths[1], rtol=1e-4)


def test_one_probe_lies_half_way_and_more_are_averaged():
    es = polystep(2 * COUNT, epsilon=1.0, probe_radius=3.0, num_probe=2)
    state = es.init(PARAMS)
    away = np.linalg.norm(
        flat(jax.jit(es.perturb)(PARAMS, state), (2 * COUNT,)) - flat(PARAMS), axis=1
    )
    np.testing.assert_allclose(away, np.tile([1.0, 2.0], COUNT), rtol=1e-5)
    losses = np.random.default_rng(1).standard_normal(2 * COUNT).astype(np.float32)
    one, update, _ = runner(epsilon=1.0, probe_radius=3.0)
    mean = update(losses.reshape(-1, 2).mean(1), one.init(PARAMS), PARAMS)[0]
    chex.assert_trees_all_close(jax.jit(es.update)(losses, state, PARAMS)[0], mean, atol=1e-6)


@pytest.mark.parametrize("basis", ["dense", "factored"])
def test_a_subspace_moves_matrices_within_itself(basis):
    params = {"kernel": np.zeros((9, 7), np.float32), "bias": np.zeros(3, np.float32)}
    options = {"rank": 2, "particle_dim": 5}
    population = count_probes(params, **options)
    assert population == -(-(2 * 16 + 3) // 5) * 10
    es = polystep(population, basis=basis, **options)
    state = es.init(params)
    probes = np.asarray(jax.jit(es.perturb)(params, state)["kernel"]).reshape(population, -1)
    assert np.linalg.matrix_rank(probes, tol=1e-4) <= 32
    losses = np.random.default_rng(0).standard_normal(population).astype(np.float32)
    step = np.asarray(jax.jit(es.update)(losses, state, params)[0]["kernel"]).reshape(1, -1)
    # The step lies in what the probes span.
    assert np.linalg.matrix_rank(np.vstack([probes, step]), tol=1e-4) <= 32
    if basis == "factored":
        assert np.linalg.matrix_rank(step.reshape(9, 7), tol=1e-4) <= 4
        columns = np.asarray(state.es_basis[1][0][0][0])
        np.testing.assert_allclose(columns.T @ columns, np.eye(2), atol=1e-5)
    else:
        columns = np.asarray(state.es_basis[1][0][0])
        np.testing.assert_allclose(columns.T @ columns, np.eye(32), atol=1e-5)


def test_the_subspace_is_renewed_and_forgets_its_velocity():
    params = {"kernel": np.zeros((5, 4), np.float32)}
    options = {"rank": 1, "particle_dim": 4}
    es = polystep(
        count_probes(params, **options),
        absorb_interval=2,
        momentum=0.5,
        biased_rotation=True,
        **options,
    )
    state, update, bases = es.init(params), jax.jit(es.update), []
    for step in range(4):
        bases.append(np.asarray(state.es_basis[0][0]))
        losses = np.random.default_rng(step).standard_normal(es.population).astype(np.float32)
        _, state = update(losses, state, params)
        assert (
            bool(np.any(state.es_velocity)) == bool(np.any(state.es_direction)) == (step % 2 == 0)
        )
    assert np.array_equal(bases[0], bases[1]) and np.array_equal(bases[2], bases[3])
    assert np.abs(bases[0] - bases[2]).max() > 0.1


def test_fewer_probes_take_the_particles_in_turn():
    es = polystep(8)
    state, seen, update, perturb = es.init(PARAMS), [], jax.jit(es.update), jax.jit(es.perturb)
    for _ in range(4):
        losses = np.random.default_rng(0).standard_normal(8).astype(np.float32)
        probes = np.abs(flat(perturb(PARAMS, state), (8,)) - flat(PARAMS)) > 1e-6
        updates, state = update(losses, state, PARAMS)
        moved = np.abs(flat(updates)) > 1e-6
        assert not np.any(moved & ~probes.any(0))
        seen.append(np.flatnonzero(moved.reshape(-1, 2).any(1)).tolist())
    assert seen == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_a_lost_cost_repels_and_leaves_the_scale_alone():
    cost = np.array([[1.0, 3.0, 2.0, np.nan], [2.0, 2.0, np.inf, 1.0]], np.float32)
    ours, theirs = (np.asarray(comparable(cost, "mean", how)) for how in ("worst", "penalty"))
    finite = np.isfinite(cost)
    np.testing.assert_allclose(ours[finite], cost[finite] / cost[finite].mean(), rtol=1e-6)
    assert (ours[~finite] > 1e5).all()
    # The reference's scale is that of its penalty: what was finite differs no more.
    assert np.ptp(theirs[finite]) < 1e-5
    assert np.asarray(plan_weights(ours, 0.5, "softmax"))[~finite].max() < 1e-6


def test_parts_of_a_population_are_evaluated_alike():
    es, _, perturb = runner()
    state = es.init(PARAMS)
    loss = lambda p: jnp.sum(jnp.floor(3 * p["w"])) + p["b"][0]  # noqa: E731
    whole = jax.vmap(loss)(perturb(PARAMS, state))
    np.testing.assert_allclose(
        jax.jit(lambda s: es.evaluate(loss, PARAMS, s, chunk=5))(state), whole, atol=1e-6
    )


def test_changes_are_where_members_differ():
    params = {"w": np.linspace(-1, 1, 7, dtype=np.float32)}  # the last particle has one number
    es = polystep(probe_radius=3.0)
    state = es.init(params)
    at, moved = jax.jit(es.changes)(params, state, jnp.arange(16))
    made = np.zeros((16, 8), np.float32)
    np.put_along_axis(made, np.asarray(at), np.asarray(moved), axis=1)
    probes = jax.jit(es.perturb)(params, state)["w"]
    np.testing.assert_allclose(params["w"] + made[:, :7], probes, atol=1e-6)


def test_radii_adapt_to_the_mean_cost():
    es, update, _ = runner(adaptive_radius=AdaptiveRadius(patience=2), maximize=False)
    state, seen = es.init(PARAMS), []
    for level in (5.0, 4.0, np.nan, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0):
        _, state = update(np.full(COUNT, level, np.float32), state, PARAMS)
        seen.append(round(float(state.es_multiplier), 5))
    # Neither the first cost nor a lost one, nor the first after that, tells anything.
    assert seen == [1.0, 0.9, 0.9, 0.9, 0.9, 1.35, 1.35, 2.025, 2.025]


def test_it_solves_what_gradients_cannot_see():
    target = np.array([0.8, -0.6, 0.4, 0.9, -0.7, 0.2], np.float32)
    params = {"w": np.zeros(6, np.float32)}
    es = polystep(
        count_probes(params),
        epsilon=linear_annealing(0.6, 0.1, decay=0.02),
        probe_radius=4.0,
        maximize=False,
    )

    def generation(carry, _):
        params, state = carry
        loss = lambda p: jnp.sum(jnp.floor(8 * jnp.abs(p["w"] - target)))  # noqa: E731
        updates, state = es.update(jax.vmap(loss)(es.perturb(params, state)), state, params)
        return (jax.tree.map(lambda p, u: p - u, params, updates), state), loss(params)

    _, losses = jax.jit(lambda c: jax.lax.scan(generation, c, length=40))((params, es.init(params)))
    assert losses[0] >= 20
    assert losses[-1] <= 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters_keep_their_dtype(dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    es = polystep(COUNT, momentum=0.9)
    state = es.init(params)
    losses = np.arange(COUNT, dtype=np.float32)
    updates, state = jax.jit(es.update)(losses, state, params)
    assert {x.dtype for x in jax.tree.leaves((updates, jax.jit(es.perturb)(params, state)))} == {
        jnp.dtype(dtype)
    }
    assert state.es_velocity.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"population": 18}, "no multiple of the 4 probes"),
        ({"population": 64}, "give population=16"),
        ({"step_radius": -1.0}, "step_radius=-1.0 is below"),
        ({"absorb_interval": 5}, "give a rank"),
        ({"scale_cost": "median"}, "'mean', 'max'"),
        ({"polytope": "cube", "particle_dim": 17, "population": 2**17}, "at most 16"),
        ({"population": 4, "solver": "sinkhorn"}, "one particle alone"),
    ],
)
def test_wrong_use_says_what_to_do(options, said):
    with pytest.raises(ValueError, match=said):
        es = polystep(**{"population": COUNT} | options)
        es.update(np.zeros(es.population), es.init(PARAMS), PARAMS)


def test_wrong_trees_and_fitnesses_are_refused():
    es = polystep(COUNT)
    with pytest.raises(ValueError, match="'n' is of int32"):
        es.init({"n": np.zeros(8, np.int32)})
    with pytest.raises(ValueError, match="not \\(16,\\)"):
        es.update(np.zeros(15), es.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="needs the parameters"):
        es.update(np.zeros(16), es.init(PARAMS))
    with pytest.raises(ValueError, match="give population=48"):
        polystep_es(40, particles=3).init(PARAMS)


def test_the_mean_of_a_swarm_is_what_is_returned():
    es = polystep_es(48, particles=3, spread=0.3, maximize=False)
    state, update = es.init(PARAMS), jax.jit(es.update)
    losses = np.random.default_rng(0).standard_normal(48).astype(np.float32)
    updates, after = update(losses, state, PARAMS)
    places = [flat(PARAMS) + np.asarray(state.es_offsets)]
    places.append(flat(PARAMS) - flat(updates) + np.asarray(after.es_offsets))
    lengths = np.linalg.norm(places[1] - places[0], axis=1)
    assert np.all(lengths > 0.01) and np.all(lengths <= 0.5 + 1e-5)
    np.testing.assert_allclose(after.es_offsets.mean(0), state.es_offsets.mean(0), atol=1e-6)


def test_without_a_number_all_particles_are_probed():
    losses = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    whole, update, _ = runner()
    es = polystep()
    state = es.init(PARAMS)
    expected = update(losses, whole.init(PARAMS), PARAMS)[0]
    chex.assert_trees_all_equal(jax.jit(es.update)(losses, state, PARAMS)[0], expected)
    with pytest.raises(ValueError, match="not \\(16,\\)"):
        es.update(losses[:8], state, PARAMS)
