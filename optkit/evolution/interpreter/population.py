"""Any JAX function, evaluated on a population whose members share what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.interpreter.apply import paths_of, recorded_apply, warn_materialized
from optkit.evolution.interpreter.carried import Use
from optkit.evolution.perturbed import Perturbed, Varied
from optkit.kernels.implementation import Implementation, check_implementation
from optkit.tree import PyTree


def population_apply(
    fn: Callable[..., Any],
    population: PyTree,
    *args: Any,
    in_axes: Any = 0,
    chunk: int | None = None,
    implementation: Implementation = "xla",
    **kwargs: Any,
) -> Any:
    """Returns what ``fn(params, *args)`` returns for each member, stacked; shares what it can.

    1. Members are mapped from outside, what they share is not: a product with a matrix is one
       product for the whole population, and two thin products for each member (or pair).
    2. Antithetic neighbours, members 2k and 2k + 1, may have their factors in common: ``a`` and
       ``b`` have half as many entries as ``scale`` then. Pairs are mapped first, the two signs
       inside, so that nothing is repeated.
    3. With ``chunk``, so many members at a time.

    Args:
      fn: any function of JAX operations; its first argument is a tree of parameters.
      population: like the parameters of one member. Leaves: arrays, which all members share;
        ``Perturbed`` with a leading axis of members on ``scale``, and of members or pairs on ``a``
        and ``b``; ``Varied``, arrays with a leading axis of members.
      *args: further arguments of ``fn``.
      in_axes: axes of members in ``args``, as ``jax.vmap`` has it for them: one for all, or one for
        each; None for what all members get.
      chunk: most members to evaluate at a time, to bound the memory; None for all.
      implementation: of the products of rows with perturbed matrices: "xla"; "pallas", the kernel
        ``optkit.kernels.perturbed_matmul`` of TPUs and NVIDIA's GPUs; "interpret", that kernel on
        any device, slow. Convolutions, lookups, stacks, and products of what members have in common
        are XLA's.
      **kwargs: passed on as they are, to every member.

    Returns:
      The results of ``fn``, each with a leading axis of members.

    Raises:
      ValueError: axes of members disagree, or there is none; names leaf or argument. Or the kernel
        does not serve a leaf: its rank is too high, or its dtype another one.
      NotImplementedError: "pallas" on another platform.
      TypeError: ``fn`` branches in Python on a value that differs by member.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import Perturbed, Varied, population_apply
      >>> signs, factor = jnp.array([0.5, -0.5]), jnp.ones((1, 2, 1))
      >>> params = {
      ...     "kernel": Perturbed(jnp.eye(2), factor, factor, signs, left=(1,), right=(0,)),
      ...     "bias": Varied(jnp.array([[0.0, 0.0], [10.0, 10.0]])),
      ... }
      >>> layer = lambda p, x: x @ p["kernel"] + p["bias"]
      >>> population_apply(layer, params, jnp.ones(2), in_axes=None)
      Array([[ 2.,  2.],
             [10., 10.]], dtype=float32)

    Reference:
      Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652: the order of
      products. There each model is written for it; here the function is any. Quax, which
      interprets functions of arrays of one's own types too, was tried in place of this interpreter.
      It carried leaves of two axes only: scans, ``DenseGeneral``, convolutions and experts failed.
    """
    check_implementation(implementation)
    plan = _Plan.of(population, args, in_axes, generated=implementation != "xla")
    uses: list[Use] = []

    def member(own: list[Any], common: list[Any]) -> Any:
        tree, rest = plan.rebuild(own, common)
        out, record = recorded_apply(fn, tree, rest, kwargs, implementation)
        uses.extend(record.uses)
        return out

    out = _map(member, plan, _check_chunk(chunk, plan))
    warn_materialized(uses, stacklevel=3)
    return out


def _map(member: Callable[[list[Any], list[Any]], Any], plan: "_Plan", chunk: int | None) -> Any:
    """Maps a function of what members and what pairs have of their own over all of them."""
    size, groups = plan.group, plan.members // plan.group
    own = [x.reshape(groups, size, *x.shape[1:]) if size > 1 else x for x in plan.own]

    def group(values: tuple[list[Any], list[Any]]) -> Any:
        mine, ours = values
        if size == 1:
            return member(mine, ours)
        return jax.vmap(lambda each: member(each, ours), axis_size=size)(mine)

    if chunk is None or chunk >= plan.members:
        out = jax.vmap(group, axis_size=groups)((own, plan.common))
    else:
        out = jax.lax.map(group, (own, plan.common), batch_size=chunk // size)
    if size == 1:
        return out
    return jax.tree.map(lambda x: x.reshape(plan.members, *x.shape[2:]), out)


def _made(drawn: list[Any]) -> list[Any]:
    """Returns arrays that are made before anything uses them.

    Fused into what uses it, noise would be drawn again for each row of input. The CPU's compiler
    drops barriers before it fuses, but makes what a branch gets.
    """
    some = next((x.ravel()[0] for x in drawn if jnp.issubdtype(x.dtype, jnp.floating)), None)
    if some is None or not any(isinstance(x, jax.core.Tracer) for x in drawn):
        return drawn

    def branch(arrays: list[Any]) -> list[Any]:
        return jax.lax.cond(
            some == some, lambda xs: xs, lambda xs: [x + some.astype(x.dtype) for x in xs], arrays
        )

    return jax.lax.platform_dependent(drawn, cpu=branch, default=jax.lax.optimization_barrier)


@dataclass(frozen=True)
class _Plan:
    """What is mapped over members, what over pairs, and how one member is put together.

    Attributes:
      members: number of members.
      group: members that have their factors in common, 1 or 2.
      own: arrays ``(members, ...)``.
      common: arrays ``(members / group, ...)``.
      leaves: of the population.
      values: of the arguments.
      axes: of members in the arguments.
      treedefs: of population and arguments.
    """

    members: int
    group: int
    own: list[Any]
    common: list[Any]
    leaves: list[Any]
    values: list[Any]
    axes: list[int | None]
    treedefs: tuple[Any, Any]

    @classmethod
    def of(
        cls, population: PyTree, args: tuple[Any, ...], in_axes: Any, *, generated: bool = False
    ) -> "_Plan":
        leaves, treedef = jax.tree.flatten(population, is_leaf=_is_leaf)
        values, argdef = jax.tree.flatten(args)
        axes = _argument_axes(args, in_axes)
        named = [*zip(paths_of(population, _is_leaf), leaves, strict=True)]
        members = _members(named, values, axes)
        factors = [np.shape(leaf.a)[0] for leaf in leaves if isinstance(leaf, Perturbed)]
        group = 2 if any(2 * count == members for count in factors) else 1
        own: list[Any] = []
        common: list[Any] = []
        kept: set[int] = set()
        for leaf in leaves:
            if isinstance(leaf, Perturbed):
                own.append(leaf.scale)
                side = own if np.shape(leaf.a)[0] == members else common
                side.extend([leaf.a, leaf.b])
                if leaf.draw is not None:
                    side.append(leaf.draw.number)
                    # What a kernel makes itself is not to be made before.
                    kept |= {id(leaf.a), id(leaf.b)} if generated else set()
            elif isinstance(leaf, Varied):
                own.append(leaf.value)
        drawn = [*own, *common]
        made = iter(_made([x for x in drawn if id(x) not in kept]))
        drawn = [x if id(x) in kept else next(made) for x in drawn]
        own, common = drawn[: len(own)], drawn[len(own) :]
        for value, axis in zip(values, axes, strict=True):
            if axis is not None:
                own.append(jnp.moveaxis(jnp.asarray(value), axis, 0))
        return cls(members, group, own, common, leaves, values, axes, (treedef, argdef))

    def rebuild(self, own: list[Any], common: list[Any]) -> tuple[PyTree, tuple[Any, ...]]:
        """Returns the parameters and the arguments of one member, in the order of ``of``."""
        mine, shared = iter(own), iter(common)
        params = []
        for leaf in self.leaves:
            if isinstance(leaf, Perturbed):
                scale = next(mine)
                side = mine if np.shape(leaf.a)[0] == self.members else shared
                a, b, draw = next(side), next(side), leaf.draw
                if draw is not None:
                    draw = replace(draw, number=next(side))
                params.append(replace(leaf, scale=scale, a=a, b=b, draw=draw))
            else:
                params.append(next(mine) if isinstance(leaf, Varied) else leaf)
        values = [
            value if axis is None else next(mine)
            for value, axis in zip(self.values, self.axes, strict=True)
        ]
        tree = jax.tree.unflatten(self.treedefs[0], params)
        return tree, jax.tree.unflatten(self.treedefs[1], values)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Perturbed | Varied)


def _argument_axes(args: tuple[Any, ...], in_axes: Any) -> list[int | None]:
    """Returns the axis of members of each array in the arguments."""
    if in_axes is None or isinstance(in_axes, int):
        in_axes = (in_axes,) * len(args)
    if len(in_axes) != len(args):
        raise ValueError(
            f"in_axes={in_axes!r} has {len(in_axes)} entries for {len(args)} arguments behind the "
            "parameters; give one for each, or one integer or None for all"
        )
    shared = "shared"  # None would be no leaf
    spread = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: shared if axis is None else axis, part),
        tuple(in_axes),
        tuple(args),
        is_leaf=lambda x: x is None,
    )
    return [None if axis is shared else axis for axis in jax.tree.leaves(spread)]


def _members(named: list[tuple[str, Any]], values: list[Any], axes: list[int | None]) -> int:
    """Returns how many members there are, if all agree."""
    found: dict[str, int] = {}
    for path, leaf in named:
        if isinstance(leaf, Perturbed | Varied):
            array = leaf.scale if isinstance(leaf, Perturbed) else leaf.value
            if not np.ndim(array):
                raise ValueError(
                    f"leaf {path!r} has no axis of members; give Perturbed a vector of scales, and "
                    "Varied (members, *shape), or use apply_perturbed for one member"
                )
            found[f"leaf {path!r}"] = np.shape(array)[0]
    for index, (value, axis) in enumerate(zip(values, axes, strict=True)):
        if axis is not None:
            if not -np.ndim(value) <= axis < np.ndim(value):
                raise ValueError(
                    f"array {index} of the arguments has shape {np.shape(value)}, and no axis "
                    f"{axis} of members; give in_axes=None for what all members get"
                )
            found[f"array {index} of the arguments"] = np.shape(value)[axis]
    if len({*found.values()}) != 1:
        told = ", ".join(f"{name}: {count}" for name, count in found.items())
        raise ValueError(
            f"the axes of members disagree ({told})" + "; in_axes=None is for what all get"
            if found
            else "nothing has an axis of members: give a population, as perturb_lazy returns it"
        )
    members = next(iter(found.values()))
    for path, leaf in named:
        if isinstance(leaf, Perturbed):
            _check_factors(path, leaf, members)
    return members


def _check_factors(path: str, leaf: Perturbed, members: int) -> None:
    counts = [np.shape(x)[0] if np.ndim(x) else 0 for x in (leaf.a, leaf.b)]
    if counts[0] != counts[1] or counts[0] not in (members, members / 2):
        raise ValueError(
            f"leaf {path!r}: factors for {counts[0]} and {counts[1]} in a population of {members}; "
            "give one pair of factors a member, or one for two neighbours of opposite sign"
        )


def _check_chunk(chunk: int | None, plan: _Plan) -> int | None:
    if chunk is not None and (chunk < 1 or chunk % plan.group):
        raise ValueError(
            f"chunk={chunk} members at a time"
            + (
                ": pairs that share their factors stay together; give an even number"
                if chunk > 0
                else "; give a positive number, or None for all"
            )
        )
    return chunk
