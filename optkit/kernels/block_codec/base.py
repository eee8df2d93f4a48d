"""What the operation means, in plain JAX."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax

from optkit.codecs.base import Codec, Parts, Shape

Arrays: TypeAlias = Sequence[jax.Array]
# (moments, arrays, scalars) -> (outputs, new moments); works on each entry by itself, so that it
# may be given any cut of the arrays.
Function: TypeAlias = Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]


def update_stored(
    function: Function,
    read: Sequence[Codec],
    write: Sequence[Codec],
    stored: Sequence[Mapping[str, jax.Array]],
    arrays: Arrays,
    scalars: Arrays,
    shape: Shape,
) -> tuple[list[jax.Array], list[Parts]]:
    """Decodes, calls the function and encodes, one after the other."""
    moments = [codec.decode(parts, shape) for codec, parts in zip(read, stored, strict=True)]
    outputs, new = function(moments, arrays, scalars)
    return list(outputs), [codec.encode(x) for codec, x in zip(write, new, strict=True)]
