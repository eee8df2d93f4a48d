"""Any JAX function, evaluated on perturbed parameters without materializing them."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optkit.evolution.interpreter import axes, contractions, control, lookups  # noqa: F401
from optkit.evolution.interpreter.carried import Record, Use, carried, dense
from optkit.evolution.interpreter.engine import evaluate
from optkit.evolution.perturbed import Perturbed, is_perturbed
from optkit.kernels.implementation import Implementation
from optkit.tree import PyTree, leaves_with_paths


class MaterializedWarning(UserWarning):
    """A perturbed matrix had to be made in full for each member."""


def apply_perturbed(fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> Any:
    """Returns ``fn(params, *args, **kwargs)`` of one member, perturbed matrices kept in factors.

    1. ``fn`` is traced once, on the shapes of the parameters.
    2. Its operations are evaluated one after another. A product ``x W`` with a perturbed matrix
       becomes ``x base + ((x b) scale) a^T``; so do convolutions and lookups, and the parameter
       may be transposed, cast, reshaped, sliced or scanned over before.
    3. An operation that is no such use gets the parameter in full, with a warning.

    ``population_apply`` maps this over members; of the shared matrices they then need one product.

    Args:
      fn: any function of JAX operations whose first argument is a tree of parameters: ``apply`` of
        a Flax module, a closure around ``nnx.merge``, a plain function.
      params: parameters of one member; leaves are arrays or ``Perturbed``.
      *args: further arguments. Arrays are traced, anything else is passed on as it is.
      **kwargs: passed on as they are.

    Returns:
      What ``fn`` returns.

    Raises:
      TypeError: ``fn`` branches in Python on the value of a perturbed parameter or of an argument.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import Perturbed, apply_perturbed
      >>> w = Perturbed(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.array(0.5), (1,), (0,))
      >>> apply_perturbed(lambda p, x: jnp.tanh(x @ p["w"]) * 0 + x @ p["w"], {"w": w}, jnp.ones(2))
      Array([2., 2.], dtype=float32)
    """
    out, record = recorded_apply(fn, params, args, kwargs)
    warn_materialized(record.uses, stacklevel=3)
    return out


def warn_materialized(uses: list[Use], stacklevel: int) -> None:
    """Warns of parameters that were made in full, once for all."""
    if lines := materialized(uses):
        warnings.warn(
            f"made in full for every member, at the cost of its memory: {'; '.join(lines)}. Give "
            "such a parameter noise in full, or factors on other axes: explain(fn, params, ...) "
            "shows how each one is used",
            MaterializedWarning,
            stacklevel=stacklevel,
        )


def recorded_apply(
    fn: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    implementation: Implementation = "xla",
) -> tuple[Any, Record]:
    """Does what ``apply_perturbed`` does and returns the record instead of warning."""
    paths, leaves, treedef = _flat(params)
    given, argdef = jax.tree.flatten(args)
    places = [index for index, value in enumerate(given) if _is_array(value)]

    def flat(leaves: list[Any], arrays: list[Any]) -> Any:
        filled = dict(zip(places, arrays, strict=True))
        values = [filled.get(index, value) for index, value in enumerate(given)]
        rest = jax.tree.unflatten(argdef, values)
        return fn(jax.tree.unflatten(treedef, leaves), *rest, **kwargs)

    bases = [leaf.base if is_perturbed(leaf) else leaf for leaf in leaves]
    arrays = [given[index] for index in places]
    try:
        jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(bases, arrays)
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(_concrete(error, paths)) from error
    record = Record(implementation=implementation)
    values = [
        carried(leaf, path) if is_perturbed(leaf) else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    outs = evaluate(jaxpr, [*values, *arrays], record)
    outs = [dense(out, record, "output") for out in outs]
    return jax.tree.unflatten(jax.tree.structure(shapes), outs), record


def materialized(uses: list[Use]) -> list[str]:
    """Returns a line for each parameter and operation that asked for it in full."""
    lines = [
        f"{use.path!r} by {use.primitive}" + (f" at {use.source}" if use.source else "")
        for use in uses
        if use.kind == "materialized"
    ]
    return list(dict.fromkeys(lines))


def paths_of(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[str]:
    """Returns the path of each leaf, those of a population's leaves as in its parameters."""
    return [path for path, _ in leaves_with_paths(jax.tree.map(lambda _: 0, tree, is_leaf=is_leaf))]


def _flat(params: PyTree) -> tuple[list[str], list[Any], Any]:
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_perturbed)
    paths = paths_of(params, is_perturbed)
    for path, leaf in zip(paths, leaves, strict=True):
        if is_perturbed(leaf):
            _check(leaf, path)
    return paths, leaves, treedef


def _check(leaf: Perturbed, path: str) -> None:
    """Refuses factors that do not have the axes that they are said to have."""
    shape, rank = leaf.shape, np.shape(leaf.a)[-1:]
    a = tuple(n for axis, n in enumerate(shape) if axis not in leaf.right) + rank
    b = tuple(n for axis, n in enumerate(shape) if axis not in leaf.left) + rank
    found = (np.shape(leaf.a), np.shape(leaf.b), np.shape(leaf.scale))
    if found != (a, b, ()):
        raise ValueError(
            f"leaf {path!r} of shape {shape} with left axes {leaf.left} and right axes "
            f"{leaf.right} needs a of shape {a}, b of shape {b} and a scalar scale for a member, "
            f"not {found[0]}, {found[1]} and {found[2]}; a population with a leading axis of "
            "members goes to population_apply"
        )


def _is_array(value: Any) -> bool:
    """Tells what is traced: a Python number or a string may steer the function."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _concrete(error: Exception, paths: list[str]) -> str:
    text = str(error)
    named = [path for n, path in enumerate(paths) if f"leaves[{n}]" in text]
    who = f"the value of parameter {named[0]!r}" if named else "a value that differs by member"
    return (
        f"the function branches in Python on {who}, but it is traced once for all members; use "
        "jnp.where or jax.lax.cond, or pass what is the same for all as a Python value. JAX says: "
        + text.split("\n", 1)[0]
    )
