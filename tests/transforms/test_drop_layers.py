"""Dropped layers: what is frozen to the bit, what is drawn how often, what the wrapper refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.tree import leaves_with_paths, match_state
from tests.transforms.driver import gradients

SHAPES = {"embed": (5, 3), "dense_0": (3, 4), "dense_1": (4, 4), "head": (4, 2)}
LAYERS = {path: number for number, path in enumerate(SHAPES, 1)}
PARAMS = gradients(0, 1, SHAPES)[0]
GRADS = gradients(1, 12, SHAPES)
ROLES = [("embed", "embedding"), ("head", "head")]


def drop(inner, **options):
    return optkit.drop_layers(inner, roles=ROLES, **options)


def muon():
    return optkit.muon(0.1, weight_decay=0.1, roles=ROLES)


INNER = {
    "muon": muon,
    "adamw": lambda: optkit.adamw(0.1, weight_decay=0.1),
    "optax": lambda: optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(0.1, 0.01, 9))),
}


def steps(tx, count=12, jit=True, cut=None):
    """Yields (cut, state, params) before and after each step, as NumPy."""
    extra = {} if cut is None else {"cut": cut}

    def step(g, state, params):
        u, state = tx.update(g, state, params, **extra)
        return state, optax.apply_updates(params, u)

    step = jax.jit(step) if jit else step
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for g in GRADS[:count]:
        before = (state.inner, params)
        number = int(optkit.next_cut(state)) if cut is None else cut
        state, params = step(g, state, params)
        yield number, before, (state.inner, params)


def same(a, b):
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def test_the_layers_of_the_model():
    layers = optkit.layer_order(PARAMS, roles=ROLES)
    assert layers.layer_of == dict(sorted(LAYERS.items()))


@pytest.mark.parametrize("sampling", [1, (1.0, 0.0, 0.0, 0.0), {1: 1.0}])
def test_all_probability_on_the_first_cut_is_the_inner_optimizer_to_the_bit(sampling):
    ours, plain = drop(muon(), sampling=sampling), muon()
    step = jax.jit(lambda tx, g, s, p: tx.update(g, s, p), static_argnums=0)
    state, other = ours.init(PARAMS), plain.init(PARAMS)
    for g in GRADS[:3]:
        u, state = step(ours, g, state, PARAMS)
        v, other = step(plain, g, other, PARAMS)
        jax.tree.map(np.testing.assert_array_equal, (u, state.inner), (v, other))


@pytest.mark.sweep
@pytest.mark.parametrize("clock", ["global", "layer"])
@pytest.mark.parametrize("name", INNER)
def test_frozen_layers_keep_parameters_and_state_bit_for_bit(name, clock):
    seen = set()
    for cut, (state, params), (new_state, new_params) in steps(drop(INNER[name](), clock=clock)):
        seen.add(cut)
        for path, layer in LAYERS.items():
            assert same(params[path], new_params[path]) == (layer < cut), (cut, path)
        pairs = zip(match_state(state, params), match_state(new_state, params), strict=True)
        owned = [(a, b.leaf) for a, b in pairs if a.param_path is not None]
        assert len(owned) >= len(SHAPES)
        for match, after in owned:
            frozen = LAYERS[match.param_path] < cut
            assert same(match.leaf, after) == frozen, (cut, match.key_path)
    assert seen == {1, 2, 3, 4}


@pytest.mark.parametrize("clock", ["global", "layer"])
def test_a_static_cut_is_the_branch_of_a_drawn_one(clock):
    """One program with a switch, one program a cut, and no program at all."""
    tx = drop(optkit.adamw(0.1), clock=clock)
    static = jax.jit(tx.update, static_argnames="cut")
    switched = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for g in GRADS[:3]:
        want, after = switched(g, state, PARAMS)
        cut = int(optkit.next_cut(state))
        for got in (static(g, state, PARAMS, cut=cut), tx.update(g, state, PARAMS)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got[0], want)
            assert int(optkit.next_cut(got[1])) == int(optkit.next_cut(after))
        given, _ = switched(g, state, PARAMS, cut=jnp.int32(4))
        assert [path for path, u in leaves_with_paths(given) if jnp.any(u)] == ["head"]
        state = after


@pytest.mark.parametrize("clock", ["global", "layer"])
def test_clocks_against_adam_written_out(clock):
    """Debiasing and schedule go by the training step, or by the updates that the layer has had."""
    rate, b1, b2, eps = (lambda t: 0.1 / (1.0 + t)), 0.9, 0.999, 1e-8
    tx = drop(optkit.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=0.0), clock=clock)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    m = {k: np.zeros(v) for k, v in SHAPES.items()}
    v, n = {k: np.zeros(s) for k, s in SHAPES.items()}, dict.fromkeys(SHAPES, 0)
    for t, (cut, g) in enumerate(zip((3, 1, 4, 2, 1, 3), GRADS, strict=False)):
        u, state = update(g, state, PARAMS, cut=jnp.int32(cut))
        for k, layer in LAYERS.items():
            if layer < cut:
                assert not np.any(u[k])
                continue
            own = n[k] if clock == "layer" else t
            m[k] = b1 * m[k] + (1 - b1) * np.float64(g[k])
            v[k] = b2 * v[k] + (1 - b2) * np.float64(g[k]) ** 2
            up = m[k] / (1 - b1 ** (own + 1))
            down = np.sqrt(v[k] / (1 - b2 ** (own + 1))) + eps
            np.testing.assert_allclose(u[k], -rate(own) * up / down, rtol=2e-5)
            n[k] += 1
    assert set(n.values()) == {2, 3, 5, 6}
    if clock == "global":
        assert float(optkit.get_hyperparam(state, "learning_rate")) == pytest.approx(rate(5))
    else:
        assert float(optkit.get_hyperparam(state, "embed/learning_rate")) == pytest.approx(rate(1))


def test_a_layer_is_updated_in_the_fraction_of_steps_that_its_probability_says():
    p = (0.1, 0.2, 0.3, 0.4)
    tx = drop(optax.sgd(1.0), sampling=p, key=3)
    ones = jax.tree.map(jnp.ones_like, PARAMS)

    @jax.jit
    def train(state):
        def body(state, _):
            u, state = tx.update(ones, state)
            return state, jnp.stack([u[path][0, 0] != 0 for path in SHAPES])

        return jax.lax.scan(body, state, length=3000)[1]

    fractions = np.mean(train(tx.init(PARAMS)), axis=0)
    exact = np.cumsum(p)
    error = np.sqrt(exact * (1 - exact) / 3000)
    assert np.all(np.abs(fractions - exact) <= 3.3 * error + 1e-9), fractions


def test_one_key_gives_one_sequence_and_another_key_another():
    def cuts(key):
        return [cut for cut, _, _ in steps(drop(optax.sgd(0.1), key=key), jit=False)]

    assert cuts(5) == cuts(5) == cuts(jax.random.key(5)) != cuts(6)


def test_members_of_a_population_freeze_their_own_layers():
    tx = drop(optkit.lion(0.1))
    states = [drop(optkit.lion(0.1), key=key).init(PARAMS) for key in range(6)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    update = jax.jit(jax.vmap(lambda state: tx.update(GRADS[0], state, PARAMS)[0]))
    moved = {path: np.any(u, axis=(1, 2)) for path, u in update(stacked).items()}
    assert len({int(cut) for cut in stacked.cut}) > 2
    for path, layer in LAYERS.items():
        np.testing.assert_array_equal(moved[path], layer >= np.asarray(stacked.cut))


def noting(log):
    """Notes which leaves are really worked on when the compiled program runs."""

    def update(updates, state, params=None, **extra):
        for path, u in leaves_with_paths(updates):
            jax.debug.callback(lambda x, path=path: log.append(path), u[0, 0])
        assert not extra or jax.tree.structure(extra["grad"]) == jax.tree.structure(updates)
        assert params is None or jax.tree.structure(params) == jax.tree.structure(updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("clock", ["global", "layer"])
def test_the_work_on_frozen_layers_is_skipped_when_the_program_runs(clock):
    log = []
    tx = drop(noting(log), clock=clock)
    update = jax.jit(lambda g, state: tx.update(g, state, PARAMS, grad=g, value=2.0))
    state = tx.init(PARAMS)
    for g in GRADS[:6]:
        wanted = {path for path, layer in LAYERS.items() if layer >= int(optkit.next_cut(state))}
        log.clear()
        _, state = jax.block_until_ready(update(g, state))
        jax.effects_barrier()
        assert set(log) == wanted and len(log) == len(wanted)


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_given_cuts_sum_the_gradients_of_the_trained_layers(cuts):
    tx = drop(optax.sgd(1.0))
    state, total = tx.init(PARAMS), jax.tree.map(np.zeros_like, PARAMS)
    for cut, g in zip(cuts, GRADS, strict=False):
        u, state = tx.update(g, state, cut=cut)
        total = jax.tree.map(np.add, total, u)
    for path, layer in LAYERS.items():
        own = [g[path] for cut, g in zip(cuts, GRADS, strict=False) if cut <= layer]
        np.testing.assert_array_equal(total[path], -sum(own, np.zeros(SHAPES[path], np.float32)))


def by_position(params):
    """A state that lies in a list, whatever the leaves are called."""
    return [jnp.zeros(x.shape) for x in jax.tree.leaves(params)]


def one_vector(params):
    return jnp.zeros(sum(x.size for x in jax.tree.leaves(params)))


@pytest.mark.parametrize("init", [by_position, one_vector])
def test_a_state_that_is_not_kept_leaf_by_leaf_is_refused(init):
    inner = optax.GradientTransformation(init, lambda g, state, params=None: (g, state))
    tx = drop(inner)
    with pytest.raises(ValueError, match=r"not kept leaf by leaf; .*clock='layer'"):
        tx.update(PARAMS, tx.init(PARAMS), cut=2)
    other = drop(inner, clock="layer")
    other.update(PARAMS, other.init(PARAMS), cut=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "unifrom"}, "sampling='unifrom' is not 'uniform', 'epoch_shifted'"),
        ({"sampling": "epoch_shifted"}, "shift_steps=None.*give both or neither"),
        ({"shift_steps": 5}, "give both or neither"),
        ({"sampling": "epoch_shifted", "shift_steps": 0}, "shift_steps=0 must be an integer"),
        ({"sampling": (0.5, 0.4)}, "must be probabilities that add up to 1"),
        ({"sampling": (1.5, -0.5)}, "must be probabilities"),
        ({"sampling": 0}, "sampling=0 must be an integer of at least 1"),
        ({"sampling": {0: 1.0}}, "a cut of sampling=0"),
        ({"clock": "step"}, "clock='step' is not one of 'global', 'layer'"),
    ],
)
def test_wrong_options_are_named_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        optkit.drop_layers(optax.sgd(1.0), **options)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ((0.5, 0.5), r"2 probabilities for 4 layers: 'embed', 'dense_0', 'dense_1', 'head'"),
        (5, r"cut=5 is no layer: there are 4, counted from 1: 'embed'"),
        ({5: 1.0}, "cut=5 is no layer"),
        (lambda t, b: jnp.ones(3), r"shape \(3,\) for 4 layers"),
    ],
)
def test_laws_for_another_number_of_layers_are_named_at_init(sampling, message):
    with pytest.raises(ValueError, match=message):
        drop(optax.sgd(1.0), sampling=sampling).init(PARAMS)


def test_cuts_and_states_that_are_none():
    tx = drop(optax.sgd(1.0))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="cut=9 is no layer"):
        tx.update(PARAMS, state, cut=9)
    with pytest.raises(ValueError, match="0 states of drop_layers instead of one"):
        optkit.next_cut(optax.sgd(1.0).init(PARAMS))
    with pytest.raises(ValueError, match="2 states of drop_layers"):
        optkit.next_cut((state, state))
    assert int(optkit.next_cut({"a": (state, 3)})) == int(state.cut)
