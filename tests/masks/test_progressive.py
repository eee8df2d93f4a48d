"""Progressive gradient flow over a tree, and SR-STE's decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit import masks
from optkit.linalg import nm_mask

SHAPES = {
    "dense": {"kernel": (8, 6), "bias": (6,)},
    "conv": {"kernel": (3, 3, 4, 5)},
    "stack": {"kernel": (2, 8, 3)},
    "head": {"kernel": (8, 4)},
}


def draw(shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


PARAMS = jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
AXES = {"dense": 0, "conv": 2, "stack": 1}


def test_matrices_are_masked_along_their_inputs_and_nothing_else_is():
    got = masks.decayed_weights(PARAMS, 0.0)
    for name, axis in AXES.items():
        w = PARAMS[name]["kernel"]
        want = jnp.where(nm_mask(w, 2, 4, axis), w, 0.0)
        np.testing.assert_array_equal(got[name]["kernel"], want)
    np.testing.assert_array_equal(got["head"]["kernel"], PARAMS["head"]["kernel"])
    np.testing.assert_array_equal(got["dense"]["bias"], PARAMS["dense"]["bias"])
    whole = masks.decayed_weights(PARAMS, 1.0)
    jax.tree.map(np.testing.assert_array_equal, whole, PARAMS)


def test_a_torch_layout_is_masked_along_its_own_inputs():
    w = PARAMS["dense"]["kernel"]
    got = masks.decayed_weights({"w": w.T}, 0.0, dims=optkit.MatrixDims(1, 0))["w"]
    np.testing.assert_array_equal(got.T, masks.decayed_weights({"w": w}, 0.0)["w"])


def test_masked_decay_adds_to_what_the_mask_leaves_out():
    tx = optkit.add_masked_decay(lambda t: 0.5 * (t + 1))
    g = jax.tree.map(jnp.ones_like, PARAMS)
    state = tx.init(PARAMS)
    for rate in (0.5, 1.0):
        got, state = tx.update(g, state, PARAMS)
        for name, axis in AXES.items():
            w = PARAMS[name]["kernel"]
            want = 1.0 + rate * np.where(nm_mask(w, 2, 4, axis), 0.0, w)
            np.testing.assert_allclose(got[name]["kernel"], want, rtol=1e-6)
        for path in (("head", "kernel"), ("dense", "bias")):
            np.testing.assert_array_equal(got[path[0]][path[1]], g[path[0]][path[1]])


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
