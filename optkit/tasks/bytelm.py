"""Byte-level language model on source text that every machine with Python has."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optkit.tasks import base, modules
from optkit.tasks.corpus import Corpus, standard_library, user_text
from optkit.tasks.decoder import Decoder

_EVALUATION_CHUNK = 32
_ATTENTION_WINDOWS = 8  # held-out windows whose scores are kept whole, (8, heads, context, context)


def build(
    *,
    text: str | Path | None = None,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    context: int = 128,
    batch: int = 8,
    held_out_windows: int = 256,
) -> base.Task:
    """Builds "bytelm": predict the next byte of Python's standard library, or of the user's text.

    Args:
      text: file or directory to learn instead of the standard library.
      width: features of the residual stream, a multiple of `2 * heads`.
      layers: transformer blocks.
      heads: attention heads per block.
      context: bytes that the model sees.
      batch: windows per training step.
      held_out_windows: evenly spaced windows of the held-out files that `evaluate` reads.
    """
    sizes = {"width": width, "layers": layers, "heads": heads, "context": context}
    base.check_positive("bytelm", **sizes, batch=batch, held_out_windows=held_out_windows)
    if width % (2 * heads):
        raise base.TaskOptionError(
            f"task 'bytelm': width={width} must be a multiple of 2 * heads={2 * heads}"
        )
    corpus = _long_enough(standard_library() if text is None else user_text(Path(text)), context)

    def model(rngs: nnx.Rngs) -> Decoder:
        return Decoder(width, layers, heads, rngs=rngs)

    init, apply = modules.functional(model)
    observe = modules.observed(model)
    scores = modules.method(model, "attention_scores")

    def loss(params: base.Params, batch: base.Batch) -> tuple[jax.Array, base.Metrics]:
        value = next_byte_losses(apply, params, batch).mean()
        return value, {"bits_per_byte": value / math.log(2.0)}

    def sample(seed: int, step: int) -> base.Batch:
        starts = base.generator(seed, step).integers(corpus.train.size - context, size=batch)
        return windows(corpus.train, starts, context)

    few = _held_out(corpus.held_out, min(_ATTENTION_WINDOWS, held_out_windows), context)

    return base.Task(
        name="bytelm",
        description=f"byte language model on source text, {layers} blocks of width {width}",
        metric="bits_per_byte",
        init=init,
        loss=loss,
        batch=sample,
        evaluate=_evaluator(apply, corpus.held_out, held_out_windows, context),
        default_steps=700,
        parameters=base.count_parameters(init),
        activations=lambda params, batch: observe(params, batch["inputs"]),
        logits=lambda params, batch: apply(params, batch["inputs"]),
        attention=jax.jit(lambda params: scores(params, few["inputs"])),
    )


def windows(data: np.ndarray, starts: np.ndarray, context: int) -> base.Batch:
    """Returns `inputs`, int32 (windows, context), and `targets`, the same one byte later."""
    both = data[starts[:, None] + np.arange(context + 1)].astype(np.int32)
    return {"inputs": both[:, :-1], "targets": both[:, 1:]}


def _held_out(data: np.ndarray, count: int, context: int) -> base.Batch:
    """Returns evenly spaced windows."""
    return windows(data, np.linspace(0, data.size - context - 1, count).astype(np.int64), context)


def next_byte_losses(
    apply: Callable[..., jax.Array], params: base.Params, batch: base.Batch
) -> jax.Array:
    """Returns the negative log-likelihood of each target in nats, float32 (windows, context)."""
    logits = apply(params, batch["inputs"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def _evaluator(
    apply: Callable[..., jax.Array], held_out: np.ndarray, count: int, context: int
) -> Callable[[base.Params], dict[str, float]]:
    sample = _held_out(held_out, count, context)

    @jax.jit
    def mean_loss(params: base.Params) -> jax.Array:
        def one(window: base.Batch) -> jax.Array:
            return next_byte_losses(apply, params, jax.tree.map(lambda x: x[None], window)).mean()

        # In chunks, so that evaluation needs little more memory than a training step.
        return jax.lax.map(one, sample, batch_size=min(_EVALUATION_CHUNK, count)).mean()

    def evaluate(params: base.Params) -> dict[str, float]:
        value = float(mean_loss(params))
        return {"loss": value, "bits_per_byte": value / math.log(2.0)}

    return evaluate


def _long_enough(corpus: Corpus, context: int) -> Corpus:
    for part, data in (("training", corpus.train), ("held-out", corpus.held_out)):
        if data.size <= context:
            raise base.TaskOptionError(
                f"task 'bytelm': the {part} text has {data.size} bytes, too few for "
                f"context={context}; give more text or a smaller context"
            )
    return corpus
