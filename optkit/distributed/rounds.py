"""The products of PowerSGD's step, between which factors are averaged over the workers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from optkit.distributed.workers import AxisName, mean, total
from optkit.linalg.norms import unit_over
from optkit.tree import map_groups

Matrices: TypeAlias = list[jax.Array]


def gram_schmidt(x: jax.Array, eps: float) -> jax.Array:
    """Columns one after the other, each divided by its norm plus eps."""
    columns: list[jax.Array] = []
    for j in range(x.shape[-1]):
        column = x[..., j : j + 1]
        for done in columns:
            column = column - done * jnp.sum(done * column, axis=-2, keepdims=True)
        norm = jnp.sqrt(jnp.sum(jnp.square(column), axis=-2, keepdims=True))
        columns.append(column / (norm + eps))
    return jnp.concatenate(columns, axis=-1)


def _alive(new: jax.Array, old: jax.Array) -> jax.Array:
    """The new factor; columns that vanished keep their direction, or they would stay zero."""
    return jnp.where(jnp.all(new == 0, axis=-2, keepdims=True), unit_over(old, (-2,)), new)


class Rounds:
    """The products of one step, between which factors are averaged over the workers."""

    def __init__(
        self,
        axis_name: AxisName,
        orth: Callable[[jax.Array], jax.Array],
        iterations: int,
        precision: Any,
        group_bytes: int | None,
    ) -> None:
        self.axis_name, self.orth, self.iterations = axis_name, orth, iterations
        self.product = lambda a, b: jnp.matmul(a, b, precision=precision)
        self.group_bytes = group_bytes

    def _each(self, function: Callable[..., Any], *lists: Matrices) -> list[Any]:
        return map_groups(function, *lists, group_bytes=self.group_bytes)

    def paper(self, given: Matrices, bases: Matrices) -> tuple[Matrices, Matrices]:
        """Returns what the mean is taken to be, and the next bases."""
        product, orth, held = self.product, self.orth, bases
        sides: Matrices = []
        for _ in range(self.iterations):
            images = self._each(lambda m, q: product(m, orth(q)), given, bases)
            # A sum, as torch has it: lengths matter to orth_eps alone.
            images = total(images, self.axis_name)
            pairs = self._each(self._project, given, images)
            sides, own = _columns(pairs, 2)
            bases = mean(own, self.axis_name)
        found = self._each(lambda m, p, q: product(p, q.mT), given, sides, bases)
        return found, [_alive(q, old) for q, old in zip(bases, held, strict=True)]

    def _project(self, m: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        side = self.orth(p)
        return side, self.product(m.mT, side)

    def alternating(
        self, given: Matrices, lefts: Matrices, bases: Matrices, count: jax.Array
    ) -> tuple[Matrices, Matrices, Matrices, Matrices]:
        """Returns the mean, what this worker's own factors make of it, and both factors."""
        own = [jnp.zeros_like(m) for m in given]
        common = [jnp.zeros(m.shape, m.dtype) for m in given]
        for index in range(self.iterations):
            turn = (count * self.iterations + index) % 2
            parts = (given, common, own, lefts, bases)
            given, common, own, lefts, bases = lax.cond(turn == 0, self._half, self._turned, *parts)
        return common, own, lefts, bases

    def _half(self, given: Matrices, common: Matrices, own: Matrices, *factors: Matrices) -> Any:
        """Fits the second factor to what the first one spans of the matrices."""
        product, (fixed, free) = self.product, factors
        sides, fitted = _columns(self._each(self._project, given, fixed), 2)
        new = mean(fitted, self.axis_name)

        def parts(m: jax.Array, p: jax.Array, q: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
            return product(p, q.mT), product(p, w.mT)

        found, mine = _columns(self._each(parts, given, sides, new, fitted), 2)
        return (
            [m - x for m, x in zip(given, mine, strict=True)],
            [c + x for c, x in zip(common, found, strict=True)],
            [o + x for o, x in zip(own, mine, strict=True)],
            [_alive(side, old) for side, old in zip(sides, fixed, strict=True)],
            [_alive(q, old) for q, old in zip(new, free, strict=True)],
        )

    def _turned(
        self, given: Matrices, common: Matrices, own: Matrices, left: Matrices, right: Matrices
    ) -> Any:
        turn = lambda matrices: [m.mT for m in matrices]  # noqa: E731
        given, common, own, right, left = self._half(*map(turn, (given, common, own)), right, left)
        return turn(given), turn(common), turn(own), left, right


def _columns(rows: list[Any], count: int) -> tuple[Matrices, ...]:
    return tuple([row[index] for row in rows] for index in range(count))
