"""Elastic priors: identities, where they pull, and forgetting on two tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.conformance.methods import Method
from tests.conformance.test_sharding import AXES, LEAVES, Sharded, check_equal, check_stable
from tests.conformance.trees import filled
from tests.transforms.driver import gradients, run

SHAPES = {"w": (3, 2), "b": (4,)}
GRADS = gradients(0, 4, SHAPES)
PARAMS, FISHER, ANCHOR = (
    jax.tree.map(jnp.abs, gradients(seed, 1, SHAPES)[0]) for seed in (1, 2, 3)
)


def first(tx, grads, params):
    return tx.update(grads, tx.init(params), params)[0]


def same(got, want, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, want)


def test_the_prior_is_the_gradient_of_its_loss():
    def loss(p):
        squares = jax.tree.map(lambda p, a, f: jnp.sum(f * (p - a) ** 2), p, ANCHOR, FISHER)
        return 1.5 * sum(jax.tree.leaves(squares))

    tx = optkit.elastic_prior(3.0, fisher=FISHER, anchor=ANCHOR)
    same(first(tx, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS), jax.grad(loss)(PARAMS), 1e-5)


def test_at_the_anchor_and_without_strength_nothing_is_pulled():
    for tx, params in (
        (optkit.elastic_prior(9.0, fisher=FISHER), PARAMS),
        (optkit.elastic_prior(9.0, fisher=FISHER, anchor=ANCHOR), ANCHOR),
        (optkit.elastic_prior(0.0, anchor=ANCHOR), PARAMS),
    ):
        same(first(tx, GRADS[0], params), GRADS[0])


def test_without_strength_online_consolidation_is_gradient_descent():
    got = run(optkit.ewc_online(0.1, strength=0.0), PARAMS, GRADS)[1]
    same(got, run(optax.sgd(0.1), PARAMS, GRADS)[1], 1e-6)


def test_a_resting_network_is_not_pulled():
    """Parameters that never moved are their own average."""
    tx = optkit.online_elastic_prior(5.0, b_anchor=0.9)
    state = tx.init(PARAMS)
    for grads in GRADS:
        out, state = tx.update(grads, state, PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, g, atol=2e-5), out, GRADS[-1])


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
