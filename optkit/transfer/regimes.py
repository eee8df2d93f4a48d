"""Factors that are not about width: HyperP's, LoRA+'s, and which weights decay how much."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from optkit.lora.naming import Patterns, words_of
from optkit.schedules.hyperp import hyperp_learning_rate, hyperp_residual_scale, positive
from optkit.transfer.laws import Laws, LeafLaw
from optkit.transforms.hyperparams import check_number
from optkit.tree import (
    PyTree,
    Role,
    RuleLike,
    Selector,
    leaves_with_paths,
    matches,
    rule_of,
    selects,
)
from optkit.tree.selection import check_selects

ScaleVector = Literal["matrix", "input_gain", "output_gain", "bias", "embedding"]
# Norms whose output no linear map absorbs: of queries and keys, and of a sublayer's output.
_OUTPUT_NORMS = (
    r"re:(?i)(^|/)((q|k|query|key|qk)_?(layer)?(norm|ln)|post_\w*(norm|ln)\w*"
    r"|\w*_(post|out|output)_?(norm|ln)|(out|output)_?(norm|ln))(_?\d+)?(/|$)"
)
# Of 2509.14786: the best decay with repeated data, relative to the usual 0.1.
_DATA_LIMITED = 30.0


def hyperp(
    params: PyTree,
    *,
    depth: float | None = None,
    tokens: float | None = None,
    batch: float | None = None,
    base_depth: float,
    base_tokens: float,
    base_batch: float,
) -> Laws:
    """Returns HyperP's factor on the learning rate of a run of other depth, length or batch.

    One factor for all leaves: ``sqrt(base_depth/depth) * (tokens/base_tokens)**-0.32 *
    sqrt(batch/base_batch)``; width has none. For ``optkit.hyperp``, whose weight decay is 0.

    Args:
      params: parameters of the model to be trained, or their shapes.
      depth: its layers; None for those of the base run.
      tokens: tokens of the whole run; None likewise.
      batch: tokens per step; None likewise.
      base_depth: layers of the run that was tuned.
      base_tokens: its tokens.
      base_batch: its tokens per step.

    Returns:
      ``Laws``, with a note of the factor that residual branches have.

    Raises:
      ValueError: a number that is not positive and finite.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> laws = optkit.transfer.hyperp({"up": jnp.zeros((2, 2))}, depth=32, base_depth=8,
      ...                               base_tokens=1e9, base_batch=2**19)
      >>> laws["up"].learning_rate
      0.5

    Reference:
      Ren et al., arXiv 2603.28743; see ``optkit.schedules.hyperp_learning_rate``.
    """
    factor = hyperp_learning_rate(
        1.0,
        depth=depth,
        tokens=tokens,
        batch=batch,
        base_depth=base_depth,
        base_tokens=base_tokens,
        base_batch=base_batch,
    )
    scale = hyperp_residual_scale(round(base_depth if depth is None else depth))
    note = f"the output of each residual branch is to be multiplied by {scale:.4g}"
    return Laws.of(params, learning_rate=factor, notes=(note,))


def lora_plus(
    params: PyTree,
    *,
    ratio: float = 16.0,
    b: Patterns = "lora_b",
    vectors: bool = True,
) -> Laws:
    """Returns LoRA+'s factors: B, and vectors that train beside it, learn ``ratio`` times as fast.

    The same rates as ``optkit.lora_plus``, for any optimizer and together with other laws.

    Args:
      params: parameters, or the adapters alone.
      ratio: how much larger B's rate is; the paper's 2**4.
      b: pattern of the B leaves, or several.
      vectors: give leaves of rank 1 and below that rate, too, as the reference does.

    Returns:
      ``Laws``.

    Raises:
      ValueError: a ratio that is not positive, or patterns that name no leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"lora_a": jnp.zeros((4, 2)), "lora_b": jnp.zeros((2, 4))}
      >>> laws = optkit.transfer.lora_plus(params)
      >>> [law.learning_rate for law in laws.values()]
      [1.0, 16.0]

    Reference:
      Hayou et al., LoRA+, arXiv 2402.12354.
    """
    positive("ratio", ratio)
    words = words_of(b)
    check_selects("b", tuple(words), params)

    def factor(path: str, leaf: Any) -> float:
        fast = any(matches(word, path) for word in words) or (vectors and np.ndim(leaf) < 2)
        return ratio if fast else 1.0

    return Laws.of(params, learning_rate=factor)


def data_limited_decay(weight_decay: float = 0.1, *, factor: float = _DATA_LIMITED) -> float:
    """Returns the decay to begin a search with where data repeats and compute does not matter.

    About 30 times the usual one: with many passes over the same text the best decoupled decay of
    language models was near 3 instead of 0.1, tuned together with learning rate and passes for each
    size. A number to search around, no law.

    Args:
      weight_decay: the usual coefficient, which the learning rate multiplies.
      factor: how many times that.

    Returns:
      The coefficient.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> optkit.transfer.data_limited_decay(0.1)
      3.0

    Reference:
      Pre-training under infinite compute, arXiv 2509.14786. Confidence: medium, from its abstract
      and summaries; not measured by us.
    """
    check_number("weight_decay", weight_decay, low=0.0)
    return float(f"{weight_decay * positive('factor', factor):.12g}")


def scale_vector_labels(
    params: PyTree,
    *,
    rules: Sequence[tuple[Selector, ScaleVector]] = (),
    roles: Sequence[RuleLike] = (),
) -> dict[str, ScaleVector]:
    """Returns what each leaf is to the decay of scale vectors.

    A gain is an "output_gain" if its norm's name says that it follows a projection (``q_norm``,
    ``key_norm``, ``post_attention_norm``, ``out_norm``), and otherwise an "input_gain", in front of
    one. Names alone cannot tell: look at the table, and give rules for norms that are called
    otherwise.

    Args:
      params: parameters or their shapes.
      rules: your own ``(selector, label)``, tried first.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      Path -> "matrix", "input_gain", "output_gain", "bias" or "embedding".

    Raises:
      ValueError: a rule with an unknown label, or that names no leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"mlp_norm": {"scale": jnp.ones(2)}, "q_norm": {"scale": jnp.ones(2)}}
      >>> optkit.transfer.scale_vector_labels(params)
      {'mlp_norm/scale': 'input_gain', 'q_norm/scale': 'output_gain'}
    """
    known = get_args(ScaleVector)
    for selector, label in rules:
        if label not in known:
            raise ValueError(f"rule {selector!r} -> {label!r}: labels are {', '.join(known)}")
        check_selects("rules", selector, params, roles)
    out: dict[str, ScaleVector] = {}
    for path, leaf in leaves_with_paths(params):
        named = [label for selector, label in rules if selects(selector, path, leaf, roles)]
        out[path] = named[0] if named else _scale_label(path, rule_of(path, leaf, roles).role)
    return out


def _scale_label(path: str, role: Role) -> ScaleVector:
    if role == Role.NORM:
        return "output_gain" if matches(_OUTPUT_NORMS, path) else "input_gain"
    if role == Role.EMBEDDING:
        return "embedding"
    return "bias" if role == Role.BIAS else "matrix"


def scale_vector_decay(
    params: PyTree,
    *,
    rules: Sequence[tuple[Selector, ScaleVector]] = (),
    roles: Sequence[RuleLike] = (),
) -> Laws:
    """Returns the decay factors that treat gains in front of projections as matrices (IWD).

    1 for matrices and gains of input norms, 0 for gains of output norms, biases and embeddings.
    Decay pulls a gain towards 0, and a linear map behind it takes the scale over; behind an output
    norm there is none, so that its block would shrink.

    Args:
      params: parameters or their shapes.
      rules: your own ``(selector, label)``, see ``optkit.transfer.scale_vector_labels``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      ``Laws`` with factors on the decay only; kinds are the labels.

    Raises:
      ValueError: as ``scale_vector_labels``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"norm": {"scale": jnp.ones(2)}, "up": {"bias": jnp.ones(2)}}
      >>> [law.weight_decay for law in optkit.transfer.scale_vector_decay(params).values()]
      [1.0, 0.0]

    Reference:
      Negligible in Size, Significant in Effect, arXiv 2605.26895. Confidence: medium, from
      secondary descriptions.
    """
    labels = scale_vector_labels(params, rules=rules, roles=roles)
    return Laws(
        [
            LeafLaw(
                path,
                np.shape(leaf),
                labels[path],
                weight_decay=float(labels[path] in ("matrix", "input_gain")),
            )
            for path, leaf in leaves_with_paths(params)
        ]
    )
