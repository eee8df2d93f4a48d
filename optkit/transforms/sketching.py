"""The randomized factor of a tree: which random numbers belong to which matrix at which step."""

import collections
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit import linalg
from optkit.transforms.base import Transformation
from optkit.transforms.hyperparams import check_static_int
from optkit.transforms.matrix_map import MatrixMap, try_factor
from optkit.tree import MatrixLayout, PyTree, leaves_with_paths

Key = int | jax.Array
_IMPL = "threefry2x32"


class OrthogonalizeState(NamedTuple):
    """State of ``orthogonalize("randomized")``; the other methods have none."""

    key: jax.Array  # threefry PRNG key, constant
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates


def check_key(key: Any) -> None:
    """Raises ValueError unless a value is a seed or one PRNG key."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.shape == () if typed else key.dtype == jnp.uint32 and key.ndim == 1:
            return
    raise ValueError(f"key={key!r} is neither an integer seed nor one PRNG key of jax.random")


def fresh_state(key: Key) -> OrthogonalizeState:
    """Returns the state before the first update, in buffers of its own."""
    if isinstance(key, jax.Array):
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        if str(jax.random.key_impl(key)) != _IMPL:
            # The other generators draw other numbers for keys in a batch than for each alone, so
            # that the grouping of leaves would show in the result.
            key = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl=_IMPL)
        fresh = jnp.copy(key)
    else:
        fresh = jax.random.key(int(key), impl=_IMPL)
    return OrthogonalizeState(fresh, jnp.zeros((), jnp.int32))


def check_ranks(layout: MatrixLayout, rank: int | float, oversampling: int) -> None:
    """Raises ValueError with the leaf's path if a matrix has no sketch of this rank."""
    for path, view in zip(layout.paths, layout.views, strict=True):
        try:
            linalg.sketch_size(view.fan_out, view.fan_in, rank, oversampling)
        except ValueError as error:
            raise ValueError(
                f"leaf {path!r}: {error}; or send the leaf to another transformation"
            ) from None


def _names(layout: MatrixLayout) -> list[str]:
    """Path of each part, with a number behind it where a fused leaf has several."""
    total, seen = collections.Counter(layout.paths), collections.Counter[str]()
    names = []
    for path in layout.paths:
        names.append(path if total[path] == 1 else f"{path}/{seen[path]}")
        seen[path] += 1
    return names


def words(layout: MatrixLayout) -> list[jax.Array]:
    """Returns a number for each matrix, uint32 of its batch shape: hash of the name, and index.

    It depends on the leaf alone, and neither on its neighbours nor on how they are grouped.
    """
    out = []
    for name, view in zip(_names(layout), layout.views, strict=True):
        index = np.arange(math.prod(view.batch_shape), dtype=np.uint64).reshape(view.batch_shape)
        # Times an odd number: different for each matrix of a leaf, and far from those of others.
        own = (zlib.crc32(name.encode()) + index * 0x9E3779B9) % 2**32
        out.append(jnp.asarray(own.astype(np.uint32)))
    return out


def matrix_keys(step_key: jax.Array, words: jax.Array) -> jax.Array:
    """Returns a key for each word, of the same shape."""
    one: Callable[..., jax.Array] = partial(jax.random.fold_in, step_key)
    for _ in words.shape:
        one = jax.vmap(one)
    return one(words)


def recorded_sketches(layout: MatrixLayout, sketches: PyTree) -> list[jax.Array]:
    """Returns the sketch of each part from a tree of them.

    Raises:
      ValueError: a leaf has none.
    """
    given = dict(leaves_with_paths(sketches))
    out = []
    for name in _names(layout):
        if name not in given:
            raise ValueError(
                f"the sketches given to update have none for leaf {name!r}; give one for every "
                f"matrix, they have {', '.join(map(repr, given)) or 'no leaves'}"
            )
        out.append(jnp.asarray(given[name]))
    return out


class Sketching(NamedTuple):
    """Options of the randomized factor."""

    rank: int | float
    oversampling: int
    power_iterations: int
    kind: linalg.SketchKind
    side: linalg.Side
    qr_method: linalg.QrMethod
    options: dict[str, Any]

    def factor(self, x: jax.Array, keys: Any = 0, sketch: jax.Array | None = None) -> jax.Array:
        """Returns the factor of each matrix from its key, or from a sketch."""
        return linalg.randomized_factor(
            x,
            keys,
            rank=self.rank,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            sketch=self.kind if sketch is None else sketch,
            side=self.side,
            qr_method=self.qr_method,
            **self.options,
        )


def sketch_numbers(
    rank: int | float | None, oversampling: int | None, power_iterations: int | None
) -> tuple[int | float, int, int]:
    """Fills in the defaults and checks all but what the shapes decide."""
    rank = 0.25 if rank is None else rank
    oversampling = 10 if oversampling is None else oversampling
    power_iterations = 1 if power_iterations is None else power_iterations
    if isinstance(rank, float):
        linalg.sketch_size(1, 1, rank)
    else:
        check_static_int("rank", rank)
    check_static_int("oversampling", oversampling, low=0)
    check_static_int("power_iterations", power_iterations, low=0)
    return rank, oversampling, power_iterations


def randomized(matrices: MatrixMap, sketching: Sketching, key: Key) -> Transformation:
    """Returns ``orthogonalize("randomized")``."""
    check_key(key)
    try_factor(sketching._replace(rank=1).factor)

    def layout_of(tree: PyTree) -> MatrixLayout:
        layout = matrices.layout(tree)
        check_ranks(layout, sketching.rank, sketching.oversampling)
        return layout

    def init_fn(params: PyTree) -> OrthogonalizeState:
        layout_of(params)
        return fresh_state(key)

    def update_fn(
        updates: PyTree,
        state: OrthogonalizeState,
        params: PyTree | None = None,
        *,
        sketch: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OrthogonalizeState]:
        del params, extra_args
        layout = layout_of(updates)
        if sketch is None:
            step_key = jax.random.fold_in(state.key, state.count)
            factor = lambda x, own: sketching.factor(x, matrix_keys(step_key, own))  # noqa: E731
            others = words(layout)
        else:
            factor = lambda x, own: sketching.factor(x, sketch=own)  # noqa: E731
            others = recorded_sketches(layout, sketch)
        # Rows are outputs, so that a kernel and its transpose with other dims have one run.
        out = matrices.replace(factor, updates, layout, others, rows="out")
        return out, OrthogonalizeState(state.key, state.count + 1)

    return Transformation(init_fn, update_fn)
