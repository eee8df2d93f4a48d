"""What routes and wrappers decide while they are initialised, collected for a plan."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from optkit._calls import observing
from optkit.tree import MatrixView, PyTree, RuleLike, leaves_with_paths


@dataclass(frozen=True)
class RouteRecord:
    """What one ``route`` decided.

    Attributes:
      routes: path -> name of the route.
      roles: the role rules that it was given.
      by_role: whether roles had a part in it.
      idle: its rules that serve no leaf, each with the reason.
      matrices: path -> how a leaf of the matrix route of ``split_matrices`` is read.
      unread: leaves of the matrix route that cannot be read so, with the reason.
    """

    routes: Mapping[str, str]
    roles: tuple[RuleLike, ...] = ()
    by_role: bool = False
    idle: tuple[str, ...] = ()
    matrices: Mapping[str, tuple[MatrixView, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """Records in the order of initialisation: the outer ones before those inside them.

    Attributes:
      routes: one record a route.
      wrappers: name of each catalogued wrapper, and the paths of the leaves inside. Those that a
        recipe is made of are the recipe's own business.
      factors: path -> by what laws of transfer multiply a leaf's hyperparameters.
    """

    routes: list[RouteRecord] = field(default_factory=list)
    wrappers: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    factors: dict[str, str] = field(default_factory=dict)


_RECORDING: contextvars.ContextVar[Recording | None] = contextvars.ContextVar(
    "optkit_recording", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Collects what every ``route`` and wrapper initialised inside the block decides.

    They may sit anywhere in a chain; this is how a plan learns of them without new API on Optax's
    pair of functions.
    """
    found = Recording()

    def entered(name: str, params: PyTree) -> None:
        paths = frozenset(path for path, _ in leaves_with_paths(params))
        found.wrappers.append((name, paths))

    token = _RECORDING.set(found)
    try:
        with observing(entered):
            yield found
    finally:
        _RECORDING.reset(token)


def present() -> Recording | None:
    """Returns the recording that is under way, if one is."""
    return _RECORDING.get()
