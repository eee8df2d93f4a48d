"""What a function does with each of its parameters: which axes it sums over, what stays shared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from optax.contrib import MuonDimensionNumbers

from optkit.evolution.interpreter.apply import materialized, recorded_apply
from optkit.evolution.interpreter.carried import Use
from optkit.evolution.perturbed import Perturbed
from optkit.tree import Dims, PyTree, Role, dims_by_path, leaves_with_paths, matrix_view, rule_of

Sides = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ExplainedLeaf:
    """How a function uses one parameter.

    Attributes:
      path: its path.
      shape: its shape.
      left: axes of its outputs, those of the factor ``a``; empty if it has no factors.
      right: axes that products sum over, or lookups index, those of ``b``.
      uses: the operations that use it, by JAX's names, with how often.
      reason: what needs it in full, and where; empty if nothing does.
    """

    path: str
    shape: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    uses: str
    reason: str

    @property
    def low_rank(self) -> bool:
        """Tells whether low-rank noise on it is never made in full."""
        return bool(self.left and self.right) and not self.reason


@dataclass(frozen=True)
class Explanation:
    """The table that ``explain`` makes; ``print`` it or read its fields.

    Attributes:
      rows: one ``ExplainedLeaf`` a leaf, in flattening order.
      notes: leaves that are used in ways that ask for different factors.
    """

    rows: tuple[ExplainedLeaf, ...]
    notes: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, Sides]:
        """Axes ``(left, right)`` of the factors of each leaf that has them, by path."""
        return {row.path: (row.left, row.right) for row in self.rows if row.left and row.right}

    def dims(self, params: PyTree) -> PyTree:
        """Returns the axes as dimension numbers, the form in which noise and optimizers take them.

        Args:
          params: the parameters that were explained, or shapes.

        Returns:
          A tree like ``params``: ``optax.contrib.MuonDimensionNumbers``, or None for noise in full.
        """
        found = self.axes
        numbers = [
            MuonDimensionNumbers(found[path][1], found[path][0]) if path in found else None
            for path, _ in leaves_with_paths(params)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), numbers)

    @property
    def materialized(self) -> tuple[str, ...]:
        """Paths of the leaves with factors that are made in full all the same."""
        return tuple(row.path for row in self.rows if row.path in self.axes and row.reason)

    def __str__(self) -> str:
        columns = {
            "path": [row.path or "(root)" for row in self.rows],
            "shape": ["x".join(map(str, row.shape)) or "scalar" for row in self.rows],
            "right -> left": [_sides(row) for row in self.rows],
            "noise": ["low-rank" if row.low_rank else "full" for row in self.rows],
            "used by": [row.uses or "-" for row in self.rows],
            "made in full by": [row.reason or "-" for row in self.rows],
        }
        if not any(row.reason for row in self.rows):
            del columns["made in full by"]
        table = [[name, *cells] for name, cells in columns.items()]
        padded = [[cell.ljust(max(map(len, side))) for cell in side] for side in table]
        lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
        count = sum(row.low_rank for row in self.rows)
        total = f"{count} of {len(self.rows)} leaves can have low-rank noise"
        width = max(map(len, lines))
        return "\n".join([lines[0], "-" * width, *lines[1:], total, *self.notes])


def _sides(row: ExplainedLeaf) -> str:
    if not (row.left and row.right):
        return "-"
    return " -> ".join(",".join(map(str, side)) for side in (row.right, row.left))


def explain(
    fn: Callable[..., Any], params: PyTree, *args: Any, dims: Dims = None, **kwargs: Any
) -> Explanation:
    """Returns a table of how ``fn`` uses each parameter of one member; computes nothing.

    1. ``fn`` is traced, and each parameter followed to where it is used. The axes that products
       and convolutions sum over, or else lookups index, are one side of its factors, those of the
       outputs the other; stacked layers and experts are neither.
    2. With these factors it is traced again: what has to be made in full is told, with the line.

    Args:
      fn: any function of JAX operations; its first argument is a tree of parameters.
      params: parameters of one member, or ``jax.ShapeDtypeStruct``s.
      *args: further arguments for one member, arrays or shapes.
      dims: ``MuonDimensionNumbers`` by leaf, as all matrix methods take them, in the place of what
        is discovered; None for a leaf means noise in full.
      **kwargs: passed on as they are.

    Returns:
      An ``Explanation``: ``print`` it; ``.axes`` are the sides by path, ``.materialized`` the paths
      for which low-rank noise would be made in full, and ``.dims(params)`` is for
      ``population_perturb(..., dims=...)``, which else goes by names and ranks.

    Raises:
      TypeError: ``fn`` branches in Python on the value of a parameter or argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import explain
      >>> params = {"embed": jnp.zeros((16, 4)), "up": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}
      >>> model = lambda p, token: jnp.tanh(p["embed"][token] @ p["up"] + p["bias"])
      >>> print(explain(model, params, jnp.array(3)))
      path   shape  right -> left  noise     used by
      --------------------------------------------------
      bias   8      -              full      -
      embed  16x4   0 -> 1         low-rank  dot_general
      up     4x8    0 -> 1         low-rank  dot_general
      2 of 3 leaves can have low-rank noise
    """
    uses = _uses(fn, params, args, kwargs, {})
    sides, notes = _discovered(params, uses, dims)
    again = _uses(fn, params, args, kwargs, sides)
    rows = []
    for path, leaf in leaves_with_paths(params):
        left, right = sides.get(path, ((), ()))
        seen = [use for use in (again if path in sides else uses) if use.path == path]
        rows.append(_row(path, tuple(leaf.shape), left, right, seen))
    return Explanation(tuple(rows), tuple(notes))


def discover_axes(
    fn: Callable[..., Any], params: PyTree, *args: Any, dims: Dims = None, **kwargs: Any
) -> dict[str, Sides]:
    """Returns which axes of each parameter its factors have, by how ``fn`` uses it.

    Args:
      fn: any function of JAX operations; its first argument is a tree of parameters.
      params: parameters of one member, or shapes.
      *args: further arguments for one member, arrays or shapes.
      dims: as in ``explain``.
      **kwargs: passed on as they are.

    Returns:
      ``{path: (left, right)}``; leaves that no product, convolution or lookup uses are left out.

    Raises:
      TypeError: ``fn`` branches in Python on the value of a parameter or argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import discover_axes
      >>> heads = lambda p, x: jnp.einsum("bd,dhk->bhk", x, p["query"])
      >>> discover_axes(heads, {"query": jnp.zeros((4, 2, 3))}, jnp.zeros((5, 4)))
      {'query': ((1, 2), (0,))}
    """
    return _discovered(params, _uses(fn, params, args, kwargs, {}), dims)[0]


def _uses(
    fn: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sides: dict[str, Sides],
) -> list[Use]:
    """Traces a function, with factors on the given axes; on all, for leaves that are not named."""
    uses: list[Use] = []
    given, argdef = jax.tree.flatten(args)
    traced = [index for index, value in enumerate(given) if hasattr(value, "shape")]

    def run(leaves: PyTree, values: list[Any]) -> None:
        filled = {**dict(enumerate(given)), **dict(zip(traced, values, strict=True))}
        rest = jax.tree.unflatten(argdef, [filled[index] for index in range(len(given))])
        uses.extend(recorded_apply(fn, leaves, rest, kwargs)[1].uses)

    def leaf(path: str, value: Any) -> Any:
        if not (value.shape and jnp.issubdtype(value.dtype, jnp.floating)):
            return value
        left, right = sides.get(path, ((), ()))
        shapes = (
            [size for axis, size in enumerate(value.shape) if axis not in other]
            for other in (right, left)
        )
        a, b = (jax.ShapeDtypeStruct((*shape, 1), value.dtype) for shape in shapes)
        return Perturbed(value, a, b, jax.ShapeDtypeStruct((), jnp.float32), left, right)

    named = leaves_with_paths(params)
    tree = jax.tree.unflatten(jax.tree.structure(params), [leaf(*pair) for pair in named])
    jax.eval_shape(run, tree, [given[index] for index in traced])
    return uses


def _discovered(params: PyTree, uses: list[Use], dims: Dims) -> tuple[dict[str, Sides], list[str]]:
    """Returns the sides of each leaf, and notes about leaves that are used in several ways."""
    named = dims_by_path(params, dims)
    sides: dict[str, Sides] = {}
    notes = []
    for path, leaf in leaves_with_paths(params):
        given = dims if named is None else named[path]
        if dims is not None:
            if given is not None and len(leaf.shape) > 1:
                view = matrix_view(leaf, given, path=path)
                sides[path] = (view.out_axes, view.in_axes)
            continue
        ways = list(dict.fromkeys(_ways(path, leaf, uses)))
        if ways:
            sides[path] = ways[0]
        if len({frozenset(way) for way in ways}) > 1:
            told = " and ".join(f"{right} -> {left}" for left, right in ways)
            notes.append(f"{path!r} is used as {told}; its factors are of the first")
    return sides, notes


def _ways(path: str, leaf: Any, uses: list[Use]) -> Iterator[Sides]:
    """Yields the sides that each use of a leaf asks for, those of products first."""
    rule = rule_of(path, leaf)
    batch: set[int] = set()
    if len(leaf.shape) > 2 and rule.role in (Role.EXPERT, Role.STACKED):
        batch = {*matrix_view(leaf, rule.dims, path=path, role=rule.role).batch_axes}
    for kind in ("contracted", "looked up"):
        for use in uses:
            right = use.contracted - use.batch
            left = use.free - use.batch - right
            if use.path != path or use.kind != kind or not (left and right):
                continue
            if kind == "looked up" and rule.role in (Role.BIAS, Role.NORM):
                continue  # vectors of layers, one picked by a loop
            # Experts that all see the same input are outputs of the product, and stay apart.
            left = left - batch or left
            yield tuple(sorted(left)), tuple(sorted(right))


def _row(
    path: str,
    shape: tuple[int, ...],
    left: tuple[int, ...],
    right: tuple[int, ...],
    uses: list[Use],
) -> ExplainedLeaf:
    names = [use.primitive for use in uses if use.kind != "materialized"] if left else []
    counted = [
        name + (f" x{names.count(name)}" if names.count(name) > 1 else "")
        for name in dict.fromkeys(names)
    ]
    role = rule_of(path, jax.ShapeDtypeStruct(shape, jnp.float32)).role
    plain = not left and role in (Role.BIAS, Role.NORM)  # nobody would give it factors
    reasons = [] if plain else [line.split(" by ", 1)[1] for line in materialized(uses)]
    return ExplainedLeaf(path, shape, left, right, ", ".join(counted), "; ".join(reasons))
