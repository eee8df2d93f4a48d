"""LoRA-SB's start is the best of its rank; LoRA+ has a rate for each label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.lora import lora_sb_init

INIT = jax.jit(lambda g: lora_sb_init(g, 2, learning_rate=0.1))


@given(st.integers(0, 2**32 - 1))
def test_the_start_is_the_best_approximation_of_a_sign_step(seed):
    rng = np.random.default_rng(seed)
    grads = {"up": rng.standard_normal((4, 6)), "layers": rng.standard_normal((3, 5, 4))}
    start = INIT({k: {"kernel": np.float32(g)} for k, g in grads.items()})
    for name, g in grads.items():
        d = -0.1 * np.sign(g)
        got = {k: np.float64(x) for k, x in start[name]["kernel"].items()}
        product = got["lora_a"] @ got["lora_r"] @ got["lora_b"]
        values = np.linalg.svd(d, compute_uv=False)
        missed = np.sum((d - product) ** 2, axis=(-2, -1))
        np.testing.assert_allclose(missed, np.sum(values[..., 2:] ** 2, -1), atol=1e-5)
        eye = np.broadcast_to(np.eye(2), (*g.shape[:-2], 2, 2))
        for x in (np.swapaxes(got["lora_a"], -1, -2), got["lora_b"]):
            np.testing.assert_allclose(x @ np.swapaxes(x, -1, -2), eye, atol=1e-5)
        np.testing.assert_allclose(got["lora_r"], eye * values[..., None, :2], atol=1e-5)


def test_a_step_of_r_is_one_of_the_weight_projected():
    rng = np.random.default_rng(0)
    g, x = rng.standard_normal((4, 6)).astype(np.float32), rng.standard_normal((7, 4))
    start = lora_sb_init({"kernel": g}, 2)["kernel"]
    out = jnp.asarray(rng.standard_normal((7, 6)), jnp.float32)

    def loss(delta):
        return jnp.sum(jnp.asarray(x, jnp.float32) @ delta * out)

    of_w = jax.grad(loss)(jnp.zeros((4, 6)))
    of_r = jax.grad(lambda r: loss(start["lora_a"] @ r @ start["lora_b"]))(start["lora_r"])
    sides = start["lora_a"] @ start["lora_a"].T, start["lora_b"].T @ start["lora_b"]
    moved = start["lora_a"] @ of_r @ start["lora_b"]
    np.testing.assert_allclose(moved, sides[0] @ of_w @ sides[1], atol=1e-4)


def test_leaves_that_get_no_adapter_and_ranks_that_do_not_fit():
    grads = {
        "up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
        "head": {"kernel": jnp.ones((6, 3))},
    }
    start = lora_sb_init(grads, 2)
    assert start["up"]["bias"] is None and start["head"]["kernel"] is None
    assert lora_sb_init(grads, 2, where="head")["up"]["kernel"] is None
    with pytest.raises(ValueError, match=r"rank=5 is above .* 'up/kernel' of fan_in 4"):
        lora_sb_init(grads, 5)
    with pytest.raises(ValueError, match="where='nothing' names no leaf"):
        lora_sb_init(grads, 1, where="nothing")


def test_rates_of_lora_plus_go_by_label():
    params = {
        "up": {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "embed": {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3)), "w": jnp.ones((4, 3))},
    }
    tx = optkit.lora_plus(
        lambda t: 0.01 / (t + 1.0),
        ratio=8.0,
        embeddings="embed",
        embedding_learning_rate=1e-4,
        other="adamw",
        weight_decay=0.5,
        mask="lora_b",
    )
    state = tx.init(params)
    wanted = {
        "up/lora_a": 0.01, "up/lora_b": 0.08 * 1.5, "up/bias": 0.08, "embed/lora_a": 1e-4,
        "embed/lora_b": 1e-4 * 1.5, "embed/w": 0.01,
    }  # fmt: skip
    for time in range(2):
        u, state = tx.update(params, state, params)
        for path, x in optkit.tree.leaves_with_paths(u):
            own = wanted[path] if "embed/lora" in path else wanted[path] / (time + 1)
            np.testing.assert_allclose(x, -own, rtol=1e-4)


def test_a_ratio_of_1_is_adamw():
    params = {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3))}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    txs = optkit.lora_plus(0.01, ratio=1.0, weight_decay=0.1), optkit.adamw(0.01, weight_decay=0.1)
    got, want = (tx.update(grads, tx.init(params), params)[0] for tx in txs)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    plain = optkit.lora_plus(0.01)  # without decay it has no use for parameters
    jax.tree.map(
        np.testing.assert_array_equal,
        *(plain.update(grads, plain.init(params), p)[0] for p in (params, None)),
    )
    with pytest.raises(TypeError, match="ratio must be a number, not a schedule"):
        optkit.lora_plus(0.01, ratio=lambda t: t)
