"""Leaves cut into blocks: whole, by rows, or into chunks of neighbours."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit.masks.lines import Lines, view_of
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import (
    Dims,
    PyTree,
    RuleLike,
    dims_by_path,
    leaves_with_paths,
)


class Blocks:
    """How one leaf is cut into blocks."""

    def __init__(self, path: str, leaf: Any, blocks: str | int, lines: Lines | None) -> None:
        self.path, self.shape, self.lines = path, tuple(np.shape(leaf)), lines
        self.chunk = blocks if isinstance(blocks, int) else None
        self.size = math.prod(self.shape)
        if self.chunk is not None:
            self.number = -(-self.size // self.chunk)
        else:
            self.number = 1 if lines is None else lines.batch * lines.count

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of the leaf's mask."""
        if self.chunk is not None:
            return self.shape
        return (1,) * len(self.shape) if self.lines is None else self.lines.shape

    def rows(self, x: jax.Array) -> jax.Array:
        """Returns ``(blocks, entries)``; a last chunk is filled up with zeros."""
        if self.lines is not None:
            return self.lines.flat(x).reshape(self.number, -1)
        if self.chunk is None:
            return x.reshape(1, -1)
        missing = self.number * self.chunk - self.size
        return jnp.pad(x.reshape(-1), (0, missing)).reshape(self.number, self.chunk)

    def mask(self, chosen: jax.Array) -> jax.Array:
        """Returns an array of the mask's shape from one value a block."""
        if self.lines is not None:
            return self.lines.mask(chosen.reshape(self.lines.batch, -1))
        if self.chunk is None:
            return chosen.reshape(self.mask_shape)
        return jnp.repeat(chosen, self.chunk)[: self.size].reshape(self.shape)


def check_blocks(blocks: Any) -> None:
    """Raises ValueError unless blocks are "leaf", "row" or a number of entries."""
    if isinstance(blocks, str):
        check_choice("blocks", blocks, ("leaf", "row"))
    else:
        check_static_int("blocks", blocks)


def blocks_of(
    params: PyTree,
    masked: Sequence[bool],
    blocks: str | int,
    dims: Dims,
    roles: Sequence[RuleLike],
) -> list[Blocks]:
    """Returns how the masked leaves are cut."""
    named = dims_by_path(params, dims)
    out = []
    for (path, leaf), on in zip(leaves_with_paths(params), masked, strict=True):
        if on:
            is_row = blocks == "row" and np.ndim(leaf) >= 2
            lines = Lines(view_of(path, leaf, dims, named, roles), "out") if is_row else None
            out.append(Blocks(path, leaf, blocks, lines))
    return out


__all__ = ["Blocks", "blocks_of", "check_blocks"]
