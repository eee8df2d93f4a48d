"""What the recipes with low-bit states share."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import optax

from optkit.catalogue import LeafBytes
from optkit.codecs import Codec, Fp8Codec, TableCodec
from optkit.codecs.blocks import Layout
from optkit.codecs.table import Rounding, Scale
from optkit.transforms import Transformation, descend, quantize_state
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice, check_static_int
from optkit.transforms.quantize import MIN_SIZE, stored_bytes
from optkit.transforms.step import Mask, StepDecay

Dialect = Literal["bitsandbytes", "torchao"]


def low_bytes(moments: int, codec: Codec) -> dict[str, LeafBytes]:
    """State bytes of a recipe with so many moments: float32 for small leaves, a codec's for others.

    For leaves whose rows are as long as a block; others round up to whole blocks.
    """
    per_entry = stored_bytes(1 << 20, moments, codec) / (1 << 20)
    label = f"4 in leaves below {MIN_SIZE}"
    return {"*": LeafBytes(per_entry, lambda size: stored_bytes(size, moments, codec), label)}


def table_of_8_bits(
    dialect: Dialect, block: int | None, layout: Layout, scale: Scale, rounding: Rounding
) -> TableCodec:
    """The dynamic map as one of the two libraries rounds to it."""
    check_choice("dialect", dialect, get_args(Dialect))
    block = 256 if block is None else block
    check_static_int("block", block)
    torchao = dialect == "torchao"
    return TableCodec(
        block=block,
        layout=layout,
        scale=scale,
        rounding=rounding,
        floor=1e-12 if torchao else 0.0,
        ties="upper" if torchao else "lower",
    )


def quantized(
    direction: optax.GradientTransformation,
    codec: TableCodec | Fp8Codec,
    learning_rate: ScalarOrSchedule,
    *,
    dialect: Dialect,
    min_size: int | None,
    key: Any,
    weight_decay: ScalarOrSchedule,
    decay: StepDecay,
    mask: Mask,
) -> Transformation:
    """A direction with stored moments, decay and learning rate."""

    def uneven(path: str, leaf: Any) -> bool:
        del path
        return math.prod(leaf.shape) % (codec.block or 1) != 0

    least = MIN_SIZE if min_size is None else min_size
    keep: Callable[[str, Any], bool] | None = uneven if dialect == "torchao" else None
    held = quantize_state(direction, codec, min_size=least, keep=keep, key=key)
    return descend(held, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
