"""Measuring a population: on one device or on all of a mesh, at once or in parts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.perturb import PopulationPerturb
from optkit.tree import PyTree

Axes = int | None | Sequence[int | None]


def evaluate(
    es: PopulationPerturb,
    fitness: Callable[..., jax.Array],
    params: PyTree,
    state: Any,
    *args: Any,
    in_axes: Axes = 0,
    blocks: int = 1,
) -> jax.Array:
    """Returns the fitness of every member; over a mesh, fitnesses are all that is exchanged.

    After ``es.on_mesh(mesh)`` each device draws its own members, neighbours together, and measures
    them; then every device gets all fitnesses. The update that follows is computed by all of them
    from the keys, alike to the last bit.

    Args:
      es: what ``population_perturb`` or one of its recipes returned.
      fitness: ``fitness(population, *args) -> (n,)`` for any part of the population, usually by
        ``population_apply``.
      params: the parameters; replicated, or sharded over other axes of the mesh.
      state: the state of ``es``, or that of a chain that has it.
      *args: data for ``fitness``.
      in_axes: as of ``jax.vmap``: 0 for arguments that have a leading axis of members, None for
        those that all members share; one for all, or one each.
      blocks: parts that are measured one after the other on each device, to save memory.

    Returns:
      ``(population,)`` fitnesses.

    Raises:
      TypeError: a strategy of another kind.
      ValueError: a population that does not divide over devices and blocks, or fitnesses of another
        shape.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> es, params = optkit.eggroll(8, sigma=0.1), {"kernel": jnp.eye(3)}
      >>> def fitness(population, x):
      ...     model = lambda params, x: x @ params["kernel"]
      ...     out = optkit.evolution.population_apply(model, population, x, in_axes=None)
      ...     return -jnp.sum(out**2, axis=-1)
      >>> data, state = jnp.ones(3), es.init(params)
      >>> optkit.evolution.evaluate(es, fitness, params, state, data, in_axes=None).shape
      (8,)
    """
    if not isinstance(es, PopulationPerturb):
        raise TypeError(
            f"es is of type {type(es).__name__}; evaluate serves population_perturb, eggroll, "
            "openai_es, ars and mezo: give the members of others, es.perturb(params, state), to "
            "the fitness yourself"
        )
    devices = 1 if es.spread is None else es.spread.devices
    parts = devices * blocks
    pairs = es.drawing.pairs
    if pairs % parts:
        raise ValueError(
            f"{pairs} {'pairs' if es.drawing.antithetic else 'members'} do not divide over "
            f"{devices} devices and {blocks} blocks; give a population that is a multiple of "
            f"{parts * len(es.drawing.signs)}"
        )
    mapped = _mapped(args, in_axes, es.population)
    size = es.population // parts

    def part(index: Any, params: PyTree, state: Any, given: Sequence[Any]) -> jax.Array:
        found = fitness(es.perturb_lazy(params, state, block=(index, parts)), *given)
        if found.shape != (size,):
            raise ValueError(
                f"fitness returned {found.shape} for {size} members; it has to return one number "
                f"a member, ({size},)"
            )
        return found

    def local(place: Any, tree: tuple[PyTree, Any], *args: Any) -> jax.Array:
        if blocks == 1:
            return part(place, *tree, args)
        cut = [_cut(arg, blocks) if own else arg for arg, own in zip(args, mapped, strict=True)]

        def block(index: jax.Array) -> jax.Array:
            rows = [
                jax.tree.map(lambda x: x[index], arg) if own else arg
                for arg, own in zip(cut, mapped, strict=True)
            ]
            return part(place * blocks + index, *tree, rows)

        return jax.lax.map(block, jnp.arange(blocks)).reshape(-1)

    held = es.state(state)
    if es.spread is None:
        return local(0, (params, held), *args)
    gathered = es.spread.gathered(local, mapped=mapped)
    return gathered((params, held), *args)


def _cut(arg: PyTree, blocks: int) -> PyTree:
    """Arguments of members as blocks of them."""
    return jax.tree.map(lambda x: x.reshape(blocks, -1, *x.shape[1:]), arg)


def _mapped(args: Sequence[Any], in_axes: Axes, population: int) -> list[bool]:
    """Which arguments have members; checked."""
    axes = list(in_axes) if isinstance(in_axes, Sequence) else [in_axes] * len(args)
    if len(axes) != len(args) or any(axis not in (0, None) for axis in axes):
        raise ValueError(
            f"in_axes={in_axes!r} for {len(args)} arguments; give 0 (a leading axis of members) or "
            "None (shared) for each"
        )
    for number, (arg, axis) in enumerate(zip(args, axes, strict=True)):
        shapes = {jnp.shape(x)[:1] for x in jax.tree.leaves(arg)} if axis == 0 else set()
        if shapes - {(population,)}:
            raise ValueError(
                f"argument {number} has leading axes {sorted(shapes)}, not one of {population} "
                "members; for what all members share give in_axes=None"
            )
    return [axis == 0 for axis in axes]
