"""Cuts: how often each is drawn; gradients that stop there, exact above, zero below, cheaper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit.transforms.cuts import CutLaw
from tests.transforms.driver import gradients

WIDTH, DEPTH = 16, 4
SHAPES = {f"dense_{i}": (WIDTH, WIDTH) for i in range(DEPTH)}
PARAMS = jax.tree.map(lambda x: 0.3 * x, gradients(0, 1, SHAPES)[0])
X, Y = gradients(1, 2, {"x": (32, WIDTH)})


def loss(params, x, y, *, power=2):
    for i in range(DEPTH):
        x = jnp.tanh(x @ params[f"dense_{i}"])
    return jnp.mean(jnp.abs(x - y) ** power)


FULL = jax.jit(jax.value_and_grad(loss))(PARAMS, X["x"], Y["x"])
PARTIAL = optkit.partial_value_and_grad(loss)
STATIC = jax.jit(PARTIAL, static_argnums=1)
SWITCHED = jax.jit(PARTIAL)


@pytest.mark.parametrize("cut", range(1, DEPTH + 1))
@pytest.mark.parametrize("form", ["static", "switched", "eager"])
def test_gradients_are_those_of_the_whole_above_the_cut_and_zero_below(cut, form):
    run = {"static": STATIC, "switched": SWITCHED, "eager": PARTIAL}[form]
    value, grads = run(PARAMS, jnp.int32(cut) if form == "switched" else cut, X["x"], Y["x"])
    np.testing.assert_allclose(value, FULL[0], rtol=1e-6)
    for i, (path, g) in enumerate(grads.items(), 1):
        if i < cut:
            assert not np.any(g) and g.shape == PARAMS[path].shape
        else:
            np.testing.assert_allclose(g, FULL[1][path], rtol=1e-5, atol=1e-8)
            assert np.any(g)


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def test_each_cut_saves_the_backward_products_of_its_layer():
    """2 N W^2 for a product; a layer has one forward, one for its weights, one for its input."""
    found = [
        flops(STATIC.lower(PARAMS, cut, X["x"], Y["x"]).compile()) for cut in range(1, DEPTH + 1)
    ]
    product = 2 * 32 * WIDTH**2
    # The first layer's input needs no gradient. The last cut keeps one product of the backward.
    exact = [product * (DEPTH + (DEPTH - s + 1) + (DEPTH - s)) for s in range(1, DEPTH + 1)]
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose(-np.diff(found), -np.diff(exact), rtol=0.15)


def test_a_muon_step_of_a_later_cut_costs_less():
    tx = optkit.drop_muon()
    state = tx.init(PARAMS)
    step = jax.jit(tx.update, static_argnames="cut")
    found = [
        flops(step.lower(PARAMS, state, PARAMS, cut=cut).compile()) for cut in range(1, DEPTH + 1)
    ]
    # Five Newton-Schulz steps of 6 W^3 each for every trained layer, and what is done by entry.
    products = 5 * 6 * WIDTH**3
    assert all(products < saved < 1.2 * products for saved in -np.diff(found))


def test_auxiliary_values_and_keyword_arguments_pass():
    def with_aux(params, x, *, scale):
        return scale * jnp.sum(x @ params["dense_0"]), {"seen": x.shape[0], "scale": scale}

    params = {"dense_0": PARAMS["dense_0"]}
    run = optkit.partial_value_and_grad(with_aux, has_aux=True)
    (value, aux), grads = run(params, 1, X["x"], scale=2.0)
    assert aux == {"seen": 32, "scale": 2.0}
    np.testing.assert_allclose(
        grads["dense_0"], 2.0 * jax.grad(lambda p: loss_sum(p))(params)["dense_0"]
    )
    assert float(value) == pytest.approx(2.0 * float(loss_sum(params)), rel=1e-6)


def loss_sum(params):
    return jnp.sum(X["x"] @ params["dense_0"])


def test_a_list_of_cuts_takes_the_next_lower_one():
    """Less is frozen than asked, never more: no trained layer may get a zero gradient."""
    run = jax.jit(optkit.partial_value_and_grad(loss, cuts=(1, 3)))
    for cut, trained in ((1, 4), (2, 4), (3, 2), (4, 2)):
        _, grads = run(PARAMS, jnp.int32(cut), X["x"], Y["x"])
        assert sum(bool(np.any(g)) for g in grads.values()) == trained


def test_gradients_and_updates_agree_on_the_order():
    order = [("dense_3", "dense_1"), "**"]
    run = jax.jit(optkit.partial_value_and_grad(loss, order), static_argnums=1)
    _, grads = run(PARAMS, 2, X["x"], Y["x"])
    assert [path for path, g in grads.items() if np.any(g)] == ["dense_0", "dense_2"]
    tx = optkit.drop_layers(optkit.muon(0.1), order=order)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, cut=2)
    assert [path for path, u in updates.items() if np.any(u)] == ["dense_0", "dense_2"]


def test_training_descends_with_drawn_cuts():
    tx = optkit.drop_muon(0.05, sampling=(0.4, 0.2, 0.2, 0.2))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = PARTIAL(params, optkit.next_cut(state), X["x"], 0.5 * Y["x"])
            updates, state = tx.update(grads, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=40)[1]

    values = train(PARAMS)
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_cut_that_is_no_layer_is_named(cut):
    with pytest.raises(ValueError, match=rf"cut={cut} is no layer: there are 4"):
        PARTIAL(PARAMS, cut, X["x"], Y["x"])
    with pytest.raises(ValueError, match=rf"cut={cut} is no layer"):
        optkit.partial_value_and_grad(loss, cuts=(1, cut))(PARAMS, 1, X["x"], Y["x"])


def counted(law, count, draws=6000):
    """How often each of four cuts was drawn at a step, over keys."""
    keys = jax.random.split(jax.random.key(7), draws)
    cuts = jax.vmap(lambda key: law.draw(key, jnp.int32(count), optkit.layer_order(PARAMS)))(keys)
    return np.bincount(cuts, minlength=5)[1:]


@pytest.mark.parametrize(
    ("law", "count", "expected"),
    [
        (CutLaw("uniform"), 0, (0.25, 0.25, 0.25, 0.25)),
        (CutLaw((0.1, 0.0, 0.7, 0.2)), 3, (0.1, 0.0, 0.7, 0.2)),
        (CutLaw({4: 0.75, 2: 0.25}), 3, (0.0, 0.25, 0.0, 0.75)),
        (CutLaw(3), 5, (0, 0, 1, 0)),
        (CutLaw("epoch_shifted", 100), 0, (0.4, 0.3, 0.2, 0.1)),
        (CutLaw("epoch_shifted", 100), 50, (0.25, 0.25, 0.25, 0.25)),
        (CutLaw("epoch_shifted", 100), 100, (0.1, 0.2, 0.3, 0.4)),
        (CutLaw("epoch_shifted", 100), 900, (0.1, 0.2, 0.3, 0.4)),
        (CutLaw(lambda t, b: jnp.arange(b) + 1.0 * (t > 0)), 0, (0, 1 / 6, 2 / 6, 3 / 6)),
    ],
)
def test_cuts_are_drawn_as_often_as_their_probabilities_say(law, count, expected):
    got, p = counted(law, count), np.array(expected)
    assert got.sum() == 6000 and not np.any(got[p == 0])
    possible = p > 0
    wanted = 6000 * p[possible]
    # Chi-square with at most 3 degrees of freedom: above 16.3 once in a thousand keys.
    assert np.sum((got[possible] - wanted) ** 2 / wanted) < 16.3
