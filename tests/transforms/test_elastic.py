"""Elastic priors: identities, where they pull, and forgetting on two tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.conformance.methods import Method
from tests.conformance.test_sharding import AXES, LEAVES, Sharded, check_equal, check_stable
from tests.conformance.trees import filled
from tests.transforms.driver import compiled, gradients

SHAPES = {"w": (3, 2), "b": (4,)}
GRADS = gradients(0, 4, SHAPES)
SEEDS = st.integers(0, 2**32 - 1)
STRENGTHS = st.floats(0.0, 20.0)


def drawn(seed):
    """Parameters, a Fisher information and an anchor."""
    return (jax.tree.map(np.abs, tree) for tree in gradients(seed, 3, SHAPES))


PARAMS, FISHER, ANCHOR = drawn(1)


@jax.jit
def pulled(strength, grads, params, fisher, anchor):
    """What one update makes of gradients."""
    tx = optkit.elastic_prior(strength, fisher=fisher, anchor=anchor)
    return tx.update(grads, tx.init(params), params)[0]


@jax.jit
def prior(strength, params, fisher, anchor):
    """The gradient of the prior's loss."""

    def loss(p):
        squares = jax.tree.map(lambda p, a, f: jnp.sum(f * (p - a) ** 2), p, anchor, fisher)
        return 0.5 * strength * sum(jax.tree.leaves(squares))

    return jax.grad(loss)(params)


def same(got, want, rtol=0.0, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


NOTHING = jax.tree.map(np.zeros_like, PARAMS)


@given(SEEDS, STRENGTHS)
def test_the_prior_is_the_gradient_of_its_loss(seed, strength):
    trees = tuple(drawn(seed))
    same(pulled(strength, NOTHING, *trees), prior(strength, *trees), 1e-5)


@given(SEEDS, STRENGTHS)
def test_at_the_anchor_without_strength_and_without_information_nothing_is_pulled(seed, strength):
    params, fisher, anchor = drawn(seed)
    grads = gradients(seed + 1, 1, SHAPES)[0]
    same(pulled(strength, grads, anchor, fisher, anchor), grads)
    same(pulled(0.0, grads, params, fisher, anchor), grads)
    same(pulled(strength, grads, params, NOTHING, anchor), grads)


@given(SEEDS, st.floats(0.0, 1.0))
def test_a_share_of_the_way_ends_between_here_and_the_anchor_and_all_of_it_there(seed, share):
    params, fisher, anchor = drawn(seed)
    fisher = jax.tree.map(lambda f: np.minimum(f, np.float32(1.0)), fisher)
    pull = pulled(share, NOTHING, params, fisher, anchor)
    whole = pulled(1.0, NOTHING, params, jax.tree.map(np.ones_like, fisher), anchor)
    for name, p in params.items():
        home = anchor[name]
        room = 1e-6 * np.maximum(p, home)
        after = p - np.asarray(pull[name])
        assert np.all(np.minimum(p, home) - room <= after)
        assert np.all(after <= np.maximum(p, home) + room)
        assert np.all(np.abs(p - np.asarray(whole[name]) - home) <= room)


def test_without_a_fisher_information_and_an_anchor_the_start_pulls_evenly():
    tx = optkit.elastic_prior(9.0)
    same(tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[0], GRADS[0])
    moved = jax.tree.map(lambda p: p + np.float32(0.5), PARAMS)
    got = tx.update(NOTHING, tx.init(PARAMS), moved)[0]
    same(got, jax.tree.map(lambda p: np.full_like(p, 4.5), PARAMS), 1e-5)


ONLINE = compiled(optkit.ewc_online)
DESCENT = compiled(optax.sgd)


@given(SEEDS, st.floats(0.01, 1.0), st.floats(0.0, 0.999), st.floats(0.0, 0.999))
def test_without_strength_online_consolidation_is_gradient_descent(seed, rate, b_anchor, b_fisher):
    grads = gradients(seed, 4, SHAPES)
    numbers = {"strength": 0.0, "b_anchor": b_anchor, "b_fisher": b_fisher}
    got = ONLINE(PARAMS, grads, learning_rate=rate, **numbers)[0]
    same(got, DESCENT(PARAMS, grads, learning_rate=rate)[0], 1e-6)


@jax.jit
def resting(params, grads, **options):
    """Parameters never move, whatever the gradients."""
    tx = optkit.online_elastic_prior(**options)

    def step(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    return jax.lax.scan(step, tx.init(params), grads)[1]


@given(SEEDS, st.floats(0.0, 5.0), st.floats(0.0, 0.999), st.floats(0.0, 0.999))
def test_a_resting_network_is_not_pulled(seed, strength, b_anchor, b_fisher):
    """Parameters that never moved are their own average, but for roundings."""
    params, *_ = drawn(seed)
    grads = jax.tree.map(lambda *g: np.stack(g), *gradients(seed + 1, 4, SHAPES))
    out = resting(params, grads, strength=strength, b_anchor=b_anchor, b_fisher=b_fisher)
    for name, g in grads.items():
        weight = strength * np.square(g).max(axis=0) * params[name]
        assert np.all(np.abs(out[name] - g) <= 5e-7 * (weight + np.abs(g)))


def test_trees_that_do_not_fit_are_named():
    tx = optkit.elastic_prior(fisher={"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="b: in the updates, not in the fisher"):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match="elastic_prior needs the parameters"):
        (tx := optkit.elastic_prior()).update(GRADS[0], tx.init(PARAMS))


def test_it_remembers_what_mattered_for_the_first_task():
    """Two regressions that use different inputs, but for one: only the plain step forgets."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 64, 6)).astype(np.float32)
    x[0, :, 3:], x[1, :, :2] = 0.0, 0.0  # input 2 is shared
    truth = random.standard_normal((2, 6)).astype(np.float32)
    y = np.einsum("tni,ti->tn", x, truth)

    def loss(w, task):
        return 0.5 * jnp.mean((x[task] @ w - y[task]) ** 2)

    fisher = jnp.mean(jnp.square(x[0]), axis=0)  # of a Gaussian likelihood, whatever the label

    @jax.jit
    def train(strength):
        w = jnp.zeros(6)
        for task in range(2):
            prior = optkit.elastic_prior(strength * task, fisher=fisher, anchor=w)
            tx = optax.chain(prior, optax.sgd(0.1))

            def step(carry, _, tx=tx, task=task):
                w, state = carry
                updates, state = tx.update(jax.grad(loss)(w, task), state, w)
                return (optax.apply_updates(w, updates), state), None

            (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=150)
        return loss(w, 0), loss(w, 1)

    forgotten, learnt = zip(*(train(lam) for lam in (0.0, 1.0, 10.0)), strict=True)
    assert forgotten[0] > 2 * forgotten[1] > 4 * forgotten[2]
    assert learnt[0] < 1e-3 < learnt[1] < learnt[2] < loss(jnp.zeros(6), 1)


@pytest.mark.parametrize("kind", AXES)
def test_given_trees_are_placed_like_the_parameters(kind):
    method = Method(optkit.catalogue.get("elastic_prior"))
    shapes = {path: size for path, (size, _) in LEAVES.items()}
    fisher, anchor = (jax.tree.map(np.asarray, filled(shapes, seed)) for seed in (5, 6))
    method.tx = optkit.elastic_prior(0.5, fisher=fisher, anchor=anchor)
    case = Sharded(method, LEAVES, kind)
    check_equal(case)
    check_stable(case)


def test_statistics_of_16_bit_parameters_are_float32():
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = optkit.elastic_prior(2.0, fisher=FISHER, anchor=ANCHOR)
    out, state = tx.update(low, tx.init(low), low)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    same((state.fisher, state.anchor), (FISHER, ANCHOR))
