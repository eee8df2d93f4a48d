"""Shapes of whole models, for counting bytes that nobody allocates: GPT-2 small and Llama-7B."""

from typing import Any

import jax
import jax.numpy as jnp


def _leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _dense(fan_in: int, fan_out: int) -> dict[str, Any]:
    return {"kernel": _leaf(fan_in, fan_out), "bias": _leaf(fan_out)}


def gpt2_small() -> dict[str, Any]:
    """Returns the shapes of GPT-2 small: 124,439,808 parameters, 84,934,656 in 48 matrices."""
    width = 768
    norm = {"scale": _leaf(width), "bias": _leaf(width)}
    block = {
        "ln_1": norm,
        "attn": {"c_attn": _dense(width, 3 * width), "c_proj": _dense(width, width)},
        "ln_2": norm,
        "mlp": {"c_fc": _dense(width, 4 * width), "c_proj": _dense(4 * width, width)},
    }
    return {
        "wte": {"embedding": _leaf(50257, width)},
        "wpe": {"embedding": _leaf(1024, width)},
        "h": {str(i): block for i in range(12)},
        "ln_f": norm,
    }


def llama_7b() -> dict[str, Any]:
    """Returns the shapes of Llama-7B: 6,738,415,616 parameters, 6,476,005,376 in 224 matrices."""
    width, hidden = 4096, 11008
    kernel = lambda fan_in, fan_out: {"kernel": _leaf(fan_in, fan_out)}  # noqa: E731
    block = {
        "self_attn": {name: kernel(width, width) for name in ("q_proj", "k_proj", "v_proj")}
        | {"o_proj": kernel(width, width)},
        "mlp": {
            "gate_proj": kernel(width, hidden),
            "up_proj": kernel(width, hidden),
            "down_proj": kernel(hidden, width),
        },
        "input_layernorm": {"scale": _leaf(width)},
        "post_attention_layernorm": {"scale": _leaf(width)},
    }
    return {
        "embed_tokens": {"embedding": _leaf(32000, width)},
        "layers": {str(i): block for i in range(32)},
        "norm": {"scale": _leaf(width)},
        "lm_head": kernel(width, 32000),
    }
