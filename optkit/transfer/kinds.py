"""Which leaves grow with the width, and on which side: read off the shapes of two models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import jax
import numpy as np

from optkit.tree import (
    MATRIX_ROLES,
    PyTree,
    Role,
    RoleRule,
    RuleLike,
    Selector,
    leaves_with_paths,
    matrix_view,
    rule_of,
    selects,
)
from optkit.tree.selection import check_selects

Kind = Literal["input", "hidden", "output", "vector", "fixed"]
KindRule = tuple[Selector, Kind]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Growth:
    """What a leaf is to the width.

    Attributes:
      path: its path.
      shape: its shape in the larger model.
      kind: "input" (only outputs grow), "hidden" (both), "output" (only inputs), "vector", "fixed".
      width: how many times as wide: the inputs of "hidden" and "output", else the outputs.
    """

    path: str
    shape: Shape
    kind: Kind
    width: float


def growths(
    base: PyTree,
    params: PyTree,
    *,
    wider: PyTree | None = None,
    rules: Sequence[KindRule] = (),
    roles: Sequence[RuleLike] = (),
) -> list[Growth]:
    """Compares a model with its base leaf by leaf.

    Args:
      base: parameters of the base model, or their shapes.
      params: those of the model that is trained, of the same depth.
      wider: shapes of the model at any other width: they tell which axes grow where ``base`` and
        ``params`` are of the same.
      rules: your own ``(selector, kind)``, before what shapes say; first match wins.
      roles: your own ``(pattern, role)`` rules, which say what are inputs and outputs.

    Returns:
      One ``Growth`` a leaf. Where nothing grows at all and ``wider`` is not given, roles decide.

    Raises:
      ValueError: leaves differ in path or rank; a leaf can be read in two ways.
    """
    for name, tree in (("base", base), ("params", params), ("wider", wider)):
        odd = [leaf for leaf in jax.tree.leaves(tree) if not hasattr(leaf, "shape")]
        if any(not isinstance(leaf, int | float) for leaf in odd):
            raise TypeError(
                f"{name} must be a tree of arrays or shapes, and has {type(odd[0]).__name__} in "
                "it: of a model give its parameters, such as jax.eval_shape(model.init, key, x) or "
                "nnx.state(model, nnx.Param)"
            )
    held, here = _shapes(base), _shapes(params)
    seen = held if wider is None else _shapes(wider)
    for selector, wanted in rules:
        if wanted not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(f"rule {selector!r} -> {wanted!r}: kinds are {known}")
        check_selects("rules", selector, params, roles)
    _check_same(held, here, "base")
    _check_same(seen, here, "wider")
    still = is_still(base, params, wider)
    out = []
    kind: Kind
    for path, leaf in leaves_with_paths(params):
        old, shape, other = held[path], here[path], seen[path]
        forced = next((k for s, k in rules if selects(s, path, leaf, roles)), None)
        rule = rule_of(path, leaf, roles)
        sides = _sides(path, leaf, rule)
        if forced is not None:
            kind = forced
        elif still:
            kind = _by_role(rule.role)
        else:
            # The axes that grow between base and params, or between either and a third model.
            grow = [{a for a in side if len({old[a], shape[a], other[a]}) > 1} for side in sides]
            kind = _kind(path, shape, old, rule.role, *grow)
        out.append(Growth(path, shape, kind, _width(kind, shape, old, *sides)))
    return out


def is_still(base: PyTree, params: PyTree, wider: PyTree | None) -> bool:
    """Tells whether nothing says which axes grow."""
    held = _shapes(base)
    return held == _shapes(params) and (wider is None or held == _shapes(wider))


def _shapes(tree: PyTree) -> dict[str, Shape]:
    return {path: tuple(np.shape(leaf)) for path, leaf in leaves_with_paths(tree)}


def _check_same(held: dict[str, Shape], here: dict[str, Shape], what: str) -> None:
    for path in [*here, *held]:
        if path not in held or path not in here:
            where = ("params", what) if path in here else (what, "params")
            raise ValueError(
                f"leaf {path!r} is in {where[0]} and not in {where[1]}; make {what} of the same "
                "depth and kind, only of another width (under jax.eval_shape it costs nothing)"
            )
        if len(held[path]) != len(here[path]):
            raise ValueError(
                f"leaf {path!r} has shape {here[path]} in params and {held[path]} in {what}: "
                f"another rank; make {what} by the same model of another width"
            )


def _sides(path: str, leaf: object, rule: RoleRule) -> tuple[Shape, Shape, Shape]:
    """Axes of inputs, of outputs, and of stacks of matrices."""
    rank = np.ndim(leaf)  # type: ignore[arg-type]  # an array or its shape
    if rule.role in MATRIX_ROLES and rank >= 2:
        view = matrix_view(leaf, rule.dims, path=path, role=rule.role)
        return view.in_axes, view.out_axes, view.batch_axes
    if rule.role in (Role.EMBEDDING, Role.HEAD) and rank >= 2:
        # (vocabulary, width) and (width, classes); what comes before is counted with the inputs.
        return tuple(range(rank - 1)), (rank - 1,), ()
    return (), tuple(range(rank)), ()


def _kind(
    path: str, shape: Shape, old: Shape, role: Role, ins: set[int], outs: set[int], stack: set[int]
) -> Kind:
    if stack:
        why = (
            f"axis {min(stack)} is read as a stack of layers, experts or heads and grows; make "
            "base with as many, or say by roles= which axes are inputs and outputs"
        )
        _refuse(path, shape, old, why)
    if role in (Role.NORM, Role.BIAS):
        if len(outs) > 1:
            _refuse(path, shape, old, f"its role is {role}, yet {len(outs)} of its axes grow")
        return "vector" if outs else "fixed"
    kind: Kind = "hidden" if ins and outs else "output" if ins else "input" if outs else "fixed"
    if role == Role.HEAD and kind in ("input", "hidden"):
        _refuse(path, shape, old, f"its role is {role}, yet its outputs grow")
    if role == Role.EMBEDDING and kind in ("output", "hidden"):
        _refuse(path, shape, old, f"its role is {role}, yet its entries grow in number")
    return "vector" if kind == "input" and len(shape) == 1 else kind


def _refuse(path: str, shape: Shape, old: Shape, why: str) -> NoReturn:
    raise ValueError(
        f"leaf {path!r}, {old} in the base and {shape} here, can be read in two ways: {why}; "
        f'decide by rules=[({path!r}, "hidden")] or "input", "output", "vector", "fixed"'
    )


def _by_role(role: Role) -> Kind:
    known: dict[Role, Kind] = {Role.EMBEDDING: "input", Role.HEAD: "output"}
    return "hidden" if role in MATRIX_ROLES else known.get(role, "vector")


def _width(kind: Kind, shape: Shape, old: Shape, ins: Shape, outs: Shape, stack: Shape) -> float:
    def ratio(axes: Shape) -> float:
        below = math.prod(old[axis] for axis in axes)
        return math.prod(shape[axis] for axis in axes) / below if below else 1.0

    if kind == "fixed":
        return 1.0
    inner, outer = ratio(ins), ratio(outs)
    if kind in ("hidden", "output"):
        return inner if inner != 1.0 else outer
    return outer if outer != 1.0 else inner
