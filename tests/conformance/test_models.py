"""flax.nnx and flax.linen models: one tiny model each with every kind of layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

from optkit.tree import Role, leaves_with_paths, roles
from tests.conformance.methods import Method, update
from tests.conformance.trees import assert_close, assert_finite

TOKENS = jnp.array([[0, 3, 1, 2], [4, 4, 0, 1]])
WIDTH, HEADS, WORDS = 4, 2, 5


class NnxModel(nnx.Module):
    """Embedding, norm, attention, convolution, dense layer and head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
        self.dense = nnx.Linear(WIDTH, 6, rngs=rngs)
        self.head = nnx.Linear(6, WORDS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.norm(self.embed(tokens))
        x = x + self.conv(self.attention(x))
        return self.head(nnx.relu(self.dense(x)))


class LinenModel(linen.Module):
    """The same layers in linen."""

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.LayerNorm()(linen.Embed(WORDS, WIDTH)(tokens))
        x = x + linen.Conv(WIDTH, (3,))(linen.MultiHeadDotProductAttention(HEADS)(x))
        return linen.Dense(WORDS, name="head")(linen.relu(linen.Dense(6)(x)))


def _loss(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()


@functools.cache
def nnx_case() -> tuple[Any, Any, Any]:
    """(graph, parameters, gradients) of the nnx model."""
    model = NnxModel(nnx.Rngs(0))
    grads = nnx.jit(nnx.grad(lambda m: _loss(m(TOKENS))))(model)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, (params, rest), grads


@functools.cache
def linen_case() -> tuple[Any, Any]:
    """(parameters, gradients) of the linen model."""
    model = LinenModel()
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    grads = jax.jit(jax.grad(lambda p: _loss(model.apply({"params": p}, TOKENS))))(params)
    return params, grads


def _fresh_model() -> Any:
    graph, parts, _ = nnx_case()
    return nnx.merge(graph, *jax.tree.map(jnp.copy, parts))


def _small(recipe: Method) -> tuple[Any, Any]:
    """(an nnx model of the recipe's small tree, its gradients as its state)."""
    model, grads = nnx.Module(), nnx.Module()
    for module, tree in ((model, recipe.params()), (grads, recipe.grads(0))):
        for layer, leaves in tree.items():
            setattr(module, layer, nnx.Module())
            for name, x in leaves.items():
                setattr(getattr(module, layer), name, nnx.Param(x))
    return model, nnx.state(grads, nnx.Param)


@pytest.mark.sweep
def test_nnx_parameters_make_the_program_of_the_plain_tree(recipe: Method) -> None:
    model, grads = _small(recipe)
    programs = []
    for of_params, of_grads in (
        (nnx.state(model, nnx.Param), grads),
        (recipe.params(), recipe.grads(0)),
    ):
        state = jax.eval_shape(recipe.tx.init, of_params)
        programs.append(str(jax.make_jaxpr(recipe.tx.update)(of_grads, state, of_params)))
    assert programs[0] == programs[1]


@pytest.mark.sweep
def test_nnx_optimizer_steps_like_the_plain_tree(recipe: Method) -> None:
    model, grads = _small(recipe)
    optimizer = nnx.Optimizer(model, recipe.tx, wrt=nnx.Param)
    optimizer.update(model, grads)
    want = optax.apply_updates(recipe.params(), recipe.eager[0][0])
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), want)
    assert int(optimizer.step[...]) == 1


@pytest.mark.parametrize("name", ["muon", "lion"])
def test_nnx_optimizer_under_nnx_jit(name: str) -> None:
    from tests.conformance.methods import method

    recipe = method(name)
    _, _, grads = nnx_case()
    results = []
    for wrap in (lambda f: f, nnx.jit):
        model = _fresh_model()
        optimizer = nnx.Optimizer(model, recipe.tx, wrt=nnx.Param)
        wrap(lambda model, optimizer: optimizer.update(model, grads))(model, optimizer)
        results.append(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert_close(results[1], results[0])


@pytest.mark.sweep
@pytest.mark.slow
def test_linen_parameters(recipe: Method) -> None:
    params, grads = linen_case()
    state = recipe.tx.init(params)
    updates, _ = update(recipe.tx, grads, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert_finite(updates)
    # A gradient of exactly 0 (an unused bias) may stay; every kernel must move, or under ID3 some.
    moves = {path: bool(jnp.any(u)) for path, u in leaves_with_paths(updates) if "kernel" in path}
    assert (any if recipe.entry.name == "id3" else all)(moves.values()), moves


def test_roles_of_both_models() -> None:
    """Matrix methods see the same leaves in linen and in nnx."""
    linen_params, _ = linen_case()
    _, (nnx_params, _), _ = nnx_case()
    for params in (linen_params, nnx_params):
        found = [role for _, role in leaves_with_paths(roles(params))]
        count = {role: found.count(role) for role in set(found)}
        # LayerNorm has a scale; its bias counts as a bias.
        assert count == {
            Role.EMBEDDING: 1, Role.HEAD: 1, Role.CONV: 1, Role.MATRIX: 5, Role.NORM: 1,
            Role.BIAS: 8,
        }  # fmt: skip
