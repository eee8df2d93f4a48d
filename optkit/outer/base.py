"""What every outer step is, and how it reaches replicas: stacked, or each along a mesh axis."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optkit.distributed.workers import (
    AxisName,
    as_varying,
    axes_of,
    check_uncut,
    count_workers,
)
from optkit.outer.checks import (
    check_averages,
    check_coordinates,
    check_inside,
    check_leaves,
    check_outside,
)
from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.hyperparams import check_choice
from optkit.tree import PyTree, compute_dtype, leaves_with_paths, upcast
from optkit.tree.sharding import place_like


@dataclasses.dataclass(frozen=True, eq=False)
class OuterStep:
    """What leads replicas that work on their own for many steps.

    The host calls ``step`` every so many inner steps, in a jitted function of its own. Parameters
    are set outright: as an update that is added, rounding would set replicas apart.

    Attributes:
      init: parameters -> state. Parameters are stacked along a leading axis of replicas, or those
        of one replica where the method has an ``axis_name``.
      step: (parameters, state) -> new parameters and state.
    """

    init: Callable[[PyTree], Any]
    step: Callable[..., tuple[PyTree, Any]]


def check_floats(params: PyTree) -> None:
    """Raises TypeError at leaves that have no mean of their own kind, such as counters."""
    for path, leaf in leaves_with_paths(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params has {jnp.result_type(leaf)} at leaf {path!r}: an outer step moves floats; "
                "keep other leaves beside the parameters"
            )


def fine(x: jax.Array) -> jax.Array:
    """A copy in float32 or better, so that it can be donated beside what it is a copy of."""
    return jnp.array(x, compute_dtype(x))


def _summed(tree: PyTree, names: tuple[str, ...]) -> PyTree:
    """Sums over named axes, in the arrays' dtypes.

    XLA's compiler for CPUs aborts at sums in 16 bits while some axes of a mesh are not manual.
    There they are summed in float32, after the same rounding of what is sent.
    """

    def wide(tree: PyTree) -> PyTree:
        sums = lax.psum(jax.tree.map(upcast, tree), names)
        return jax.tree.map(lambda s, x: s.astype(x.dtype), sums, tree)

    mesh = jax.sharding.get_abstract_mesh()
    if set(mesh.manual_axes) in (set(), set(mesh.axis_names)):
        return lax.psum(tree, names)
    return lax.platform_dependent(tree, cpu=wide, default=lambda tree: lax.psum(tree, names))


@dataclasses.dataclass(frozen=True)
class Replicas:
    """Where replicas are: along the leading axis of every array, or along named axes."""

    axis_name: AxisName
    who: str
    coordinates_axis: AxisName = None

    def __post_init__(self) -> None:
        """Refuses what is no name of an axis, and axes of parts without those of replicas."""
        check_coordinates(self.axis_name, self.coordinates_axis)

    @property
    def stacked(self) -> bool:
        """Whether they are along a leading axis."""
        return self.axis_name is None

    def count(self, params: PyTree) -> int:
        """Returns how many there are, or raises ValueError where leading axes differ."""
        check_floats(params)
        if not self.stacked:
            check_inside(self.axis_name, self.who)
            return count_workers(self.axis_name)
        check_outside(self.who)
        named = leaves_with_paths(params)
        if not named:
            raise ValueError(f"{self.who} was given no parameters")
        count = jnp.shape(named[0][1])[:1]
        for path, leaf in named:
            if not jnp.ndim(leaf) or jnp.shape(leaf)[:1] != count:
                raise ValueError(
                    f"params has shape {jnp.shape(leaf)} at leaf {path!r}: {self.who} without an "
                    "axis_name takes replicas stacked along a leading axis, the same for all "
                    "leaves; see optkit.replicas"
                )
        return int(count[0])

    def first(self, params: PyTree) -> PyTree:
        """Returns the parameters of the first replica, in float32 or better, known to all.

        By a sum of one of them and zeros: no rounding, and types can tell that it is common.
        """
        count = self.count(params)

        def leaf(x: jax.Array) -> jax.Array:
            if not self.stacked:
                here = lax.axis_index(axes_of(self.axis_name)) == 0
                return lax.psum(jnp.where(here, fine(x), 0.0), axes_of(self.axis_name))
            chosen = (np.arange(count) == 0).reshape(count, *[1] * (jnp.ndim(x) - 1))
            return jnp.sum(jnp.where(chosen, fine(x), 0.0), axis=0)

        return jax.tree.map(leaf, params) if count > 1 else jax.tree.map(self._only, params)

    def _only(self, x: jax.Array) -> jax.Array:
        return fine(x)[0] if self.stacked else lax.psum(fine(x), axes_of(self.axis_name))

    def beside(self, common: jax.Array) -> jax.Array:
        """Returns what all have in common with axes to be combined with what each has."""
        return common[None] if self.stacked else common

    def displacement(self, anchor: PyTree, params: PyTree) -> PyTree:
        """Returns where each replica started minus where it is.

        It started at the anchor in the parameters' own dtype: what rounding took is no movement.
        """
        self.check(anchor, params)
        return jax.tree.map(
            lambda a, p: upcast(self.beside(a).astype(p.dtype)) - upcast(p), anchor, params
        )

    def check(self, anchor: PyTree, params: PyTree) -> None:
        """Raises ValueError unless parameters are those that a state was made for."""
        self.count(params)
        check_leaves(anchor, params, self.who)
        for (path, a), (_, p) in zip(
            leaves_with_paths(anchor), leaves_with_paths(params), strict=True
        ):
            own = p.shape[1:] if self.stacked else p.shape
            if a.shape != own:
                raise ValueError(
                    f"params has shape {p.shape} at leaf {path!r} where the state of {self.who} "
                    f"has {a.shape}: give parameters as init got them, "
                    + (
                        "stacked along a leading axis of replicas"
                        if self.stacked
                        else "those of one replica"
                    )
                )

    def mean(self, tree: PyTree, wire_dtype: Any) -> PyTree:
        """Averages over replicas; what is sent is in ``wire_dtype``."""
        if not jax.tree.leaves(tree):
            return tree
        sent = jax.tree.map(lambda x: x.astype(wire_dtype or x.dtype), tree)
        if self.stacked:
            # jnp.sum would widen 16 bits again before the exchange.
            sums = jax.tree.map(lambda x: lax.reduce(x, np.zeros((), x.dtype), lax.add, (0,)), sent)
            sizes = jax.tree.map(lambda x: x.shape[0], sent)
        else:
            sums = _summed(sent, axes_of(self.axis_name))
            sizes = jax.tree.map(lambda _: count_workers(self.axis_name), sent)
        return jax.tree.map(lambda s, n, x: s.astype(x.dtype) / n, sums, sizes, tree)

    def any_part(self, bad: jax.Array, tree: PyTree) -> jax.Array:
        """Adds up 0 for sound and more for others over the devices that hold a replica's parts."""
        why = f"{self.who} with nonfinite='skip' asks whether all of a replica is finite"
        check_uncut(tree, self.axis_name, self.coordinates_axis, why, "replicas", "a model")
        names = axes_of(self.coordinates_axis)
        return lax.psum(as_varying(bad, names), names) if names else bad

    def total(self, scalar: jax.Array) -> jax.Array:
        """Adds up what replicas along axes have each; of a stack it is one number already."""
        return scalar if self.stacked else _summed(scalar, axes_of(self.axis_name))

    def lead(self, anchor: PyTree, params: PyTree) -> PyTree:
        """Returns all replicas at the anchor, in their dtypes."""

        def leaf(a: jax.Array, p: jax.Array) -> jax.Array:
            new = a.astype(p.dtype)
            if not self.stacked:
                return as_varying(new, self.axis_name)
            return place_like(jnp.broadcast_to(new[None], p.shape), p)

        return jax.tree.map(leaf, anchor, params)


@dataclasses.dataclass(frozen=True)
class Averaging:
    """How displacements of replicas are averaged, and what that remembers."""

    among: Replicas
    wire_dtype: Any = None
    by: Transformation | None = None
    skips: bool = False

    def init(self, anchor: PyTree) -> PyTree:
        """Returns the memory of the transformation that averages, which is seen to do so."""
        if self.by is None:
            return None
        state = self.by.init(anchor)
        # Types know an anchor as common to all, and a displacement as each one's own.
        given = as_varying(anchor, self.among.axis_name), state, anchor
        check_averages(self.by.update, given, self.among.axis_name, self.among.who)
        return state

    def __call__(self, displacement: PyTree, state: PyTree, anchor: PyTree) -> tuple[PyTree, Any]:
        """Returns the mean over replicas, and the new memory.

        One that skips gives NaN in all entries and the old memory if any replica's is not finite.
        """
        if self.by is None:
            return self.among.mean(displacement, self.wire_dtype), state
        moved, kept = self.by.update(displacement, state, anchor)
        if self.skips and jax.tree.leaves(moved):
            # Codes of a few bits would say something finite of what is not, and remember it.
            bad = jnp.where(is_finite(displacement), 0.0, 1.0)
            sound = self.among.any_part(self.among.total(bad), displacement) == 0
            moved = jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), moved)
            kept = chosen(sound, kept, state)
        return moved, kept

    def is_sound(self, moved: PyTree) -> jax.Array:
        """Returns whether a mean is finite in all its parts, wherever these are; a bool scalar."""
        bad = jnp.where(is_finite(moved), 0.0, 1.0)
        return self.among.any_part(bad, moved) == 0


def is_finite(tree: PyTree) -> jax.Array:
    """Returns whether all entries are, a bool scalar."""
    parts = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, parts, jnp.array(True))


def chosen(keep: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns one of two trees, leaf by leaf: an exchange in a branch would not be one of all."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def averaging(
    who: str,
    axis_name: AxisName,
    wire_dtype: Any,
    mean: Any,
    nonfinite: Any = "propagate",
    coordinates_axis: AxisName = None,
) -> Averaging:
    """Checks how replicas are to be averaged."""
    among = Replicas(axis_name, who, coordinates_axis)
    check_choice("nonfinite", nonfinite, ("propagate", "skip"))
    skips = nonfinite == "skip"
    if wire_dtype is not None:
        try:
            known = jnp.issubdtype(jnp.dtype(wire_dtype), jnp.floating)
        except TypeError:
            known = False
        if not known:
            raise ValueError(
                f"wire_dtype={wire_dtype!r} must be a type of floats such as 'bfloat16'"
            )
        wire_dtype = jnp.dtype(wire_dtype)
    if mean is None:
        return Averaging(among, wire_dtype, skips=skips)
    if wire_dtype is not None:
        raise ValueError(
            f"wire_dtype={str(wire_dtype)!r} is for plain means: what mean sends is its own "
            "affair; give one of the two"
        )
    if among.stacked:
        raise ValueError(
            "mean averages over a named axis: give axis_name, the same as in mean, and call init "
            "and step for one replica, inside optkit.on_replicas or jax.shard_map"
        )
    return Averaging(among, None, check_transformation("mean", mean), skips)
