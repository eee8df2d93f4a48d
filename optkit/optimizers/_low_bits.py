"""What the recipes with low-bit states share."""

import math
from collections.abc import Callable
from typing import Any, Literal

import optax

from optkit.catalogue import LeafBytes
from optkit.codecs import Codec
from optkit.optimizers._low_rank import DecayOrAfter, descend_or_after
from optkit.transforms import Transformation, quantize_state
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask

MIN_SIZE = 4096
Dialect = Literal["bitsandbytes", "torchao"]


def low_bytes(moments: int, codec: Codec) -> dict[str, LeafBytes]:
    """State bytes of a recipe with so many moments: float32 for small leaves, a codec's for others.

    For leaves whose rows are as long as a block; others round up to whole blocks.
    """
    per_entry = codec.bytes((1 << 20,)) / (1 << 20)

    def leaf(size: int) -> float:
        return moments * (4 * size if size < MIN_SIZE else codec.bytes((size,)))

    label = f"4 in leaves below {MIN_SIZE}"
    return {"*": LeafBytes(moments * per_entry, leaf, label)}


def quantized(
    direction: optax.GradientTransformation,
    codec: Codec,
    learning_rate: ScalarOrSchedule,
    *,
    dialect: Dialect,
    block: int,
    min_size: int | None,
    key: Any,
    weight_decay: ScalarOrSchedule,
    decay: DecayOrAfter,
    mask: Mask,
) -> Transformation:
    """A direction with stored moments, decay and learning rate."""

    def uneven(path: str, leaf: Any) -> bool:
        del path
        return math.prod(leaf.shape) % block != 0

    least = MIN_SIZE if min_size is None else min_size
    keep: Callable[[str, Any], bool] | None = uneven if dialect == "torchao" else None
    held = quantize_state(direction, codec, min_size=least, keep=keep, key=key)
    return descend_or_after(held, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
