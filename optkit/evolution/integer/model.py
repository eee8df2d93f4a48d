"""EGG: a recurrent language model of bytes whose every number is an int8, without a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.integer.format import (
    FIXED_POINT,
    LIMIT,
    SCORE_BITS,
    add,
    embed,
    is_perturbed,
    linear,
    log2_likelihood,
    norm,
    saturate,
    vector,
)

Params = dict[str, Any]


def egg_init(
    key: jax.Array, *, width: int, layers: int, vocab: int = 256, fixed_point: int = FIXED_POINT
) -> Params:
    """Draws the parameters of EGG: matrices of ``round(2**fixed_point * normal)``, all int8.

    Args:
      key: PRNG key.
      width: D, best a power of four: the root of fan_in is then a shift.
      layers: how many blocks; their parameters are stacked.
      vocab: number of tokens, at most 256.
      fixed_point: bits behind the point.

    Returns:
      ``embed`` (vocab, D), ``head`` (vocab, D), ``norm`` (D,), and ``blocks`` with a leading axis
      of layers: ``norm1``, ``norm2``, ``bf``, ``bh`` (D,), ``Wf``, ``Uf``, ``Wh``, ``Uh`` (D, D),
      ``up`` (4D, D), ``down`` (D, 4D). All (out, in): ``2*vocab*D + D + layers*(4*D + 12*D*D)``
      bytes.

    Raises:
      ValueError: a size that is not positive, or too many tokens.

    Example:
      >>> import jax
      >>> from optkit.evolution.integer import egg_init
      >>> params = egg_init(jax.random.key(0), width=16, layers=2)
      >>> sum(p.nbytes for p in jax.tree.leaves(params))
      14480
    """
    if not (width > 0 and layers > 0 and 0 < vocab <= 256):
        raise ValueError(
            f"width={width}, layers={layers} must be positive and vocab={vocab} in 1..256"
        )
    one = 2**fixed_point
    square = dict.fromkeys(("Wf", "Uf", "Wh", "Uh"), (width, width))
    shapes = {**square, "up": (4 * width, width), "down": (width, 4 * width)}
    sizes: dict[str, tuple[int, ...]] = {"embed": (vocab, width), "head": (vocab, width)}
    sizes |= {name: (layers, *shape) for name, shape in shapes.items()}
    drawn = {
        name: saturate(
            jnp.round(one * jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))
        )
        for index, (name, shape) in enumerate(sizes.items())
    }

    def full(value: int, *lead: int) -> jax.Array:
        return jnp.full((*lead, width), value, jnp.int8)

    blocks = {name: drawn[name] for name in shapes}
    blocks |= {name: full(one, layers) for name in ("norm1", "norm2")}
    blocks |= {name: full(0, layers) for name in ("bf", "bh")}
    return {
        "embed": drawn["embed"],
        "blocks": blocks,
        "norm": full(one),
        "head": drawn["head"],
    }


def egg_hidden(params: Params, count: int) -> jax.Array:
    """Returns the state before the first byte.

    Args:
      params: of ``egg_init``, or a population around them.
      count: members or texts, each with a state of its own.

    Returns:
      int8 zeros ``(count, layers, width)``.
    """
    base = params["blocks"]["bf"]
    return jnp.zeros((count, *(base.base if is_perturbed(base) else base).shape), jnp.int8)


def _block(w: Params, x: jax.Array, state: jax.Array, fixed_point: int) -> tuple[Any, Any]:
    """One layer: a gated recurrent unit and a perceptron without activation functions.

    Saturation is the only nonlinearity; gates run from 0 to 254 and stand for 0 to 254/256.
    """

    def dot(x: jax.Array, name: str) -> jax.Array:
        return linear(x, w[name], fixed_point=fixed_point)

    def vec(name: str) -> jax.Array:
        value = vector(w[name])
        return jnp.broadcast_to(value, (*x.shape[:-1], x.shape[-1]))

    past = state.astype(jnp.int32)
    u = norm(x, vec("norm1"))
    gate = add(dot(u, "Wf"), dot(state, "Uf"), vec("bf")).astype(jnp.int32) + LIMIT
    kept = ((gate * past) >> 8).astype(jnp.int8)
    new = add(dot(u, "Wh"), dot(kept, "Uh"), vec("bh")).astype(jnp.int32)
    state = (past + ((gate * (new - past)) >> 8)).astype(jnp.int8)
    x = add(state, x)
    return add(dot(dot(norm(x, vec("norm2")), "up"), "down"), x), state


def egg_logits(
    params: Params, tokens: jax.Array, hidden: jax.Array, *, fixed_point: int = FIXED_POINT
) -> tuple[jax.Array, jax.Array]:
    """Reads one byte of each text.

    A byte 0 begins a document: the state is set to 0 before it.

    Args:
      params: int8 parameters, or a population: then text ``2k`` is read by the first member of
        pair k and text ``2k + 1`` by the second.
      tokens: integers ``(texts,)``.
      hidden: int8 ``(texts, layers, width)``.
      fixed_point: bits behind the point.

    Returns:
      Logits of the next byte, int8 ``(texts, vocab)``, and the new state.
    """
    count, layers = hidden.shape[:2]
    lead = (count // 2, 2) if is_perturbed(params["head"]) else (count,)
    hidden = jnp.where((tokens == 0)[:, None, None], jnp.zeros((), hidden.dtype), hidden)
    states = hidden.reshape(*lead, layers, hidden.shape[2])
    x = embed(params["embed"], tokens.astype(jnp.int32).reshape(lead))
    out = []
    for layer in range(layers):
        own = jax.tree.map(lambda w, layer=layer: w[layer], params["blocks"])
        x, state = _block(own, x, states[..., layer, :], fixed_point)
        out.append(state)
    x = norm(x, jnp.broadcast_to(vector(params["norm"]), x.shape))
    logits = linear(x, params["head"], fixed_point=fixed_point)
    return logits.reshape(count, -1), jnp.stack(out, axis=-2).reshape(hidden.shape)


def egg_scores(
    params: Params,
    tokens: jax.Array,
    hidden: jax.Array,
    *,
    fixed_point: int = FIXED_POINT,
    score_bits: int = SCORE_BITS,
) -> tuple[jax.Array, jax.Array]:
    r"""Sums the log-likelihood of the bytes of each text; one scan over bytes, all texts at once.

    Args:
      params: int8 parameters, or a population (see ``egg_logits``).
      tokens: uint8 ``(texts, length + 1)``; fewer rows than ``hidden`` has are read by as many
        neighbours each.
      hidden: int8 ``(texts, layers, width)``, the state that the last piece of text left.
      fixed_point: bits behind the point.
      score_bits: bits behind the point of scores.

    Returns:
      int32 ``(texts,)`` in units of ``2**-score_bits`` bit, to be maximised, and the new state.

    Raises:
      ValueError: rows of tokens that do not divide the texts.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.evolution.integer import egg_hidden, egg_init, egg_scores
      >>> params = egg_init(jax.random.key(0), width=4, layers=1)
      >>> text = jnp.asarray([list(b"\0ab")], jnp.uint8)
      >>> scores, hidden = egg_scores(params, text, egg_hidden(params, 1))
      >>> scores.shape, hidden.shape
      ((1,), (1, 1, 4))
    """
    texts = hidden.shape[0]
    if texts % tokens.shape[0]:
        raise ValueError(
            f"tokens of shape {tokens.shape} are {tokens.shape[0]} streams, which do not divide "
            f"the {texts} members or texts of hidden; give one stream to a group of members"
        )
    tokens = jnp.repeat(tokens, texts // tokens.shape[0], axis=0).T

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        total, hidden = carry
        token, target = pair
        logits, hidden = egg_logits(params, token, hidden, fixed_point=fixed_point)
        return (total + log2_likelihood(logits, target, score_bits=score_bits), hidden), None

    start = (jnp.zeros(texts, jnp.int32), hidden)
    (total, hidden), _ = jax.lax.scan(step, start, (tokens[:-1], tokens[1:]))
    return total, hidden


def bits_per_byte(
    scores: np.ndarray | jax.Array, count: int, score_bits: int = SCORE_BITS
) -> float:
    """Returns bits a byte from scores and the number of bytes that they are of.

    Args:
      scores: integers of any shape, in units of ``2**-score_bits`` bit.
      count: bytes that were predicted.
      score_bits: bits behind the point.

    Returns:
      A number.
    """
    return -float(np.sum(np.asarray(scores, np.int64))) / (2**score_bits * count)
