"""The operation, by whichever implementation."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

import jax

from optkit.codecs.base import Codec, Parts, Shape
from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec import base, tpu
from optkit.kernels.block_codec.base import Arrays, Function
from optkit.kernels.block_codec.geometry import why_not

__all__ = ["Implementation", "update_stored", "why_not"]

# "interpret" runs the Pallas kernel operation by operation, on any device: to test it, slowly.
Implementation = Literal["xla", "pallas", "interpret"]


def update_stored(
    function: Function,
    stored: Sequence[Mapping[str, jax.Array]],
    arrays: Arrays,
    scalars: Arrays = (),
    *,
    read: Sequence[Codec],
    write: Sequence[Codec],
    shape: Shape,
    reuse: Mapping[int, int] | None = None,
    implementation: Implementation = "xla",
) -> tuple[list[jax.Array], list[Parts]]:
    """Reads stored moments, works on each entry, and stores what comes out.

    1. ``moments = decode(stored)``; 2. ``outputs, new = function(moments, arrays, scalars)``;
    3. ``encode(new)``. As a kernel the moments are never in memory: a tile of codes is read, and
    one of codes written. With nothing to read it is an encoder, with nothing to write a decoder.

    Args:
      function: takes lists of moments (float32), arrays and scalars, returns lists of outputs and
        of new moments, and works on each entry by itself: it is given cuts of the arrays.
      stored: what the codecs ``read`` stored, one for each moment.
      arrays: of the shape; the kernel takes float32 and bfloat16.
      scalars: arrays of rank 0.
      read: codecs of the moments that come in.
      write: codecs of the moments that go out.
      shape: of the moments.
      reuse: by the number of an output the number of the array whose memory it may take, should
        nothing else need that.
      implementation: "xla"; "pallas", the kernel for TPUs; "interpret", the kernel on any device,
        slow.

    Returns:
      Outputs of the shape, and what the codecs ``write`` store.

    Raises:
      ValueError: what the kernel does not serve, with the numbers (``why_not``); or an unknown
        implementation.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.codecs import TableCodec
      >>> from optkit.kernels.block_codec import update_stored
      >>> codec = TableCodec()
      >>> ema = lambda moments, arrays, scalars: ([], [0.9 * moments[0] + 0.1 * arrays[0]])
      >>> g = jnp.linspace(-1.0, 1.0, 512).reshape(2, 256)
      >>> _, (new,) = update_stored(
      ...     ema, [codec.encode(0.0 * g)], [g], read=[codec], write=[codec], shape=g.shape)
      >>> new["codes"].shape, new["scale"].shape
      ((2, 256), (2, 1))

    Reference: ours; the codecs are those of ``optkit.codecs``.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation={implementation!r} is none of {', '.join(get_args(Implementation))}"
        )
    if implementation == "xla":
        return base.update_stored(function, read, write, stored, arrays, scalars, shape)
    reason = why_not((*read, *write), shape, arrays)
    if reason is not None:
        raise ValueError(f"no kernel serves this: {reason}; give implementation='xla'")
    return tpu.update_stored(
        function,
        cast(Sequence[TableCodec], read),
        cast(Sequence[TableCodec], write),
        stored,
        arrays,
        scalars,
        shape,
        reuse or {},
        interpret=implementation == "interpret",
    )
