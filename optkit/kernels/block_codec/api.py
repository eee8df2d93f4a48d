"""The operation, by whichever implementation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax

from optkit.codecs.base import Codec, Parts, Shape
from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec import base, gpu, tpu
from optkit.kernels.block_codec.base import Arrays, Function
from optkit.kernels.block_codec.geometry import why_not
from optkit.kernels.block_codec.sharded import on_each_device, why_not_split
from optkit.kernels.implementation import Implementation, by_platform, check_implementation

__all__ = ["Implementation", "update_stored", "why_not"]


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
    Of an array on Explicit axes of a mesh each device takes its own part; blocks must not cross.

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
      implementation: "xla"; "pallas", the kernel for the platform that the program is lowered for,
        TPUs or NVIDIA's GPUs; "interpret", the TPUs' kernel on any device, slow.

    Returns:
      Outputs of the shape, and what the codecs ``write`` store.

    Raises:
      ValueError: what the kernel does not serve, with the numbers (``why_not``); or an unknown
        implementation.
      NotImplementedError: "pallas" on another platform.

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
    check_implementation(implementation)
    if implementation == "xla":
        return base.update_stored(function, read, write, stored, arrays, scalars, shape)
    reason = why_not((*read, *write), shape, arrays)
    if reason is None and not arrays:
        reason = why_not_split(cast(Sequence[TableCodec], read), shape, stored[0]["codes"])
    if reason is not None:
        raise ValueError(f"no kernel serves this: {reason}; give implementation='xla'")

    def call(stored: Any, arrays: Any, scalars: Any, shape: Shape) -> Any:
        given, structure = jax.tree.flatten((stored, arrays, scalars))

        def by(kernel: Callable[..., Any], **options: bool) -> Callable[..., Any]:
            def run(*flat: jax.Array) -> Any:
                own = jax.tree.unflatten(structure, flat)
                return kernel(function, read, write, *own, shape, reuse or {}, **options)

            return run

        if implementation == "interpret":
            return by(tpu.update_stored, interpret=True)(*given)
        return by_platform(
            "update_stored", *given, tpu=by(tpu.update_stored), gpu=by(gpu.update_stored)
        )

    return cast(
        tuple[list[jax.Array], list[Parts]],
        on_each_device(call, write, stored, arrays, scalars, shape),
    )
