"""LoRA-Pro: the projection onto what an adapter can do, and the split that does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.lora import adjust, equivalent_gradient

R, M, N = 2, 5, 4
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.5, 1.0, 2.0])


@jax.jit
def E(a, b, ga, gb, s):
    return equivalent_gradient(a, b, ga, gb, scale=s)


@jax.jit
def changes(a, b, ga, gb, s):
    return [adjust(a, b, ga, gb, scale=s, split=split) for split in ("closest", "zero")]


def draw(seed, s):
    """An adapter with singular values of 1 to 2, a gradient of W, and those of A and B."""
    rng = np.random.default_rng(seed)

    def factor(rows, columns):
        u, _, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
        return (u * np.linspace(1.0, 2.0, min(rows, columns))) @ v

    a, b, g = factor(R, N), factor(M, R), rng.standard_normal((M, N))
    return a, b, g, s * b.T @ g, s * g @ a.T


def f32(*arrays):
    return [x.astype(np.float32) for x in arrays]


def tangent(a, b):
    """The matrix of (da, db) -> B da + db A, all flattened."""
    rows = []
    for at in range(R * N + M * R):
        unit = np.zeros(R * N + M * R)
        unit[at] = 1.0
        da, db = unit[: R * N].reshape(R, N), unit[R * N :].reshape(M, R)
        rows.append((b @ da + db @ a).ravel())
    return np.array(rows).T


@given(seeds, scales)
def test_e_is_the_closest_to_the_gradient_that_an_adapter_can_do(seed, s):
    a, b, g, ga, gb = draw(seed, s)
    basis = tangent(a, b)
    solved = np.linalg.lstsq(basis, g.ravel(), rcond=1e-10)[0]
    got = np.float64(E(*f32(a, b, ga, gb), np.float32(s)))
    np.testing.assert_allclose(got, (basis @ solved).reshape(M, N), atol=2e-5)
    assert np.sum(got * g) >= 0.0


@given(seeds, scales)
def test_e_does_not_depend_on_the_coordinates_of_the_adapter(seed, s):
    a, b, g, ga, gb = draw(seed, s)
    mix = np.eye(R) + 0.3 * np.random.default_rng(seed).uniform(-1, 1, (R, R))
    other_a, other_b = np.linalg.inv(mix) @ a, b @ mix
    want = E(*f32(a, b, ga, gb), np.float32(s))
    got = E(*f32(other_a, other_b, s * other_b.T @ g, s * g @ other_a.T), np.float32(s))
    np.testing.assert_allclose(got, want, atol=5e-5)


@given(seeds, scales)
def test_x_changes_the_split_only_and_brings_it_closest_to_the_gradients(seed, s):
    a, b, _, ga, gb = draw(seed, s)
    closest, zero = (
        [np.float64(x) for x in pair] for pair in changes(*f32(a, b, ga, gb), np.float32(s))
    )
    together = [s * (b @ da + db @ a) for da, db in (closest, zero)]
    np.testing.assert_allclose(*together, atol=5e-5)
    assert not np.allclose(closest[0], zero[0], atol=1e-3)

    def distance(x):
        da, db = zero[0] + x @ a, zero[1] - b @ x
        return np.sum((ga - da) ** 2) + np.sum((gb - db) ** 2)

    x = (closest[0] - zero[0]) @ np.linalg.pinv(a)
    for direction in np.random.default_rng(seed).standard_normal((5, R, R)):
        assert distance(x) < min(distance(x + 0.1 * direction), distance(x - 0.1 * direction))


def test_lost_directions_of_a_factor_are_not_invented():
    """B of rank 1 and of rank 0: what is missing stays 0 with pseudo-inverses."""
    a, _, g, _, _ = draw(0, 1.0)
    for b in (np.outer(np.arange(1, M + 1.0), [1.0, -1.0]), np.zeros((M, R))):
        basis = tangent(a, b)
        want = basis @ np.linalg.lstsq(basis, g.ravel(), rcond=1e-8)[0]
        got = E(*f32(a, b, b.T @ g, g @ a.T), np.float32(1.0))
        np.testing.assert_allclose(np.float64(got).ravel(), want, atol=2e-4)


def test_at_full_rank_the_product_takes_adams_step_of_the_matrix():
    """With B = 0 and A = I all that moves is B, by W's own Adam."""
    rng = np.random.default_rng(1)
    weight, target = np.zeros((3, 3), np.float32), rng.standard_normal((3, 3)).astype(np.float32)
    lora = {"lora_a": jnp.eye(3), "lora_b": jnp.zeros((3, 3))}
    tx, adam = optkit.lora_pro(0.01), optax.adam(0.01)
    grads = jax.grad(lambda p: 0.5 * jnp.sum((p["lora_a"] @ p["lora_b"] - target) ** 2))(lora)
    updates, _ = tx.update(grads, tx.init(lora), lora)
    want, _ = adam.update(weight - target, adam.init(weight), weight)
    lora = optax.apply_updates(lora, updates)
    np.testing.assert_allclose(lora["lora_a"] @ lora["lora_b"], want, atol=2e-6)


def test_stacked_adapters_are_each_on_their_own_and_scales_differ_by_path():
    rng = np.random.default_rng(2)
    shapes = {"lora_a": (3, N, R), "lora_b": (3, R, M)}
    params, grads = (
        {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(2)
    )
    tx = optkit.scale_by_lora_pro(scale={"stack/**": 0.5, "**": 2.0})
    trees = [{"stack": t, "one": {k: v[1] for k, v in t.items()}} for t in (params, grads)]
    got, _ = tx.update(trees[1], tx.init(trees[0]), trees[0])
    for name, s, index in (("stack", 0.5, 2), ("one", 2.0, None)):
        single = [{k: v if index is None else v[index] for k, v in t[name].items()} for t in trees]
        alone = optkit.scale_by_lora_pro(scale=s)
        want, _ = alone.update(single[1], alone.init(single[0]), single[0])
        for key, value in want.items():
            x = got[name][key] if index is None else got[name][key][index]
            np.testing.assert_allclose(x, value, rtol=1e-4, atol=1e-5)


def test_the_official_counter_shortens_the_first_step():
    params = {"lora_a": jnp.eye(3, 2), "lora_b": jnp.ones((2, 3))}
    first = [
        (tx := optkit.scale_by_lora_pro(counter=c)).update(params, tx.init(params), params)[0]
        for c in ("official", "fixed")
    ]
    share = np.asarray(first[0]["lora_b"]) / np.asarray(first[1]["lora_b"])
    np.testing.assert_allclose(share, (0.1 / 0.19) * np.sqrt(0.001999 / 0.001), rtol=1e-4)
