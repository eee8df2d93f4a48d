"""Tiny models and gradients that all methods share, so that operations compile once."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

# One leaf for each treatment that a method may give. Without jit each operation compiles once for
# each shape: tests share these, the sharded ones too, and leaves have the same ones, wherever a
# role leaves the choice.
SMALL: Shapes = {
    "embed/embedding": (8, 3),
    "up/kernel": (3, 8),
    "up/bias": (3,),
    "down/kernel": (8, 3),
    "norm/scale": (3,),
}
# What suffices where shapes are of another batch or dtype.
PAIR: Shapes = {"up/kernel": (3, 8), "up/bias": (3,)}
# Every role, every rank from 0 to 5, empty axes.
ZOO: Shapes = {
    **SMALL,
    "gain": (),
    "empty/bias": (0,),
    "empty/kernel": (0, 4),
    "narrow/kernel": (1, 3),
    "head/kernel": (4, 5),
    "conv1/kernel": (3, 2, 4),
    "conv2/kernel": (2, 2, 2, 4),
    "conv3/kernel": (1, 2, 2, 2, 4),
    "experts/up": (2, 3, 4),
    "layers/up/kernel": (2, 4, 6),
    "layers/experts/up": (2, 2, 3, 4),
    "layers/none/kernel": (2, 0, 4, 6),
    "layers/wide/extra/kernel": (1, 2, 1, 3, 4),
    "layers/norm/scale": (2, 4),
    "attention/query/kernel": (4, 2, 3),
    "attention/out/kernel": (2, 3, 4),
}
# What of it runs, rather than being traced.
LEAN: Shapes = {
    **SMALL,
    "gain": (),
    "empty/bias": (0,),
    "conv2/kernel": (2, 2, 2, 3),
    "layers/up/kernel": (2, 3, 8),
}


def is_matrix(path: str) -> bool:
    """Tells whether a leaf of the shapes above is a hidden matrix (or a batch of them)."""
    return path.endswith(("kernel", "experts/up")) and not path.startswith("head")


def nested(flat: Mapping[str, Any]) -> dict:
    """Makes ``{"a/b": x}`` into ``{"a": {"b": x}}``."""
    out: dict = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


def filled(shapes: Shapes, seed: int, dtype: Any = jnp.float32, scale: float = 1.0) -> dict:
    """Returns normal numbers that depend on seed and path only."""

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        return jnp.array((scale * _normal(seed, path, shape)).astype(dtype))

    return nested({path: leaf(path, shape) for path, shape in shapes.items()})


@functools.cache
def _normal(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(shape)


def only_matrices(shapes: Shapes) -> Shapes:
    return {path: shape for path, shape in shapes.items() if is_matrix(path)}


def copy(tree: Any) -> Any:
    """Returns a tree of new buffers, so that the old one can be donated."""
    return jax.tree.map(jnp.copy, tree)


def numbers(tree: Any) -> Any:
    """Returns NumPy values; PRNG keys as their words."""

    def leaf(x: Any) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x)

    return jax.tree.map(leaf, tree)


def described(tree: Any) -> list[tuple]:
    """Shape, dtype and weak type of each leaf: what jit's cache is keyed by."""
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


def assert_close(got: Any, want: Any, *, units: float = 64.0, dtype: Any = jnp.float32) -> None:
    """Compares trees within so many roundings of the dtype, relative to each leaf's largest entry.

    A rounding here or there is all that compilation, batching or sharding may change.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    error = units * float(jnp.finfo(dtype).eps)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(numbers(got)),
        jax.tree.leaves(numbers(want)),
        strict=True,
    ):
        assert a.shape == b.shape and a.dtype == b.dtype, jax.tree_util.keystr(path)
        if not np.issubdtype(b.dtype, np.floating) and b.dtype.kind != "V":
            np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path))
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(
            a, b, rtol=0.0, atol=error * size, err_msg=jax.tree_util.keystr(path)
        )


def assert_same(got: Any, want: Any) -> None:
    """Compares trees bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, numbers(got), numbers(want))


def assert_finite(tree: Any) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        finite = np.isfinite(np.asarray(x, np.float32))
        assert np.all(finite), f"{jax.tree_util.keystr(path)}: {x}"
