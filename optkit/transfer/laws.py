"""What a law of transfer says of each leaf: a table that prints, multiplies and builds routes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import jax
import numpy as np
import optax

from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.recording import RouteRecord, present
from optkit.transforms.route import build_route
from optkit.tree import PyTree, leaves_with_paths

_HEADS = {
    "width": "width",
    "learning_rate": "lr",
    "weight_decay": "decay",
    "init": "init std",
    "forward": "forward",
    "eps": "eps",
}
_FACTORS = [name for name in _HEADS if name != "width"]


@dataclass(frozen=True)
class LeafLaw:
    """The factors of one leaf, each a multiple of what the base run has.

    Attributes:
      path: its path.
      shape: its shape in the model that is about to be trained.
      kind: "input", "hidden", "output", "vector" or "fixed"; empty where a law does not ask.
      width: how many times as wide as in the base model: of inputs, or of outputs where only those
        grow.
      learning_rate: factor on the learning rate.
      weight_decay: factor on the decoupled coefficient, which the leaf's learning rate multiplies
        in turn: ``W <- W - lr*learning_rate*(u + wd*weight_decay*W)``.
      init: factor on the standard deviation of the leaf's initial values in the base model.
      forward: factor on what the layer computes; the model has to apply it.
      eps: factor on Adam's epsilon.
    """

    path: str
    shape: tuple[int, ...]
    kind: str = ""
    width: float = 1.0
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    init: float = 1.0
    forward: float = 1.0
    eps: float = 1.0

    @property
    def rates(self) -> tuple[float, float, float]:
        """What an optimizer has to know: the factors on learning rate, decay and epsilon."""
        return self.learning_rate, self.weight_decay, self.eps

    def __str__(self) -> str:
        named = [("lr", self.learning_rate), ("decay", self.weight_decay), ("eps", self.eps)]
        return " ".join(f"{name} x{value:.3g}" for name, value in named if value != 1.0) or "x1"


class Laws(Mapping[str, LeafLaw]):
    """The factors of every leaf of a model: ``print`` it, multiply it, train with ``route``.

    ``laws[path]`` is a ``LeafLaw``. ``laws * others`` multiplies every factor of two tables of the
    same leaves.

    Attributes:
      notes: what the model, or its user, has to see to.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"up": jnp.zeros((4, 8)), "b": jnp.zeros(8)}
      >>> laws = optkit.transfer.Laws.of(params, learning_rate=0.5)
      >>> (laws * laws)["up"].learning_rate
      0.25
    """

    def __init__(self, leaves: Sequence[LeafLaw], notes: Sequence[str] = ()) -> None:
        self._leaves = {leaf.path: leaf for leaf in leaves}
        self.notes = tuple(dict.fromkeys(notes))

    @classmethod
    def of(
        cls,
        params: PyTree,
        *,
        notes: Sequence[str] = (),
        learning_rate: float | Callable[[str, Any], float] = 1.0,
    ) -> "Laws":
        """Returns a table of factors on the learning rate: one for all, or by (path, leaf)."""
        factor = learning_rate if callable(learning_rate) else lambda path, leaf: learning_rate
        named = leaves_with_paths(params)
        return cls([LeafLaw(p, np.shape(x), learning_rate=factor(p, x)) for p, x in named], notes)

    def __getitem__(self, path: str) -> LeafLaw:
        if path not in self._leaves:
            raise KeyError(f"the laws have no leaf {path!r}; they have {', '.join(self._leaves)}")
        return self._leaves[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __mul__(self, other: "Laws") -> "Laws":
        if not isinstance(other, Laws):
            return NotImplemented
        for path in [*self, *other]:
            if path not in self or path not in other or self[path].shape != other[path].shape:
                _refuse_product(path, self, other)
        return Laws([_product(self[p], other[p]) for p in self], (*self.notes, *other.notes))

    def __str__(self) -> str:
        rows = list(self.values())
        columns = [["path", *(row.path or "(root)" for row in rows)]]
        columns.append(["shape", *("x".join(map(str, row.shape)) or "scalar" for row in rows)])
        if any(row.kind for row in rows):
            columns.append(["kind", *(row.kind or "-" for row in rows)])
        numbers = [
            [head, *(f"{getattr(row, name):.4g}" for row in rows)]
            for name, head in _HEADS.items()
            if any(getattr(row, name) != 1.0 for row in rows)
        ]
        padded = [[cell.ljust(max(map(len, side))) for cell in side] for side in columns]
        padded += [[cell.rjust(max(map(len, side))) for cell in side] for side in numbers]
        lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *self.notes])

    def tree(self, name: str, params: PyTree) -> PyTree:
        """Returns one column as a tree of floats like ``params``.

        Args:
          name: "learning_rate", "weight_decay", "init", "forward", "eps" or "width".
          params: the parameters.
        """
        values = [getattr(self[path], name) for path, _ in leaves_with_paths(params)]
        return jax.tree.unflatten(jax.tree.structure(params), values)

    def route(self, build: Callable[[LeafLaw], optax.GradientTransformation]) -> Transformation:
        """Trains each leaf by an optimizer that its factors went into.

        Leaves of equal factors on learning rate, decay and epsilon share one. ``optkit.plan`` shows
        the factors.

        Args:
          build: from a leaf's factors to its optimizer, such as ``lambda f: optkit.adamw(1e-3 *
            f.learning_rate, weight_decay=0.1 * f.weight_decay, eps=1e-8 * f.eps)``. It is called
            once for each group, with the law of its first leaf.

        Returns:
          An ``optax.GradientTransformationExtraArgs``; state in the routes, which bear the names of
          kinds.

        Raises:
          TypeError: ``build`` is no function, or what it returns no transformation.
          ValueError: at init a leaf that the table does not have, or of another shape.
        """
        if not callable(build):
            raise TypeError(
                f"build must be a function from a leaf's factors to its optimizer, and is of type "
                f"{type(build).__name__}: lambda f: optkit.adamw(1e-3 * f.learning_rate)"
            )
        groups: dict[tuple[float, ...], list[str]] = {}
        for path, law in self.items():
            groups.setdefault(law.rates, []).append(path)
        names = _names([[self[path] for path in paths] for paths in groups.values()])
        inner = {
            name: check_transformation("what build returns", build(self[paths[0]]))
            for name, paths in zip(names, groups.values(), strict=True)
        }
        of_path = {
            path: name for name, paths in zip(names, groups.values(), strict=True) for path in paths
        }

        def rule(name: str) -> Callable[[str, Any], bool]:
            return lambda path, leaf: of_path.get(path) == name

        rules = [(rule(name), name) for name in names]

        def record(params: PyTree) -> RouteRecord:
            self.check(params)
            tell(params, lambda path, leaf: str(self[path]))
            return RouteRecord({path: of_path[path] for path, _ in leaves_with_paths(params)})

        tx = build_route(inner, rules, (), record)

        def init_fn(params: PyTree) -> PyTree:
            self.check(params)
            return tx.init(params)

        return Transformation(init_fn, tx.update)

    def check(self, params: PyTree) -> None:
        """Raises ValueError with the first leaf that the table does not have in its shape."""
        for path, leaf in leaves_with_paths(params):
            law = self._leaves.get(path)
            if law is None or law.shape != np.shape(leaf):
                have = "they do not have it" if law is None else f"there it is {law.shape}"
                raise ValueError(
                    f"the laws are of another model: leaf {path!r} has shape {np.shape(leaf)}, "
                    f"and {have}; make them from the parameters that are trained"
                )


def tell(params: PyTree, said: Callable[[str, Any], str]) -> None:
    """Tells a plan that is being made what multiplies the hyperparameters of each leaf."""
    plan = present()
    if plan is None:
        return
    for path, leaf in leaves_with_paths(params):
        before = plan.factors.get(path)
        plan.factors[path] = " ".join([*([before] if before else []), said(path, leaf)])


def _product(one: LeafLaw, other: LeafLaw) -> LeafLaw:
    kind = one.kind or other.kind
    width = one.width if one.kind else other.width
    numbers = {name: getattr(one, name) * getattr(other, name) for name in _FACTORS}
    return replace(one, kind=kind, width=width, **numbers)


def _refuse_product(path: str, one: Laws, other: Laws) -> NoReturn:
    shapes = [table[path].shape if path in table else "missing" for table in (one, other)]
    raise ValueError(
        f"laws of different models cannot be multiplied: leaf {path!r} is {shapes[0]} in one and "
        f"{shapes[1]} in the other"
    )


def _names(groups: Sequence[Sequence[LeafLaw]]) -> list[str]:
    """A name for each group: the kinds in it, numbered where several have the same."""
    names: list[str] = []
    for group in groups:
        kinds = dict.fromkeys(law.kind or "all" for law in group)
        base = "_".join(kinds)
        same = sum(name == base or name.startswith(f"{base}#") for name in names)
        names.append(f"{base}#{same + 1}" if same else base)
    return names
