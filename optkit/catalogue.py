"""The one registry: every method's name, factory, paper, family, state bytes and tags.

Tests, command line, tables and benchmarks walk it; a public factory that is not in it fails a test.
"""

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from optkit._calls import cached_factory, explained, observed, remembered
from optkit._compositions import COMPOSITIONS
from optkit.spmd import guarded

Kind = Literal[
    "recipe",
    "part",
    "wrapper",
    "strategy",
    "gradient",
    "aggregate",
    "federated",
    "outer",
    "solver",
]
Factory = TypeVar("Factory", bound=Callable[..., Any])


class UnknownMethod(KeyError):
    """No method of that name; the message has the closest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    arxiv: str | None
    year: int

    def __str__(self) -> str:
        where = f"arXiv {self.arxiv}" if self.arxiv else "no arXiv id"
        return f"{self.title} ({self.year}, {where})"


class StateBytes(float):
    """Bytes per float32 parameter, and what comes on top of them for each matrix.

    Args:
      parameter: bytes per parameter.
      matrix: bytes per matrix, from its fan_out and fan_in.
      label: the same in words, as in ``"4 a row"``.
    """

    def __new__(
        cls, parameter: float, matrix: Callable[[int, int], float], label: str
    ) -> "StateBytes":
        """Makes the number that it is without its matrices."""
        out = super().__new__(cls, parameter)
        out.matrix, out.label = matrix, label
        return out

    matrix: Callable[[int, int], float]
    label: str

    def __str__(self) -> str:
        return f"{float(self):g} + {self.label}"


class LeafBytes(float):
    """Bytes per float32 parameter of a large leaf, and what a leaf of any size takes.

    Args:
      parameter: bytes per parameter of a large leaf.
      leaf: bytes of a leaf, from its number of parameters.
      label: what is different, in words.
    """

    def __new__(cls, parameter: float, leaf: Callable[[int], float], label: str) -> "LeafBytes":
        """Makes the number that holds for large leaves."""
        out = super().__new__(cls, parameter)
        out.leaf, out.label = leaf, label
        return out

    leaf: Callable[[int], float]
    label: str

    def __str__(self) -> str:
        return f"{float(self):g}, {self.label}"


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
      name: the name it is exported under.
      factory: builds the transformation; ``learning_rate`` first for recipes, the inner
        transformation first for wrappers.
      kind: recipe (a whole optimizer), part (a link of a chain), wrapper (takes an inner one),
        strategy (a first link that is fed with fitnesses instead of gradients), gradient (makes a
        function of a loss that gives gradients), aggregate (of many clients' directions, in
        ``optkit.aggregate``), federated (rounds of clients and a server as a whole), outer (sets
        the parameters of replicas that work on their own for many steps) or solver (of many nodes'
        operators, in ``optkit.games``).
      family: what it is about: matrix, sign, adaptive, accumulator, direction, safety, ...
      paper: its source, None for plumbing.
      state_bytes: bytes per float32 parameter by role, ``"*"`` for the roles not named; a
        ``StateBytes`` where rows, columns or whole matrices have state too.
      tags: words to search for.
      chain: its links in one line.
      example: arguments that make a runnable instance where defaults do not suffice.
      matrices_only: the factory's transformation takes matrices, not every leaf.
      replicated: why state of a sharded parameter lies whole on each device; empty if none does
        but small statistics, and bases and statistics of projections.
    """

    name: str
    factory: Callable[..., Any]
    kind: Kind
    family: str
    paper: Paper | None
    state_bytes: Mapping[str, float]
    tags: tuple[str, ...]
    chain: str
    example: Mapping[str, Any] = field(default_factory=dict)
    matrices_only: bool = False
    replicated: str = ""

    @property
    def path(self) -> str:
        """Where it is found, as in ``optkit.games.dadao``; most are in ``optkit`` itself."""
        if self.kind in ("aggregate", "federated", "gradient", "solver"):
            return ".".join([*self.factory.__module__.split(".")[:2], self.name])
        return f"optkit.{self.name}"

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.factory) or "").split("\n", 1)[0]

    def hyperparameters(self) -> dict[str, inspect.Parameter]:
        """Returns the factory's parameters by name."""
        return dict(inspect.signature(self.factory).parameters)

    def bytes_per_parameter(self, role: str) -> float:
        """Returns the state bytes per float32 parameter of a leaf of a role."""
        return self.state_bytes.get(role, self.state_bytes.get("*", 0.0))

    def bytes_of_leaf(
        self, role: str, size: int, matrices: Sequence[tuple[int, int, int]] = ()
    ) -> float:
        """Returns the state bytes of a float32 leaf.

        Args:
          role: its role.
          size: its number of parameters.
          matrices: (how many, fan_out, fan_in) of the matrices it is read as.

        Returns:
          Bytes.
        """
        each = self.bytes_per_parameter(role)
        total = each.leaf(size) if isinstance(each, LeafBytes) else each * size
        if isinstance(each, StateBytes):
            total += sum(count * each.matrix(rows, columns) for count, rows, columns in matrices)
        return total


_ENTRIES: dict[str, Entry] = {}


def register(
    *,
    kind: Kind,
    family: str,
    state_bytes: Mapping[str, float],
    chain: str,
    paper: tuple[str, str | None, int] | None = None,
    tags: tuple[str, ...] = (),
    example: Mapping[str, Any] | None = None,
    matrices_only: bool = False,
    replicated: str = "",
) -> Callable[[Factory], Factory]:
    """Enters a factory into the catalogue and makes equal calls return the same object.

    A jitted step that closes over a transformation is keyed by identity: were an equal optimizer
    built anew, the step would compile anew.

    Args:
      kind: see ``Entry``.
      family: what it is about.
      state_bytes: bytes per float32 parameter by role.
      chain: its links in one line.
      paper: (title, arXiv id, year).
      tags: words to search for.
      example: arguments of a runnable instance.
      matrices_only: it takes matrices only.
      replicated: why large state lies whole on each device.

    Returns:
      A decorator.
    """

    def decorate(factory: Factory) -> Factory:
        # Routing is no wrapper around anything; a recipe's wrappers are a part of it.
        told = kind == "wrapper" and family != "routing"
        if told or kind == "recipe":
            factory = observed(factory, told)
        if kind in ("recipe", "part", "wrapper"):
            factory = guarded(explained(factory))
        if kind == "recipe":
            factory = remembered(factory)
        # Their first argument is a user's function, as a rule a new one each time: nothing would be
        # found again, and all that it closes over would be held.
        cached = factory if kind in ("gradient", "federated") else cached_factory(factory)
        source = Paper(*paper) if paper else None
        name = factory.__name__
        if name in _ENTRIES:
            raise ValueError(f"the catalogue has a {name!r} already")
        _ENTRIES[name] = Entry(
            name,
            cached,
            kind,
            family,
            source,
            dict(state_bytes),
            tags,
            chain,
            dict(example or {}),
            matrices_only,
            replicated,
        )
        return cached

    return decorate


def get(name: str) -> Entry:
    """Returns the entry of a method.

    Args:
      name: its exact name.

    Returns:
      The entry.

    Raises:
      UnknownMethod: no such method; says of what it is composed, or suggests close names.

    Example:
      >>> import optkit
      >>> optkit.catalogue.get("muon").family
      'matrix'
    """
    if name in _ENTRIES:
        return _ENTRIES[name]
    if name in COMPOSITIONS:
        raise UnknownMethod(f"{name!r} is not one part: {COMPOSITIONS[name]}")
    close = difflib.get_close_matches(name, _ENTRIES, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`optkit list` shows all."
    raise UnknownMethod(f"there is no method {name!r}; {hint}")


def entries(
    pattern: str = "*",
    *,
    kind: str | None = None,
    family: str | None = None,
    tag: str | None = None,
) -> list[Entry]:
    """Returns the entries that fit, by name.

    Args:
      pattern: wildcard on the name.
      kind: see ``Entry``.
      family: exact family.
      tag: a tag that must be there.

    Returns:
      Sorted entries.

    Example:
      >>> import optkit
      >>> [e.name for e in optkit.catalogue.entries("sig*", kind="recipe")]
      ['signsgd', 'signum']
    """
    return sorted(_fitting(pattern, kind, family, tag), key=lambda entry: entry.name)


def _fitting(
    pattern: str, kind: str | None, family: str | None, tag: str | None
) -> Iterator[Entry]:
    for entry in _ENTRIES.values():
        if (
            fnmatch.fnmatchcase(entry.name, pattern)
            and kind in (None, entry.kind)
            and family in (None, entry.family)
            and (tag is None or tag in entry.tags)
        ):
            yield entry
