"""Fast weights compute their definition, and their gradients are its gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from optkit.fast_weights import FastWeights, lact_apply, lact_chunk_update, lact_init
from optkit.linalg import COEFFICIENTS, newton_schulz
from tests.fast_weights.definition import CHUNK, FORMS, gradient_of, jitted, sequence, slow


@pytest.mark.sweep
@pytest.mark.parametrize(("muon", "momentum", "prenorm"), FORMS)
def test_against_the_definition(muon, momentum, prenorm):
    inputs = sequence(22)  # four whole chunks and one of two tokens
    got = jitted(momentum, chunk_size=CHUNK, muon=muon, prenorm=prenorm)(*inputs)
    want = slow(*inputs, chunk=CHUNK, muon=muon, momentum=momentum, prenorm=prenorm)
    np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


def test_rates_of_each_input_against_the_definition():
    inputs = sequence(11, wide=True)
    want = slow(*inputs, chunk=CHUNK, muon=False, momentum=True, prenorm=False)
    got = jitted(chunk_size=CHUNK, muon=False)(*inputs)
    np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


def test_other_coefficients_and_steps():
    inputs = sequence(12)
    rows = COEFFICIENTS["jordan"].expand(3)
    want = slow(*inputs, chunk=CHUNK, muon=True, momentum=True, prenorm=False, rows=rows)
    got = jitted(chunk_size=CHUNK, coefficients="jordan", steps=3)(*inputs)
    np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(("tokens", "chunk"), [(7, 1), (8, 4), (9, 4), (11, 4), (3, 2)])
def test_any_length_has_its_outputs_and_updates(tokens, chunk):
    """A chunk too few is read with the weights that the chunk before left."""
    inputs = sequence(tokens)
    got = jitted(chunk_size=chunk, muon=False)(*inputs)
    want = slow(*inputs, chunk=chunk, muon=False, momentum=True, prenorm=False)
    np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("muon", [False, True])
def test_direction_is_minus_the_gradient_of_the_inner_loss(muon):
    weights, _, k, v, *_ = sequence(CHUNK)
    ortho = partial(newton_schulz, coefficients="quintic_you") if muon else None
    ones = jnp.ones((2, CHUNK, 1))
    state = lact_init(weights, prenorm=True)
    after = lact_chunk_update(state, k, v, (ones,) * 3, ortho=ortho)

    def inner_loss(w):
        return -jnp.sum(lact_apply(w, k) * v)

    down = jax.tree.map(jnp.negative, jax.grad(inner_loss)(FastWeights(*weights)))
    step = jax.tree.map(jnp.subtract, after.main, state.main)
    chex.assert_trees_all_close(step, jax.tree.map(ortho, down) if ortho else down, atol=2e-5)


@pytest.mark.parametrize(("muon", "momentum", "prenorm"), [FORMS[0], FORMS[-1]])
def test_gradient_is_that_of_finite_differences(muon, momentum, prenorm):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, sequence(13, (1,), dtype=np.float64))
        run = jitted(momentum, chunk_size=CHUNK, muon=muon, prenorm=prenorm)
        check_grads(run, inputs, order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_recomputing_changes_memory_but_not_gradients():
    inputs, found = sequence(1024, (1,)), []
    for remat in (False, True):
        gradient = gradient_of(chunk_size=64, steps=1, remat=remat)
        compiled = gradient.lower(*inputs).compile()
        found.append((compiled(*inputs), compiled.memory_analysis().temp_size_in_bytes))
    (kept, with_all), (again, without) = found
    chex.assert_trees_all_close(kept, again, rtol=1e-4, atol=1e-4)
    assert without < 0.6 * with_all


def test_parts_make_the_whole():
    """A stream served chunk by chunk with the two parts equals the sequence at once."""
    weights, q, k, v, lr, mu = sequence(20)
    state = lact_init(weights, momentum=True, prenorm=True)
    ortho = partial(newton_schulz, coefficients="quintic_you", eps=1e-7)
    out = []
    for start in range(0, 20, CHUNK):
        part = slice(start, start + CHUNK)
        out.append(lact_apply(state.weights, jnp.asarray(q[:, part])))
        rates = tuple(r[:, part] for r in lr)
        state = lact_chunk_update(state, k[:, part], v[:, part], rates, mu[:, part], ortho=ortho)
    expected = jitted(chunk_size=CHUNK, prenorm=True)(weights, q, k, v, lr, mu)
    np.testing.assert_allclose(jnp.concatenate(out, axis=1), expected, atol=5e-5, rtol=5e-5)
