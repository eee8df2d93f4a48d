"""AdamW with moments of 8 and 4 bits."""

import jax

from optkit.catalogue import register
from optkit.codecs import Fp8Codec, TableCodec
from optkit.codecs.blocks import Layout
from optkit.codecs.table import Rounding, Scale
from optkit.optimizers._low_bits import Dialect, low_bytes, quantized, table_of_8_bits
from optkit.transforms import Transformation, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule, check_static_int
from optkit.transforms.step import Mask, StepDecay


@register(
    kind="recipe",
    family="adaptive",
    paper=("8-bit Optimizers via Block-wise Quantization", "2110.02861", 2021),
    state_bytes=low_bytes(2, TableCodec()),
    tags=("adam", "quantization", "8-bit"),
    chain="adam on moments of 8 bits > decay > learning rate",
)
def adamw_8bit(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    dialect: Dialect = "bitsandbytes",
    block: int | None = None,
    layout: Layout = "auto",
    scale: Scale = "magnitude",
    rounding: Rounding = "nearest",
    min_size: int | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """AdamW with moments in 8 bits: a quarter of the state, one scale for 256 entries.

    Moments are stored as entries of a table whose steps shrink towards 0 (the dynamic map), so that
    small second moments are not lost beside large ones.

    1. ``mu``, ``nu`` are decoded; 2. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    3. ``u = (mu/c1) / (sqrt(nu/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*u``; 5. ``mu``, ``nu`` are encoded.

    It is ``optkit.quantize_state`` around Adam, as a recipe with the references' options. There is
    no matrix work. Take it where AdamW's states do not fit; that it trains as AdamW does is the
    paper's claim. On small byte language models it does: its loss is -0.003 (+- 0.008) beside
    AdamW's, whose spread over seeds is 0.010 (``python -m benchmarks.claims eight_bit``), and 0.2%
    below it with 25.5% of its state (``python -m benchmarks.claims memory_lm``).

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient; 1e-2 is torch's default.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as
        bitsandbytes does on CUDA ("decoupled" is its way on CPU, and torch's).
      mask: leaves that decay.
      dialect: "bitsandbytes", or "torchao": ties go to the upper entry, scales are at least 1e-12,
        and leaves that the block does not divide stay in float32.
      block: entries that share a scale; 256 if None.
      layout: how blocks lie, see ``optkit.codecs.blocks``; "flat" as in the references.
      scale: "extreme" stops blocks with a negative extreme from shrinking, see
        ``optkit.codecs.TableCodec``; the references have "magnitude".
      rounding: of moments, "nearest" or "stochastic".
      min_size: smaller leaves keep float32 moments; 4096 if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``2*(1 + 4/256)`` per parameter of
      a leaf that is stored, 8 of others.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
      >>> optkit.plan(optkit.adamw_8bit(), params).rows[0].state_bytes / 1024**2
      2.03125

    Reference:
      Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, with blocks
      of 256 as in bitsandbytes 0.50 and torchao 0.18, where the paper has 2048.
    """
    codec = table_of_8_bits(dialect, block, layout, scale, rounding)
    return quantized(
        scale_by_adam(b1, b2, eps),
        codec,
        learning_rate,
        dialect=dialect,
        min_size=min_size,
        key=key,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )


@register(
    kind="recipe",
    family="adaptive",
    paper=("Memory Efficient Optimizers with 4-bit States", "2309.01507", 2023),
    state_bytes=low_bytes(2, TableCodec(bits=4, exponent_bits=3, block=128)),
    tags=("adam", "quantization", "4-bit"),
    chain="adam on moments of 4 bits > decay > learning rate",
    replicated="codes of leaves of few columns are blocks of flattened entries, across all axes",
)
def adamw_4bit(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    block: int | None = None,
    layout: Layout = "auto",
    scale: Scale = "magnitude",
    rounding: Rounding = "nearest",
    min_size: int | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """AdamW with moments in 4 bits: an eighth of the state, one scale for 128 entries.

    The first moment takes 15 numbers and 0, the second one the sixteenths from 1/16 to 1: without a
    0, which would be divided by. Two codes are in a byte. Leaves that the block does not divide
    stay in float32.

    1. ``mu``, ``nu`` are decoded; 2. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    3. ``u = (mu/c1) / (sqrt(nu/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*u``; 5. ``mu``, ``nu`` are encoded.

    It is ``optkit.quantize_state`` around Adam, as a recipe with the references' options. There is
    no matrix work. Rougher than 8 bits: within a block second moments below 1/16 of the largest are
    read as that. That it trains well is the paper's claim. In
    ``python -m benchmarks.claims eight_bit``, a small byte language model, its loss is 0.020 (+-
    0.026) above AdamW's, more than AdamW's spread over seeds of 0.010.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient; 1e-2 is torch's default.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as
        bitsandbytes does on CUDA ("decoupled" is its way on CPU, and torch's).
      mask: leaves that decay.
      block: entries that share a scale; 128 if None.
      layout: how blocks lie, see ``optkit.codecs.blocks``; "flat" as in the references.
      scale: "extreme" stops blocks with a negative extreme from shrinking, see
        ``optkit.codecs.TableCodec``; the references have "magnitude".
      rounding: of moments, "nearest" or "stochastic".
      min_size: smaller leaves keep float32 moments; 4096 if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``1 + 8/128`` per parameter of a
      leaf that is stored, 8 of others.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
      >>> optkit.plan(optkit.adamw_4bit(), params).rows[0].state_bytes / 1024**2
      1.0625

    Reference:
      Li, Chen and Zhu, Memory Efficient Optimizers with 4-bit States, arXiv 2309.01507, in the form
      of torchao 0.18: no rank-1 normalisation of the second moment.
    """
    block = 128 if block is None else block
    check_static_int("block", block)
    codec = TableCodec(
        bits=4,
        exponent_bits=3,
        block=block,
        layout=layout,
        scale=scale,
        rounding=rounding,
        floor=1e-12,
        ties="upper",
    )
    return quantized(
        scale_by_adam(b1, b2, eps),
        codec,
        learning_rate,
        dialect="torchao",
        min_size=min_size,
        key=key,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )


@register(
    kind="recipe",
    family="adaptive",
    paper=("FP8 Formats for Deep Learning", "2209.05433", 2022),
    state_bytes=low_bytes(2, Fp8Codec()),
    tags=("adam", "quantization", "fp8"),
    chain="adam on moments in float8 > decay > learning rate",
)
def adamw_fp8(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    block: int | None = None,
    layout: Layout = "auto",
    rounding: Rounding = "nearest",
    min_size: int | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """AdamW with moments in float8: a quarter of the state, precise to a sixteenth.

    Moments are stored as e4m3fn with a scale for each block. It has both signs and no shrinking
    extremes, and its smallest numbers are rougher than the dynamic map's: below 2e-6 of a block's
    largest entry a second moment becomes 0. Leaves that the block does not divide stay in float32.

    1. ``mu``, ``nu`` are decoded; 2. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    3. ``u = (mu/c1) / (sqrt(nu/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*u``; 5. ``mu``, ``nu`` are encoded.

    It is ``optkit.quantize_state`` around Adam, as a recipe with the references' options. There is
    no matrix work. Take it where hardware converts float8. In
    ``python -m benchmarks.claims eight_bit``, a small byte language model, its loss is 0.0105 (+-
    0.0047) below AdamW's. That is no worse, but just further off than AdamW's spread over seeds
    (0.0103), the bound that was set.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient; 1e-2 is torch's default.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as
        bitsandbytes does on CUDA ("decoupled" is its way on CPU, and torch's).
      mask: leaves that decay.
      block: entries that share a scale; 256 if None.
      layout: how blocks lie, see ``optkit.codecs.blocks``; "flat" as in the references.
      rounding: of moments, "nearest" or "stochastic".
      min_size: smaller leaves keep float32 moments; 4096 if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``2*(1 + 4/256)`` per parameter of
      a leaf that is stored, 8 of others.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
      >>> optkit.plan(optkit.adamw_fp8(), params).rows[0].state_bytes / 1024**2
      2.03125

    Reference:
      torchao 0.18, AdamWFp8. Formats: Micikevicius et al., FP8 Formats for Deep Learning,
      arXiv 2209.05433.
    """
    block = 256 if block is None else block
    check_static_int("block", block)
    codec = Fp8Codec(block=block, layout=layout, rounding=rounding, floor=1e-12)
    return quantized(
        scale_by_adam(b1, b2, eps),
        codec,
        learning_rate,
        dialect="torchao",
        min_size=min_size,
        key=key,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )
