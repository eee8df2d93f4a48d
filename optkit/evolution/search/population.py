"""What the searches share: ranks, the box that members stay in, and parameters as one vector."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.evolution.deviation import check_deviation
from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import PyTree, compute_dtype, leaves_with_paths, upcast
from optkit.tree.sharding import mesh_of, place, place_like, spec_of

Boundary = Literal["resample", "penalty"]
Bounds = tuple[Any, Any]


def costs_of(fitness: jax.Array, maximize: bool) -> jax.Array:
    """Returns what is to be low: infinite for members without a finite fitness."""
    return jnp.where(jnp.isfinite(fitness), -fitness if maximize else fitness, jnp.inf)


def check_floats(params: PyTree, method: str) -> int:
    """Returns the number of parameters, or raises ValueError with the path of what is no float."""
    for path, leaf in leaves_with_paths(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf {path!r} is of {leaf.dtype}, which {method} can't move; give it the float "
                "parameters alone and merge the others into what you evaluate"
            )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not size:
        raise ValueError(f"{method} was given no parameters; give a tree with at least one float")
    return size


def ravel(tree: PyTree, batch: int = 0) -> jax.Array:
    """Returns the leaves in their order as one vector, ``(*leading, d)`` in float32 or better."""
    leaves = [_whole(leaf) for leaf in jax.tree.leaves(tree)]
    dtype = compute_dtype(*leaves)
    return jnp.concatenate([x.astype(dtype).reshape(*x.shape[:batch], -1) for x in leaves], axis=-1)


def _whole(x: jax.Array) -> jax.Array:
    """A leaf that is spread over Explicit axes, on every device: matrices of it are small."""
    return x if spec_of(x) is None else place(x, mesh_of(x), PartitionSpec())


def unravel(vectors: jax.Array, like: PyTree) -> PyTree:
    """Returns vectors ``(*leading, d)`` as a tree of leaves ``(*leading, *shape)``."""
    leaves, structure = jax.tree.flatten(like)
    out, start = [], 0
    for leaf in leaves:
        part = vectors[..., start : start + leaf.size]
        made = part.reshape(*vectors.shape[:-1], *leaf.shape).astype(leaf.dtype)
        out.append(made if vectors.ndim > 1 else place_like(made, leaf))
        start += leaf.size
    return jax.tree.unflatten(structure, out)


def given_members(members: PyTree, params: PyTree, population: int) -> PyTree:
    """Returns the members that were really evaluated, or raises ValueError with the paths."""
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct((population, *p.shape), p.dtype), params)
    check_same_leaves(like, members, "members", shapes=True)
    return jax.tree.map(jnp.asarray, members)


@dataclass(frozen=True)
class Box:
    """The values that parameters may have, and what becomes of members outside.

    Attributes:
      low: tree like the parameters, least values.
      high: tree like the parameters, largest values.
      boundary: "resample" draws members outside anew, and clips what stays outside for the
        evaluation; "penalty" clips at once, and makes members worse by how far outside they
        were.
      resamples: draws of a member at most.
    """

    low: PyTree
    high: PyTree
    boundary: Boundary
    resamples: int

    def clip(self, tree: PyTree) -> PyTree:
        """Returns parameters or members inside."""

        def leaf(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
            sides = (jnp.broadcast_to(side, x.shape) for side in (low, high))
            return jnp.clip(x, *sides).astype(x.dtype)

        return jax.tree.map(leaf, tree, self.low, self.high)

    def drawn(self, draw: Callable[[Any], PyTree], placed: Callable[[PyTree], PyTree]) -> PyTree:
        """Returns noise ``draw(trial)``, anew for members outside if that is the rule.

        Args:
          draw: noise of all members, for the number of a trial.
          placed: the members that noise makes.
        """
        first = draw(0)
        if self.boundary == "penalty":
            return first

        def again(trial: Any, held: PyTree) -> PyTree:
            def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
                return jnp.where(lost.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            lost = self._outside(placed(held))
            return jax.tree.map(leaf, held, draw(trial))

        return jax.lax.fori_loop(1, self.resamples, again, first)

    def _outside(self, members: PyTree) -> jax.Array:
        def leaf(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
            return jnp.any(((x < low[None]) | (x > high[None])).reshape(x.shape[0], -1), axis=1)

        found = jax.tree.leaves(jax.tree.map(leaf, members, self.low, self.high))
        return jnp.any(jnp.stack(found), axis=0)

    def penalized(self, costs: jax.Array, members: PyTree, deviations: PyTree) -> jax.Array:
        """Returns costs with a penalty for members that had to be clipped.

        It is twice the interquartile range of the costs, times the mean over parameters of the
        squared distance in deviations, so that units of the fitness do not matter.
        """
        if self.boundary != "penalty":
            return costs

        def leaf(x: jax.Array, inside: jax.Array, deviation: jax.Array) -> jax.Array:
            far = (upcast(x) - upcast(inside)) / deviation[None]
            return jnp.sum(jnp.square(far).reshape(x.shape[0], -1), axis=1)

        parts = jax.tree.leaves(jax.tree.map(leaf, members, self.clip(members), deviations))
        size = sum(x.size // x.shape[0] for x in jax.tree.leaves(members))
        far = jnp.sum(jnp.stack(parts), axis=0) / size
        finite = jnp.where(jnp.isfinite(costs), costs, jnp.nan)
        low, high = jnp.nanquantile(finite, jnp.array([0.25, 0.75], costs.dtype))
        spread = jnp.where(high > low, high - low, 1.0)  # NaN, too, where none is finite
        return costs + (2.0 * spread * far).astype(costs.dtype)


def unless_lost(costs: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns what was learnt, or what was there if no member has a finite cost."""
    found = jnp.isfinite(costs).any()
    return jax.tree.map(lambda x, y: jnp.where(found, x, y), new, old)


def check_bounds(bounds: Bounds | None, boundary: Boundary, resamples: int) -> None:
    """Raises ValueError unless the options of a box can be used."""
    check_choice("boundary", boundary, ("resample", "penalty"))
    check_static_int("resamples", resamples)
    if bounds is None:
        return
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(
            f"bounds={bounds!r} is not a pair (low, high); give two numbers, or two trees like the "
            "parameters"
        )
    numbers = [side for side in bounds if isinstance(side, int | float)]
    for side in numbers:
        check_number("bounds", side, infinite=True)
    if len(numbers) == 2 and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds={bounds!r}: the low one has to be below the high one")


def box_of(
    bounds: Bounds | None, boundary: Boundary, resamples: int, params: PyTree, *, flat: bool
) -> Box | None:
    """Returns the box of some parameters; for ``flat``, of them as one vector."""
    if bounds is None:
        return None

    def side(name: str, given: Any) -> PyTree:
        single = isinstance(given, int | float) or getattr(given, "shape", None) == ()
        if not single:
            check_same_leaves(params, given, f"{name} of bounds")
        tree = jax.tree.map(
            lambda p, x: jnp.broadcast_to(jnp.asarray(x, compute_dtype(p)), p.shape),
            params,
            jax.tree.map(lambda _: given, params) if single else given,
        )
        return ravel(tree) if flat else tree

    return Box(side("low", bounds[0]), side("high", bounds[1]), boundary, resamples)


def check_population(population: int | None) -> None:
    """Raises unless a population is None or at least two."""
    if population is not None:
        check_static_int("population", population, low=2)


def check_sigma(sigma: Any) -> None:
    """Raises ValueError unless the first deviation is a number above 0."""
    check_deviation(sigma)
    if callable(sigma):
        raise ValueError(
            "sigma is a schedule, and this search adapts its deviation itself; give the first value"
        )


def grown(sigma: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``sigma * exp(exponent)``, at most e times as large, where it can be divided by."""
    least = float(jnp.finfo(sigma.dtype).tiny) * 1e4
    return jnp.clip(sigma * jnp.exp(jnp.minimum(exponent, 1.0)), least, 1e32)


def stalled(constants: Any, norm: jax.Array, step: jax.Array) -> jax.Array:
    """Returns 1 where the path of the step size is not too long for the rank-one update, else 0."""
    k = constants
    past = 2.0 * (step + 2).astype(norm.dtype)
    started = -jnp.expm1(past * math.log1p(-k.c_sigma)) if k.c_sigma < 1 else jnp.ones(())
    limit = (1.4 + 2.0 / (k.dimension + 1)) * k.chi_n
    return (norm / jnp.sqrt(started) < limit).astype(norm.dtype)
