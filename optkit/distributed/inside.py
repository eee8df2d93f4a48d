"""Transformations inside ``shard_map``: what ``jit`` computes, from the parts that devices hold."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from optkit.spmd import (
    Devices,
    Parts,
    answers_for_itself,
    manual_axes,
    on_its_own,
    run_on_blocks,
    varying,
)
from optkit.transforms.base import Transformation, check_transformation
from optkit.tree import PyTree, leaves_with_paths, state_sharding


def inside(tx: optax.GradientTransformation, specs: PyTree) -> Transformation:
    """Makes any transformation compute inside ``shard_map`` what it computes under ``jit``.

    Inside ``shard_map`` a leaf is the part of it that a device holds. Its norm, its mean, its
    orthogonal factor are then those of the part: optkit's transformations refuse to compute them,
    Optax's do so silently. Here ``init`` and ``update`` are traced with whole leaves, and each of
    their operations is done on parts: entry by entry without exchange; a sum over entries is
    completed over the devices that share the leaf (``psum``); a product of matrices likewise, and
    what it needs of other rows is gathered; what has no such form (sorting, decompositions of a
    matrix that is split) is computed from gathered leaves on every device. A leaf that is not split
    counts once, not once a device. Noise is that of the whole leaf, and differs between parts.

    Outside of ``shard_map`` nothing changes. It exchanges more than the same step under ``jit``,
    where matrices move to single devices; there is no need of it there.

    Args:
      tx: any Optax transformation.
      specs: a tree like the parameters (or one for whole subtrees) of ``PartitionSpec``, as in the
        ``in_specs`` of the ``shard_map``; or ``()``: each device takes what it holds for all there
        is, on purpose, as replicas do that train apart.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the state of ``tx``. Inside, its parts lie
      as ``optkit.state_sharding(tx, params, specs)`` says: give that to ``in_specs`` and
      ``out_specs``. With ``()`` they belong to the device.

    Raises:
      TypeError: ``tx`` is no transformation, or ``specs`` is a name: which dimension it splits
        must be told.
      ValueError: an axis that the ``shard_map`` is not over; leaves of the state that are not laid
        as ``optkit.state_sharding`` says.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
      >>> tx = optkit.inside(optkit.clip_by_global_norm(1.0), {"w": P("fsdp")})
      >>> clip = jax.shard_map(
      ...     lambda g: tx.update(g, tx.init(g))[0],
      ...     mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"),
      ... )
      >>> clip({"w": jnp.full(4, 2.0)})["w"].tolist()
      [0.5, 0.5, 0.5, 0.5]

    Reference:
      Xu et al., GSPMD: General and Scalable Parallelization for ML Computation Graphs, arXiv
      2105.04663: rules by which operations follow how arrays are split. Ours are fewer, and gather
      where that paper moves.
    """
    tx = optax.with_extra_args_support(check_transformation("tx", tx))
    names = type(specs) is tuple and specs and all(isinstance(name, str) for name in specs)
    if names or isinstance(specs, str):
        raise TypeError(
            f"specs={specs!r} names axes of the mesh, but not which dimension of which leaf they "
            "split: give PartitionSpecs like those in in_specs, such as "
            f"jax.sharding.PartitionSpec({specs!r}), or () for each device on its own"
        )
    alone = type(specs) is tuple and not specs

    def init(params: PyTree) -> PyTree:
        if alone:
            return _alone(tx.init, params)
        if not manual_axes():
            return tx.init(params)
        layout = _Layout(tx, params, specs)
        return layout.run(lambda own: tx.init(own), [(params, layout.of_params)], None)

    @answers_for_itself
    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> Any:
        if alone:
            return _alone(tx.update, updates, state, params, **extra)
        if not manual_axes():
            return tx.update(updates, state, params, **extra)
        layout = _Layout(tx, updates if params is None else params, specs)
        layout.check(state)
        given = [(updates, layout.of_params), (state, layout.of_state), (params, layout.of_params)]
        arrays = {key: value for key, value in extra.items() if _is_arrays(value)}
        others = {key: value for key, value in extra.items() if key not in arrays}
        given += [(value, layout.of_extra(value)) for value in arrays.values()]

        def whole(updates: PyTree, state: PyTree, params: PyTree, *more: PyTree) -> Any:
            named = dict(zip(arrays, more, strict=True))
            return tx.update(updates, state, params, **named, **others)

        return layout.run(whole, given, updates)

    return Transformation(init, update)


def _alone(function: Any, *args: Any, **kwargs: Any) -> Any:
    with on_its_own():
        return function(*args, **kwargs)


def _is_arrays(tree: PyTree) -> bool:
    return all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(tree))


class _Layout:
    """How the leaves of parameters and state are split inside a ``shard_map``.

    Args:
      tx: the transformation.
      params: a device's parts of the parameters.
      specs: the partitions.
    """

    def __init__(self, tx: Any, params: PyTree, specs: PyTree) -> None:
        mesh = jax.sharding.get_abstract_mesh()
        tree = jax.tree.broadcast(specs, params)
        self.specs = jax.tree.leaves(tree)
        named = leaves_with_paths(params)
        sizes = {name: mesh.shape[name] for name in manual_axes()}
        self.of_params = [
            _parts(spec, np.ndim(x), sizes, path)
            for (path, x), spec in zip(named, self.specs, strict=True)
        ]
        used = {name for parts in self.of_params for part in parts for name in part}
        seen = frozenset().union(*(varying(x) for _, x in named)) if named else frozenset()
        self.devices = Devices(sizes, seen - used)
        whole = [
            jax.ShapeDtypeStruct(self._whole(np.shape(x), parts), x.dtype)
            for (_, x), parts in zip(named, self.of_params, strict=True)
        ]
        self.structure: Any = jax.tree.structure(params)
        self.shapes = jax.tree.unflatten(self.structure, whole)
        with on_its_own():
            self.state = jax.eval_shape(tx.init, self.shapes)
        placed = state_sharding(self.state, self.shapes, tree, mesh=None)
        self.of_state = [
            _parts(spec, leaf.ndim, sizes, "state")
            for spec, leaf in zip(jax.tree.leaves(placed), jax.tree.leaves(self.state), strict=True)
        ]

    def _whole(self, shape: tuple[int, ...], parts: Parts) -> tuple[int, ...]:
        counts = map(self.devices.count, parts)
        return tuple(size * count for size, count in zip(shape, counts, strict=True))

    def _is_part(self, x: Any, parts: Parts, whole: tuple[int, ...]) -> bool:
        return np.ndim(x) == len(parts) and self._whole(np.shape(x), parts) == whole

    def check(self, state: PyTree) -> None:
        """Raises ValueError unless a state is laid as it has to be."""
        wanted: Any = jax.tree.structure(self.state)
        if jax.tree.structure(state) != wanted:
            raise ValueError(
                "the state is not one of this transformation and these parameters: their trees "
                "differ; make it with init inside shard_map, or with jax.jit(tx.init, "
                "out_shardings=optkit.state_sharding(tx, params))"
            )
        found = jax.tree_util.tree_leaves_with_path(state)
        leaves = jax.tree.leaves(self.state)
        for (path, x), leaf, parts in zip(found, leaves, self.of_state, strict=True):
            if not self._is_part(x, parts, leaf.shape):
                raise ValueError(
                    f"state leaf {jax.tree_util.keystr(path)} has shape {np.shape(x)} on a device, "
                    f"and should be a part of {leaf.shape} split as {_spec(parts)}: give "
                    "optkit.state_sharding(tx, params, specs) to in_specs and out_specs"
                )

    def of_extra(self, tree: PyTree) -> list[Parts]:
        """How an extra argument is split: like the parameters if it is a tree like them."""
        leaves = jax.tree.leaves(tree)
        if jax.tree.structure(tree) == self.structure:
            wanted = zip(leaves, self.of_params, jax.tree.leaves(self.shapes), strict=True)
            if all(self._is_part(x, parts, whole.shape) for x, parts, whole in wanted):
                return self.of_params
        return [((),) * np.ndim(x) for x in leaves]

    def run(self, function: Any, given: list[tuple[PyTree, list[Parts]]], updates: PyTree) -> Any:
        """Calls a function of whole trees with a device's parts of them."""
        trees = [tree for tree, _ in given]
        leaves, structure = jax.tree.flatten(trees)
        parts: list[Parts] = []
        for tree, own in given:
            parts += own[: len(jax.tree.leaves(tree))]

        def whole(*values: jax.Array) -> Any:
            with on_its_own():
                return function(*jax.tree.unflatten(structure, values))

        def out_parts(shapes: Any) -> list[Parts]:
            return self.of_state if updates is None else [*self.of_params, *self.of_state]

        return run_on_blocks(whole, self.devices, leaves, parts, out_parts)


def _parts(spec: PartitionSpec, rank: int, sizes: dict[str, int], path: str) -> Parts:
    """How each dimension is split, major axis first."""
    named = [(part if isinstance(part, tuple) else (part,)) if part else () for part in spec]
    if missing := [name for part in named for name in part if name not in sizes]:
        raise ValueError(
            f"leaf {path!r} is split over {missing[0]!r} by its spec {spec}, but the shard_map is "
            f"over {sorted(sizes)}"
        )
    if len(named) > rank:
        raise ValueError(f"leaf {path!r} of rank {rank} has no dimension for all of {spec}")
    return tuple(named) + ((),) * (rank - len(named))


def _spec(parts: Parts) -> PartitionSpec:
    return PartitionSpec(*(part or None for part in parts))


__all__ = ["inside"]
