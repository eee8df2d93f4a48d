"""The wrapper: what does not train stays bit for bit, and what its state means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import masks
from tests.transforms.driver import gradients, run

SHAPES = {"kernel": (5, 6), "stack": (2, 3, 4), "bias": (6,)}
STATES = ("hold", "zero", "drop")
PARAMS = gradients(7, 1, SHAPES)[0]
GRADS = gradients(0, 5, SHAPES)


def adam(rate=0.1, decay=0.3):
    return optkit.descend(optkit.scale_by_adam(), rate, weight_decay=decay)


COUNTS = {"kernel": 11, "stack": 7, "bias": 6}


@st.composite
def drawn_masks(draw):
    """A mask tree with the entries above in random places: all of the bias."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    out = {}
    for name, shape in SHAPES.items():
        flat = np.arange(np.prod(shape)) < COUNTS[name]
        out[name] = random.permutation(flat).reshape(shape)
    return out


def program(state):
    """Steps of Adam inside of a mask, which is traced; None: of Adam alone. Last its moments."""

    @jax.jit
    def go(params, grads, mask, rate, decay):
        tx = adam(rate, decay)
        if state is not None:
            policy = masks.own(lambda step, g, p: mask, counts=COUNTS, gradients=False)
            tx = optkit.update_mask(tx, policy, state=state)

        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = optax.apply_updates(params, u)
            return (params, state), (u, params)

        (_, last), out = jax.lax.scan(step, (params, tx.init(params)), grads)
        return *out, {name: optax.tree.get(last, name) for name in ("mu", "nu")}

    def call(params, grads, mask, rate, decay):
        stacked = jax.tree.map(lambda *g: np.stack(g), *grads)
        return jax.tree.map(np.asarray, go(params, stacked, mask, rate, decay))

    return call


MASKED = {state: program(state) for state in (None, *STATES)}
DRAWN = {
    "seed": st.integers(0, 2**32 - 1),
    "mask": drawn_masks(),
    "rate": st.floats(0.01, 0.1),
    "decay": st.floats(0.0, 1.0),
}


@pytest.mark.parametrize("state", STATES)
@given(**DRAWN, bad=st.sampled_from([np.nan, np.inf, 1e30]))
def test_masked_entries_stay_and_the_others_do_what_inner_alone_does(
    state, seed, mask, rate, decay, bad
):
    """Decay and momentum are inside: neither moves what does not train, bit for bit.

    Adam is element-wise: an active entry does not know of the mask, nor of gradients outside of it.
    """
    params, *grads = gradients(seed, 4, SHAPES)
    alone = MASKED[None](params, grads, mask, rate, decay)[1]
    wild = [{k: np.where(mask[k], g[k], np.float32(bad)) for k in g} for g in grads]
    updates, after, moments = MASKED[state](params, wild, mask, rate, decay)
    for name, on in mask.items():
        for moment in moments.values():
            stays = np.count_nonzero(moment[name]) == COUNTS[name]
            assert stays and np.all(np.isfinite(moment[name]))
        for now in after[name]:
            np.testing.assert_array_equal(now[~on], params[name][~on])
        assert np.all(updates[name][0][on] != 0)
        np.testing.assert_allclose(after[name][:, on], alone[name][:, on], rtol=0, atol=2e-7)


@pytest.mark.parametrize("state", STATES)
def test_all_entries_are_the_base_optimizer(state):
    tx = optkit.update_mask(adam(), masks.random(1.0, where="**"), state=state)
    whole = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    want = MASKED[None](PARAMS, GRADS[:3], whole, 0.1, 0.3)[1]
    for name, got in run(tx, PARAMS, GRADS[:3])[1].items():
        np.testing.assert_allclose(got, want[name], rtol=0, atol=2e-7)


def alternating(count=2):
    """The even entries at even steps, the odd ones at odd steps."""

    def choose(step, grads, params):
        del grads
        return jax.tree.map(
            lambda p: ((jnp.arange(p.size) + step) % 2 == 0).reshape(p.shape), params
        )  # fmt: skip

    return masks.own(choose, counts={"w": count})


def trace_of(state):
    inner = state.inner
    return np.asarray(inner.trace["w"])


def test_the_three_meanings_of_state():
    """Momentum 1/2 and gradients of 1, where each entry trains every other step."""
    params, g = {"w": jnp.zeros(4)}, {"w": jnp.ones(4)}
    want = {
        # m of (even, odd) entries after the steps 0, 1, 2.
        "hold": ((1, 0), (1, 1), (1.5, 1)),
        "zero": ((1, 0), (0.5, 1), (1.25, 0.5)),
    }
    for name, values in want.items():
        tx = optkit.update_mask(optax.trace(0.5), alternating(), state=name)
        state = tx.init(params)
        for even, odd in values:
            u, state = tx.update(g, state, params)
            np.testing.assert_allclose(trace_of(state), [even, odd] * 2)
        np.testing.assert_allclose(u["w"], [want[name][2][0], 0.0] * 2)
    # Dropped: what enters begins anew, every time.
    tx = optkit.update_mask(optax.trace(0.5), alternating(), state="drop")
    state = tx.init(params)
    for step in range(3):
        u, state = tx.update(g, state, params)
        np.testing.assert_array_equal(trace_of(state), np.ones(2))
        np.testing.assert_array_equal(state.kept["w"], [step % 2, step % 2 + 2])
        np.testing.assert_array_equal(u["w"], [1.0, 0.0] * 2 if step % 2 == 0 else [0.0, 1.0] * 2)


def test_entries_that_stay_keep_their_dropped_state_and_counters_run_on():
    """A window of two entries that moves by one a step, under Adam."""
    move = lambda step, g, p: {"w": (jnp.arange(6) >= step) & (jnp.arange(6) < step + 2)}  # noqa: E731
    tx = optkit.update_mask(
        optkit.scale_by_adam(0.5, 0.5), masks.own(move, counts={"w": 2}), state="drop"
    )
    params = {"w": jnp.zeros(6)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step, g in enumerate((1.0, 2.0, 3.0)):
        _, state = update({"w": jnp.full(6, g)}, state, params)
        inner = state.inner
        assert int(inner.count) == step + 1
    # Entry 2 has seen 2 and 3, entry 3 only 3.
    np.testing.assert_array_equal(state.kept["w"], [2, 3])
    np.testing.assert_allclose(inner.mu["w"], [0.5 * 1.0 + 0.5 * 3.0, 1.5])
    np.testing.assert_allclose(inner.nu["w"], [0.5 * 2.0 + 0.5 * 9.0, 4.5])


def test_dropped_state_has_the_size_of_what_is_active():
    params = {"a": {"kernel": jnp.zeros((8, 10))}, "b": {"kernel": jnp.zeros((4, 4))}}
    tree = {"a": {"kernel": np.arange(80).reshape(8, 10) < 5}, "b": False}
    tx = optkit.update_mask(optkit.scale_by_adam(), masks.fixed(tree), state="drop")
    state = tx.init(params)
    assert state.inner.mu["a"]["kernel"].shape == (1, 5)
    assert optkit.tree.tree_bytes(state) == 5 * (4 + 8) + 2 * 4  # index, moments, two counters
    for name in ("hold", "zero"):
        state = optkit.update_mask(optkit.scale_by_adam(), masks.fixed(tree), state=name).init(
            params
        )
        assert optkit.tree.tree_bytes(state) == 80 * (1 + 8) + 2 * 4
        assert jax.tree.leaves(state.inner.mu["b"]) == []


@pytest.mark.parametrize("shape", [(1, 6), (5, 1)])
def test_whole_columns_and_rows_keep_the_shape_of_a_matrix(shape):
    """Muon of two columns is Muon of a matrix that has these alone."""
    mask = (np.arange(max(shape)) % 3 == 1).reshape(shape)
    axis = shape.index(max(shape))
    keep = np.flatnonzero(mask)
    tx = optkit.update_mask(optkit.orthogonalize(), masks.fixed({"w": mask}), state="drop")
    g = {"w": jnp.asarray(GRADS[0]["kernel"])}
    got = tx.update(g, tx.init(g), g)[0]["w"]
    part = {"w": jnp.take(g["w"], keep, axis=axis)}
    want = optkit.orthogonalize().update(part, optkit.orthogonalize().init(part))[0]["w"]
    np.testing.assert_allclose(jnp.take(got, keep, axis=axis), want, atol=1e-6)
    assert np.count_nonzero(got) == want.size


def test_a_norm_inside_is_that_of_what_trains():
    mask = {"w": np.array([True, True, False])}
    g = {"w": jnp.array([3.0, 4.0, 100.0])}
    for state in STATES:
        tx = optkit.update_mask(optax.clip_by_global_norm(1.0), masks.fixed(mask), state=state)
        np.testing.assert_allclose(tx.update(g, tx.init(g), g)[0]["w"], [0.6, 0.8, 0.0], rtol=1e-6)


@pytest.mark.parametrize("state", STATES)
def test_decay_behind_the_wrapper_decays_everything(state):
    mask = {"w": np.array([True, False])}
    tx = optax.chain(
        optkit.update_mask(optkit.scale_by_adam(), masks.fixed(mask), state=state),
        optkit.decay_weights(0.5),
        optkit.scale_by_learning_rate(1.0),
    )
    params = {"w": jnp.ones(2)}
    u, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    np.testing.assert_allclose(u["w"], [-1.5, -0.5], rtol=1e-6)


def test_extra_arguments_like_the_updates_are_cut_to_what_is_active():
    seen = []

    def update(updates, state, params=None, *, other, flag, **extra):
        seen.append((jax.tree.map(jnp.shape, other), flag))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = optkit.update_mask(inner, masks.fixed({"w": np.array([True, False, True])}), state="drop")
    params = {"w": jnp.ones(3)}
    tx.update(params, tx.init(params), params, other=params, flag=7)
    assert seen == [({"w": (2,)}, 7)]


@pytest.mark.parametrize("state", STATES)
def test_inside_a_route_and_a_scan_over_a_population(state):
    policy = masks.magnitude(0.5, interval=2)
    tx = optkit.route(
        {"sparse": optkit.update_mask(adam(), policy, state=state), "rest": optax.sgd(0.1)},
        [("bias", "rest"), ("**", "sparse")],
    )
    one = run(tx, PARAMS, GRADS)[1]
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
    grads = jax.tree.map(lambda *g: jnp.stack(g), *GRADS)

    def member(params):
        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = optax.apply_updates(params, u)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    both = jax.jit(jax.vmap(member))(stacked)
    for name in SHAPES:
        np.testing.assert_allclose(both[name][0], one[name], rtol=0, atol=3e-7)


def refused(policy, message, params=None, state="hold", kind=ValueError):
    with pytest.raises(kind, match=message):
        optkit.update_mask(optax.sgd(1.0), policy, state=state).init(params or PARAMS)


def test_bad_input_is_refused_with_leaf_value_and_remedy():
    refused(masks.magnitude(31), r"keep=31 is more than the 30 entries of leaf 'kernel'; give at")
    refused(masks.fixed({"kernel": False, "stack": False, "bias": False}), "trains nothing.*route")
    refused(masks.fixed({"kernel": True}), "no entry for leaf 'bias'; add one")
    refused(masks.fixed(dict.fromkeys(SHAPES, np.array([True, False]))), "leaf 'bias' of shape")
    refused(masks.magnitude(2), "state='drpo' is not one of.*did you mean 'drop'", state="drpo")
    refused(masks.magnitude(5, over="all"), "differs from step to step", state="drop")
    refused(masks.id3(99, 3), "budget=99 is more than the 60 entries")
    refused(masks.magnitude(2, where="kernl"), "did you mean 'kernel'")
    refused(optax.sgd(1.0), "is no mask policy; call one of optkit.masks", kind=TypeError)
    with pytest.raises(ValueError, match=r"keep=0.0 is a share and must be in \(0, 1\]"):
        masks.random(0.0)
    with pytest.raises(ValueError, match="rest='thaw' is not one of 'train', 'freeze'"):
        masks.magnitude(1, rest="thaw")
    with pytest.raises(ValueError, match="rank=0 must be an integer of at least 1"):
        masks.lift(0)


def test_a_mask_that_is_no_mask_is_refused():
    floats = masks.own(lambda step, g, p: jax.tree.map(jnp.sign, p))
    tx = optkit.update_mask(optax.sgd(1.0), floats)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"float32 of shape \(6,\) for leaf 'bias'; a bool array"):
        tx.update(PARAMS, state, PARAMS)


def test_statistics_that_are_no_numbers_per_entry_do_not_move():
    """Dropped state of a factored method belongs to rows: other rows cannot have it."""
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
    tx = optkit.update_mask(inner, masks.lift(1, 1, interval=1), state="drop")
    params = {"kernel": jnp.asarray(PARAMS["kernel"])}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    with pytest.raises(ValueError, match=r"cannot move .* use state='hold'"):
        tx.update(params, state, params)


@pytest.mark.parametrize(("held", "trained"), [(2, 2), (3, 3), (5, 3)])
def test_room_for_more_or_fewer_than_are_active(held, trained):
    """Three positive gradients: room for two serves the first two, room for five all of them."""
    policy = masks.own(lambda t, g, p: {"w": g["w"] > 0}, counts={"w": held})
    inner = optax.chain(optax.clip_by_global_norm(1e9), optax.trace(0.5))
    tx = optkit.update_mask(inner, policy, state="drop")
    params, g = {"w": jnp.ones(6)}, {"w": jnp.array([-1.0, 1.0, 2.0, -1.0, 3.0, -1.0])}
    state, update = tx.init(params), jax.jit(tx.update)
    for factor in (1.0, 1.5):
        u, state = update(g, state, params)
        want = factor * np.array([0.0, 1.0, 2.0, 0.0, 3.0 if trained == 3 else 0.0, 0.0])
        np.testing.assert_array_equal(u["w"], want)
    assert state.inner[1].trace["w"].shape == (held,)


@pytest.mark.parametrize("state", STATES)
def test_a_mask_costs_no_temporary_copy_of_a_leaf(state):
    """Held and zeroed masks are part of the loop that Adam is; dropped ones gather what is few."""
    params = {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    mask = {"kernel": np.arange(256 * 256).reshape(256, 256) % 20 == 0}
    tx = optkit.update_mask(adam(), masks.fixed(mask), state=state)
    arguments = (params, jax.eval_shape(tx.init, params), params)
    compiled = jax.jit(tx.update).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 256 * 4 / 2
