"""Cautious masks, Grams and the kinds of weight decay, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
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


FACTORIES = {
    "cautious": optkit.cautious,
    "sign_from_grad": optkit.sign_from_grad,
    "in_float32": optkit.in_float32,
    "master_weights": optkit.master_weights,
    "skip_nonfinite": optkit.skip_nonfinite,
    "skip_spikes": optkit.skip_spikes,
    "accumulate_gradients": lambda inner: optkit.accumulate_gradients(inner, 2),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_no_transformation_is_refused_with_the_remedy(name):
    for given_, said in (
        (
            optax.scale_by_adam,
            r"the function optax\.scale_by_adam; call it: optax\.scale_by_adam\(\)",
        ),
        (optkit.lion, r"call it: optkit\.lion\(\)"),
        (optax.contrib.muon, r"call it: optax\.contrib\.muon\(\)"),
        (lambda lr: None, "call it, and give what it returns"),
        (optax.MultiSteps, r"the function optax\.MultiSteps; call it"),
        ("adamw", r"the text 'adamw'; build it: optkit\.adamw\(\)"),
        ("adam", r"the text 'adam'; build one"),
        ([optax.sgd(0.1)], r"a list of 1; join them: optax\.chain"),
        ({"w": 1}, "of type dict"),
        (None, "is None"),
    ):
        with pytest.raises(TypeError, match=f"inner must be an optax.GradientTransf.*{said}"):
            FACTORIES[name](given_)
    FACTORIES[name](optax.MultiSteps(optax.sgd(0.1), 2))


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


@pytest.mark.parametrize("wrapper", [optkit.cautious, optkit.sign_from_grad])
@pytest.mark.parametrize("recipe", [optkit.soap, optkit.adamw])
def test_a_whole_optimizer_is_refused(wrapper, recipe):
    with pytest.raises(ValueError, match=rf"optkit\.{recipe.__name__}\(\) is a whole optimizer"):
        wrapper(recipe(0.1))


def test_a_whole_optimizer_of_optax_does_what_the_docstrings_say():
    """It cannot be told from a direction: around it nothing trains, or the loss is climbed."""
    g = jnp.array([1.0, -2.0, 0.5])
    for tx, sign in (
        (optkit.cautious(optax.adamw(0.1)), 0.0),
        (optkit.sign_from_grad(optax.adamw(0.1)), 1.0),
        (optkit.descend(optkit.cautious(optax.scale_by_adam()), 0.1), -1.0),
        (optkit.descend(optkit.sign_from_grad(optax.scale_by_adam()), 0.1), -1.0),
    ):
        u, _ = tx.update(g, tx.init(g), jnp.zeros(3))
        np.testing.assert_array_equal(jnp.sign(u), sign * jnp.sign(g))


def test_the_updates_of_a_recipe_may_be_turned_round():
    grads = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    around = optax.chain(optkit.muon(1.0), optax.scale(-1.0))
    tx = optkit.descend(optkit.cautious(around), 0.1)
    u, _ = tx.update(grads, tx.init(grads), grads)
    assert jnp.all(u["w"] * grads["w"] <= 0) and jnp.any(u["w"] != 0)


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
DESCENTS = {kind: _descent(kind) for kind in (*KINDS, "after")}


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


@given(u=VALUES, p=VALUES)
def test_decay_of_the_stepped_weights(u, p):
    law = (1.0 - RATE * WD) * (p - RATE * 2 * u)
    np.testing.assert_allclose(DESCENTS["after"](u, p), law, atol=1e-5)
    with pytest.raises(ValueError, match="kind='after'"):
        optkit.decay_weights(WD, kind="after")


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
        lambda path, leaf: leaf.ndim > 1 and not path.endswith("bias"),
        ("embed/**", lambda path, leaf: path == "up/kernel"),
    ],
    ids=["tree", "prefix", "function", "roles", "mixed", "expression", "selector", "with function"],
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


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("matrx", "mask='matrx' names no leaf; did you mean the role 'matrix'"),
        (("matrix", "embeding"), "'embeding' names no leaf; did you mean .*'embedding'"),
        ("up/kernle", "did you mean 'up/kernel'"),
        (["re:^upp", "bias"], "'re:\\^upp' names no leaf; the leaves are 'embed/embedding', "),
        ("conv", "mask='conv' names no leaf; the leaves are"),
    ],
)
def test_a_mask_that_names_nothing_is_refused_at_init(mask, said):
    for tx in (
        optkit.decay_weights(0.5, mask=mask),
        optkit.descend(optax.identity(), 0.1, weight_decay=0.5, mask=mask),
    ):
        with pytest.raises(ValueError, match=said):
            tx.init(PARAMS)
        tx.init({})  # nothing to name


def test_a_mask_below_a_route_may_name_leaves_of_other_routes_beside_its_own():
    optkit.muon(weight_decay=0.1, mask=("up", "embed/**")).init(PARAMS)
    for mask in ("bias", "embed/**"):
        with pytest.raises(ValueError, match=r"no leaf; the leaves are 'up/kernel'; other leaves"):
            optkit.muon(weight_decay=0.1, mask=mask).init(PARAMS)
    with pytest.raises(ValueError, match=r"'embd/\*\*' names no leaf"):
        optkit.muon(weight_decay=0.1, mask=("up", "embd/**")).init(PARAMS)
    optkit.muon(weight_decay=0.1, mask="up").init({"bias": jnp.ones(3)})


RIGID = {
    "cautious": lambda: optkit.cautious(optax.scale_by_adam()),
    "sign_from_grad": lambda: optkit.sign_from_grad(optax.scale_by_adam()),
    "decay_weights": lambda: optkit.decay_weights(0.5),
    "descend": lambda: optkit.descend(optax.scale_by_adam(), 0.1),
    "muon": optkit.muon,
}


@pytest.mark.parametrize("name", RIGID)
def test_gradients_that_do_not_fit_name_the_leaf(name):
    tx = RIGID[name]()
    state, up = tx.init(PARAMS), PARAMS["up"]
    wrong = {**PARAMS, "up": {**up, "bias": jnp.ones(1)}}
    with pytest.raises(
        ValueError, match=r"up/bias: shape \(1,\) in the updates, \(3,\) in the param"
    ):
        tx.update(wrong, state, PARAMS)
    with pytest.raises(ValueError, match=r"up/bias: in the parameters, not in the updates"):
        tx.update({**PARAMS, "up": {"kernel": up["kernel"]}}, state, PARAMS)
    with pytest.raises(ValueError, match=r"up: in the updates, not in the param(.|\n)*up/bias: in"):
        tx.update({**PARAMS, "up": up["bias"]}, state, PARAMS)


RIGID_AROUND = {"cautious": optkit.cautious, "sign_from_grad": optkit.sign_from_grad}


@pytest.mark.parametrize("name", RIGID_AROUND)
def test_without_parameters_the_state_tells_which_leaf_does_not_fit(name):
    tx = RIGID[name]()
    with pytest.raises(ValueError, match=r"  up: in the updates, not in the state\ngive gradients"):
        tx.update({**PARAMS, "up": PARAMS["up"]["bias"]}, tx.init(PARAMS))
    failing = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: int("no number"))
    for state in ((), PARAMS, PARAMS["up"]):  # what is not about the tree is not hidden
        with pytest.raises(ValueError, match="no number"):
            RIGID_AROUND[name](failing).update(PARAMS, state)


def test_state_of_another_shape_names_the_leaf():
    tx = optkit.momentum()
    wrong = {**PARAMS, "embed": {"embedding": jnp.ones((5, 3))}}
    with pytest.raises(
        ValueError, match=r"embed/embedding: shape \(5, 3\) in the updates, \(2, 2\)"
    ):
        tx.update(wrong, tx.init(PARAMS))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"a": [jnp.ones(2)]}, "a: a tuple of 1 in the updates, a list of 1 in the parameters"),
        (
            {"a": (jnp.ones(2), {})},
            "a: a tuple of 1 in the updates, a tuple of 2 in the parameters",
        ),
        (
            {"a": (jnp.ones(2),), "b": None},
            "the whole tree: a dict of 1 in the updates, a dict of 2 in",
        ),
    ],
)
def test_other_containers_of_the_same_paths_are_named(params, said):
    with pytest.raises(ValueError, match=said):
        optkit.decay_weights(0.5).update({"a": (jnp.ones(2),)}, None, params)


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
