"""The models, against what they must be by construction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optkit import tasks
from optkit.tasks import corpus, decoder, digits_data, modules
from optkit.tasks.regression import ill_conditioned

# The sizes of the contract tests: what those compiled need not be compiled again.
TINY_LM = {"width": 16, "layers": 1, "heads": 2, "context": 16, "held_out_windows": 8}
TINY_MLP = {"width": 16, "batch": 32}


@pytest.fixture(scope="module")
def language_model() -> tasks.Task:
    return tasks.get("bytelm", **TINY_LM)


def test_language_model_paths_read_well() -> None:
    task = tasks.get("bytelm", **{**TINY_LM, "layers": 2})
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in flat
    }
    assert named["blocks/0/attention/query/kernel"] == (16, 16)
    assert named["blocks/1/mlp/up/kernel"] == (16, 64)
    assert named["embed/embedding"] == (256, 16)
    assert named["head/kernel"] == (16, 256)
    assert len(named) == 2 * 8 + 3


def test_language_model_starts_at_the_uniform_guess(language_model: tasks.Task) -> None:
    held_out = language_model.evaluate(language_model.init(jax.random.key(0)))
    assert abs(held_out["bits_per_byte"] - 8.0) < 0.1


def test_language_model_evaluates_held_out_windows_only(language_model: tasks.Task) -> None:
    params = language_model.init(jax.random.key(1))
    data = corpus.standard_library().held_out.astype(np.int32)
    starts = np.linspace(0, data.size - 17, 8).astype(int)
    window = np.stack([data[start : start + 17] for start in starts])
    loss, metrics = language_model.loss(
        params, {"inputs": window[:, :-1], "targets": window[:, 1:]}
    )
    measured = language_model.evaluate(params)
    np.testing.assert_allclose(measured["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(measured["bits_per_byte"], metrics["bits_per_byte"], rtol=1e-5)


def test_decoder_is_causal_and_uses_the_past() -> None:
    init, apply = modules.functional(lambda rngs: decoder.Decoder(16, 1, 2, rngs=rngs))
    params = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, 256)
    changed = tokens.at[0, 5].add(1)
    before, after = (jax.jit(apply)(params, x)[0] for x in (tokens, changed))
    np.testing.assert_allclose(before[:5], after[:5], atol=1e-6)
    assert bool(jnp.all(jnp.abs(before[5:] - after[5:]).max(axis=-1) > 1e-5))


class Chain(nnx.Module):
    """Twelve layers that do not commute."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(12)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def test_scores_are_those_that_the_decoder_attends_by() -> None:
    build = functools.partial(decoder.Decoder, 8, 1, 2)
    init, _ = modules.functional(lambda rngs: build(rngs=rngs))
    observe = modules.observed(lambda rngs: build(rngs=rngs))
    scores_of = modules.method(lambda rngs: build(rngs=rngs), "attention_scores")
    params = init(jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, 256)
    ((path, scores),) = jax.jit(scores_of)(params, tokens).items()
    assert (path, scores.shape, scores.dtype) == ("blocks/0/attention", (2, 2, 5, 5), jnp.float32)
    assert np.array_equal(
        np.isneginf(scores), np.broadcast_to(~np.tri(5, dtype=bool), (2, 2, 5, 5))
    )
    seen = jax.jit(observe)(params, tokens)
    value = np.asarray(seen[f"{path}/value"], np.float64).reshape(2, 5, 2, 4)
    looked = np.exp(np.asarray(scores, np.float64))
    looked /= looked.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", looked, value).reshape(2, 5, 8)
    out = mixed @ np.asarray(params["blocks"]["0"]["attention"]["out"]["kernel"], np.float64)
    np.testing.assert_allclose(seen[path], out, rtol=1e-5, atol=1e-6)


def test_language_model_shows_its_attention_on_held_out_windows(
    language_model: tasks.Task,
) -> None:
    params = language_model.init(jax.random.key(0))
    assert language_model.attention is not None
    (scores,) = language_model.attention(params).values()
    assert scores.shape == (min(8, TINY_LM["held_out_windows"]), 2, 16, 16)
    assert tasks.get("regression").attention is None


def test_more_than_ten_layers_keep_their_order() -> None:
    # As strings, "10" sorts before "2".
    init, apply = modules.functional(Chain)
    params = init(jax.random.key(0))
    expected = jnp.eye(2)
    for index in range(12):
        expected = expected @ params["layers"][str(index)]["kernel"]
    np.testing.assert_allclose(jax.jit(apply)(params, jnp.eye(2)), expected, rtol=1e-5)


def test_rotation_makes_scores_depend_on_distance_only() -> None:
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))
    queries, keys = (jax.jit(decoder.rotate)(jnp.broadcast_to(x, (9, 1, 8))) for x in (query, key))
    scores = jnp.einsum("qhd,khd->qk", queries, keys)
    for distance in range(9):
        diagonal = jnp.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(query), rtol=1e-6)


def test_digits_split_is_disjoint_fixed_and_scaled_by_training_images() -> None:
    digits_data.load.cache_clear()
    first = digits_data.load()
    digits_data.load.cache_clear()
    again = digits_data.load()
    jax.tree.map(np.testing.assert_array_equal, first.train, again.train)
    rows = [{row.tobytes() for row in part["images"]} for part in (first.train, first.held_out)]
    assert len(first.train["labels"]) == 1437 and len(first.held_out["labels"]) == 360
    assert rows[0].isdisjoint(rows[1])
    np.testing.assert_allclose(first.train["images"].mean(), 0.0, atol=1e-5)
    np.testing.assert_allclose(first.train["images"].std(), 1.0, atol=1e-5)
    assert abs(first.held_out["images"].mean()) > 1e-4


def test_digits_evaluates_held_out_images_only() -> None:
    task = tasks.get("digits", **TINY_MLP)
    params = task.init(jax.random.key(0))
    loss, metrics = jax.jit(task.loss)(params, digits_data.load().held_out)
    expected = {"loss": float(loss), "error": float(metrics["error"])}
    assert task.evaluate(params) == pytest.approx(expected, rel=1e-5)


def test_digits_batches_hold_each_image_once() -> None:
    images = tasks.get("digits", batch=1437).batch(0, 0)["images"]
    assert {image.tobytes() for image in images} == {
        image.tobytes() for image in digits_data.load().train["images"]
    }


def test_linen_and_nnx_models_are_the_same_function() -> None:
    nnx_task, linen_task = tasks.get("digits", **TINY_MLP), tasks.get("digits_linen", **TINY_MLP)
    params = nnx_task.init(jax.random.key(0))
    assert jax.tree.structure(linen_task.init(jax.random.key(0))) == jax.tree.structure(params)
    batch = nnx_task.batch(5, 5)
    jax.tree.map(np.testing.assert_array_equal, linen_task.batch(5, 5), batch)
    losses = [jax.jit(task.loss)(params, batch)[0] for task in (nnx_task, linen_task)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 6), (5, 9)])
def test_teacher_has_the_asked_condition(shape: tuple[int, int]) -> None:
    teacher = ill_conditioned(np.random.default_rng(0), *shape, 1000.0)
    values = np.linalg.svd(teacher, compute_uv=False)
    np.testing.assert_allclose(values, np.geomspace(1.0, 1e-3, min(shape)), rtol=1e-9)
