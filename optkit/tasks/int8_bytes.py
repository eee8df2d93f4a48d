"""The int8 model EGG on streams of text: data, fitness of a population, held-out bits a byte.

It has no loss that could be differentiated, so that it is none of `optkit.tasks.names()`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optkit.evolution import integer
from optkit.tasks import base
from optkit.tasks.corpus import standard_library, user_text


@dataclass(frozen=True)
class Int8Bytes:
    """A language model of bytes for methods without gradients.

    Attributes:
      train: uint8, the text that is read.
      held_out: uint8, other text.
      width: D of the model.
      layers: its blocks.
      streams: texts that are read at once, each a stretch of `train` of its own.
      tokens: bytes that each stream goes on by in an update.
      held_out_texts: uint8 `(texts, bytes + 1)`, what `evaluate` reads.
    """

    train: np.ndarray
    held_out: np.ndarray
    width: int
    layers: int
    streams: int
    tokens: int
    held_out_texts: np.ndarray

    def init(self, key: jax.Array) -> base.Params:
        """Returns int8 parameters, see `optkit.evolution.integer.egg_init`."""
        return integer.egg_init(key, width=self.width, layers=self.layers)

    def hidden(self, params: base.Params, members: int) -> jax.Array:
        """Returns the state of members before the first byte, int8 (members, layers, width)."""
        return integer.egg_hidden(params, members)

    def batch(self, step: int) -> np.ndarray:
        """Returns the bytes of an update, uint8 (streams, tokens + 1); the last one is a target.

        Streams begin with a byte 0, which begins a document, and start again at the text's end.
        """
        starts = np.arange(self.streams) * (self.train.size // self.streams)
        places = starts[:, None] + step * self.tokens + np.arange(self.tokens + 1)
        out = self.train[places % self.train.size]
        if step == 0:
            out[:, 0] = 0
        return out

    def fitness(
        self, population: Any, tokens: jax.Array, hidden: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns each member's log-likelihood of its bytes, int32 in 1/16 bit, and its state."""
        return integer.egg_scores(population, tokens, hidden)

    def evaluate(self, params: base.Params) -> dict[str, float]:
        """Returns held-out bits a byte of parameters, each text from an empty state."""
        texts, length = self.held_out_texts.shape
        scores, _ = _scores(params, self.held_out_texts, self.hidden(params, texts))
        return {"bits_per_byte": integer.bits_per_byte(scores, texts * (length - 1))}

    def unigram(self) -> float:
        """Returns the entropy of the held-out text's bytes: what counting them alone reaches."""
        share = np.bincount(self.held_out, minlength=256) / self.held_out.size
        return -float(np.sum(share * np.log2(share, where=share > 0, out=np.zeros(256))))


_scores = jax.jit(integer.egg_scores)


def build(
    *,
    text: str | Path | None = None,
    width: int = 64,
    layers: int = 1,
    streams: int = 512,
    tokens: int = 32,
    held_out_texts: int = 128,
    held_out_tokens: int = 1024,
) -> Int8Bytes:
    """Builds the task on the modules of Python's standard library, or on the user's text.

    Args:
      text: file or directory to learn instead.
      width: D of the model, best a power of four.
      layers: its blocks.
      streams: texts that are read at once; half the population for a pair a stream.
      tokens: bytes of each stream in an update.
      held_out_texts: texts that `evaluate` reads, evenly spaced.
      held_out_tokens: bytes that it predicts of each, fewer if the texts would overlap.

    Returns:
      An `Int8Bytes`.

    Raises:
      TaskOptionError: a size that is not positive, or too little text.

    Example:
      >>> from optkit.tasks import int8_bytes
      >>> task = int8_bytes.build(width=16, streams=4, tokens=8)
      >>> task.batch(0).shape, task.unigram() < 5.0
      ((4, 9), True)
    """
    sizes = {"width": width, "layers": layers, "streams": streams, "tokens": tokens}
    read = {"held_out_texts": held_out_texts, "held_out_tokens": held_out_tokens}
    base.check_positive("int8_bytes", **sizes, **read)
    corpus = standard_library(top_level=True) if text is None else user_text(Path(text))
    stride = corpus.held_out.size // held_out_texts
    length = min(held_out_tokens, stride - 1)
    if length < 1 or corpus.train.size < streams:
        raise base.TaskOptionError(
            f"task 'int8_bytes': {corpus.train.size} training and {corpus.held_out.size} held-out "
            f"bytes are too few for streams={streams} and held_out_texts={held_out_texts}; give "
            "more text or fewer of them"
        )
    places = np.arange(held_out_texts)[:, None] * stride + np.arange(length + 1)
    texts = corpus.held_out[places]
    texts[:, 0] = 0
    return Int8Bytes(corpus.train, corpus.held_out, width, layers, streams, tokens, texts)
