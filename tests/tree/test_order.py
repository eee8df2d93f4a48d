"""The order of layers: read off names, given by selectors, or refused."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from optkit import tasks

MATRIX, VECTOR = jnp.ones((2, 2)), jnp.ones(2)
DENSE = {"kernel": MATRIX, "bias": VECTOR}
CONV = {"kernel": jnp.ones((3, 3, 1, 2))}
NORM = {"scale": VECTOR}
TABLE = {"embedding": MATRIX}

READ = {
    "linen": (
        {
            "params": {
                **{f"Conv_{i}": CONV for i in (0, 9, 10)},
                **{f"Dense_{i}": DENSE for i in (0, 1)},
                "BatchNorm_0": NORM,
                "LayerNorm_10": NORM,
            }
        },
        [
            "params/Conv_0+params/BatchNorm_0",
            "params/Conv_9",
            "params/Conv_10+params/LayerNorm_10",
            "params/Dense_0",
            "params/Dense_1",
        ],
    ),
    "plain matrices": (
        {"w1": MATRIX, "b1": VECTOR, "w2": MATRIX, "b2": VECTOR},
        ["w1+b1", "w2+b2"],
    ),
    "list of pairs": ([(MATRIX, VECTOR), (MATRIX, VECTOR)], ["0", "1"]),
    "one module": (DENSE, ["bias+kernel"]),
    "one array": (MATRIX, [""]),
    "no leaf": ({}, [""]),
    "decoder": (
        {
            "model": {"embed_tokens": TABLE, "layers": [{"q": DENSE}] * 2, "norm": NORM},
            "lm_head": DENSE,
        },
        ["model/embed_tokens", "model/layers/0", "model/layers/1", "model/norm+lm_head"],
    ),
    "encoder and decoder": (
        {
            "shared": TABLE,
            "decoder": {"block": {"0": {"q": DENSE}}, "final_norm": NORM},
            "encoder": {"block": {"0": {"q": DENSE}}, "final_norm": NORM},
            "lm_head": DENSE,
        },
        [
            "shared",
            "encoder/block/0",
            "encoder/final_norm+decoder/block/0",
            "decoder/final_norm+lm_head",
        ],
    ),
    "vision transformer": (
        {
            "pos_embedding": jnp.ones((1, 2, 2)),
            "patch_embed": {"kernel": jnp.ones((2, 2, 3, 4))},
            "Transformer": {
                **{f"encoderblock_{i}": {"mlp": DENSE} for i in range(2)},
                "encoder_norm": NORM,
            },
            "head": DENSE,
        },
        [
            "patch_embed+pos_embedding",
            "Transformer/encoderblock_0",
            "Transformer/encoderblock_1",
            "Transformer/encoder_norm+head",
        ],
    ),
    "a block without an order inside": (
        {"embed": TABLE, "block": {"query": DENSE, "key": DENSE, "norm": NORM}, "head": DENSE},
        ["embed", "block", "head"],
    ),
    "scanned layers": (
        {
            "token_embedder": TABLE,
            "decoder": {
                "layers": {"up": {"kernel": jnp.ones((3, 2, 2))}, "out": jnp.ones((3, 2, 2))},
                "decoder_norm": NORM,
                "logits_dense": {"kernel": MATRIX},
            },
        },
        ["token_embedder", "decoder/layers", "decoder/decoder_norm+decoder/logits_dense"],
    ),
    "numbered embedding and head": (
        {"Embed_0": TABLE, "Embed_1": TABLE, "Dense_0": DENSE, "head_0": DENSE},
        ["Embed_0+Embed_1", "Dense_0", "head_0"],
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_order_is_read_off_the_names(case):
    tree, names = READ[case]
    layers = optkit.layer_order(tree)
    assert layers.names == tuple(names)
    assert [path for path, _ in optkit.tree.leaves_with_paths(tree)] == list(layers.layer_of)
    assert set(layers.layer_of.values()) == set(range(1, len(names) + 1)) or not layers.layer_of


def test_ten_comes_after_nine_at_the_leaves():
    layers = optkit.layer_order({"blocks": {str(i): {"mlp": {"up": DENSE}} for i in range(12)}})
    assert [layers.layer_of[f"blocks/{i}/mlp/up/kernel"] for i in range(12)] == [*range(1, 13)]


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"up": DENSE, "down": DENSE}, "'down', 'up'"),
        ({"params": {"up": DENSE, "down": DENSE}}, r"'params/down/\*\*', 'params/up/\*\*'"),
        ({"conv": DENSE, "down": DENSE}, r"'conv/\*\*', 'down'"),
        ({"attn_0": DENSE, "mlp_0": DENSE}, "'attn_0', 'mlp_0'"),
        ({"blocks_0": DENSE, "blocks_1": DENSE, "adapter": DENSE}, "'adapter', 'blocks_0'"),
    ],
)
def test_names_that_do_not_tell_are_refused_with_a_remedy_that_works(tree, named):
    with pytest.raises(
        ValueError, match=rf"do not tell .* the layers {named} .*order=\["
    ) as caught:
        optkit.layer_order(tree)
    order = eval(str(caught.value).rsplit("order=", 1)[1])
    assert optkit.layer_order(tree, order).count == 3


@pytest.mark.parametrize("name", tasks.names())
def test_the_tasks_have_an_order(name):
    params = jax.eval_shape(tasks.get(name).init, jax.random.key(0))
    layers = optkit.layer_order(params)
    assert layers.count >= 2
    heads = [number for path, number in layers.layer_of.items() if path.startswith("head")]
    assert set(heads) <= {layers.count}


def test_selectors_give_the_order_and_the_first_serves():
    tree = {"up": DENSE, "down": DENSE, "head": DENSE}
    layers = optkit.layer_order(
        tree, ["down/**", ("up", "head/**"), "embedding", lambda path, x: True]
    )
    assert layers.names == ("down/**", "up+head/**", "embedding", "<lambda>")
    assert layers.layer_of == {
        "down/bias": 1, "down/kernel": 1, "head/bias": 2, "head/kernel": 2, "up/bias": 2,
        "up/kernel": 2,
    }  # fmt: skip
    assert "3      embedding   (no leaf)" in str(layers)
    assert optkit.layer_order(
        tree, [("norm", lambda path, x: False), lambda p, x: 0, lambda p, x: 1]
    )
    twice = optkit.layer_order(tree, [lambda path, x: False, lambda path, x: True])
    assert twice.names == ("<lambda>", "<lambda>#2")


def test_roles_of_the_user_count():
    tree = {"table": {"kernel": MATRIX}, "mix": DENSE}
    assert optkit.layer_order(tree, roles=[("table", "embedding")]).names == ("table", "mix")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["up"], r"no layer for leaf 'down/bias'; .*a last selector \"\*\*\""),
        (["upp", "**"], "'upp' names no leaf; the leaves are down/bias"),
        ([], "must be a list of selectors"),
        ("up", "must be a list of selectors"),
    ],
)
def test_wrong_orders_are_named(order, message):
    with pytest.raises(ValueError, match=message):
        optkit.layer_order({"up": DENSE, "down": DENSE}, order)


def test_a_pattern_may_name_what_another_transformation_serves():
    tree = {"up": optax.MaskedNode(), "down": DENSE}
    assert optkit.layer_order(tree, ["up", "**"]).layer_of == {"down/bias": 2, "down/kernel": 2}
