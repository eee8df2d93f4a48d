"""A function of matrices applied to every matrix of a tree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.transforms.hyperparams import check_number, check_static_number
from optkit.tree import (
    Dims,
    MatrixFunction,
    MatrixLayout,
    MatrixSharding,
    PyTree,
    RuleLike,
    map_groups,
    upcast,
)
from optkit.tree.matrices import Rows
from optkit.tree.sharding import place_statistic


class MatrixMap(NamedTuple):
    """How a tree is read as matrices and worked through."""

    dims: Dims
    roles: Sequence[RuleLike]
    adaptive: bool
    group_bytes: int | None
    sharding: MatrixSharding = MatrixSharding()

    def layout(self, tree: PyTree) -> MatrixLayout:
        """Returns how this tree is read."""
        return MatrixLayout(tree, self.dims, self.roles)

    def replace(
        self,
        factor: Callable[..., jax.Array],
        updates: PyTree,
        layout: MatrixLayout,
        *others: Sequence[jax.Array],
        rows: Rows = "short",
    ) -> PyTree:
        """Replaces each matrix by its factor.

        Args:
          factor: function of ``(..., m, n)`` and one array of each of the others.
          updates: tree of matrices.
          layout: how it is read.
          *others: one array a matrix each, see ``map_groups``.
          rows: which side of a matrix comes first.

        Returns:
          The updates in their own dtypes; 16-bit ones are worked through in float32.
        """

        def leaf(x: jax.Array, *own: jax.Array) -> jax.Array:
            out = factor(x, *own).astype(x.dtype)
            if self.adaptive:
                out = out * jnp.sum(out * x, axis=(-2, -1), keepdims=True)
            return out

        matrices = layout.split(jax.tree.map(upcast, updates), rows)
        others = tuple(list(map(place_statistic, own, matrices)) for own in others)
        known: Any = leaf
        if isinstance(factor, MatrixFunction) and not others and not self.adaptive:
            known = dataclasses.replace(factor, whole=leaf)
        done = map_groups(
            known,
            matrices,
            *others,
            group_bytes=self.group_bytes,
            sharding=self.sharding,
            reading=layout.reading(self.sharding.specs, rows),
        )
        return jax.tree.map(lambda x, u: x.astype(u.dtype), layout.merge(done, rows), updates)


def factor_options(
    *,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]],
    steps: int | None,
    eps: float | None,
    dtype: Any | None,
    **more: Any,
) -> dict[str, Any]:
    """Returns the options of ``optkit.orthogonalize`` as ``linalg.orthogonal_factor`` takes them.

    Raises:
      ValueError, TypeError: ``eps`` is negative or an array.
    """
    eps = 0.0 if eps is None else eps
    check_static_number("eps", eps)
    check_number("eps", eps, low=0.0)
    rows = coefficients
    if not isinstance(coefficients, str | linalg.CoefficientSet):
        rows = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
    return {"coefficients": rows, "steps": steps, "eps": eps, "compute_dtype": dtype, **more}


def orthogonal_function(method: linalg.Method, options: Mapping[str, Any]) -> MatrixFunction:
    """Returns the function of ``(..., m, n)`` that orthogonalizes, tried once.

    Args:
      method: as ``optkit.linalg.orthogonal_factor`` takes it.
      options: its options.
    """
    # bfloat16 has float32's range, so the leaf is cast whole, as the references do; float16 has
    # not, so there the cast comes after the division by the norm.
    dtype = options["compute_dtype"]
    entry = jnp.bfloat16 if dtype is not None and jnp.dtype(dtype) == jnp.bfloat16 else None

    def factor(x: jax.Array) -> jax.Array:
        return linalg.orthogonal_factor(x.astype(entry or x.dtype), method, **options)

    try_factor(factor)
    return _known(factor, method, options, entry)


def _known(
    factor: Callable[[jax.Array], jax.Array],
    method: linalg.Method,
    options: Mapping[str, Any],
    entry: Any,
) -> MatrixFunction:
    """What may be done on a mesh to the matrices of an orthogonal factor."""
    if callable(method):
        return MatrixFunction(factor)
    plain = options.get("precondition", "frobenius") != "aol"  # which tells rows from columns
    if method in ("svd", "qdwh"):
        return MatrixFunction(factor, turns=True, widens=True)
    chosen = linalg.as_coefficient_set(options["coefficients"])
    rows, resets = chosen.expand(options["steps"]), options.get("resets")

    def flops(m: int, n: int) -> int:
        return linalg.factor_flops(m, n, method, rows, entry or jnp.float32, resets)

    split = None
    frobenius = options.get("precondition", "frobenius") == "frobenius"
    wide = entry is not None or options["compute_dtype"] is None
    # Kernels want whole matrices.
    wide = wide and options.get("implementation", "xla") == "xla"
    if frobenius and wide and linalg.can_split(options["coefficients"], options["steps"], resets):
        taken = ("coefficients", "steps", "eps", "eps_mode", "margin", "precision")
        own = {name: options[name] for name in taken if name in options}

        def split(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
            return linalg.split_factor(x.astype(entry or x.dtype), axes, **own).astype(x.dtype)

    return MatrixFunction(
        factor,
        split=split,
        turns=plain,
        widens=plain,
        flops=flops,
        split_flops=lambda m: linalg.gram_factor_flops(m, rows),
        wire=entry,
    )


def try_factor(factor: Callable[..., jax.Array]) -> None:
    """Tries a factor on a shape: wrong options raise here, not in the first step."""
    jax.eval_shape(factor, jax.ShapeDtypeStruct((2, 3), jnp.float32))
