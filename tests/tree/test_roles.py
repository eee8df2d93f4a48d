"""Roles of the leaves of realistic models, and the views that follow from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optkit
from optkit.tree import (
    MATRIX_ROLES,
    Role,
    RoleRule,
    leaves_with_paths,
    matrix_view,
    rule_of,
    selects,
)

RNGS = nnx.Rngs(0)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def roles_of(params, rules=()):
    return dict(leaves_with_paths(jax.tree.map(str, optkit.roles(params, rules))))


def view_of(path, leaf):
    rule = rule_of(path, leaf)
    return matrix_view(leaf, rule.dims, path=path, role=rule.role)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        y = nn.LayerNorm(name="ln_2")(x)
        return x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(y))), None


class LinenGPT(nn.Module):
    scan: bool = False
    tied: bool = False

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(11, 8, name="wte")
        pos = self.param("pos_embedding", nn.initializers.normal(), (1, 4, 8))
        x = wte(tokens) + pos
        if self.scan:
            layers = nn.scan(
                LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = layers(name="layers")(x, None)
        else:
            x, _ = LinenBlock(name="block_0")(x)
        x = nn.LayerNorm(name="ln_f")(x)
        return wte.attend(x) if self.tied else nn.Dense(11, name="lm_head")(x)


def linen(module, x):
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


TOKENS = jnp.zeros((1, 4), jnp.int32)


def test_linen_gpt():
    params = linen(LinenGPT(), TOKENS)
    found = roles_of(params)
    prefix = "block_0"
    assert found["wte/embedding"] == found["pos_embedding"] == "embedding"
    assert found["lm_head/kernel"] == "head" and found["lm_head/bias"] == "bias"
    for name in (
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/out",
        "up",
        "down",
    ):
        assert found[f"{prefix}/{name}/kernel"] == "matrix"
        assert found[f"{prefix}/{name}/bias"] == "bias"
    for name in (f"{prefix}/ln_1", f"{prefix}/ln_2", "ln_f"):
        assert found[f"{name}/scale"] == "norm" and found[f"{name}/bias"] == "bias"
    assert len(found) == 22


def test_scanned_layers_are_stacks_of_the_matrices_of_single_ones():
    single = dict(leaves_with_paths(linen(LinenGPT(), TOKENS)["block_0"]))
    stacked = dict(leaves_with_paths(linen(LinenGPT(scan=True), TOKENS)["layers"]))
    assert single.keys() == stacked.keys()
    for path, leaf in stacked.items():
        assert leaf.shape == (3, *single[path].shape)
        one, many = rule_of(path, single[path]), rule_of(f"layers/{path}", leaf)
        if one.role == "matrix":
            assert many.role == "stacked"
            alone, view = view_of(path, single[path]), view_of(f"layers/{path}", leaf)
            assert view.batch_shape == (3,)
            assert (view.fan_in, view.fan_out) == (alone.fan_in, alone.fan_out) != (3, 3)
        else:
            assert many.role == one.role


def test_a_tied_embedding_is_an_embedding():
    found = roles_of(linen(LinenGPT(tied=True), TOKENS))
    assert found["wte/embedding"] == "embedding" and "head" not in found.values()


def test_nnx_model():
    class ViT(nnx.Module):
        def __init__(self):
            self.patch_embedding = nnx.Conv(3, 8, (4, 4), rngs=RNGS)
            self.position_embeddings = nnx.Param(jnp.zeros((1, 4, 8)))
            self.cls_token = nnx.Param(jnp.zeros((1, 1, 8)))
            self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=RNGS)
            self.norm = nnx.LayerNorm(8, rngs=RNGS)
            self.mlp = nnx.List([nnx.Linear(8, 16, rngs=RNGS), nnx.Linear(16, 8, rngs=RNGS)])
            self.classifier = nnx.Linear(8, 10, rngs=RNGS)

    found = roles_of(nnx.state(ViT(), nnx.Param))
    kernels = {path: role for path, role in found.items() if not path.endswith("bias")}
    assert kernels == {
        "attn/key/kernel": "matrix",
        "attn/out/kernel": "matrix",
        "attn/query/kernel": "matrix",
        "attn/value/kernel": "matrix",
        "classifier/kernel": "head",
        "cls_token": "embedding",
        "mlp/0/kernel": "matrix",
        "mlp/1/kernel": "matrix",
        "norm/scale": "norm",
        "patch_embedding/kernel": "conv",
        "position_embeddings": "embedding",
    }
    assert {role for path, role in found.items() if path.endswith("bias")} == {"bias"}


def test_linen_convolution_net_and_norms():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
            x = nn.ConvTranspose(4, (2, 2))(nn.GroupNorm(2)(x))
            return nn.Dense(3, name="readout")(nn.RMSNorm()(x).mean((1, 2)))

    found = roles_of(linen(Net(), jnp.zeros((1, 4, 4, 2))))
    assert {path: role for path, role in found.items() if not path.endswith("bias")} == {
        "BatchNorm_0/scale": "norm",
        "ConvTranspose_0/kernel": "conv",
        "Conv_0/kernel": "conv",
        "GroupNorm_0/scale": "norm",
        "RMSNorm_0/scale": "norm",
        "readout/kernel": "head",
    }


# Names that other code bases use, and near misses of the table's words.
@pytest.mark.parametrize(
    ("path", "sizes", "role"),
    [
        ("embed_tokens/weight", (9, 8), "embedding"),
        ("embedder/input_embedding", (9, 8), "embedding"),
        ("token_embedder/embedding", (9, 8), "embedding"),
        ("embeddings/word_embeddings/embedding", (9, 8), "embedding"),
        ("embed/kernel", (9, 8), "embedding"),
        ("embedding_projection/kernel", (8, 8), "matrix"),
        ("TimestepEmbedder_0/Dense_0/kernel", (8, 8), "matrix"),
        ("patch_embed/kernel", (48, 8), "matrix"),
        ("embedding/kernel", (4, 4, 3, 8), "conv"),
        ("posembed_input/pos_embedding", (1, 4, 8), "embedding"),
        ("positional_encoding", (4, 8), "embedding"),
        ("cls", (1, 1, 8), "embedding"),
        ("MAPHead_0/probe", (1, 1, 8), "embedding"),
        ("logits_dense/kernel", (8, 9), "head"),
        ("embed_out/kernel", (8, 9), "head"),
        ("head_0/kernel", (8, 2), "head"),
        ("MultiHeadAttention_0/Head_0/Dense_0/kernel", (8, 4), "matrix"),
        ("attn/heads_1/query/kernel", (8, 4), "matrix"),
        ("num_heads/kernel", (8, 8), "matrix"),
        ("multi_head/out_proj/kernel", (8, 8), "matrix"),
        ("attention/output/dense/kernel", (8, 8), "matrix"),
        ("overhead/kernel", (8, 8), "matrix"),
        ("PreNormBlock_3/Dense_0/kernel", (8, 8), "matrix"),
        ("normal_proj/weight", (8, 8), "matrix"),
        ("layers/norm/weight", (3, 8), "norm"),
        ("layers/ln_1/bias", (3, 8), "bias"),
        ("tree_scale/kernel", (8, 8), "matrix"),
        ("q_proj/kernel", (3, 8, 8), "stacked"),
        ("StdConv_0/kernel", (3, 3, 4, 8), "conv"),
        ("ConvBlock_0/Dense_0/kernel", (8, 8), "matrix"),
        ("ConvBlock_0/attn/key/kernel", (8, 2, 4), "matrix"),
        ("moe/experts/up/kernel", (4, 8, 16), "expert"),
        ("layers/moe/experts/up/kernel", (3, 4, 8, 16), "expert"),
        ("moe/experts/bias", (4, 16), "bias"),
        ("moe/gate/kernel", (8, 4), "matrix"),
        ("MoeBlock_0/wi_0", (4, 8, 16), "stacked"),
        ("temperature", (), "bias"),
    ],
)
def test_names_of_other_code_bases(path, sizes, role):
    assert rule_of(path, shape(*sizes)).role == role


@pytest.mark.parametrize(
    ("path", "sizes", "batch", "fan_in", "fan_out"),
    [
        ("attn/query/kernel", (8, 2, 3), (), 8, 6),
        ("attn/out/kernel", (2, 3, 8), (), 6, 8),
        ("layers/attn/value/kernel", (5, 8, 2, 3), (5,), 8, 6),
        ("layers/attn/out/kernel", (5, 2, 3, 8), (5,), 6, 8),
        ("layers/self_attn/q_proj/kernel", (5, 8, 6), (5,), 8, 6),
        ("Conv_0/kernel", (3, 2, 4, 8), (), 24, 8),
        ("layers/experts/up/kernel", (3, 4, 8, 16), (3, 4), 8, 16),
    ],
)
def test_default_axes(path, sizes, batch, fan_in, fan_out):
    view = view_of(path, shape(*sizes))
    assert (view.batch_shape, view.fan_in, view.fan_out) == (batch, fan_in, fan_out)


def test_user_rules_go_first_in_order():
    params = {"up": {"kernel": shape(2, 3)}, "down": {"kernel": shape(2, 3)}}
    assert roles_of(params, [("up", "head"), ("**", Role.NORM)]) == {
        "up/kernel": "head",
        "down/kernel": "norm",
    }
    assert roles_of(params, [RoleRule("**", Role.HEAD, ranks=(3,))])["up/kernel"] == "matrix"
    with pytest.raises(ValueError, match=r"'up'.*'haed'.*embedding, head"):
        optkit.roles(params, [("up", "haed")])


def test_selectors():
    leaf = shape(2, 2)
    assert selects("matrix", "up/kernel", leaf) and not selects("head", "up/kernel", leaf)
    assert selects("head", "up/kernel", leaf, [("up", "head")])
    assert selects(MATRIX_ROLES, "up/kernel", leaf)
    assert selects((lambda path, x: x.ndim == 2, "nothing"), "up/kernel", leaf)
    assert not selects((), "up/kernel", leaf)
    with pytest.raises(TypeError, match=r"cannot select leaves by 3"):
        selects(3, "up/kernel", leaf)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("layers/attn/query/kernel", "stacked"),
        ("blocks/mlp/out/kernel", "stacked"),
        ("blocks/0/attention/query/kernel", "matrix"),
        ("layers_3/attention/out/kernel", "matrix"),
    ],
)
def test_rank_3_attention_kernels_below_scanned_layers_are_stacks(path, role):
    shape = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    assert optkit.tree.rule_of(path, shape).role == role
