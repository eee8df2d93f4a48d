"""Lion with momentum of 8 bits."""

import jax
import optax

from optkit.catalogue import register
from optkit.codecs import TableCodec
from optkit.codecs.blocks import Layout
from optkit.codecs.table import Rounding, Scale
from optkit.optimizers._low_bits import Dialect, low_bytes, quantized, table_of_8_bits
from optkit.transforms import Transformation, blend_momentum, scale_by_kappa
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask, StepDecay


@register(
    kind="recipe",
    family="sign",
    paper=("8-bit Optimizers via Block-wise Quantization", "2110.02861", 2021),
    state_bytes=low_bytes(1, TableCodec()),
    tags=("sign", "lion", "quantization", "8-bit"),
    chain="lion on momentum of 8 bits > decay > learning rate",
)
def lion_8bit(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule = 0.0,
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
    """Lion with its momentum in 8 bits: one byte of state for each parameter.

    1. ``m`` is decoded; 2. ``u = sign(b1*m + (1-b1)*g)``; 3. ``m <- b2*m + (1-b2)*g``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*u``; 5. ``m`` is encoded with the signed dynamic map.

    It is ``optkit.quantize_state`` around Lion, as a recipe with bitsandbytes' options. There is no
    matrix work. The sign forgives a coarse momentum except where it is near 0. Take it where a byte
    a parameter is what there is. In ``python -m benchmarks.claims eight_bit``, a small byte
    language model, its loss is that of Lion: -0.001 (+- 0.006) beside it.

    Args:
      learning_rate: a number or a schedule.
      b1: weight of the old momentum in the update.
      b2: decay rate of the momentum.
      weight_decay: coefficient; 3 to 10 times AdamW's.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as
        bitsandbytes does on CUDA ("decoupled" is its way on CPU, and torch's).
      mask: leaves that decay.
      dialect: "bitsandbytes", or "torchao": ties go to the upper entry, scales are at least 1e-12,
        and leaves that the block does not divide stay in float32.
      block: entries that share a scale; 256 if None.
      layout: how blocks lie, see ``optkit.codecs.blocks``; "flat" as in the reference.
      scale: "extreme" stops blocks with a negative extreme from shrinking, see
        ``optkit.codecs.TableCodec``; the reference has "magnitude".
      rounding: of the momentum, "nearest" or "stochastic".
      min_size: smaller leaves keep a float32 momentum; 4096 if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``1 + 4/256`` per parameter of a
      leaf that is stored, 4 of others.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
      >>> optkit.plan(optkit.lion_8bit(), params).rows[0].state_bytes / 1024**2
      1.015625

    Reference:
      Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861; Chen et al.,
      arXiv 2302.06675, for Lion; bitsandbytes 0.50, Lion8bit.
    """
    codec = table_of_8_bits(dialect, block, layout, scale, rounding)
    return quantized(
        optax.chain(blend_momentum(b1, b2), scale_by_kappa("l1")),
        codec,
        learning_rate,
        dialect=dialect,
        min_size=min_size,
        key=key,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )
