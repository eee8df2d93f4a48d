"""What estimates answer to functions that are no losses, no logits or take models."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optkit
from optkit import curvature

KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones((2, 3))}
LINEAR = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
GRAPH, STATE = nnx.split(LINEAR)
X = jnp.ones((4, 2))


def mean_square(model):
    return jnp.mean(model(X) ** 2)


ESTIMATES = [curvature.hutchinson, curvature.hessian_diagonal, curvature.layer_means]


@pytest.mark.parametrize("of", [*ESTIMATES, curvature.gauss_newton_bartlett])
@pytest.mark.parametrize("function", [mean_square, lambda m: m.layers(X)])
def test_a_function_of_an_nnx_model_learns_what_it_is_given(of, function):
    with pytest.raises(TypeError, match=r"nnx\.merge\(graph, params, rest\)"):
        of(function)(STATE, KEY)


def test_the_remedy_for_nnx_works():
    graph, params, rest = nnx.split(LINEAR, nnx.Param, ...)
    found = curvature.hutchinson(lambda p: mean_square(nnx.merge(graph, p, rest)))(params, KEY)
    assert jax.tree.structure(found) == jax.tree.structure(params)


@pytest.mark.parametrize("recipe", [optkit.sophia_h, optkit.oasis])
def test_an_nnx_optimizer_takes_the_loss_of_parameters(recipe):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, recipe(), wrt=nnx.Param)
    grads, before = nnx.grad(mean_square)(model), model.kernel[...]
    with pytest.raises(TypeError, match=r"nnx\.merge"):
        optimizer.update(model, grads, value_fn=mean_square)
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    optimizer.update(model, grads, value_fn=lambda p: mean_square(nnx.merge(graph, p, rest)))
    assert jnp.any(before != model.kernel[...])


@pytest.mark.parametrize("function", [lambda m: m(X), lambda m: m.apply(X)])
def test_a_tree_is_no_model(function):
    with pytest.raises(TypeError, match="a dict of arrays, and not with a model"):
        curvature.hutchinson(function)(PARAMS, KEY)


def test_errors_of_the_function_itself_pass():
    with pytest.raises(AttributeError, match="'list' object has no attribute 'shape'"):
        curvature.hutchinson(lambda p: [].shape)(PARAMS, KEY)


@pytest.mark.parametrize("of", ESTIMATES)
def test_a_loss_is_one_number(of):
    with pytest.raises(TypeError, match=r"returns a tuple of 2: .*has_aux=True"):
        of(lambda p: (jnp.sum(p["w"]), 0))(PARAMS, KEY)
    with pytest.raises(TypeError, match=r"shape \(2, 3\): take the mean"):
        of(lambda p: p["w"])(PARAMS, KEY)
    with pytest.raises(TypeError, match=r"has to return \(loss, aux\)"):
        of(lambda p: jnp.sum(p["w"]), has_aux=True)(PARAMS, KEY)


@pytest.mark.parametrize("value", [jnp.zeros(()), None, (jnp.zeros(3), 0)])
def test_logits_are_no_loss(value):
    with pytest.raises(TypeError, match=r"returns logits.*curvature\.hutchinson"):
        curvature.gauss_newton_bartlett(lambda p: value)(PARAMS, KEY)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"clip=-1\.0 must be a norm above 0"):
        curvature.gauss_newton_bartlett(lambda p: p["w"], clip=-1.0)
    with pytest.raises(ValueError, match=r"where has shape \(3,\) and the logits have rows \(2,\)"):
        curvature.gauss_newton_bartlett(lambda p: p["w"], where=jnp.ones(3, bool))(PARAMS, KEY)
