"""Inverse factors of layers: which leaves are layers, how factors follow, what they do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.linalg import RankOneMode, frobenius_norm, rank_one_inverse
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
)
from optkit.transforms.layer_statistics import Layer, means_of
from optkit.transforms.tensor_groups import multiple, run_tensors
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    Role,
    RuleLike,
    Selector,
    accumulator_dtype,
    dims_by_path,
    leaves_with_paths,
    map_groups,
    matrix_view,
    rule_of,
    selects,
    upcast,
)
from optkit.tree.selection import check_selects
from optkit.tree.sharding import (
    place_factor,
    place_like,
    place_statistic,
    whole_along,
    zeros_beside,
)

RestoreNorm = Literal["sum", "layer", "none"]
Bias = str | Callable[[str], str | None] | None
LAYER_ROLES = tuple(str(role) for role in MATRIX_ROLES if role != Role.CONV)
LAYERS: Selector = LAYER_ROLES


@dataclass(frozen=True, kw_only=True)
class LayerInverses:
    """The rules by which inverse factors of layers follow statistics, and precondition.

    The options are those of ``mkor``.
    """

    mode: RankOneMode = "code"
    decay: ScalarOrSchedule = 0.95
    every: int = 10
    warmup_steps: int = 0
    clip: float = 100.0
    threshold: float = 2.0
    blend: float | None = None
    restore_norm: RestoreNorm = "sum"
    layers: Selector = LAYERS
    bias: Bias = "bias"
    dims: Dims = None
    roles: Sequence[RuleLike] = ()
    state_dtype: Any = None

    def __post_init__(self) -> None:
        """Raises unless the options are in range."""
        check_choice("mode", self.mode, get_args(RankOneMode))
        check_choice("restore_norm", self.restore_norm, get_args(RestoreNorm))
        check_number("decay", self.decay, low=1e-6, high=1.0)
        check_static_int("every", self.every)
        check_static_int("warmup_steps", self.warmup_steps, low=0)
        for name, value in (("clip", self.clip), ("threshold", self.threshold)):
            check_static_number(name, value)
            check_number(name, value, low=1e-30, infinite=True)
        if self.blend is not None:
            check_static_number("blend", self.blend)
            check_number("blend", self.blend, low=0.0, high=1.0)

    def find(self, tree: PyTree) -> list[Layer]:
        """Returns the layers of a tree, their biases and how their kernels are matrices."""
        named, leaves = dims_by_path(tree, self.dims), leaves_with_paths(tree)
        where = {path: index for index, (path, _) in enumerate(leaves)}
        out = []
        for index, (path, leaf) in enumerate(leaves):
            if np.ndim(leaf) < 2 or not selects(self.layers, path, leaf, self.roles):
                continue
            rule = rule_of(path, leaf, self.roles)
            own = self.dims if named is None else named[path]
            own = rule.dims if self.dims is None else own
            if named is not None and own is None:
                continue
            view = matrix_view(leaf, own, path=path, role=rule.role)
            beside = self.bias(path) if callable(self.bias) else _sibling(path, self.bias)
            at = where.get(beside) if beside is not None else None
            shape = (*view.batch_shape, view.fan_out)
            if at is not None and leaves[at][1].size != int(np.prod(shape)):
                raise ValueError(
                    f"leaf {beside!r} of shape {np.shape(leaves[at][1])} is no bias of {path!r}, "
                    f"whose outputs have shape {shape}; say with bias= which leaves are, or None"
                )
            out.append(Layer(path, index, at, view))
        return out

    def spread(self, tree: PyTree, layers: list[Layer], values: list[Any]) -> PyTree:
        """Returns a tree like another one with a value for each layer, masked nodes elsewhere."""
        leaves: list[Any] = [optax.MaskedNode()] * len(jax.tree.leaves(tree))
        for layer, value in zip(layers, values, strict=True):
            leaves[layer.kernel] = value
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def start(self, params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """Returns identities, and flags that the first refresh resets.

        Raises:
          ValueError: ``layers``, where they were chosen, name no leaf.
        """
        if self.layers != LAYERS:
            check_selects("layers", self.layers, params, self.roles)
        layers, leaves = self.find(params), jax.tree.leaves(params)

        def eye(layer: Layer, size: int) -> jax.Array:
            leaf = leaves[layer.kernel]
            identity = jnp.eye(size, dtype=accumulator_dtype(leaf, self.state_dtype))
            return multiple(leaf, layer.view.batch_shape, identity)

        def flags(layer: Layer) -> jax.Array:
            shape = (*layer.view.batch_shape, 2)
            return ~zeros_beside(leaves[layer.kernel], shape, jnp.bool_)

        extra = [layer.bias is not None for layer in layers]
        sides = zip(layers, extra, strict=True)
        right = [eye(layer, layer.view.fan_in + one) for layer, one in sides]
        left = [eye(layer, layer.view.fan_out) for layer in layers]
        trees = right, left, list(map(flags, layers))
        return tuple(self.spread(params, layers, values) for values in trees)

    def due(self, count: jax.Array) -> jax.Array:
        """Tells whether an update follows the statistics."""
        return (count % self.every == 0) | (count < self.warmup_steps)

    def _sides(
        self,
        factors: list[jax.Array],
        vectors: list[jax.Array],
        resets: list[jax.Array],
        decay: Any,
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Returns the new inverses of one side of all layers, and whether they got too large."""

        def side(p: jax.Array, v: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
            clipped = jnp.clip(jnp.where(jnp.isnan(v), 0.0, upcast(v)), -self.clip, self.clip)
            new = rank_one_inverse(upcast(p), clipped, decay, mode=self.mode)
            eye = jnp.broadcast_to(jnp.eye(p.shape[-1], dtype=new.dtype), new.shape)
            large = ~(jnp.max(jnp.abs(new), axis=(-2, -1)) <= self.threshold) & ~reset
            if self.blend is not None:
                blended = self.blend * new + (1.0 - self.blend) * eye
                new, large = jnp.where(large[..., None, None], blended, new), jnp.zeros_like(large)
            return jnp.where(reset[..., None, None], eye, new).astype(p.dtype), large

        vectors = list(map(place_statistic, vectors, factors))
        # Of the refresh only products with a vector travel: factors stay where their rows are.
        return map_groups(side, factors, vectors, resets, move=False)

    def follow(self, statistics: Any, like: PyTree, trees: Any, decay: Any) -> Any:
        """Returns (right, left, resets) after one more vector for each side of each layer."""
        layers = self.find(like)
        held = list(zip(*map(jax.tree.leaves, trees), strict=True))
        means = means_of(statistics, layers)
        live = [i for i, layer in enumerate(layers) if layer.path in means]
        right, left, resets = ([held[i][j] for i in live] for j in range(3))
        resets = list(map(place_statistic, resets, right))  # from where their layers are
        inputs, outputs = [], []
        for i, factor in zip(live, right, strict=True):
            spread = layers[i].view.batch_shape
            a, d = (upcast(jnp.asarray(x)).reshape(*spread, -1) for x in means[layers[i].path])
            if a.shape[-1] < factor.shape[-1]:
                ends = a, jnp.ones((*spread, 1), a.dtype)
                a = jnp.concatenate([place_statistic(x, factor) for x in ends], axis=-1)
            inputs.append(a)
            outputs.append(d)
        # Inputs first: what they raise the output side sees in the same update.
        new_right = self._sides(right, inputs, [own[..., 0] for own in resets], decay)
        second = [own[..., 1] | high for own, (_, high) in zip(resets, new_right, strict=True)]
        new_left = self._sides(left, outputs, second, decay)
        leaves = jax.tree.leaves(like)
        for i, (one, high), (two, tall) in zip(live, new_right, new_left, strict=True):
            leaf, view = leaves[layers[i].kernel], layers[i].view
            again = jnp.stack([high | tall, tall], axis=-1)
            # Factors where their shares lie, flags where their layer does.
            held[i] = (
                place_factor(one, leaf),
                place_factor(two, leaf),
                place_statistic(again, view.split(leaf, "out")),
            )
        return tuple(self.spread(like, layers, [own[j] for own in held]) for j in range(3))

    def precondition(self, updates: PyTree, right: PyTree, left: PyTree) -> PyTree:
        """Returns the gradients between both inverses, of the norms that they had."""
        leaves = jax.tree.leaves(updates)
        groups: dict[Any, list[tuple[Layer, tuple[jax.Array, ...]]]] = {}
        for layer, *factors in zip(
            self.find(updates), jax.tree.leaves(right), jax.tree.leaves(left), strict=True
        ):
            g, view = leaves[layer.kernel], layer.view
            if g.size == 0:
                continue
            matrix, others = view.split(upcast(g), "out"), tuple(factors)
            if layer.bias is not None:
                bias = upcast(leaves[layer.bias])
                for axis in range(bias.ndim):
                    bias = whole_along(bias, axis)
                column = bias.reshape(*view.batch_shape, view.fan_out, 1)
                others += (place_statistic(column, matrix),)
            key = (matrix.shape[-2:], matrix.dtype, tuple((x.shape[-1], x.dtype) for x in others))
            groups.setdefault(key, []).append((layer, (matrix, *others)))
        for (axes, *_), members in groups.items():
            columns = list(zip(*(arrays for _, arrays in members), strict=True))
            done = run_tensors(
                self._between, axes, columns[:1], columns[1:], results=1, group_bytes=None
            )
            for (layer, _), moved in zip(members, done, strict=True):
                g = leaves[layer.kernel]
                kernel = layer.view.merge(moved[0], "out")
                leaves[layer.kernel] = place_like(kernel, g).astype(g.dtype)
                if layer.bias is not None:
                    b = leaves[layer.bias]
                    leaves[layer.bias] = place_like(moved[1].reshape(b.shape), b).astype(b.dtype)
        return jax.tree.unflatten(jax.tree.structure(updates), leaves)

    def _between(
        self, kernel: jax.Array, right: jax.Array, left: jax.Array, *bias: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Returns gradients ``(*batch, fan_out, fan_in)`` and of biases between their inverses."""
        before = [kernel, *bias]
        moved = jnp.matmul(upcast(left), jnp.concatenate(before, -1), precision="highest")
        moved = jnp.matmul(moved, upcast(right), precision="highest")
        after = [moved[..., : kernel.shape[-1]], moved[..., kernel.shape[-1] :]][: len(before)]
        return tuple(_restored(before, after, self.restore_norm))


def _sibling(path: str, name: str | None) -> str | None:
    if name is None:
        return None
    parent, _, _ = path.rpartition("/")
    return f"{parent}/{name}" if parent else name


def _restored(parts: list[jax.Array], after: list[jax.Array], kind: RestoreNorm) -> list[jax.Array]:
    """Gives the parts of each layer the norm that they had before; zeros stay as they were."""
    if kind == "none":
        return after

    def total(arrays: list[jax.Array]) -> jax.Array:
        norms = [frobenius_norm(x) for x in arrays]
        if kind == "sum":
            return sum(norms[1:], norms[0])
        return jnp.hypot(norms[0], norms[1]) if len(norms) > 1 else norms[0]

    before, now = total(parts), total(after)
    scale = before / jnp.where(now > 0, now, 1.0)
    return [jnp.where(now > 0, x * scale, g) for x, g in zip(after, parts, strict=True)]
