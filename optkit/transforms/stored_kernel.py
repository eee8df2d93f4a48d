"""The kernel that reads, updates and stores the moments of a leaf in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from optkit.codecs.base import Parts, parts_of, stored
from optkit.kernels.block_codec import Implementation, update_stored, why_not
from optkit.transforms.elementwise import Elementwise
from optkit.transforms.stored_leaves import Reader
from optkit.tree import PyTree, leaves_with_paths


@dataclass(frozen=True)
class Kernel:
    """Takes the leaves of ``leaf_by_leaf`` that it serves."""

    implementation: Implementation
    paths: Sequence[str]  # of the leaves
    strict: bool  # refuses what it does not serve, instead of leaving it

    def __call__(
        self,
        piece: Elementwise | None,
        readers: Sequence[Reader],
        nodes: Sequence[Any],
        update: jax.Array,
    ) -> tuple[jax.Array, list[Parts]] | None:
        """Returns the update of a leaf and what is stored; None if the leaf is not served."""
        codecs, shape = [reader.codec for reader in readers], readers[0].shape
        if piece is None:
            reason: str | None = "its update does not follow entry by entry from its moments"
        else:
            reason = why_not(codecs, shape, piece.arrays)
        if piece is None or reason is not None:
            if self.strict:
                path = self.paths[readers[0].leaf]
                raise ValueError(
                    f"leaf {path!r}: no kernel serves it: {reason}; give implementation='xla', or, "
                    f"if it is a single leaf, keep its moments in float32: keep={path!r}"
                )
            return None

        def function(moments: Any, arrays: Any, scalars: Any) -> tuple[list[Any], list[Any]]:
            *new, out = piece(moments, arrays, scalars)
            return [out], new

        # Most steps need the gradient no more.
        gradient = [i for i, x in enumerate(piece.arrays) if x is update]
        (out,), new = update_stored(
            function,
            [parts_of(node) for node in nodes],
            piece.arrays,
            piece.scalars,
            read=codecs,
            write=codecs,
            shape=shape,
            reuse=dict(zip([0], gradient, strict=False)),
            implementation=self.implementation,
        )
        return out, [stored(codec, parts) for codec, parts in zip(codecs, new, strict=True)]


def kernel_of(implementation: Implementation | None, updates: PyTree) -> Kernel | None:
    """Returns the kernel by its name; None where XLA does the work."""
    paths = [path for path, _ in leaves_with_paths(updates)]
    if implementation is not None:
        return None if implementation == "xla" else Kernel(implementation, paths, strict=True)
    # On several devices a leaf may be sharded without anybody saying so while it is traced.
    alone = jax.default_backend() == "tpu" and jax.device_count() == 1
    return Kernel("pallas", paths, strict=False) if alone else None
