"""LoQT: what a merge loses, the subspace it begins anew in, and what trains in between."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs.base import parts_of
from optkit.lora import merge_and_reinit, merge_steps
from optkit.lora.loqt import NF4

SHAPES = {"wide": (6, 16), "tall": (16, 6), "stack": (2, 8, 8)}
SCALE, RANK = 0.5, 2
seeds = st.integers(0, 2**32 - 1)
MERGE = {
    c: jax.jit(lambda p, g, c=c: merge_and_reinit(p, g, scale=SCALE, compensate=c))
    for c in (0, 1, 2, 5)
}


def draw(seed):
    rng = np.random.default_rng(seed)

    def leaf(shape):
        return rng.standard_normal(shape).astype(np.float32)

    def layer(shape):
        *batch, fan_in, fan_out = shape
        return {
            "kernel": leaf(shape),
            "lora_a": leaf((*batch, fan_in, RANK)),
            "lora_b": leaf((*batch, RANK, fan_out)),
        }

    return tuple({k: layer(shape) for k, shape in SHAPES.items()} for _ in range(2))


def weight(layer):
    x = jax.tree.map(np.float64, layer)
    return x["kernel"] + SCALE * x["lora_a"] @ x["lora_b"]


def lost(params, merged):
    return {k: np.linalg.norm(weight(params[k]) - weight(merged[k]), axis=(-2, -1)) for k in SHAPES}


@given(seeds)
def test_more_rounds_never_lose_more_of_the_weights(seed):
    params, grads = draw(seed)
    found = {c: MERGE[c](params, grads) for c in MERGE}
    errors = {c: lost(params, merged.params) for c, merged in found.items()}
    for name in SHAPES:
        for fewer, more in ((0, 1), (1, 2), (2, 5)):
            assert np.all(errors[more][name] <= errors[fewer][name] * (1 + 1e-5))
        for c, merged in found.items():
            told = merged.errors[f"{name}/lora_a"]
            np.testing.assert_allclose(told, errors[c][name], rtol=1e-3)
    assert np.all(errors[5]["wide"] < 0.95 * errors[0]["wide"])


@given(seeds)
def test_the_frozen_factor_is_orthonormal_and_the_other_one_starts_at_0(seed):
    params, grads = draw(seed)
    merged = MERGE[0](params, grads).params
    for name, shape in SHAPES.items():
        a, b = (np.float64(merged[name][k]) for k in ("lora_a", "lora_b"))
        g = np.float64(grads[name]["kernel"])
        left, _, right = np.linalg.svd(g, full_matrices=False)
        is_b = shape[-2] <= shape[-1]
        frozen = np.swapaxes(a, -1, -2) if is_b else b
        np.testing.assert_allclose(
            frozen @ np.swapaxes(frozen, -1, -2),
            np.broadcast_to(np.eye(RANK), (*shape[:-2], RANK, RANK)), atol=1e-5,
        )  # fmt: skip
        # The leading directions of G on the shorter side hold all of the best approximation.
        own = np.swapaxes(left[..., :RANK], -1, -2) if is_b else right[..., :RANK, :]
        overlap = np.linalg.svd(frozen @ np.swapaxes(own, -1, -2), compute_uv=False)
        np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
        assert not np.any(b if is_b else a)
        if len(shape) == 2:  # what is left is the merged weight on the codec's grid
            want = NF4.round_trip(jnp.float32(weight(params[name])))
            np.testing.assert_allclose(merged[name]["kernel"], want, atol=1e-5)


def test_codes_are_all_that_has_to_be_kept_of_a_base_weight():
    params, grads = draw(0)
    merged = MERGE[2](params, grads)
    for name in ("wide", "tall"):
        codes = merged.codes[f"{name}/kernel"]
        got = NF4.decode(parts_of(codes), SHAPES[name])
        np.testing.assert_array_equal(got, merged.params[name]["kernel"])
        held = optkit.tree.tree_bytes(codes)
        assert held == 16 * 6 // 2 + 4 * 2  # two codes a byte, a scale for each 64 entries


def test_without_a_gradient_the_subspace_stays_and_quantized_factors_are_on_the_grid():
    params, grads = draw(1)
    still = jax.tree.map(np.zeros_like, grads)
    merged = MERGE[1](params, still).params
    np.testing.assert_array_equal(merged["wide"]["lora_a"], params["wide"]["lora_a"])
    np.testing.assert_array_equal(merged["tall"]["lora_b"], params["tall"]["lora_b"])
    one = {"wide": params["wide"]}, {"wide": grads["wide"]}
    frozen = merge_and_reinit(*one, quantize_frozen=True).params["wide"]["lora_a"]
    # In maths' layout, (r, fan_in): scales are of its rows.
    np.testing.assert_allclose(NF4.round_trip(frozen.T).T, frozen, atol=1e-6)


def test_base_weights_that_are_missing_or_do_not_fit_are_named():
    params, grads = draw(0)
    with pytest.raises(ValueError, match=r"'stack/lora_a' has no base weight: base='weight'"):
        merge_and_reinit(params, grads, base="weight")
    odd = {"wide": params["wide"] | {"kernel": params["tall"]["kernel"]}}
    with pytest.raises(ValueError, match=r"'wide/kernel' of shape \(16, 6\) does not fit"):
        merge_and_reinit(odd, odd)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"times": "static"}, [0, 7, 14, 21, 28]),
        ({"times": "linear", "increment": 3}, [0, 7, 17]),
        ({"psi": 2.0}, [0, 8, 17, 28]),
        ({"psi": 1.2}, [0, 8, 16, 24]),
    ],
)
def test_merge_times(options, want):
    assert merge_steps(30, 7, **options) == want


def test_one_factor_trains_between_merges_and_has_all_the_state():
    params, grads = draw(2)
    tx = optkit.loqt(0.1)
    state = tx.init(params)
    updates, _ = tx.update(grads, state, params)
    for name, shape in SHAPES.items():
        trained = "lora_b" if shape[-2] <= shape[-1] else "lora_a"
        moved = [k for k, u in updates[name].items() if np.any(u)]
        assert moved == [trained]
    rows = {r.path: r.state_bytes for r in optkit.plan(tx, params).rows if r.state_bytes}
    assert rows == {"wide/lora_b": 8 * 2 * 16, "tall/lora_a": 8 * 2 * 16, "stack/lora_b": 8 * 32}


def test_a_frozen_factor_of_zeros_is_refused_where_its_values_are_known():
    """As nnx.LoRA starts with B = 0: harmless where B trains, and no training where A does."""
    params, grads = draw(4)
    for layer in params.values():
        layer["lora_b"] = np.zeros_like(layer["lora_b"])
    tx = optkit.loqt(0.1)
    tx.init({"wide": params["wide"], "stack": params["stack"]})
    for given_as in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=r"'tall/lora_b', which .*merge_and_reinit first"):
            tx.init(jax.tree.map(given_as, params))
    jax.eval_shape(tx.init, params)
    tx.init(MERGE[0](params, grads).params)


def test_the_trained_factor_takes_adamw_s_step_decay_included():
    params, grads = (tree["wide"] for tree in draw(3))
    tx = optkit.loqt(0.1, weight_decay=0.5, mask="lora_b")
    got, _ = tx.update(grads, tx.init(params), params)
    adamw = optkit.adamw(0.1, weight_decay=0.5)
    want, _ = adamw.update(grads, adamw.init(params), params)
    np.testing.assert_array_equal(got["lora_b"], want["lora_b"])


def test_a_quantized_regression_is_learned_through_merges():
    rng = np.random.default_rng(3)
    target = rng.standard_normal((8, 8)).astype(np.float32)
    params = {
        "kernel": jnp.zeros((8, 8)), "lora_a": jnp.zeros((8, 2)), "lora_b": jnp.zeros((2, 8)),
    }  # fmt: skip

    def loss(p):
        return jnp.sum((p["kernel"] + SCALE * p["lora_a"] @ p["lora_b"] - target) ** 2)

    tx = optkit.loqt(0.1)
    grad, update = jax.jit(jax.grad(loss)), jax.jit(tx.update)
    merge = jax.jit(lambda p, g: merge_and_reinit(p, g, scale=SCALE, compensate=3).params)
    merges, start = merge_steps(200, 40, times="static"), loss(params)
    assert merges[0] == 0
    params = merge(params, grad(params))
    state = tx.init(params)
    for step in range(200):
        if step in merges[1:]:
            params = merge(params, grad(params))
        updates, state = update(grad(params), state, params)
        params = optax.apply_updates(params, updates)
    # An adapter of rank 2 alone cannot leave less than the rest of the spectrum.
    alone = np.sum(np.linalg.svd(target)[1][2:] ** 2)
    assert loss(params) < 0.2 * alone < start
