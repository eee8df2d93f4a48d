"""Cautious masks, Grams and the kinds of weight decay, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import directions, gradients

SIZE = 5
VALUES = st.lists(
    st.one_of(st.just(0.0), st.floats(-2, 2, width=32, allow_subnormal=False)),
    min_size=SIZE,
    max_size=SIZE,
).map(np.float32)
# The inner update is given as an extra argument, so that signs may be anything.
GIVEN = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), lambda g, s, p=None, *, u, **extra: (u, s)
)


def jitted(tx):
    return jax.jit(lambda g, u: tx.update(g, tx.init(g), u=u)[0])


RESCALES = ["mean", "count", None]
MASKED = {rescale: jitted(optkit.cautious(GIVEN, rescale=rescale)) for rescale in RESCALES}
GRAMS = jitted(optkit.sign_from_grad(GIVEN))


@pytest.mark.parametrize("rescale", RESCALES)
@given(g=VALUES, u=VALUES)
def test_cautious_law(rescale, g, u):
    out = np.float64(MASKED[rescale](g, u))
    agree = np.sign(g) * np.sign(u) > 0
    scale = {
        "mean": 1 / max(agree.mean(), 1e-3),
        "count": SIZE / (agree.sum() + 1.0),
        None: 1.0,
    }[rescale]
    np.testing.assert_allclose(out, u * agree * scale, rtol=1e-5)
    assert out @ np.float64(g) >= 0 and np.all(out[~agree] == 0)
    if rescale == "mean" and agree.any():
        assert np.mean(agree * scale) == pytest.approx(1.0)
    if agree.all():
        ratio = SIZE / (SIZE + 1) if rescale == "count" else 1.0
        np.testing.assert_allclose(out, u * ratio, rtol=1e-6)


def test_products_that_underflow_still_agree():
    tiny = np.full(SIZE, 1e-30, np.float32)
    np.testing.assert_allclose(MASKED["mean"](tiny, tiny), tiny)


def test_the_mask_is_per_leaf():
    g = {"a": np.float32([1, 1]), "b": np.float32([1, -1])}
    u = {"a": np.float32([1, 1]), "b": np.float32([1, 1])}
    out = MASKED["mean"](g, u)
    assert out["a"].tolist() == [1, 1] and out["b"].tolist() == [2, 0]


def test_another_field_can_be_compared():
    grads = gradients(0, 6, {"w": (50,)})
    inner = optkit.momentum(0.9, nesterov=True)
    out = directions(optkit.cautious(inner, compare="momentum"), grads)["w"]
    u = directions(inner, grads)["w"]
    m = directions(optkit.momentum(0.9), grads)["w"]
    g = np.stack([x["w"] for x in grads])
    agree = np.asarray(m * g > 0)
    np.testing.assert_allclose(out, u * agree / agree.mean(1, keepdims=True), rtol=1e-5)
    assert np.any(agree != np.asarray(u * g > 0)), "the example does not tell the two apart"
    with pytest.raises(KeyError, match="velocity"):
        tx = optkit.cautious(inner, compare="velocity")
        tx.update(grads[0], tx.init(grads[0]))


def test_bad_options_are_named():
    for options in ({"rescale": "sum"}, {"floor": -1.0}, {"xi": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            optkit.cautious(GIVEN, **options)


@given(g=VALUES, u=VALUES)
def test_grams_law(g, u):
    out = np.asarray(GRAMS(g, u))
    np.testing.assert_array_equal(out, np.sign(g) * np.abs(u))


KINDS = ["decoupled", "cautious", "independent", "coupled"]
WD, RATE = 0.25, 0.5


def _decay(kind):
    tx = optkit.decay_weights(WD, kind=kind)
    return jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])


def _descent(kind):
    tx = optkit.descend(optax.scale(2.0), RATE, weight_decay=WD, decay=kind)
    return jax.jit(lambda g, p: optax.apply_updates(p, tx.update(g, tx.init(p), p)[0]))


DECAYS = {kind: _decay(kind) for kind in KINDS}
DESCENTS = {kind: _descent(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(u=VALUES, p=VALUES)
def test_decay_laws(kind, u, p):
    signs = {"cautious": np.sign(u) * np.sign(p) >= 0, "independent": -1.0}.get(kind, 1.0)
    np.testing.assert_allclose(DECAYS[kind](u, p), u + WD * signs * p, atol=1e-6)
    moved = np.asarray(DESCENTS[kind](u, p))
    base = p - RATE * 2 * u
    law = {
        "decoupled": base - RATE * WD * p,
        "cautious": base - RATE * WD * p * (u * p >= 0),
        "independent": base - WD * p,
        "coupled": base - RATE * 2 * WD * p,
    }[kind]
    np.testing.assert_allclose(moved, law, atol=1e-5)


def test_cautious_decay_does_not_multiply_tiny_numbers():
    tiny = np.full(SIZE, 1e-30, np.float32)
    np.testing.assert_array_equal(DECAYS["cautious"](tiny, -tiny), tiny)


PARAMS = {
    "up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "embed": {"embedding": jnp.ones((2, 2))},
}


@pytest.mark.parametrize(
    "mask",
    [
        {"up": {"kernel": True, "bias": False}, "embed": {"embedding": True}},
        {"up": {"kernel": True, "bias": False}, "embed": True},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ("matrix", "embedding"),
        ["re:kernel$", "embed"],
        "re:(kernel|embedding)$",
    ],
    ids=["tree", "prefix", "function", "roles", "mixed", "expression"],
)
@pytest.mark.parametrize("routed", [False, True])
def test_masks_in_all_their_forms(mask, routed):
    tx = optkit.decay_weights(0.5, mask=mask)
    if routed:
        tx = optkit.route({"a": tx, "b": tx}, [("up", "a"), ("**", "b")])
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    out = tx.update(zeros, tx.init(PARAMS), PARAMS)[0]
    means = jax.tree.map(lambda x: float(x.mean()), out)
    assert means == {"up": {"kernel": 0.5, "bias": 0.0}, "embed": {"embedding": 0.5}}


def test_an_incomplete_mask_names_the_leaf():
    tx = optkit.decay_weights(0.5, mask={"up": True})
    with pytest.raises(ValueError, match="no entry for leaf 'embed/embedding'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_decay_follows_a_schedule_and_needs_params():
    tx = optkit.decay_weights(lambda t: 1.0 + t)
    state = tx.init(PARAMS)
    for t in range(3):
        out, state = tx.update(PARAMS, state, PARAMS)
        assert float(out["up"]["bias"][0]) == 2.0 + t
    with pytest.raises(ValueError, match=r"decay_weights.*needs the parameters"):
        tx.update(PARAMS, state)
    with pytest.raises(ValueError, match="did you mean 'decoupled'"):
        optkit.decay_weights(0.1, kind="decouple")
