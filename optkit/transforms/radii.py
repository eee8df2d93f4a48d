"""Which spheres a tree of weights has, and their radii."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optkit.linalg.norms import norm_over
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import (
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    accumulator_dtype,
    leaves_with_paths,
    values_by_path,
)

Radius = Literal["init", "current"] | float | PyTree
Per = Literal["matrix", "leaf"]


class Spheres:
    """The spheres of a tree: one for each matrix as it lies in memory, or one for each leaf.

    Attributes:
      paths: path of each part: a leaf, or a run of equal blocks of a fused one.
      axes: axes of each part that make one vector, counted from the end; the others are a batch.
      sizes: number of entries of each part.
    """

    def __init__(self, tree: PyTree, per: Per, dims: Dims, roles: Sequence[RuleLike]) -> None:
        """Reads a tree; raises as ``MatrixLayout`` if matrices are asked for."""
        self._structure: Any = jax.tree.structure(tree)
        self._layout = MatrixLayout(tree, dims, roles) if per == "matrix" else None
        if self._layout is None:
            named = leaves_with_paths(tree)
            self.paths = tuple(path for path, _ in named)
            self.axes = [tuple(range(-jnp.ndim(leaf), 0)) for _, leaf in named]
            self.sizes = [jnp.size(leaf) for _, leaf in named]
        else:
            self.paths = self._layout.paths
            self.axes = [
                tuple(sorted(axis - len(view.shape) for axis in (*view.in_axes, *view.out_axes)))
                for view in self._layout.views
            ]
            self.sizes = [math.prod(view.shape) for view in self._layout.views]

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns the parts of a tree that are vectors, or batches of vectors, on spheres."""
        if self._layout is None:
            return self._structure.flatten_up_to(tree)
        return self._layout.split(tree, "kept")

    def merge(self, parts: Sequence[jax.Array]) -> PyTree:
        """Undoes ``split``."""
        if self._layout is None:
            return self._structure.unflatten(parts)
        return self._layout.merge(parts, "kept")

    def pack(self, values: Sequence[Any]) -> PyTree:
        """Returns one value a part as a tree."""
        if self._layout is None:
            return self._structure.unflatten(values)
        return self._layout.pack(values)

    def unpack(self, tree: PyTree) -> list[Any]:
        """Undoes ``pack``."""
        if self._layout is None:
            return self._structure.flatten_up_to(tree)
        return self._layout.unpack(tree)

    def norms(self, tree: PyTree) -> list[jax.Array]:
        """Returns the norm of each vector, of a batch of matrices one each."""
        return [
            jnp.squeeze(norm_over(part, axes), axes).astype(accumulator_dtype(part))
            for part, axes in zip(self.split(tree), self.axes, strict=True)
        ]


def check_alive(spheres: Spheres, norms: Sequence[jax.Array]) -> None:
    """Raises ValueError if weights whose values are known have the norm 0."""
    known = [
        (path, norm)
        for path, norm, size in zip(spheres.paths, norms, spheres.sizes, strict=True)
        if size and not isinstance(norm, jax.core.Tracer) and norm.is_fully_addressable
    ]
    values = jax.device_get([norm for _, norm in known])
    for (path, _), norm in zip(known, values, strict=True):
        dead = np.argwhere(np.asarray(norm) == 0)
        if len(dead):
            which = f"matrix {tuple(map(int, dead[0]))} of leaf" if np.ndim(norm) else "leaf"
            raise ValueError(
                f"{which} {path!r} has the norm 0: on a sphere of radius 0 it could never move. "
                "Initialise it with other values (a head: normal with standard deviation 0.02), "
                "or route the leaf to another transformation"
            )


def check_radius(radius: Any) -> None:
    """Raises ValueError unless a radius is one of the words, a positive number, or a tree."""
    if isinstance(radius, str):
        check_choice("radius", radius, ("init", "current"))
    elif _is_number(radius):
        _check_positive("radius", radius)


def radii(
    radius: Radius, tree: PyTree, spheres: Spheres, norms: list[jax.Array]
) -> list[jax.Array]:
    """Returns the radii to keep: those measured, or what the user named for each leaf."""
    if isinstance(radius, str):
        return norms
    if _is_number(radius):
        named = dict.fromkeys(spheres.paths, radius)
    else:
        named = values_by_path(tree, radius)
    for path in spheres.paths:
        if path not in named:
            raise ValueError(f"the tree of radii has no number for leaf {path!r}; add one")
        _check_positive(f"the radius of leaf {path!r}", named[path])
    return [
        jnp.full_like(norm, named[path]) for path, norm in zip(spheres.paths, norms, strict=True)
    ]


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and np.ndim(value) == 0


def _check_positive(name: str, value: Any) -> None:
    check_number(name, value, low=0.0)
    if not isinstance(value, jax.Array) and value == 0:
        raise ValueError(f"{name}={value!r} is no sphere; give a positive number")
