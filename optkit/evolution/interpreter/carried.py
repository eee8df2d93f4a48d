"""What an evaluation carries: a perturbed parameter, where it comes from, and what befell it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit import _jaxprs
from optkit.evolution.perturbed import Perturbed
from optkit.kernels.implementation import Implementation

Kind = Literal["contracted", "looked up", "materialized"]


@dataclass(frozen=True)
class Use:
    """One place where a function uses a parameter.

    Attributes:
      path: of the parameter.
      kind: how it is used.
      primitive: JAX's name of the operation, ``"output"`` for a parameter that is returned.
      source: ``file.py:line`` of the user's code, ``""`` if it is not known.
      contracted: axes of the parameter that the operation sums over, or looks up by an index.
      free: axes that index its outputs.
      batch: axes that it has in common with the other operand, as experts have.
    """

    path: str
    kind: Kind
    primitive: str
    source: str = ""
    contracted: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()
    batch: frozenset[int] = frozenset()


@dataclass
class Record:
    """What an evaluation noted down, and by what it computes products."""

    uses: list[Use] = field(default_factory=list)
    implementation: Implementation = "xla"


@dataclass(frozen=True)
class Carried:
    """A perturbed parameter on its way to where it is used.

    Attributes:
      value: the parameter as it is now, transposed or sliced or in another dtype.
      path: which parameter it was.
      origin: for each axis of ``value`` the axes of the parameter that it came from.
      gain: a factor that the function has put on it; it may be another one in each member, so that
        it must not touch what members share.
    """

    value: Perturbed
    path: str
    origin: tuple[tuple[int, ...], ...]
    gain: Any = None
    indexed: frozenset[int] = frozenset()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.origin)

    @property
    def a_axes(self) -> list[int]:
        """Axes that ``a`` has, before that of the ranks."""
        return [axis for axis in range(self.ndim) if axis not in self.value.right]

    @property
    def b_axes(self) -> list[int]:
        """Axes that ``b`` has, before that of the ranks."""
        return [axis for axis in range(self.ndim) if axis not in self.value.left]

    def came_from(self, axes: Sequence[int]) -> frozenset[int]:
        """Returns the parameter's axes that some axes of the value came from."""
        return frozenset(old for axis in axes for old in self.origin[axis])

    def rebuilt(
        self,
        base: jax.Array,
        a: jax.Array,
        b: jax.Array,
        left: Sequence[int],
        right: Sequence[int],
        origin: Sequence[tuple[int, ...]],
    ) -> "Carried":
        """Returns it with another value, whose axes are told."""
        value = Perturbed(base, a, b, self.value.scale, tuple(left), tuple(right))
        return replace(self, value=value, origin=tuple(origin))

    def times(self, gain: Any) -> "Carried":
        """Returns it with a scalar put on it."""
        return replace(self, gain=gain if self.gain is None else self.gain * gain)

    def finish(self, out: jax.Array) -> jax.Array:
        """Returns a result that is linear in the parameter with the gain on it."""
        return out if self.gain is None else (out * self.gain).astype(out.dtype)

    def scaled(self, x: jax.Array) -> jax.Array:
        """Returns a result that is linear in the perturbation with the member's scale on it."""
        return x * jnp.asarray(self.value.scale).astype(x.dtype)

    def materialize(self, record: Record, primitive: str, source: str = "") -> jax.Array:
        """Returns the member's own parameter, and notes down what asked for it.

        A row of a table is what its lookup is for, and no more than an activation.
        """
        wide = [axis for axis, size in enumerate(self.value.shape) if size > 1]
        row = len(wide) < 2
        kind: Kind = "looked up" if row else "materialized"
        free = self.came_from(wide)
        record.uses.append(Use(self.path, kind, primitive, source, self.indexed, free))
        return self.finish(self.value.materialize())

    def note(self, record: Record, kind: Kind, eqn: Any, **axes: Sequence[int]) -> None:
        """Notes down a use."""
        named = {name: self.came_from(value) for name, value in axes.items()}
        name, where = eqn.primitive.name, _jaxprs.source(eqn)
        record.uses.append(Use(self.path, kind, name, where, **named))


def carried(value: Perturbed, path: str) -> Carried:
    """Returns a parameter as it is given."""
    return Carried(value, path, tuple((axis,) for axis in range(len(value.shape))))


def dense(x: Any, record: Record, primitive: str, source: str = "") -> Any:
    """Returns a plain array: what is carried is materialized, all else is returned as it is."""
    return x.materialize(record, primitive, source) if isinstance(x, Carried) else x


__all__ = ["Carried", "Record", "Use", "carried", "dense"]
