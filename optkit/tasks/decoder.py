"""A small decoder-only transformer over bytes, in Flax NNX."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

BYTES = 256
_EMBED_DEVIATION = 0.5
_HEAD_GAIN = 0.1  # the first loss is close to log(256), yet gradients flow
_ROTARY_BASE = 100.0  # the paper takes 10000, for contexts longer than the ones here


class Decoder(nnx.Module):
    """Decoder-only transformer: int32 bytes (..., context) to logits (..., context, 256)."""

    def __init__(self, width: int, layers: int, heads: int, *, rngs: nnx.Rngs) -> None:
        # The sum of 2 * layers residual branches then keeps the scale of one.
        residual_gain = 1.0 / math.sqrt(2 * layers)
        self.embed = nnx.Embed(
            BYTES, width, embedding_init=nnx.initializers.normal(_EMBED_DEVIATION), rngs=rngs
        )
        self.blocks = nnx.List(
            [Block(width, heads, residual_gain, rngs=rngs) for _ in range(layers)]
        )
        self.final_norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = _linear(width, BYTES, _HEAD_GAIN, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits of each next byte."""
        x = self._embedded(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))

    def attention_scores(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """Returns the scores of each layer by its path, as `Attention.scores` gives them."""
        x = self._embedded(tokens)
        found = {}
        for index, block in enumerate(self.blocks):
            found[f"blocks/{index}/attention"] = block.attention.scores(block.attention_norm(x))
            x = block(x)
        return found

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        # A product, not a lookup: its gradient adds in a fixed order on every device, and it works
        # on meshes with explicit axes, where a lookup would have to name its sharding.
        table = self.embed.embedding[...]
        return jax.nn.one_hot(tokens, BYTES, dtype=table.dtype) @ table


class Block(nnx.Module):
    """Pre-normalised attention and perceptron, each added to the residual stream."""

    def __init__(self, width: int, heads: int, residual_gain: float, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, residual_gain, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.mlp = MLP(width, residual_gain, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., context, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal self-attention whose kernels are plain matrices, all heads side by side."""

    def __init__(self, width: int, heads: int, residual_gain: float, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = _linear(width, width, 1.0, rngs)
        self.key = _linear(width, width, 1.0, rngs)
        self.value = _linear(width, width, 1.0, rngs)
        self.out = _linear(width, width, residual_gain, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., context, width) to the same shape."""
        split = (*x.shape[:-1], self.heads, -1)
        query, key, value = (part(x).reshape(split) for part in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.out(mixed.reshape(x.shape))

    def scores(self, x: jax.Array) -> jax.Array:
        """Returns what the softmax is taken of: float32 (..., heads, queries, keys).

        Minus infinity where a query may not look. `__call__` never forms them in one piece, so
        they are computed for those who ask.
        """
        split = (*x.shape[:-1], self.heads, -1)
        query, key = (rotate(part(x).reshape(split)) for part in (self.query, self.key))
        scores = jnp.einsum(
            "...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32
        ) / math.sqrt(query.shape[-1])
        seen = jnp.broadcast_to(jnp.tri(x.shape[-2], dtype=bool), scores.shape)
        return jnp.where(seen, scores, -jnp.inf)


class MLP(nnx.Module):
    """Perceptron with one hidden layer, four times as wide."""

    def __init__(self, width: int, residual_gain: float, *, rngs: nnx.Rngs) -> None:
        self.up = _linear(width, 4 * width, 1.0, rngs)
        self.down = _linear(4 * width, width, residual_gain, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., width) to the same shape."""
        return self.down(jax.nn.gelu(self.up(x)))


def rotate(x: jax.Array) -> jax.Array:
    """Rotates pairs of features by angles that grow with the position (rotary embedding).

    Scores then depend on distances (arXiv 2104.09864).

    Args:
      x: (..., context, heads, features), features even.

    Returns:
      The same shape and dtype.
    """
    half = x.shape[-1] // 2
    frequencies = _ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[-3], dtype=jnp.float32)[:, None] * frequencies[None, :]
    # One shape for every rank of x: leading axes of size one, and one for the heads.
    angles = angles.reshape((1,) * (x.ndim - 3) + (x.shape[-3], 1, half))
    sine, cosine = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * cosine - second * sine, first * sine + second * cosine], axis=-1
    )


def _linear(inputs: int, outputs: int, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    normal = nnx.initializers.variance_scaling(gain * gain, "fan_in", "normal")
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=normal, rngs=rngs)
