"""Statistics of layers against what models compute, whichever library they are written with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optkit import curvature

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), jnp.float32)


def check(params, loss, names, *, bias="bias", rtol=1e-5):
    """Sums of output gradients are gradients of biases."""
    estimate = curvature.layer_means(loss)
    means, grads = jax.jit(lambda p: (estimate(p, KEY), jax.grad(loss)(p)))(params)
    assert sorted(means) == sorted(f"{name}/kernel" for name in names)
    for name in names:
        node = grads
        for part in name.split("/"):
            node = node[part]
        want = node[bias][...] if isinstance(node, nnx.State) else node[bias]
        np.testing.assert_allclose(means[f"{name}/kernel"].outputs, want, rtol=rtol, atol=1e-6)
    return means


class Linen(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4, dtype=self.dtype)(x))
        x = nn.remat(nn.DenseGeneral)((2, 3), name="heads")(x)
        return nn.DenseGeneral(2, axis=(-2, -1), name="out")(x)


def test_linen():
    model = Linen()
    params = jax.jit(model.init)(KEY, X)["params"]

    def loss(p):
        return jnp.mean(jnp.square(model.apply({"params": p}, X)))

    means = check(params, loss, ["Dense_0", "heads", "out"])
    hidden = jax.nn.relu(X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    np.testing.assert_allclose(means["Dense_0/kernel"].inputs, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(means["heads/kernel"].inputs, hidden.mean(0), rtol=1e-5)
    assert means["out/kernel"].inputs.shape == (2, 3)


def test_linen_that_computes_in_16_bits():
    model = Linen(dtype=jnp.bfloat16)
    params = jax.jit(model.init)(KEY, X)["params"]

    def loss(p):
        return jnp.mean(jnp.square(model.apply({"params": p}, X)).astype(jnp.float32))

    means = check(params, loss, ["Dense_0", "heads", "out"], rtol=2e-2)
    assert {m.inputs.dtype for m in means.values()} == {jnp.dtype("float32")}


def test_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(3, 4, rngs=rngs)
            self.down = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.down(jnp.tanh(self.up(x)))

    graph, params = nnx.split(Model(nnx.Rngs(0)))

    def loss(p):
        return jnp.mean(jnp.square(nnx.merge(graph, p)(X)))

    check(params, loss, ["up", "down"])


def test_a_layer_that_is_used_twice_has_all_inputs_and_all_gradients():
    params = {"kernel": jnp.eye(3) / 2, "bias": jnp.zeros(3)}

    def layer(p, x):
        return x @ p["kernel"] + p["bias"][None]

    def loss(p):
        return jnp.mean(jnp.square(layer(p, layer(p, X))))

    means = curvature.layer_means(loss)(params, KEY)["kernel"]
    both = np.concatenate([X, X / 2])
    np.testing.assert_allclose(means.inputs, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(means.outputs, jax.grad(loss)(params)["bias"], rtol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_kernels_on_either_side_of_the_product(first):
    kernel = jnp.arange(6.0).reshape(2, 3)

    def loss(p):
        y = jnp.matmul(p["w"], X.T) if first else jnp.matmul(X, p["w"].T)
        return jnp.sum(jnp.mean(y, axis=1 if first else 0) * jnp.array([1.0, -2.0]))

    means = curvature.layer_means(loss)({"w": kernel}, KEY)["w"]
    np.testing.assert_allclose(means.inputs, X.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means.outputs, [1.0, -2.0], rtol=1e-5)


def test_no_gradient_of_a_kernel_is_computed():
    """One product for each layer forward and, from the second one on, one back."""
    params = [jnp.ones((3, 3))] * 3

    def loss(p):
        x = X
        for kernel in p:
            x = jnp.tanh(x @ kernel)
        return jnp.mean(x)

    run = jax.jit(lambda p: curvature.layer_means(loss)(p, KEY))
    assert run.lower(params).as_text().count("dot_general") >= 5
    assert run.lower(params).compile().as_text().count(" dot(") <= 5
