"""The corrected gradient of MARS, its identities, and the clip of each leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import directions, gradients, run

GRADS = gradients(1, 6, {"w": (3, 2), "v": (4,)})
GAMMAS = st.sampled_from([0.0, 0.025, 0.3, 1.0])
RATES = st.sampled_from([0.0, 0.5, 0.9, 0.95])


@functools.cache
def program(kind):
    """One compiled run for all numbers; they are arrays inside."""

    def build(gamma, b1):
        if kind == "blend":
            return optkit.blend_momentum((1 - gamma) * b1, b1)
        if kind == "nesterov":
            return optkit.momentum(b1, nesterov=True)
        start = "gradient" if kind == "paper" else "zero"
        return optax.chain(optkit.variance_reduce(gamma, b1, start=start), optkit.momentum(b1))

    return jax.jit(lambda grads, gamma, b1: directions(build(gamma, b1), grads))


def follow(kind, gamma, b1, grads=GRADS):
    return program(kind)(grads, jnp.float32(gamma), jnp.float32(b1))


@given(gamma=GAMMAS, b1=RATES)
def test_the_momentum_of_the_corrected_gradient(gamma, b1):
    """Against the definition in float64, and as one buffer that knows no last gradient."""
    got, blended = follow("mars", gamma, b1), follow("blend", gamma, b1)
    for name in GRADS[0]:
        m = last = 0.0
        for t, tree in enumerate(GRADS):
            g = np.float64(tree[name])
            m = b1 * m + (1 - b1) * (g + gamma * b1 / (1 - b1) * (g - last))
            last = g
            np.testing.assert_allclose(got[name][t], m, atol=1e-5)
            np.testing.assert_allclose(blended[name][t], m, atol=1e-5)


@given(b1=RATES)
def test_a_gamma_makes_it_nesterovs_momentum(b1):
    got, want = follow("mars", 1 - b1, b1), follow("nesterov", 0.0, b1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@given(gamma=GAMMAS, b1=RATES)
def test_the_first_correction(gamma, b1):
    """The reference starts from a gradient of zero, the paper from the same parameters."""
    first = {kind: follow(kind, gamma, b1)["w"][0] for kind in ("mars", "paper")}
    g = (1 - b1) * GRADS[0]["w"]
    np.testing.assert_allclose(first["mars"], g * (1 + gamma * b1 / (1 - b1)), rtol=1e-5)
    np.testing.assert_allclose(first["paper"], g, rtol=1e-5)
    # After that both correct by the last gradient: only the share of the first one differs.
    later = follow("mars", gamma, b1)["w"][-1] - follow("paper", gamma, b1)["w"][-1]
    share = b1 ** (len(GRADS) - 1) * (first["mars"] - first["paper"])
    np.testing.assert_allclose(later, share, atol=1e-5)


def test_default_coefficient_is_the_papers():
    c = directions(optkit.variance_reduce(), [{"w": np.ones((2, 2), np.float32)}] * 2)["w"]
    np.testing.assert_allclose(c[:, 0, 0], [1.475, 1.0], rtol=1e-6)


def test_storm():
    """With gamma = 1 and exact gradients, m - g = b1*(m_old - last)."""
    b1, lasts = 0.8, gradients(2, 6, {"w": (3, 2), "v": (4,)})
    tx = optax.chain(optkit.variance_reduce(1.0, b1, exact=True), optkit.momentum(b1))
    state = tx.init(GRADS[0])
    old = np.zeros((3, 2))
    for g, last in zip(GRADS, lasts, strict=True):
        m, state = tx.update(g, state, prev_grad=last)
        np.testing.assert_allclose(m["w"] - g["w"], b1 * (old - last["w"]), atol=1e-5)
        old = np.asarray(m["w"])


def test_exact_is_approximate_where_gradients_have_no_noise():
    """On a fixed quadratic the last gradient is that of this batch at the last parameters."""
    curvature = jnp.array([[3.0, 0.5, 1.0]])
    tx = {
        exact: optax.chain(
            optkit.variance_reduce(0.3, 0.9, exact=exact), optkit.momentum(0.9), optax.scale(-0.1)
        )
        for exact in (False, True)
    }
    ends = []
    for exact, chain in tx.items():
        x, last = jnp.ones((1, 3)), jnp.zeros((1, 3))
        state = chain.init(x)
        assert len(jax.tree.leaves(state)) == 4 - exact
        for _ in range(5):
            g = curvature * x
            u, state = chain.update(g, state, x, **({"prev_grad": last} if exact else {}))
            x, last = x + u, g
        ends.append(x)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


def test_a_given_gradient_takes_the_place_of_the_last_one():
    tx = optkit.variance_reduce(0.5, 0.5)
    state = tx.init(GRADS[0])
    _, state = tx.update(GRADS[0], state)
    c, after = tx.update(GRADS[1], state, prev_grad=GRADS[2])
    np.testing.assert_allclose(c["w"], 1.5 * GRADS[1]["w"] - 0.5 * GRADS[2]["w"], rtol=1e-5)
    np.testing.assert_array_equal(after.last["w"], GRADS[1]["w"])


def test_wrong_use_of_exact_is_answered():
    tx = optkit.variance_reduce(exact=True)
    state = tx.init(GRADS[0])
    with pytest.raises(ValueError, match=r"exact=True.*prev_grad=\.\.\."):
        tx.update(GRADS[0], state)
    with pytest.raises(ValueError, match="v: in the updates"):
        tx.update(GRADS[0], state, prev_grad={"w": GRADS[0]["w"]})
    with pytest.raises(ValueError, match="start='paper'"):
        optkit.variance_reduce(start="paper")
    with pytest.raises(ValueError, match=r"gamma=-0\.1"):
        optkit.variance_reduce(-0.1)


def test_noise_of_the_momentum_falls_where_gradients_share_their_noise():
    """With exact gradients of gamma = 1 the noise that both evaluations share cancels."""
    rng = np.random.default_rng(0)
    steps, b1 = 60, 0.9
    noise = rng.standard_normal((steps, 8)).astype(np.float32)
    x = 1.0 + 0.001 * np.arange(steps, dtype=np.float32)  # parameters that hardly move
    errors = {}
    for gamma in (0.0, 1.0):
        tx = optax.chain(optkit.variance_reduce(gamma, b1, exact=True), optkit.momentum(b1))
        state, m = tx.init({"w": noise[0]}), None
        for t in range(steps):
            now, before = x[t] + noise[t], x[max(t - 1, 0)] + noise[t]
            m, state = tx.update({"w": now}, state, prev_grad={"w": before})
        errors[gamma] = np.sqrt(np.mean(np.square(np.asarray(m["w"]) - x[-1])))
    bias = 0.001 * b1 / (1 - b1)  # the plain momentum also lags behind
    assert errors[0.0] > bias
    assert errors[1.0] < errors[0.0]


@given(max_norm=st.floats(1e-3, 10.0), power=st.integers(-80, 80))
def test_a_leaf_above_the_bound_is_scaled_to_it(max_norm, power):
    tree = jax.tree.map(lambda g: np.ldexp(g, power), GRADS[0])
    tx = optkit.clip_leaf_norm(max_norm)
    out, _ = tx.update(tree, tx.init(None))
    for name, x in tree.items():
        norm = np.linalg.norm(np.float64(x))
        if norm <= max_norm:
            np.testing.assert_array_equal(out[name], x)
        else:
            np.testing.assert_allclose(out[name], np.float64(x) * max_norm / norm, rtol=1e-5)


def test_matrices_of_a_stack_are_clipped_one_by_one():
    stack = np.stack([np.eye(3), 0.1 * np.eye(3), 0.0 * np.eye(3)]).astype(np.float32)
    tree = {"layers": {"kernel": stack}}
    apart = optkit.clip_leaf_norm(per="matrix").update(tree, optax.EmptyState())[0]
    want = stack * np.array([1 / np.sqrt(3), 1.0, 1.0])[:, None, None]
    np.testing.assert_allclose(apart["layers"]["kernel"], want, rtol=1e-6)
    whole = optkit.clip_leaf_norm().update(tree, optax.EmptyState())[0]
    np.testing.assert_allclose(whole["layers"]["kernel"], stack / np.sqrt(3.03), rtol=1e-6)
    fused = {"qkv": np.concatenate([stack[0], stack[1]], axis=1)}
    dims = optkit.MatrixDims(0, 1, output_blocks=2)
    tx = optkit.clip_leaf_norm(per="matrix", dims=dims)
    blocks = tx.update(fused, optax.EmptyState())[0]["qkv"]
    np.testing.assert_allclose(blocks, np.concatenate([want[0], want[1]], axis=1), rtol=1e-6)


def test_layers_of_a_stack_are_clipped_one_by_one_and_other_leaves_whole():
    big = np.float32([[3.0, 4.0], [0.0, 0.0]])
    tree = {
        "layers": {"up": {"kernel": np.stack([big, 0.1 * big])}, "norm": {"scale": big}},
        "conv1": {"kernel": np.stack([big, big])},
        "gain": np.float32(-7.0),
        "empty": {"kernel": np.zeros((0, 2), np.float32)},
    }
    out, _ = optkit.clip_leaf_norm(per="layer").update(tree, optax.EmptyState())
    stack = np.stack([big / 5, 0.1 * big])
    np.testing.assert_allclose(out["layers"]["up"]["kernel"], stack, rtol=1e-6)
    np.testing.assert_allclose(out["layers"]["norm"]["scale"], big / 5, rtol=1e-6)
    whole = np.stack([big, big]) / np.sqrt(50)
    np.testing.assert_allclose(out["conv1"]["kernel"], whole, rtol=1e-6)
    assert float(out["gain"]) == -1.0 and out["empty"]["kernel"].shape == (0, 2)


def test_a_bad_entry_stays_visible_in_its_leaf_only():
    for bad in (np.nan, np.inf):
        tree = {"a": np.array([1.0, bad], np.float32), "b": np.ones(2, np.float32)}
        out, _ = optkit.clip_leaf_norm().update(tree, optax.EmptyState())
        assert not np.all(np.isfinite(out["a"])) and np.all(np.isfinite(out["b"]))
    with pytest.raises(ValueError, match=r"max_norm=0\.0"):
        optkit.clip_leaf_norm(0.0)
    with pytest.raises(ValueError, match="'b' of shape"):
        optkit.clip_leaf_norm(per="matrix").update({"b": np.ones(2)}, optax.EmptyState())


def test_the_last_gradient_of_16_bit_parameters_is_float32():
    params = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), GRADS[0])
    u, _, state = run(optkit.variance_reduce(), params, [params] * 2)
    assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state.last)} == {jnp.dtype(jnp.float32)}
