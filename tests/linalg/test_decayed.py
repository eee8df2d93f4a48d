"""Masks that close: the weight for d = 1, N:M for 0, and gradients straight through."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.linalg import nm_mask

view = jax.jit(optkit.decayed_mask, static_argnames=("n", "m", "axis", "masked_gradient"))
PATTERNS = st.sampled_from([(1, 2, 0), (2, 4, 1), (1, 8, -2)])


def draw(seed, shape=(8, 12)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.integers(0, 999), PATTERNS)
def test_one_is_the_weight_itself_and_zero_is_exactly_n_of_m(seed, pattern):
    n, m, axis = pattern
    w = draw(seed)
    np.testing.assert_array_equal(view(w, 1.0, n=n, m=m, axis=axis), w)
    sparse = np.moveaxis(np.asarray(view(w, 0.0, n=n, m=m, axis=axis)), axis, -1)
    np.testing.assert_array_equal((sparse.reshape(-1, m) != 0).sum(1), n)


@given(st.integers(0, 999), PATTERNS, st.floats(0.0, 1.0, width=32))
def test_between_the_two_masked_entries_are_scaled_and_kept_ones_are_not(seed, pattern, d):
    n, m, axis = pattern
    w = draw(seed)
    kept = np.asarray(nm_mask(jnp.asarray(w), n, m, axis))
    got = np.asarray(view(w, d, n=n, m=m, axis=axis))
    np.testing.assert_array_equal(got[kept], w[kept])
    np.testing.assert_allclose(got[~kept], np.float32(d) * w[~kept], rtol=1e-6)


def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 3)


@pytest.mark.parametrize("d", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_dense_one_at_what_the_forward_saw(d):
    w, x = draw(0), draw(1, (5, 8))
    dense = jax.grad(loss)(view(w, d, n=2, m=4, axis=0), x)
    straight = jax.grad(lambda w: loss(optkit.decayed_mask(w, d, 2, 4), x))(w)
    np.testing.assert_array_equal(straight, dense)
    masked = jax.grad(
        lambda w: loss(optkit.decayed_mask(w, d, 2, 4, masked_gradient=True), x)
    )(w)  # fmt: skip
    kept = nm_mask(jnp.asarray(w), 2, 4, 0)
    np.testing.assert_array_equal(masked, jnp.where(kept, dense, 0.0))
    assert np.count_nonzero(dense) > np.count_nonzero(masked) > 0


def test_nothing_flows_to_the_factor_and_forward_mode_agrees():
    w, t = draw(0), draw(2)
    np.testing.assert_array_equal(
        jax.grad(lambda d: optkit.decayed_mask(w, d, 2, 4).sum())(0.5), 0.0
    )
    _, tangent = jax.jvp(lambda w: optkit.decayed_mask(w, 0.1, 2, 4), (w,), (t,))
    np.testing.assert_array_equal(tangent, t)
    batch = jax.vmap(lambda w: optkit.decayed_mask(w, 0.1, 2, 4))(np.stack([w, t]))
    np.testing.assert_array_equal(batch[1], optkit.decayed_mask(jnp.asarray(t), 0.1, 2, 4))


def test_it_keeps_the_dtype_and_refuses_what_is_no_pattern():
    w = jnp.asarray(draw(0), jnp.bfloat16)
    assert optkit.decayed_mask(w, 0.1, 2, 4).dtype == jnp.bfloat16
    for arguments, message in (((3, 2), "n=3 of each group of m=2"), ((0, 2), "n=0 must be")):
        with pytest.raises(ValueError, match=message):
            optkit.decayed_mask(w, 0.1, *arguments)
    with pytest.raises(ValueError, match="axis=2 is none of an array"):
        optkit.decayed_mask(w, 0.1, 2, 4, axis=2)


@pytest.mark.parametrize("kind", ["linear", "exponential", "step"])
def test_the_factor_never_rises_and_ends_where_it_is_said_to(kind):
    d = optkit.schedules.mask_decay(kind, 0.02, dense_steps=10, binary_from=40)
    values = [float(d(t)) for t in range(45)]
    assert values[:10] == [1.0] * 10 and values[40:] == [0.0] * 5
    assert all(a >= b for a, b in itertools.pairwise(values))
    # t counts from the first step, whatever comes before.
    wanted = {"linear": 1 - 0.02 * 10, "exponential": np.exp(-0.2), "step": 0.0}[kind]
    np.testing.assert_allclose(values[10], wanted, rtol=1e-6)


def test_patterns_of_the_paper():
    patterns = optkit.schedules.mask_patterns
    assert patterns(1, 8) == ((7, 8), (4, 8), (2, 8), (1, 8))
    assert patterns(2, 4) == ((3, 4), (2, 4)) and patterns(4, 4) == ((4, 4),)
    assert patterns(1, 4, "fine") == ((8, 32), (4, 16), (2, 8), (1, 4))
    assert patterns(1, 4, "densify") == ((1, 32), (1, 16), (1, 8), (1, 4))
    for bad, message in (((3, 8), "power of two"), ((1, 4, "fin"), "is not one of")):
        with pytest.raises(ValueError, match=message):
            patterns(*bad)


def test_a_pattern_that_changes_is_a_switch_in_one_program():
    frames = optkit.schedules.mask_patterns(1, 8)
    branches = [lambda w, f=f: optkit.decayed_mask(w, 0.0, *f) for f in frames]

    @jax.jit
    def seen(step, w):
        return jax.lax.switch(optkit.schedules.frame_of(step, frames, 8), branches, w)

    counts = [int(jnp.count_nonzero(seen(t, draw(0)))) for t in range(10)]
    assert counts == [84, 84, 48, 48, 24, 24, 12, 12, 12, 12]
