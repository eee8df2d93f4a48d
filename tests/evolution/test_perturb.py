"""Laws of populations: what members are, and what their fitnesses become."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.evolution import Factors, Perturbed, PerturbState, replay, spsa_value_and_grad

POPULATION = 8
FITNESS = jnp.asarray([3.0, -1.0, 2.0, 2.5, -4.0, 0.5, 1.0, 0.0])


def params(dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {
        "embed": {"embedding": (6, 4)},
        "conv": {"kernel": (2, 2, 4, 3), "bias": (3,)},
        "layers": {"kernel": (2, 4, 4)},
        "dense": {"kernel": (4, 3), "bias": (3,)},
        "scale": (),
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s), dtype), shapes, is_leaf=is_shape
    )


PARAMS = params()
MADE = {
    "low rank": optkit.eggroll(POPULATION, sigma=0.5, rank=2),
    "gaussian": optkit.openai_es(POPULATION, sigma=0.5),
    "signs": optkit.openai_es(POPULATION, sigma=0.5, noise="rademacher"),
    "alone": optkit.openai_es(POPULATION, sigma=0.5, antithetic=False),
}


def assert_close(a: Any, b: Any, atol: float = 1e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=atol)


@pytest.mark.sweep
@pytest.mark.parametrize("name", MADE)
def test_the_gradient_is_the_weighted_sum_of_what_the_members_had(name: str) -> None:
    es = MADE[name]
    state = es.init(PARAMS)
    members = es.perturb(PARAMS, state)
    z = es.judge(FITNESS)
    wanted = jax.tree.map(
        lambda m, p: -jnp.tensordot(z, (m - p[None]) / 0.5, 1) / (POPULATION * 0.5), members, PARAMS
    )
    got, after = es.update(FITNESS, state, PARAMS)
    assert_close(got, wanted)
    assert int(after.es_step) == 1
    assert_close(es.update(FITNESS, state, PARAMS, noise=es.noise(PARAMS, state))[0], wanted)


@pytest.mark.parametrize("name", ["low rank", "gaussian", "signs"])
def test_partners_are_mirrored_around_the_parameters(name: str) -> None:
    es = MADE[name]
    members = es.perturb(PARAMS, es.init(PARAMS))
    for m, p in zip(jax.tree.leaves(members), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(
            (m[::2] + m[1::2]) / 2, np.broadcast_to(p, m[::2].shape), atol=1e-6
        )
        assert not np.allclose(m[0], m[2])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MADE)
def test_parts_of_a_population_are_the_population(name: str) -> None:
    es, size = MADE[name], POPULATION
    state = es.init(PARAMS)
    whole = es.perturb(PARAMS, state)
    assert_close(es.member(PARAMS, state, 5), jax.tree.map(lambda x: x[5], whole))
    halves = [materialized(es, es.perturb_lazy(PARAMS, state, block=(i, 2))) for i in (0, 1)]
    assert_close(jax.tree.map(lambda *x: jnp.concatenate(x), *halves), whole)
    noise = es.noise(PARAMS, state)
    assert_close(materialized(es, es.perturb_lazy(PARAMS, state, noise=noise)), whole)
    assert jax.tree.leaves(whole)[0].shape[0] == size


def materialized(es: Any, population: Any) -> Any:
    """The members of a lazy population, each in full."""
    repeats = len(es.drawing.signs)

    def full(leaf: Any) -> jax.Array:
        if not isinstance(leaf, Perturbed):
            return leaf.value
        rows = []
        for i, scale in enumerate(leaf.scale):
            a, b = leaf.a[i // repeats], leaf.b[i // repeats]
            rows.append(Perturbed(leaf.base, a, b, scale, leaf.left, leaf.right).materialize())
        return jnp.stack(rows)

    return jax.tree.map(full, population, is_leaf=lambda x: not isinstance(x, dict))


def test_leaves_get_the_noise_of_their_kind() -> None:
    es = MADE["low rank"]
    noise = es.noise(PARAMS, es.init(PARAMS))
    kinds = jax.tree.map(
        lambda x: isinstance(x, Factors), noise, is_leaf=lambda x: not isinstance(x, dict)
    )
    assert kinds == {
        "embed": {"embedding": True},
        "conv": {"kernel": True, "bias": False},
        "layers": {"kernel": True},
        "dense": {"kernel": True, "bias": False},
        "scale": False,
    }
    assert noise["layers"]["kernel"].a.shape == (4, 2, 4, 2)  # factors of their own for each layer
    assert noise["conv"]["kernel"].b.shape == (4, 2, 2, 4, 2)


@given(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 5.0]), min_size=POPULATION, max_size=POPULATION))
def test_swapped_partners_turn_the_gradient_round(values: list[float]) -> None:
    es = SWAPPED
    state = es.init({"w": jnp.zeros(3)})
    fitness = jnp.asarray(values)
    one, other = (
        UPDATE(f, state)["w"] for f in (fitness, fitness.reshape(-1, 2)[:, ::-1].reshape(-1))
    )
    np.testing.assert_allclose(one, -other, atol=1e-6)
    assert not UPDATE(jnp.full(POPULATION, values[0]), state)["w"].any()
    # What all members have in common changes nothing.
    np.testing.assert_allclose(UPDATE(fitness + 2.0, state)["w"], one, atol=1e-5)


SWAPPED = optkit.openai_es(POPULATION, sigma=0.5, shaping=None)
UPDATE = jax.jit(lambda f, state: SWAPPED.update(f, state, {"w": jnp.zeros(3)})[0])


@pytest.mark.sweep
@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_sums_in_chunks_are_the_sums(chunk: int) -> None:
    got, wanted = (
        optkit.eggroll(POPULATION, sigma=0.5, rank=2, chunk=size) for size in (chunk, None)
    )
    state = got.init(PARAMS)
    assert_close(got.update(FITNESS, state, PARAMS)[0], wanted.update(FITNESS, state, PARAMS)[0])


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_noise_has_unit_variance_and_the_kurtosis_of_its_rank(rank: int) -> None:
    es = optkit.eggroll(2**17, sigma=1.0, rank=rank)
    noise = es.noise({"kernel": jnp.zeros((3, 3))}, es.init({"kernel": jnp.zeros((3, 3))}))
    e = np.asarray(noise["kernel"].full(), np.float64)
    count = e.shape[0]
    # Of 9 entries each; the deviations of the moments are those of products of normal numbers.
    assert abs(e.mean()) < 4 / np.sqrt(9 * count)
    assert abs((e**2).mean() - 1) < 4 * np.sqrt(8 / count)
    assert abs((e**4).mean() - (3 + 6 / rank)) < 4 * np.sqrt(11025 / count) / np.sqrt(rank)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_bias_of_low_rank_noise_is_that_of_the_closed_form(rank: int) -> None:
    """f = sin<G, W - M>: the expected update is known for every rank, and tends to that of full."""
    rng = np.random.default_rng(1)
    g, centre = rng.standard_normal((2, 3, 4)) * 0.5
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    phi = np.prod((1 + s**2 / rank) ** (-rank / 2))
    wanted = phi * (u * (s / (1 + s**2 / rank))) @ vt
    w = {"kernel": jnp.asarray(centre, jnp.float32)}
    es = optkit.eggroll(2**17, sigma=1.0, rank=rank, shaping=None)
    state = es.init(w)
    noise = np.asarray(es.noise(w, state)["kernel"].full(), np.float64)
    phase = np.einsum("nij,ij->n", noise, g)
    fitness = np.stack([np.sin(phase), np.sin(-phase)], axis=1).reshape(-1)
    got = -np.asarray(es.update(jnp.asarray(fitness, jnp.float32), state, w)[0]["kernel"])
    spread = (np.sin(phase)[:, None, None] * noise).std(axis=0) / np.sqrt(len(noise))
    assert (np.abs(got - wanted) < 4.5 * spread).all()  # 12 entries: one in 12000 runs fails
    limit = np.exp(-np.sum(s**2) / 2) * g
    if rank == 1:  # the bias can be seen
        assert np.abs(got - limit).max() > 4.5 * spread.max()


@pytest.mark.parametrize("name", ["gaussian", "signs", "low rank"])
def test_estimates_are_unbiased_for_a_linear_fitness(name: str) -> None:
    law = {"gaussian": "gaussian", "signs": "rademacher", "low rank": "low_rank"}[name]
    es = optkit.population_perturb(2**15, sigma=0.3, noise=law, shaping=None)
    slope = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    w = {"kernel": jnp.zeros((4, 3))}
    state = es.init(w)
    fitness = jnp.einsum("nij,ij->n", es.perturb(w, state)["kernel"], slope)
    got = -np.asarray(es.update(fitness, state, w)[0]["kernel"])
    # Var of <slope, E> E_ij is at most |slope|^2 times the fourth moment, 9 for rank 1.
    bound = 4.5 * np.linalg.norm(slope) * 3 / np.sqrt(2**14)
    assert np.abs(got - slope).max() < bound


def test_the_rank_of_an_update_is_that_of_its_pairs() -> None:
    es = optkit.eggroll(6, sigma=0.1, rank=2)
    w = {"kernel": jnp.zeros((12, 10))}
    g = es.update(jnp.arange(6.0) ** 2, es.init(w), w)[0]["kernel"]
    assert np.linalg.matrix_rank(np.asarray(g), tol=1e-4) == 6  # 3 pairs of rank 2


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("gradient", 1 / (8 * 0.5)), ("paper", 1 / 8), ("reference", 0.5 / 8**0.5), ("sum", 1.0)],
)
def test_scales_differ_by_a_constant(scale: Any, factor: float) -> None:
    es = optkit.eggroll(POPULATION, sigma=0.5, scale=scale)
    base = optkit.eggroll(POPULATION, sigma=0.5, scale="sum")
    state, w = es.init(PARAMS), PARAMS
    wanted = jax.tree.map(lambda x: factor * x, base.update(FITNESS, state, w)[0])
    assert_close(es.update(FITNESS, state, w)[0], wanted)


def test_the_log_of_fitnesses_is_the_run() -> None:
    tx = optax.chain(MADE["low rank"], optax.adam(0.1))
    log = jnp.asarray(np.random.default_rng(3).standard_normal((4, POPULATION)), jnp.float32)
    step = jax.jit(lambda f, s, p: replay(tx, p, f[None], s))
    run, state = PARAMS, tx.init(PARAMS)
    for fitness in log:
        run, state = step(fitness, state, run)
    again, _ = jax.jit(lambda p: replay(tx, p, log))(PARAMS)
    assert_close(run, again, atol=0)


def test_generations_have_noise_of_their_own_unless_it_is_reused() -> None:
    w = {"w": jnp.zeros(4)}
    for reuse, same in ((1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])):
        es = optkit.openai_es(2, sigma=1.0, noise_reuse=reuse)
        states = [es.init(w)._replace(es_step=jnp.int32(step)) for step in range(4)]
        drawn = [np.asarray(es.perturb(w, state)["w"]) for state in states]
        numbers = {x.tobytes(): i for i, x in reversed(list(enumerate(drawn)))}
        assert len(numbers) == len(set(same))
        assert all(
            (drawn[i] == drawn[j]).all() == (same[i] == same[j]) for i in range(4) for j in range(4)
        )


def test_sigma_follows_a_schedule_or_what_is_set() -> None:
    es = optkit.openai_es(2, sigma=lambda step: 1.0 / (1 + step))
    w = {"w": jnp.zeros(1)}
    state = es.init(w)
    assert float(state.es_sigma) == 1.0
    _, state = es.update(jnp.zeros(2), state, w)
    assert float(state.es_sigma) == 0.5
    tx = optax.chain(optkit.openai_es(2, sigma=1.0), optax.sgd(0.1))
    held = optax.tree_utils.tree_set(tx.init(w), es_sigma=jnp.float32(0.25))
    _, held = tx.update(jnp.zeros(2), held, w)
    assert float(optax.tree_utils.tree_get(held, "es_sigma")) == 0.25


def test_a_schedule_that_has_ended_moves_nothing() -> None:
    es = optkit.openai_es(2, sigma=lambda step: 0.1 - 0.1 * step)
    w = {"w": jnp.zeros(3)}
    state = es.init(w)
    moved = []
    for _ in range(3):
        g, state = es.update(jnp.asarray([1.0, 2.0]), state, w)
        moved.append(bool(g["w"].any()))
    assert moved == [True, False, False]


def test_lost_fitness_spreads_if_asked_for() -> None:
    for shaping in ("z_score", "centered_rank"):
        es = optkit.eggroll(POPULATION, sigma=0.1, shaping=shaping, nonfinite="propagate")
        g = es.update(FITNESS.at[2].set(jnp.nan), es.init(PARAMS), PARAMS)[0]
        assert all(np.isnan(x).all() for x in jax.tree.leaves(g))


def test_narrow_parameters_are_perturbed_in_float32() -> None:
    narrow = params(jnp.bfloat16)
    es = optkit.eggroll(POPULATION, sigma=0.5)
    noise = es.noise(narrow, es.init(narrow))
    assert {x.dtype for x in jax.tree.leaves(noise)} == {jnp.dtype(jnp.float32)}
    g, state = es.update(FITNESS, es.init(narrow), narrow)
    assert {x.dtype for x in jax.tree.leaves(g)} == {jnp.dtype(jnp.bfloat16)}
    assert isinstance(state, PerturbState)


def test_frozen_leaves_stay_and_full_ones_get_noise_in_full() -> None:
    es = optkit.eggroll(POPULATION, sigma=0.5, frozen=("bias", "conv/kernel"), full="dense/*")
    state = es.init(PARAMS)
    lazy = es.perturb_lazy(PARAMS, state)
    assert lazy["conv"]["kernel"] is PARAMS["conv"]["kernel"]
    assert not isinstance(lazy["dense"]["kernel"], Perturbed)
    g = es.update(FITNESS, state, PARAMS)[0]
    assert not g["conv"]["kernel"].any() and not g["dense"]["bias"].any()
    assert g["dense"]["kernel"].any()
    integers = {"table": jnp.arange(3), "w": jnp.zeros(2)}
    frozen = optkit.openai_es(POPULATION, frozen="table")
    assert not frozen.update(FITNESS, frozen.init(integers), integers)[0]["table"].any()


def test_baseline_members_are_the_model_itself() -> None:
    es = optkit.eggroll(POPULATION, sigma=0.5, baseline=True)
    state = es.init(PARAMS)
    members = es.perturb(PARAMS, state)
    assert_close(jax.tree.map(lambda x: x[0], members), PARAMS, atol=0)
    assert_close(jax.tree.map(lambda x: x[1], members), PARAMS, atol=0)
    worse = jnp.full((2, POPULATION), -1.0).at[:, 4].set(3.0)
    z = np.asarray(es.judge(worse))
    assert z[4] > 0 and not z[[0, 1, 2, 3, 5, 6, 7]].any()


def test_simultaneous_perturbation_is_the_slope_along_its_direction() -> None:
    estimate = jax.jit(spsa_value_and_grad(lambda x: jnp.sum(jnp.sin(x)), sigma=1e-2))
    x, key = jnp.asarray([0.3, -1.0, 2.0]), jax.random.key(4)
    value, gradient = estimate(x, key)
    # g = <grad, z> z: the slope along z, measured by two values.
    z = optkit.mezo(sigma=1e-2).noise(x, optkit.mezo(sigma=1e-2).init(x)._replace(es_key=key))[0]
    np.testing.assert_allclose(gradient, jnp.dot(jnp.cos(x), z) * z, rtol=1e-2)
    np.testing.assert_allclose(value, jnp.sum(jnp.sin(x)), rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: optkit.eggroll(7, sigma=0.1), "population=7 is odd"),
        (lambda: optkit.eggroll(8, sigma=-0.1), "sigma=-0.1"),
        (lambda: optkit.eggroll(8, sigma=0.0), "no member would differ"),
        (lambda: MADE["low rank"].update(PARAMS, INIT, PARAMS), "without 'fitness'; .* first link"),
        (lambda: optkit.eggroll(8, sigma=0.1, scale="none"), "none"),
        (lambda: optkit.eggroll(8, sigma=0.1, rank=0), "rank"),
        (lambda: optkit.eggroll(8, sigma=0.1, noise_reuse=0), "noise_reuse"),
        (lambda: optkit.ars(8, elite=0.0), "elite=0.0 keeps no pair"),
        (lambda: optkit.eggroll(8, sigma=0.1, rank=5).init(PARAMS), "rank 5 is above"),
        (lambda: optkit.eggroll(8, sigma=0.1, frozen="dens/*").init(PARAMS), "did you mean"),
        (lambda: optkit.openai_es(8).init({"n": jnp.arange(3)}), "leaf 'n' is of int32"),
        (lambda: MADE["low rank"].update(jnp.zeros(7), INIT, PARAMS), r"\(7,\), not \(8,\)"),
        (
            lambda: MADE["low rank"].update(FITNESS, INIT),
            "needs the parameters: call tx.update",
        ),
        (lambda: MADE["low rank"].perturb(PARAMS, optax.sgd(0.1).init(PARAMS)), "0 of Perturb"),
        (lambda: MADE["low rank"].perturb_lazy(PARAMS, INIT, block=(0, 3)), "3 equal blocks"),
    ],
)
def test_wrong_use_is_named(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


INIT = MADE["low rank"].init(PARAMS)
