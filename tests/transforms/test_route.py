"""Routes: order, errors, extras, nesting; freezing; hyperparameters read from the state."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from optkit.tree import leaves_with_paths, tree_bytes

PARAMS = {
    "embed": {"embedding": jnp.ones((3, 2))},
    "up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}
PARTS = {"one": optax.scale(1.0), "two": optax.scale(2.0), "three": optax.scale(3.0)}


def routed(rules, **options):
    """A route of those parts that a rule names."""
    named = [name for _, name in rules]
    return optkit.route({k: v for k, v in PARTS.items() if k in named}, rules, **options)


def factors(tx, params=PARAMS, **extras):
    out = tx.update(params, tx.init(params), params, **extras)[0]
    return [float(x.mean()) for _, x in leaves_with_paths(out)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("**", "one"), ("up", "two")], [1, 1, 1]),
        ([("up", "two"), ("**", "one")], [1, 2, 2]),
        ([("bias", "three"), ("up/*", "two"), ("**", "one")], [1, 3, 2]),
        ([(("embedding", "re:bias"), "three"), (lambda path, x: x.ndim == 2, "two")], [3, 3, 2]),
        ([("matrix", "frozen"), ("**", "two")], [2, 2, 0]),
    ],
)
def test_the_first_matching_rule_serves(rules, expected):
    assert factors(routed(rules)) == expected


def test_user_roles_decide_routes():
    tx = routed([("head", "three"), ("**", "one")], roles=[("up/kernel", "head")])
    assert factors(tx) == [1, 1, 3]


def test_errors_name_rule_and_leaf():
    with pytest.raises(ValueError, match=r"'tow'.*did you mean 'two'"):
        optkit.route(PARTS, [("**", "tow")])
    tx = routed([("up", "two")])
    with pytest.raises(ValueError, match=r"no rule names leaf 'embed/embedding' of shape \(3, 2\)"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("transformations", "rules", "error", "said"),
    [
        ({}, [], ValueError, "no rules; add at least"),
        (PARTS, [("**", "one")], ValueError, "no rule sends leaves to 'two'"),
        ({"frozen": optax.sgd(0.1)}, [("**", "frozen")], ValueError, "'frozen' is built in"),
        ({"a": optax.sgd}, [("**", "a")], TypeError, r"\['a'\] must be.*call it: optax\.sgd\(\)"),
        ({"a": "lion"}, [("**", "a")], TypeError, r"build it: optkit\.lion\(\)"),
        ([("**", "a")], {"a": optax.sgd(0.1)}, TypeError, "must map names to transformations"),
    ],
)
def test_routes_that_cannot_be_are_refused_at_construction(transformations, rules, error, said):
    with pytest.raises(error, match=said):
        optkit.route(transformations, rules)


def test_the_second_optimizer_of_a_matrix_recipe_must_be_one():
    with pytest.raises(TypeError, match=r"other must be .*'adamw'; build it: optkit\.adamw\(\)"):
        optkit.muon(other="adamw")
    with pytest.raises(TypeError, match=r"matrix must be .*call it: optkit\.orthogonalize\(\)"):
        optkit.split_matrices(optkit.orthogonalize, optax.identity())


def test_a_gradient_of_another_shape_names_the_leaf():
    tx = routed([("up", "two"), ("**", "one")])
    wrong = {**PARAMS, "embed": {"embedding": jnp.ones((2, 3))}}
    with pytest.raises(
        ValueError, match=r"embed/embedding: shape \(2, 3\) in the updates, \(3, 2\)"
    ):
        tx.update(wrong, tx.init(PARAMS), PARAMS)


def seen(log):
    def update(updates, state, params=None, **extras):
        log.append((updates, params, extras))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("wrap", [lambda tx: tx, optkit.in_float32, lambda tx: optax.chain(tx)])
def test_extras_reach_every_route_and_trees_only_their_part(wrap):
    logs = {"a": [], "b": []}
    tx = wrap(optkit.route({k: seen(v) for k, v in logs.items()}, [("up", "a"), ("**", "b")]))
    tree = jax.tree.map(lambda x: 7 * x, PARAMS)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0, last=tree, note={"x": 1})
    for name, paths in {"a": ["up/bias", "up/kernel"], "b": ["embed/embedding"]}.items():
        updates, params, extras = logs[name][0]
        for part in (updates, params, extras["last"]):
            assert [path for path, _ in leaves_with_paths(part)] == paths
        assert extras["value"] == 3.0 and extras["note"] == {"x": 1}
        assert all(float(x.mean()) == 7.0 for x in jax.tree.leaves(extras["last"]))


def test_a_scalar_extra_beside_a_bare_array_reaches_every_route():
    logs = {"a": [], "b": []}
    tx = optkit.route({k: seen(v) for k, v in logs.items()}, [("matrix", "a"), ("**", "b")])
    tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))), value=3.0)
    assert [log[0][2]["value"] for log in logs.values()] == [3.0, 3.0]


def test_routes_inside_masks_inside_routes():
    inner = routed([("kernel", "two"), ("**", "three")])
    masked = optax.masked(inner, {"embed": False, "up": True})
    assert factors(masked) == [1, 3, 2]
    outer = optkit.route({"x": masked, "y": optax.scale(5.0)}, [("up", "x"), ("**", "y")])
    assert factors(outer) == [5, 3, 2]
    assert factors(
        optax.masked(optkit.muon(0.0, adam_learning_rate=0.0), {"embed": False, "up": True})
    ) == [1, 0, 0]


def test_state_lies_in_the_own_route_only():
    tx = optkit.route({"a": optkit.momentum(), "b": optkit.momentum()}, [("up", "a"), ("**", "b")])
    state = tx.init(PARAMS)
    assert [tree_bytes(state.routes[k].momentum) for k in "ab"] == [9 * 4, 6 * 4]


def test_freeze():
    tx = optkit.freeze(("embedding", "bias"), optax.sgd(1.0, momentum=0.9))
    assert factors(tx) == [0, 0, -1]
    assert tree_bytes(tx.init(PARAMS)) == 6 * 4
    everything = optkit.freeze("**", optax.sgd(1.0))
    assert factors(everything) == [0, 0, 0]


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("embeding", "'embeding' names no leaf; did you mean the role 'embedding'"),
        ("ups/*", "'ups/\\*' names no leaf"),
        (("embedding", "kernl"), "'kernl' names no leaf; did you mean 'kernel'"),
        (optkit.Role.CONV, "names no leaf; the leaves are 'embed/embedding', 'up/bias'"),
    ],
)
def test_freezing_nothing_is_refused(selector, said):
    tx = optkit.freeze(selector, optax.sgd(1.0))
    with pytest.raises(ValueError, match=said):
        tx.init(PARAMS)
    tx.init({})
    optkit.freeze(lambda path, leaf: False, optax.sgd(1.0)).init(PARAMS)  # a function may say so


def schedule(t):
    return 0.5 / (1.0 + t)


@pytest.mark.parametrize("name", ["adamw", "lion", "signsgd", "muon"])
def test_the_learning_rate_of_the_last_update_is_recorded(name):
    tx = optkit.catalogue.get(name).factory(schedule)
    key = "muon/learning_rate" if name == "muon" else "learning_rate"
    state = tx.init(PARAMS)
    assert float(optkit.get_hyperparam(state, key)) == 0.5
    for t in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
        assert float(optkit.get_hyperparam(state, key)) == pytest.approx(schedule(t))


def test_scheduled_values_are_recorded_and_constants_are_not():
    state = optkit.adamw(0.1, b1=lambda t: 0.9 - 0.1 * t).init(PARAMS)
    assert optkit.hyperparams(state).keys() == {"b1", "learning_rate"}
    with pytest.raises(
        KeyError, match=r"no 'b2'; it records b1, learning_rate.*inject_hyperparams"
    ):
        optkit.get_hyperparam(state, "b2")
    with pytest.raises(KeyError, match="records nothing"):
        optkit.get_hyperparam(optax.sgd(1.0).init(PARAMS), "learning_rate")


def test_a_name_of_several_routes_is_ambiguous():
    tx = optkit.muon(0.1, adam_learning_rate=0.2)
    state = optax.chain(optax.clip(1.0), tx).init(PARAMS)
    with pytest.raises(KeyError, match=r"several routes.*adamw/learning_rate, muon/learning_rate"):
        optkit.get_hyperparam(state, "learning_rate")
    assert float(optkit.get_hyperparam(state, "adamw/learning_rate")) == pytest.approx(0.2)
    assert float(optkit.get_hyperparam(state, "muon/learning_rate")) == pytest.approx(0.1)


def test_links_that_record_one_name_are_told_apart():
    """Three scheduled b1, two of one class: no value hides another."""
    parts = [optkit.momentum(lambda t, b=b: b + 0.0 * t) for b in (0.5, 0.25)]
    tx = optax.chain(*parts, optkit.scale_by_adam(lambda t: 0.75 + 0.0 * t))
    want = {"MomentumState.b1": 0.5, "MomentumState#2.b1": 0.25, "ScaleByAdamState.b1": 0.75}
    for wrap, before in (
        (lambda tx: tx, ""),
        (lambda tx: optkit.route({"a": tx}, [("**", "a")]), "a/"),
    ):
        state = wrap(tx).init(PARAMS)
        found = {name: float(value) for name, value in optkit.hyperparams(state).items()}
        assert found == {before + name: value for name, value in want.items()}
        with pytest.raises(KeyError, match=r"several.*one of .*MomentumState#2\.b1, "):
            optkit.get_hyperparam(state, "b1")
        assert float(optkit.get_hyperparam(state, "MomentumState#2.b1")) == 0.25
        assert float(optkit.get_hyperparam(state, "ScaleByAdamState.b1")) == 0.75


def test_injected_values_are_read_and_used():
    tx = optax.inject_hyperparams(optkit.lion)(learning_rate=schedule, b1=0.7)
    state = tx.init(PARAMS)
    for t in range(2):
        u, state = tx.update(PARAMS, state, PARAMS)
        assert float(u["up"]["bias"][0]) == pytest.approx(-schedule(t))
        assert float(optkit.get_hyperparam(state, "learning_rate")) == pytest.approx(schedule(t))
    assert float(optkit.get_hyperparam(state, "b1")) == pytest.approx(0.7)


def test_equal_calls_give_one_object_and_one_compilation():
    assert optkit.lion(0.1) is optkit.lion(0.1)
    assert optkit.lion(0.1) is not optkit.lion(0.2)
    traced = []

    @functools.partial(jax.jit, static_argnums=1)
    def first_update(grads, tx):
        traced.append(tx)
        return tx.update(grads, tx.init(grads))[0]

    for _ in range(3):
        first_update(PARAMS, optkit.momentum(0.25, state_dtype=jnp.bfloat16))
    assert len(traced) == 1
