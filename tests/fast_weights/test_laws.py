"""Laws of reading and writing fast weights, and what is refused."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.fast_weights import (
    FastWeights,
    draw_fast_weights,
    lact,
    lact_apply,
    lact_chunk_update,
    lact_init,
)
from optkit.linalg import newton_schulz
from tests.fast_weights.definition import CHUNK, DH, DK, DV, gradient_of, jitted, sequence


def test_no_tokens():
    assert lact(*sequence(0)).shape == (2, 0, DV)


@pytest.mark.parametrize(("prenorm", "scale"), [(False, 1.0), (True, 1e-2), (True, 1e4)])
def test_rows_keep_their_norms(prenorm, scale):
    weights, _, k, v, lr, _ = sequence(CHUNK)
    weights = FastWeights(*[np.float32(scale) * w for w in weights])
    state = lact_init(weights, prenorm=prenorm)
    for _ in range(3):
        state = lact_chunk_update(state, k, v, lr, ortho=newton_schulz)
    for new, old in zip(state.weights, weights, strict=True):
        assert np.abs(new - old).max() > 1e-3 * min(scale, 1.0)
        norms = [np.linalg.norm(x, axis=-1) for x in (new, old)]
        np.testing.assert_allclose(*norms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, CHUNK - 1, CHUNK])
def test_a_sequence_of_one_chunk_meets_the_first_weights(tokens):
    weights, q, *written = sequence(tokens)
    first = lact_apply(FastWeights(*weights), jnp.asarray(q))
    np.testing.assert_array_equal(lact(weights, q, *written, chunk_size=CHUNK), first)


def test_the_token_after_the_first_chunk_meets_others():
    weights, q, *written = sequence(CHUNK + 1)
    got = jitted(chunk_size=CHUNK)(weights, q, *written)
    first = np.asarray(lact_apply(FastWeights(*weights), jnp.asarray(q)))
    np.testing.assert_allclose(got[:, :CHUNK], first[:, :CHUNK], rtol=1e-5, atol=1e-6)
    assert np.abs(got[:, CHUNK] - first[:, CHUNK]).max() > 0.1


@given(st.permutations(range(CHUNK)), st.integers(0, 3))
def test_the_order_within_a_chunk_does_not_matter(order, chunk):
    weights, q, *written = sequence(22)
    run = jitted(chunk_size=CHUNK)
    index = np.arange(22)
    index[chunk * CHUNK : (chunk + 1) * CHUNK] = chunk * CHUNK + np.asarray(order)
    moved = jax.tree.map(lambda x: x[:, index], tuple(written))
    expected = run(weights, q, *written)
    np.testing.assert_allclose(run(weights, q, *moved), expected, atol=2e-4, rtol=2e-4)


@given(st.integers(0, 21))
def test_a_token_reaches_later_chunks_only(token):
    weights, q, *written = sequence(22)
    run = jitted(chunk_size=CHUNK, muon=False)
    other = jax.tree.map(np.copy, tuple(written))
    for x in jax.tree.leaves(other):
        x[:, token] += 0.5
    change = np.abs(run(weights, q, *other) - run(weights, q, *written)).max(axis=(0, 2))
    seen_from = (token // CHUNK + 1) * CHUNK
    assert not change[:seen_from].any()
    assert change[seen_from:].all()


@given(st.integers(-12, 8))
def test_muon_erases_a_factor_of_all_rates(exponent):
    weights, q, k, v, lr, mu = sequence(22)
    run = jitted(chunk_size=CHUNK, eps=0.0)
    scaled = tuple(r * np.float32(2.0**exponent) for r in lr)
    np.testing.assert_array_equal(run(weights, q, k, v, scaled, mu), run(weights, q, k, v, lr, mu))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_values_of_any_scale(scale):
    """Without eps a factor of the values is erased too; values of 0 write nothing."""
    weights, q, k, v, lr, mu = sequence(22)
    scaled = v * np.float32(scale)
    run, gradient = jitted(chunk_size=CHUNK, eps=0.0), gradient_of(chunk_size=CHUNK, eps=0.0)
    got = run(weights, q, k, scaled, lr, mu)
    first = lact_apply(FastWeights(*weights), jnp.asarray(q))
    want = run(weights, q, k, v, lr, mu) if scale else first
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    chex.assert_tree_all_finite(gradient(weights, q, k, scaled, lr, mu))


def test_heads_and_sequences_are_independent():
    inputs = sequence(22, (3, 2))
    whole = jitted(chunk_size=CHUNK)(*inputs)
    rows = [jax.tree.map(lambda x, i=i: x[i], inputs) for i in range(3)]
    looped = [jitted(chunk_size=CHUNK)(*row) for row in rows]
    np.testing.assert_allclose(looped, whole, atol=5e-5, rtol=5e-5)
    mapped = jax.jit(jax.vmap(jax.vmap(partial(lact, chunk_size=CHUNK))))(*inputs)
    np.testing.assert_allclose(mapped, whole, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("own", [(), (2,)])
def test_weights_serve_all_sequences(own):
    _, *tokens = sequence(22, (3, 2))
    weights = draw_fast_weights(jax.random.key(0), DK, DH, DV, batch_shape=own)
    repeated = jax.tree.map(lambda w: jnp.broadcast_to(w, (3, 2, *w.shape[-2:])), weights)
    run = jitted(chunk_size=CHUNK)
    np.testing.assert_array_equal(run(weights, *tokens), run(repeated, *tokens))


def test_bfloat16_tokens_keep_float32_weights():
    inputs = sequence(22)
    weights, q, k, v, lr, mu = inputs
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    state = lact_init(FastWeights(*[jnp.asarray(w, jnp.bfloat16) for w in weights]), momentum=True)
    state = lact_chunk_update(state, *half[1:], lr, mu, ortho=newton_schulz)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    got = jitted(chunk_size=CHUNK, compute_dtype=jnp.bfloat16)(weights, *half, lr, mu)
    assert got.dtype == jnp.bfloat16
    want = np.asarray(jitted(chunk_size=CHUNK)(*inputs))
    assert np.abs(got.astype(jnp.float32) - want).max() < 0.1 * np.abs(want).max()


def test_fresh_state_shares_no_buffer():
    weights = draw_fast_weights(jax.random.key(0), DK, DH, DV)
    state = lact_init(weights, momentum=True, prenorm=True)
    leaves = jax.tree.leaves((weights, state))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_drawn_weights_have_variance_one_over_fan_in():
    weights = draw_fast_weights(jax.random.key(0), 100, 400, 50, batch_shape=(2,))
    for w in weights:
        assert abs(float(jnp.var(w)) * w.shape[-1] - 1) < 0.03


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": (2, 7, DK)}, r"k has the shape|v has the shape"),
        ({"q": (2, 9, DK + 1)}, r"q has the shape \(2, 9, 5\).*\(2, 9, 4\)"),
        ({"v": (2, 9, DV, 1)}, r"v has the shape \(2, 9, 3, 1\)"),
        ({"mu": (2, 9)}, r"momentum has the shape \(2, 9\)"),
        ({"lr": (2, 9, 2)}, r"lr\[0\] has the shape \(2, 9, 2\)"),
        ({"w1": (2, DH, DV)}, r"w1 \(2, 6, 3\).*outputs"),
        ({"w": (3,)}, r"leading axes \(3,\) .* neither \(2,\)"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": 2.0}, r"chunk_size=2\.0"),
        ({"norm_eps": 0.0}, r"norm_eps=0\.0"),
    ],
)
def test_wrong_use_is_refused_with_numbers(change, match):
    weights, q, k, v, lr, mu = sequence(9)
    options = {"chunk_size": CHUNK}
    for name, value in change.items():
        if name == "w":
            weights = draw_fast_weights(jax.random.key(0), DK, DH, DV, batch_shape=value)
        elif name == "w1":
            weights = FastWeights(*weights)._replace(w1=np.ones(value, np.float32))
        elif name == "lr":
            lr = (np.ones(value, np.float32), *lr[1:])
        elif name in options or name == "norm_eps":
            options[name] = value
        else:
            x = np.ones(value, np.float32)
            q, k, v, mu = ({"q": q, "k": k, "v": v, "mu": mu} | {name: x}).values()
    with pytest.raises(ValueError, match=match):
        lact(weights, q, k, v, lr, mu, **options)


def test_integers_and_half_given_momentum_are_refused():
    weights, q, k, v, lr, mu = sequence(9)
    with pytest.raises(TypeError, match=r"lact's k.*int32"):
        lact(weights, q, k.astype(np.int32), v, lr)
    with pytest.raises(ValueError, match="lr has one array for each"):
        lact(weights, q, k, v, lr[:2])
    with pytest.raises(ValueError, match="give that of each token"):
        lact_chunk_update(lact_init(weights, momentum=True), k, v, lr, ortho=None)
    with pytest.raises(ValueError, match="keeps no momentum"):
        lact_chunk_update(lact_init(weights), k, v, lr, mu, ortho=None)
