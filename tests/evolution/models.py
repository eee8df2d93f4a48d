"""Models of all kinds that a population is run through, each with its parameters and an input."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TOKENS, WIDTH, HEADS, VOCABULARY = 5, 8, 2, 11


class Model(NamedTuple):
    """A function of parameters and an input, with both."""

    fn: Callable[..., Any]
    params: Any
    x: Any


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x))
        x = nn.silu(nn.DenseGeneral((2, 3))(x))
        return nn.DenseGeneral(4, axis=(-2, -1))(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=(2, 1))(x))
        x = nn.GroupNorm(2)(x)
        x = nn.max_pool(nn.Conv(4, (2, 3), padding="VALID", kernel_dilation=(1, 2))(x), (2, 2))
        return nn.Dense(3)(x.reshape(-1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, mask=nn.make_causal_mask(x[..., 0]))
        y = nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(y), None


class LM(nn.Module):
    """A language model with tied embedding, its layers one after another or scanned."""

    kind: str = "plain"

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCABULARY, WIDTH)
        position = self.param("position", nn.initializers.normal(0.1), (16, WIDTH))
        x = embed(tokens) + position[: tokens.shape[0]]
        block = nn.remat(Block) if self.kind == "remat" else Block
        if self.kind == "scan":
            stack = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
            x, _ = nn.scan(nn.remat(Block), **stack)()(x, None)
        else:
            for _ in range(2):
                x, _ = block()(x)
        return embed.attend(nn.LayerNorm()(x))


class GRU(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.GRUCell(6))(x))


class Own(nn.Module):
    """Products of its own: a matrix on the left, and experts that all see the same."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(0.5)
        w = self.param("w", normal, (5, x.shape[-1]))
        experts = self.param("experts", normal, (3, 5, 4))
        x = jnp.tanh((w @ x.T).T)
        gates = jax.nn.softmax(x[..., :3])
        return jnp.einsum("ebo,be->bo", jnp.einsum("bi,eio->ebo", x, experts), gates)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NNXLM(nnx.Module):
    def __init__(self, scanned, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, WIDTH, 3, padding="CAUSAL", rngs=rngs)
        self.scanned = scanned
        if scanned:
            make = nnx.vmap(NNXBlock, in_axes=0, out_axes=0)
            self.blocks = make(rngs.split(2))
        else:
            self.blocks = nnx.List([NNXBlock(rngs) for _ in range(2)])

    def __call__(self, tokens):
        x = self.conv(self.embed(tokens))
        if self.scanned:
            x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.blocks
            )
        else:
            for block in self.blocks:
                x = block(x)
        return self.embed.attend(x)


def _linen(module: nn.Module, x: Any) -> Model:
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return Model(lambda params, x: module.apply({"params": params}, x), _filled(params), x)


def _nnx(scanned: bool, x: Any) -> Model:
    graph, state = nnx.split(nnx.eval_shape(lambda: NNXLM(scanned, nnx.Rngs(0))), nnx.Param, ...)[
        :2
    ]
    return Model(lambda params, x: nnx.merge(graph, params)(x), _filled(state), x)


def _filled(shapes: Any) -> Any:
    """Returns normal numbers for shapes, without a program for each."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes)


def _plain(params: Any, x: Any) -> Any:
    """An MLP with a gain on its weights, one of them used both ways."""
    x = jnp.tanh(x @ (params["w"] * 0.5))
    return x @ params["w"].T / 2 + params["v"][None, 0]


def _floats(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def tokens() -> Any:
    return jnp.asarray(np.random.default_rng(2).integers(0, VOCABULARY, TOKENS), jnp.int32)


MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: _linen(MLP(), _floats(3, 5)),
    "cnn": lambda: _linen(CNN(), _floats(6, 7, 3)),
    "lm": lambda: _linen(LM(), tokens()),
    "lm_remat": lambda: _linen(LM("remat"), tokens()),
    "lm_scan": lambda: _linen(LM("scan"), tokens()),
    "gru": lambda: _linen(GRU(), _floats(4, 3)),
    "own": lambda: _linen(Own(), _floats(3, 4)),
    "nnx_lm": lambda: _nnx(False, tokens()),
    "nnx_scan": lambda: _nnx(True, tokens()),
    "function": lambda: Model(_plain, {"w": _floats(5, 4), "v": _floats(1, 5)}, _floats(3, 5)),
}
