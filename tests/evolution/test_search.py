"""CMA-ES, Sep-CMA-ES and xNES: oracles, invariances, boxes, and the experiments of their papers."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from optkit.evolution import ask_tell, search
from tests.evolution.oracles_search import Cma
from tests.golden.replay import DATA, load

MAKERS = {"cma_es": search.cma_es, "xnes": search.xnes, "sep_cma_es": search.sep_cma_es}
each = pytest.mark.parametrize("name", sorted(MAKERS))
TREE = {"b": np.array([0.5, -1.0], np.float32), "w": np.ones((2, 2), np.float32)}
COUNT = 6  # members in most tests: programs are shared by shape
SIX = {name: make(COUNT, sigma=0.5, key=3) for name, make in MAKERS.items()}
UPDATE = {name: jax.jit(es.update) for name, es in SIX.items()}
PERTURB = {name: jax.jit(es.perturb) for name, es in SIX.items()}


def costs(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def generations(name: str, fitness, params=TREE):
    """Parameters and state after some generations of the shared strategies."""
    state = SIX[name].init(params)
    for f in fitness:
        updates, state = UPDATE[name](f, state, params)
        params = jax.tree.map(lambda p, u: p - u, params, updates)
    return params, state


def same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def close(a, b, tolerance: float = 1e-6) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["cma_es", "sep_cma_es"])
def test_constants_are_those_of_the_reference(name):
    golden = load(DATA / f"{name}.npz")
    size = sum(x.size for x in golden.tree("p0").values())
    make = search.cma_constants if name == "cma_es" else search.sep_cma_constants
    ours = make(size, golden.hyper["population"])
    for field in ("mu_eff", "cc", "c1", "cmu", "c_sigma", "d_sigma", "chi_n", "cm"):
        assert getattr(ours, field) == pytest.approx(golden.hyper[field], rel=1e-12)
    recorded = golden.arrays["weights"]
    np.testing.assert_allclose(ours.weights[: len(recorded)], recorded, atol=1e-15)


@given(d=st.integers(1, 3000), n=st.integers(2, 400))
def test_rates_keep_the_covariance_positive(d, n):
    for source in ("cmaes", "paper", "pycma", "evosax"):
        k = search.sep_cma_constants(d, n, source)
        assert sum(k.weights) == pytest.approx(1.0)
        assert min(k.weights) >= 0.0
        assert 0.0 <= k.c1 + k.cmu <= 1.0 + 1e-12
        assert 0.0 < k.cc <= 1.0
        assert 0.0 < k.c_sigma < 1.0
    full = search.cma_constants(d, n)
    assert sum(w for w in full.weights if w > 0) == pytest.approx(1.0)
    assert full.c1 + full.cmu <= 1.0
    # Negative weights take away no more than what is left of C: its eigenvalues stay above 0.
    lost = full.cmu * d * sum(-w for w in full.weights if w < 0)
    kept = 1.0 - full.c1 - full.cmu * sum(full.weights)
    assert lost <= kept + 1e-9


@pytest.mark.parametrize(("size", "count"), [(5, 7), (2, 12)])
def test_cma_is_the_tutorials(size, count):
    rng = np.random.default_rng(size)
    with jax.enable_x64(True):
        oracle = Cma(rng.normal(size=size), 0.7, count)
        params = jnp.asarray(oracle.mean)
        es = search.cma_es(count, sigma=0.7, maximize=False)
        state, update = es.init(params), jax.jit(es.update)
        for t in range(12):
            steps = rng.normal(size=(count, size)) @ oracle.root()[0].T
            x = oracle.mean + oracle.sigma * steps
            told = rng.normal(size=count) + 4.0 * x[:, 0]
            if t == 4:
                told = np.round(told)  # ties go by number
            updates, state = update(told, state, params, members=jnp.asarray(x))
            params = params - updates
            oracle.tell(x, told)
            np.testing.assert_allclose(params, oracle.mean, atol=1e-11)
            np.testing.assert_allclose(state.es_covariance, oracle.c, atol=1e-11)
            assert float(state.es_sigma) == pytest.approx(oracle.sigma, rel=1e-11)


@each
def test_update_redraws_the_members_that_perturb_gave(name):
    es, params = SIX[name], TREE
    state = es.init(params)
    members = PERTURB[name](params, state)
    assert {k: v.shape for k, v in members.items()} == {"b": (COUNT, 2), "w": (COUNT, 2, 2)}
    drawn = UPDATE[name](costs(0), state, params)
    fed = UPDATE[name](costs(0), state, params, members=members)
    close((drawn[0], drawn[1][2:]), (fed[0], fed[1][2:]), 2e-6)


def test_chunks_do_not_matter():
    whole, cut = (search.sep_cma_es(7, sigma=0.5, chunk=c).update for c in (None, 3))
    state = search.sep_cma_es(7, sigma=0.5).init(TREE)
    close(whole(costs(1, 7), state, TREE)[0], cut(costs(1, 7), state, TREE)[0])


@each
@given(seed=st.integers(0, 10_000))
def test_only_ranks_matter(name, seed):
    f = np.sort(costs(seed))[np.random.default_rng(seed).permutation(COUNT)]
    same(generations(name, [f, -f]), generations(name, [np.exp(3 * f), -np.exp(3 * f)]))


@each
def test_directions_of_fitness(name):
    state = SIX[name].init(TREE)
    other = MAKERS[name](COUNT, sigma=0.5, key=3, maximize=False)
    up, down = UPDATE[name](costs(2), state, TREE), other.update(-costs(2), state, TREE)
    close(up[0], down[0])


@each
def test_members_without_finite_fitness_are_the_worst(name):
    f = np.arange(COUNT, dtype=np.float32)
    ranked = generations(name, [f])
    for lost in (np.nan, -np.inf, np.inf):
        same(ranked, generations(name, [np.where(f == 0.0, lost, f)]))


def test_rotation_of_problem_and_covariance_rotates_the_search():
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a = rng.normal(size=(4, 4))
    start = a @ a.T + np.eye(4)
    with jax.enable_x64(True):
        plain = search.cma_es(COUNT, sigma=0.3, covariance=start)
        turned = search.cma_es(COUNT, sigma=0.3, covariance=q @ start @ q.T)
        p = jnp.asarray(rng.normal(size=4))
        r, s, t = q @ p, plain.init(p), turned.init(q @ p)
        step = jax.jit(plain.update)  # C is state: one program for both
        for i in range(5):
            x = plain.perturb(p, s)
            f = -jnp.sum(x**4, axis=1) + i
            u, s = step(f, s, p, members=x)
            v, t = step(f, t, r, members=x @ q.T)
            p, r = p - u, r - v
            close(q @ p, r, 1e-10)
            close(q @ s.es_covariance @ q.T, t.es_covariance, 1e-10)
            close(s.es_sigma, t.es_sigma, 1e-10)


def test_covariance_stays_symmetric_and_positive_in_float32():
    es = search.cma_es(40, sigma=1.0)
    params = jnp.zeros(3)

    def generation(state, _):
        x = es.perturb(params, state)
        # Always the same thin slab is selected: C is flattened until float32 can't tell.
        return es.update(-jnp.abs(x[:, 0] - x[:, 1]), state, params)[1], state.es_covariance

    state, kept = jax.jit(lambda s: jax.lax.scan(generation, s, None, length=300))(es.init(params))
    kept = np.asarray(kept, np.float64)
    np.testing.assert_array_equal(kept, kept.transpose(0, 2, 1))
    values = np.linalg.eigvalsh(kept)
    assert np.all(values[:, 0] > 0.0)
    assert np.max(values[:, -1] / values[:, 0]) > 1e3
    assert np.isfinite(np.asarray(state.es_scales)).all()


def test_equal_fitness():
    flat = np.full(COUNT, 2.0, np.float32)
    same(generations("xnes", [flat])[0], TREE)
    _, state = generations("xnes", [flat])
    np.testing.assert_allclose(state.es_shape, np.eye(6), atol=1e-12)
    for name in ("cma_es", "sep_cma_es"):
        # By their number: as if the first were the best, a step of usual length.
        falling = generations(name, [np.arange(COUNT, 0.0, -1.0, dtype=np.float32)])
        same(generations(name, [flat]), falling)
        # Shared: the mean of all members, and the deviation shrinks.
        es = MAKERS[name](COUNT, sigma=0.5, ties="average")
        state = es.init(TREE)
        updates, new = es.update(flat, state, TREE)
        assert float(new.es_sigma) < 0.5
        if name == "sep_cma_es":
            mean = jax.tree.map(lambda x: x.mean(0), es.perturb(TREE, state))
            close(jax.tree.map(lambda p, u: p - u, TREE, updates), mean)


def test_ties_average_and_floor():
    from optkit.evolution.shaping import by_rank

    table, told = [4.0, 2.0, 1.0, 0.0], np.array([7.0, 5.0, 5.0, 9.0], np.float32)
    wanted = {"order": [1, 4, 2, 0], "average": [1, 3, 3, 0], "floor": [1, 4, 4, 0]}
    for ties, want in wanted.items():
        assert by_rank(table, jnp.asarray(told), ties).tolist() == want


def test_growth_of_xnes_is_the_matrix_exponential():
    rng = np.random.default_rng(8)
    with jax.enable_x64(True):
        es = search.xnes(6, sigma=0.4, eta_sigma=0.3, eta_shape=0.9)
        params = jnp.zeros(3)
        x, f = rng.normal(size=(6, 3)), rng.normal(size=6)
        _, state = es.update(f, es.init(params), params, members=jnp.asarray(x))
        raw = [max(0.0, np.log(4.0) - np.log(k)) for k in range(1, 7)]
        u = np.zeros(6)
        u[np.argsort(-f)] = np.array(raw) / sum(raw) - 1 / 6
        z = x / 0.4
        moment = sum(w * (np.outer(v, v) - np.eye(3)) for w, v in zip(u, z, strict=True))
        trace = np.trace(moment) / 3
        want = scipy.linalg.expm(0.45 * (moment - trace * np.eye(3)))
        np.testing.assert_allclose(state.es_shape, want, atol=1e-12)
        assert np.linalg.det(state.es_shape) == pytest.approx(1.0, abs=1e-12)
        assert float(state.es_sigma) == pytest.approx(0.4 * np.exp(0.15 * trace), rel=1e-12)


def test_sep_cma_does_not_see_how_parameters_are_cut_into_leaves():
    rng = np.random.default_rng(9)
    flat = {"x": np.concatenate([TREE["b"], TREE["w"].ravel()])}
    es, one = SIX["sep_cma_es"], SIX["sep_cma_es"].init(flat)
    two, p, q = es.init(TREE), TREE, flat
    for seed in range(3):
        x = rng.normal(size=(COUNT, 6)).astype(np.float32)
        cut = {"b": x[:, :2], "w": x[:, 2:].reshape(-1, 2, 2)}
        u, two = UPDATE["sep_cma_es"](costs(seed), two, p, members=cut)
        v, one = UPDATE["sep_cma_es"](costs(seed), one, q, members={"x": x})
        p, q = (jax.tree.map(lambda a, b: a - b, *pair) for pair in ((p, u), (q, v)))
    close(np.concatenate([p["b"], np.ravel(p["w"])]), q["x"])
    close(one.es_sigma, two.es_sigma)


@pytest.mark.sweep
@each
@pytest.mark.parametrize("boundary", ["resample", "penalty"])
def test_box(name, boundary):
    bounds = (-1.0, {"b": jnp.array([0.3, 2.0]), "w": jnp.full((2, 2), 1.5)})
    es = MAKERS[name](12, sigma=0.5, bounds=bounds, boundary=boundary)
    # What is best lies outside: below the low one in w, above the high one in b.
    start = {"b": jnp.zeros(2), "w": jnp.zeros((2, 2))}

    def generation(carry, _):
        params, state = carry
        x = es.perturb(params, state)
        f = x["b"].sum(1) - x["w"].sum((1, 2))
        updates, state = es.update(f, state, params)
        params = jax.tree.map(lambda p, u: p - u, params, updates)
        return (params, state), x

    def run(params):
        return jax.lax.scan(generation, (params, es.init(params)), None, length=150)

    (params, _), seen = jax.jit(run)(start)
    for k in params:
        high = np.broadcast_to(bounds[1][k], params[k].shape)
        for x, slack in ((np.asarray(seen[k]), 0.0), (np.asarray(params[k]), 1e-6)):
            assert np.all(x >= -1.0 - slack)
            assert np.all(x <= high + slack)
    assert np.max(np.abs(np.asarray(params["w"]) + 1.0)) < 0.1
    assert np.max(np.abs(np.asarray(params["b"]) - np.array([0.3, 2.0]))) < 0.1


def test_penalty_is_in_units_of_the_fitness_and_of_the_deviation():
    from optkit.evolution.search.population import Box

    box = Box(jnp.zeros(2), jnp.ones(2), "penalty", 1)
    x = jnp.array([[0.5, 0.5], [2.0, 0.5], [0.5, -2.0]])
    told = jnp.array([0.0, 10.0, 20.0])  # quartiles 5 and 15
    got = box.penalized(told, x, jnp.array([1.0, 2.0]))
    # Distances 0, 1 deviation and 1 deviation, of two parameters: 2*10*1/2.
    assert got.tolist() == [0.0, 20.0, 30.0]


@each
def test_sixteen_bit_leaves_empty_leaves_and_none(name):
    params = {"a": jnp.ones(2, jnp.bfloat16), "e": jnp.zeros((0, 3)), "n": None}
    es = SIX[name]
    state = jax.eval_shape(es.init, params)
    assert all(
        x.dtype == jnp.float32
        for x in jax.tree.leaves(state)
        if jnp.issubdtype(x.dtype, jnp.floating)
    )
    state = es.init(params)
    members = es.perturb(params, state)
    assert members["a"].dtype == jnp.bfloat16
    updates, _ = es.update(costs(1), state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert updates["a"].dtype == jnp.bfloat16
    assert np.abs(np.asarray(updates["a"], np.float32)).min() > 0.0


@each
def test_wrong_use_is_answered(name):
    make, es = MAKERS[name], SIX[name]
    state = es.init(TREE)
    for said, call in {
        "population=1": partial(make, 1, sigma=0.1),
        "sigma=0.0": partial(make, 4, sigma=0.0),
        "sigma is a schedule": partial(make, 4, sigma=lambda step: 0.1),
        "low one has to be below": partial(make, 4, sigma=0.1, bounds=(1.0, -1.0)),
        "is not a pair": partial(make, 4, sigma=0.1, bounds=3.0),
        "did you mean 'penalty'": partial(make, 4, sigma=0.1, boundary="penalti"),
        "is not one of": partial(make, 4, sigma=0.1, ties="none"),
        "one number a member": partial(es.update, np.zeros(5), state, TREE),
        "needs the parameters": partial(es.update, np.zeros(COUNT), state),
        "leaf 'i' is of int32": partial(es.init, {"i": jnp.zeros(3, jnp.int32)}),
        "no parameters": partial(es.init, {}),
        r"w: shape \(6, 2, 2\)": partial(
            es.update, np.zeros(COUNT), state, TREE, members={"b": np.ones((6, 2)), "w": np.ones(6)}
        ),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_what_is_too_large_is_sent_elsewhere():
    for make in (search.cma_es, search.xnes):
        with pytest.raises(ValueError, match="sep_cma_es"):
            make(8, sigma=0.1).init(jnp.zeros(1025))
        jax.eval_shape(make(8, sigma=0.1, max_size=1025).init, jnp.zeros(1025))


@each
def test_the_usual_population(name):
    es = MAKERS[name](sigma=0.1)
    assert es.population is None
    members = jax.eval_shape(lambda: es.perturb(TREE, es.init(TREE)))
    assert members["w"].shape == (9, 2, 2)  # 4 + floor(3 ln 6)


def test_constants_of_something_else_are_refused():
    k = search.cma_constants(5, 8)
    with pytest.raises(ValueError, match="constants are for 5 parameters and 8 members"):
        search.cma_es(8, sigma=0.1, constants=k).init(TREE)
    with pytest.raises(ValueError, match="negative weight"):
        search.sep_cma_es(8, sigma=0.1, constants=k).init(TREE)
    with pytest.raises(ValueError, match="no such constant"):
        search.cma_constants(5, 8, c2=0.1)
    with pytest.raises(ValueError, match="3 numbers for a population of 8"):
        search.sep_cma_constants(5, 8, weights=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="covariance is of shape"):
        search.cma_es(8, sigma=0.1, covariance=np.ones((2, 3))).init(TREE)


def ellipsoid(es, size: int, length: int, condition: float, rotated: bool) -> np.ndarray:
    """Best cost after each generation."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0] if rotated else np.eye(size)
    scale = condition ** (np.arange(size) / (size - 1))
    loop = ask_tell(es, maximize=False)

    def generation(state, _):
        x = loop.ask(state)["x"] @ turn
        state = loop.tell(state, (x**2) @ scale)
        return state, state.best_fitness[0]

    with jax.enable_x64(True):
        state = loop.init({"x": jnp.ones(size)})
        run = jax.jit(lambda state: jax.lax.scan(generation, state, None, length=length))
        return np.asarray(run(state)[1])


@pytest.mark.slow
def test_rotated_ellipsoid():
    options = {"sigma": 0.5, "maximize": False}
    cma = ellipsoid(search.cma_es(**options), 16, 1000, 1e6, True)
    assert 7000 < 12 * (1 + np.argmax(cma <= 1e-8)) < 11000  # 8964 of the reference
    xnes = ellipsoid(search.xnes(**options), 16, 1667, 1e6, True)
    assert 1e-8 < xnes[-1] < 1e-5
    sep = ellipsoid(search.sep_cma_es(**options), 16, 1667, 1e6, True)
    assert sep[-1] > 1.0


@pytest.mark.slow
def test_separable_ellipsoid_and_the_constants():
    end = {
        source: ellipsoid(
            search.sep_cma_es(32, sigma=0.5, constants=source, maximize=False),
            268,
            1500,
            1e4,
            False,
        )[-1]
        for source in ("cmaes", "paper", "pycma", "evosax")
    }
    assert max(end["cmaes"], end["paper"], end["pycma"]) < 0.2 * end["evosax"], json.dumps(end)
