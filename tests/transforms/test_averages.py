"""Averages of iterates against sums over all of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optkit
from tests.transforms.driver import gradients

SHAPES = {"kernel": (3, 2), "bias": (4,)}
STEPS = 7


def follow(part, dtype=jnp.float32):
    """Parameters from before the first step on, and what the part says after each step."""
    params, *grads = gradients(0, STEPS + 1, SHAPES)
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    tx = optax.chain(optax.sgd(0.3), part)
    state, trail, said = tx.init(params), [params], []
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        trail.append(params)
        said.append(optkit.averaged_params(state, params))
    return trail, said


def mean(trees, weights):
    weights = np.asarray(weights, np.float64)
    return jax.tree.map(
        lambda *xs: sum(w * np.asarray(x, np.float64) for w, x in zip(weights, xs, strict=True)),
        *trees,
    )


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), got, want)


@pytest.mark.parametrize("debias", [False, True])
def test_ema_is_its_sum(debias):
    trail, said = follow(optkit.weight_ema(0.7, debias=debias))
    for n, got in enumerate(said, 1):
        weights = [0.7 ** (n - j) * 0.3 for j in range(1, n + 1)]
        if debias:
            close(got, mean(trail[1 : n + 1], np.array(weights) / sum(weights)))
        else:
            close(got, mean(trail[: n + 1], [0.7**n, *weights]))


def test_a_scheduled_ema_is_corrected_by_the_weights_it_gave():
    # b = n/(n+1) makes the average a plain mean.
    part = optkit.weight_ema(lambda t: t / (t + 1.0), debias=True)
    trail, said = follow(part)
    for n, got in enumerate(said, 1):
        close(got, mean(trail[1 : n + 1], np.full(n, 1 / n)))


@pytest.mark.parametrize(("every", "start"), [(1, 0), (1, 3), (2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize("latest", [None, 1, 2, 10])
def test_swa_is_the_mean_of_what_it_takes(every, start, latest):
    trail, said = follow(optkit.swa(every, start=start, latest=latest))
    for n, got in enumerate(said, 1):
        taken = [j for j in range(start + 1, n + 1) if (j - start) % every == 0]
        taken = taken[-latest:] if latest else taken
        want = (
            mean([trail[j] for j in taken], np.full(len(taken), 1 / len(taken)))
            if taken
            else trail[n]
        )
        close(got, want)


@pytest.mark.parametrize("part", [optkit.weight_ema(0.99), optkit.swa()], ids=["ema", "swa"])
def test_averages_of_16_bit_weights_are_kept_in_float32(part):
    trail, said = follow(part, jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(said))
    state = part.init(trail[0])
    assert {x.dtype for x in jax.tree.leaves(state.average)} == {jnp.dtype("float32")}


def test_averaging_commutes_with_an_affine_map():
    """Weights that are scaled and shifted have averages that are."""
    trail, said = follow(optkit.swa(latest=3))
    half, shifted = jax.tree.map(lambda x: 0.5 * x + 1.0, trail), []
    tx = optkit.swa(latest=3)
    state = tx.init(half[0])
    for before, after in itertools.pairwise(half):
        _, state = tx.update(jax.tree.map(jnp.subtract, after, before), state, before)
        shifted.append(optkit.averaged_params(state, after))
    close(shifted, jax.tree.map(lambda x: 0.5 * x + 1.0, said))


def test_leaves_without_an_average_and_wrong_use():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    ema = optkit.weight_ema(0.5)
    part = optkit.route({"ema": ema, "none": optax.identity()}, [("a", "ema"), ("**", "none")])
    _, state = part.update(params, part.init(params), params)
    got = optkit.averaged_params(state, {"a": 2 * params["a"], "b": 2 * params["b"]})
    assert got["a"].tolist() == [1.5, 1.5] and got["b"].tolist() == [2.0] * 3
    with pytest.raises(ValueError, match=r"a: shape \(5,\) in the parameters, \(2,\)"):
        optkit.averaged_params(state, {"a": jnp.ones(5), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="keeps no average"):
        optkit.averaged_params(optax.sgd(1.0).init(params), params)
    with pytest.raises(ValueError, match="several averages of 'a'"):
        optkit.averaged_params((ema.init(params), optkit.swa().init(params)), params)
    with pytest.raises(ValueError, match="latest=0 must be an integer"):
        optkit.swa(latest=0)


@pytest.mark.parametrize("part", [optkit.weight_ema(0.0), optkit.swa(), optkit.swa(latest=2)])
def test_averages_are_read_from_the_state_of_an_nnx_optimizer(part):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), part), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2)))))(model))
    mean = optkit.averaged_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(mean["kernel"][...], model.kernel[...], rtol=1e-6)
