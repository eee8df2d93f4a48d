"""Progressive gradient flow over a tree, and SR-STE's decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import masks
from optkit.linalg import nm_mask

SHAPES = {
    "dense": {"kernel": (8, 6), "bias": (6,)},
    "conv": {"kernel": (3, 3, 4, 5)},
    "stack": {"kernel": (2, 8, 3)},
    "head": {"kernel": (8, 4)},
}


AXES = {"dense": 0, "conv": 2, "stack": 1}
SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.integers(0, 64).map(lambda x: x / 64)


def draw(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: np.float32(random.standard_normal(shape)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


view = jax.jit(masks.decayed_weights)
KEPT = jax.jit(
    lambda w: {name: nm_mask(w[name]["kernel"], 2, 4, axis) for name, axis in AXES.items()}
)


@given(SEEDS, SHARES)
def test_matrices_are_masked_along_their_inputs_and_nothing_else_is(seed, d):
    params = draw(seed)
    got, kept = view(params, d), KEPT(params)
    for name in AXES:
        w = params[name]["kernel"]
        np.testing.assert_array_equal(
            got[name]["kernel"], np.where(kept[name], w, w * np.float32(d))
        )
    np.testing.assert_array_equal(got["head"]["kernel"], params["head"]["kernel"])
    np.testing.assert_array_equal(got["dense"]["bias"], params["dense"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, view(params, 1.0), params)


@given(SEEDS, SHARES, SHARES)
def test_a_closed_mask_has_n_of_m_and_closes_but_once(seed, d, e):
    """Fading goes one way, and what has faded keeps its mask: factors multiply."""
    params = draw(seed)
    closed = view(params, 0.0)
    for name, axis in AXES.items():
        groups = np.moveaxis(np.asarray(closed[name]["kernel"]), axis, -1).reshape(-1, 4)
        np.testing.assert_array_equal(np.count_nonzero(groups, axis=1), 2)
    jax.tree.map(np.testing.assert_array_equal, view(closed, d), closed)
    less, more = (view(params, x) for x in sorted([d, e]))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.all(abs(a) <= abs(b)), less, more)))
    twice = view(view(params, d), e)
    once = view(params, np.float32(d) * np.float32(e))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), twice, once)


torch_view = jax.jit(
    lambda w, d: masks.decayed_weights({"w": w}, d, dims=optkit.MatrixDims(1, 0))["w"]
)


@given(SEEDS, SHARES)
def test_a_torch_layout_is_masked_along_its_own_inputs(seed, d):
    params = draw(seed)
    w = params["dense"]["kernel"]
    np.testing.assert_array_equal(torch_view(w.T, d).T, view(params, d)["dense"]["kernel"])


@jax.jit
def twice_decayed(rate, grads, params):
    tx = optkit.add_masked_decay(lambda t: rate * (t + 1))
    first, state = tx.update(grads, tx.init(params), params)
    return first, tx.update(grads, state, params)[0]


@given(SEEDS, st.floats(0.0, 2.0))
def test_masked_decay_adds_to_what_the_mask_leaves_out(seed, rate):
    params = draw(seed)
    # Of one sign: their sum loses no digits.
    grads = jax.tree.map(lambda g, p: np.abs(g) * np.sign(p), draw(seed + 1), params)
    kept = KEPT(params)
    for factor, got in zip((rate, 2 * rate), twice_decayed(rate, grads, params), strict=True):
        for name in AXES:
            w, g, u = (tree[name]["kernel"] for tree in (params, grads, got))
            np.testing.assert_array_equal(u[kept[name]], g[kept[name]])
            np.testing.assert_allclose(u, g + factor * np.where(kept[name], 0.0, w), rtol=1e-6)
        for path in (("head", "kernel"), ("dense", "bias")):
            np.testing.assert_array_equal(got[path[0]][path[1]], grads[path[0]][path[1]])


def fit(flow, decay=0.0, steps=400, seed=0):
    """Loss of a regression at 1:4, hard-masked, trained with some flow of gradients."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((64, 8)), jnp.float32)
    truth = rng.standard_normal((8, 6)) * (rng.random((8, 6)) < 0.4)
    y = x @ jnp.asarray(truth, jnp.float32)
    params = {"kernel": jnp.asarray(0.3 * rng.standard_normal((8, 6)), jnp.float32)}
    tx = optax.chain(optkit.add_masked_decay(decay, (1, 4)), optkit.adamw(0.02))

    def loss(params, d):
        return jnp.mean((x @ masks.decayed_weights(params, d, (1, 4))["kernel"] - y) ** 2)

    def step(carry, t):
        params, state = carry
        u, state = tx.update(jax.grad(loss)(params, flow(t)), state, params)
        return (optax.apply_updates(params, u), state), None

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0][0])
    return float(loss(scan((params, tx.init(params))), 0.0))


def test_a_mask_that_closes_slowly_ends_below_one_that_is_closed_from_the_start():
    """The paper's claim in small: the sum of the losses over five regressions at 1:4."""
    slow = optkit.schedules.mask_decay("exponential", 0.02, binary_from=300)
    closed = optkit.schedules.mask_decay("step")
    faded = sum(fit(slow, seed=seed) for seed in range(5))
    srste = sum(fit(closed, 2e-4, seed=seed) for seed in range(5))
    assert faded < srste, (faded, srste)
