"""HyperP: from the learning rate of a small ``optkit.hyperp`` run to that of a large one."""

import math

# Ren et al., arXiv 2603.28743, and launch_scripts/launch_muonh-*.sh of microsoft/ArchScale at
# c2ec1d6: the base run has 8 layers and sees 10.4e9 tokens in batches of 2**21. (pretrain.py alone
# defaults to 9.5e9 tokens; the scripts of the paper's runs override it.)
BASE_DEPTH = 8
BASE_TOKENS = 10.4e9
BASE_BATCH = 2**21
TOKEN_EXPONENT = -0.32
BATCH_EXPONENT = 0.5
# The paper's fit of the best rate of a 208M-parameter model over 10.4e9 to 166e9 tokens.
FIT_FACTOR, FIT_EXPONENT = 24.27, -0.320


def hyperp_learning_rate(
    base: float,
    *,
    depth: float | None = None,
    tokens: float | None = None,
    batch: float | None = None,
    base_depth: float = BASE_DEPTH,
    base_tokens: float = BASE_TOKENS,
    base_batch: float = BASE_BATCH,
    token_exponent: float = TOKEN_EXPONENT,
    batch_exponent: float = BATCH_EXPONENT,
) -> float:
    """Returns the peak learning rate of a run from the best one of a smaller run.

    ``base * sqrt(base_depth/depth) * (tokens/base_tokens)**-0.32 * (batch/base_batch)**0.5``

    Width, number of experts and experts per token need no factor, as long as matrices start with
    standard deviations proportional to ``1/sqrt(fan_in)``, residual branches are scaled by
    ``hyperp_residual_scale(depth)``, and experts are mixed so that their number does not change the
    size of the output (the paper's SqrtGate: expert weights ``sqrt(g)`` of gate probabilities
    ``g``). No warm-up; linear decay to a tenth.

    Args:
      base: best rate of the base run; the paper: 0.015 dense, 0.01 with experts.
      depth: layers; None for those of the base run.
      tokens: tokens of the whole run; None for those of the base run.
      batch: tokens per step; None for those of the base run.
      base_depth: layers of the base run.
      base_tokens: its tokens.
      base_batch: its tokens per step.
      token_exponent: the paper's -0.32.
      batch_exponent: 0.5, as the reference's code has it; the paper's own fit is 0.558.

    Returns:
      The learning rate for ``optkit.hyperp``.

    Raises:
      ValueError: a number that is not positive and finite.

    Example:
      >>> import optkit
      >>> round(optkit.schedules.hyperp_learning_rate(0.015, depth=32), 6)
      0.0075
      >>> round(optkit.schedules.hyperp_learning_rate(0.015, tokens=104e9, batch=2**23), 6)
      0.014359

    Reference:
      Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization,
      arXiv 2603.28743. The law is theirs; we have not measured it at their scale.
    """
    ratios = {}
    for name, value, start in (
        ("depth", depth, base_depth),
        ("tokens", tokens, base_tokens),
        ("batch", batch, base_batch),
    ):
        start = positive(f"base_{name}", start)
        ratios[name] = 1.0 if value is None else positive(name, value) / start
    return (
        positive("base", base)
        * ratios["depth"] ** -0.5
        * ratios["tokens"] ** token_exponent
        * ratios["batch"] ** batch_exponent
    )


def hyperp_fitted_learning_rate(tokens: float) -> float:
    """Returns the paper's fit of the best learning rate, ``24.27 * tokens**-0.320``.

    For 8 layers and batches of 2**21 tokens; fitted to a dense model of 208 million parameters on
    10.4e9 to 166e9 tokens.

    Args:
      tokens: tokens of the whole run.

    Returns:
      The learning rate.

    Raises:
      ValueError: a number that is not positive and finite.

    Example:
      >>> import optkit
      >>> round(optkit.schedules.hyperp_fitted_learning_rate(10.4e9), 4)
      0.0151

    Reference:
      Ren et al., arXiv 2603.28743.
    """
    return FIT_FACTOR * positive("tokens", tokens) ** FIT_EXPONENT


def hyperp_residual_scale(depth: int) -> float:
    """Returns the factor on every residual branch, ``1/sqrt(2*depth)``.

    There are two branches a layer, attention and feed-forward, so that their sum keeps its size at
    any depth. The learning rate's factor ``1/sqrt(depth)`` comes on top of it: without that one the
    paper's best rate falls from 0.016 to 0.008 between 8 and 24 layers.

    Args:
      depth: layers.

    Returns:
      The factor.

    Raises:
      ValueError: a number that is not positive and finite.

    Example:
      >>> import optkit
      >>> optkit.schedules.hyperp_residual_scale(8)
      0.25

    Reference:
      Ren et al., arXiv 2603.28743.
    """
    return 1.0 / math.sqrt(2.0 * positive("depth", depth))


def positive(name: str, value: float) -> float:
    """Returns a positive, finite number as a float, or raises ValueError."""
    if isinstance(value, bool | str) or not value > 0 or math.isinf(value):
        raise ValueError(f"{name}={value!r} must be a positive, finite number")
    return float(value)
