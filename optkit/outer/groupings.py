"""Who meets whom: replicas in groups, and what the members of a group send each other."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import auto_axes

from optkit.distributed.workers import axes_of
from optkit.outer.base import Replicas
from optkit.outer.moving import moved
from optkit.transforms.hyperparams import check_static_int
from optkit.tree.sharding import spec_of

Grouping: TypeAlias = tuple[tuple[int, ...], ...]


def check_grouping(groups: Iterable[Iterable[int]], replicas: int) -> Grouping:
    """Returns groups as tuples, or raises ValueError unless each replica is in one of them."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(groups)):
        raise TypeError(
            "groups decide who sends to whom in the compiled program: give integers, which "
            'jax.jit(outer.step, static_argnames="groups") leaves as they are, in tuples'
        )
    out = tuple(tuple(int(member) for member in group) for group in groups)
    whole = sorted(member for group in out for member in group) == list(range(replicas))
    sizes = sorted(len(group) for group in out)
    equal = len(set(sizes)) == 1 or (sizes[0] == 1 and set(sizes[1:]) == {2})
    if not whole or not equal:
        raise ValueError(
            f"groups={out!r} must be equally large and have each of the {replicas} replicas in one "
            "of them; beside pairs one may be alone"
        )
    return out


def groupings(replicas: int, group: int = 2) -> tuple[Grouping, ...]:
    """Returns ways to divide replicas into groups, of which one is drawn at each outer step.

    Pairs: a round robin, replicas - 1 ways in which everyone meets everyone else once. For powers
    of 2 they are ``i`` and ``i ^ k``, k = 1, 2, ...; else one replica stays and the others turn. Of
    an odd number the one that would meet who stays is alone, each once in ``replicas`` ways.
    Larger groups: replicas - 1 shuffles by fixed seeds, element k of which is in group k mod
    (replicas/group).

    Args:
      replicas: how many there are.
      group: how many meet.

    Returns:
      Groupings, each a tuple of groups, each a tuple of indices.

    Raises:
      ValueError: ``replicas`` is no multiple of ``group``, which is at least 2, and these are no
        pairs.

    Example:
      >>> import optkit
      >>> optkit.outer.groupings(4)
      (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    """
    check_static_int("group", group, low=2)
    check_static_int("replicas", replicas)
    if replicas % group and (group > 2 or replicas == 1):
        raise ValueError(
            f"group={group} does not divide the {replicas} replicas, each of which is in one "
            "group: give a group that does, such as pairs, of which one may rest"
            if replicas > 1
            else "params has one replica, and nobody for it to meet: stack two at least, such as "
            "optkit.replicas(params, 2)"
        )
    if group == replicas:
        return (check_grouping([range(replicas)], replicas),)
    if group > 2:
        shuffled = (
            np.random.default_rng(seed).permutation(replicas) for seed in range(1, replicas)
        )
        number = replicas // group
        return tuple(
            tuple(tuple(map(int, order[i::number])) for i in range(number)) for order in shuffled
        )
    if replicas & (replicas - 1) == 0:
        return tuple(
            tuple((i, i ^ mask) for i in range(replicas) if i < i ^ mask)
            for mask in range(1, replicas)
        )
    seats = replicas + replicas % 2
    ways = (_turned(seats, turn) for turn in range(seats - 1))
    return tuple(tuple(tuple(i for i in pair if i < replicas) for pair in way) for way in ways)


def _turned(replicas: int, turn: int) -> Grouping:
    """A round of the circle: the last one stays."""
    others = replicas - 1
    pairs = [(turn, others)]
    pairs += [((turn + k) % others, (turn - k) % others) for k in range(1, replicas // 2)]
    return tuple((min(pair), max(pair)) for pair in pairs)


def _senders(grouping: Grouping, turn: int) -> list[int]:
    """Whose values each replica gets when groups are turned by so many members."""
    out = [0] * sum(map(len, grouping))
    for group in grouping:
        for place, member in enumerate(group):
            out[member] = group[(place + turn) % len(group)]
    return out


def _mask(senders: Sequence[int]) -> int:
    """The k where all get from ``i ^ k`` and their number is a power of 2; else 0."""
    count = len(senders)
    same = {i ^ j for i, j in enumerate(senders)}
    return same.pop() if len(same) == 1 and count & (count - 1) == 0 else 0


def _flipped(x: jax.Array, mask: int) -> jax.Array:
    """x[i ^ mask], which the compiler sends between neighbours without being told how."""
    bits = x.shape[0].bit_length() - 1
    axes = [bits - 1 - bit for bit in range(bits) if mask >> bit & 1]
    parts = x.reshape(*[2] * bits, *x.shape[1:])
    return jnp.flip(parts, axes).reshape(x.shape)


def _taken(x: jax.Array, senders: Sequence[int]) -> jax.Array:
    mask, spec = _mask(senders), spec_of(x)
    if not mask:
        return moved(x, senders)
    if spec is None:
        return _flipped(x, mask)
    return auto_axes(lambda x: _flipped(x, mask), out_sharding=spec)(x)


def group_mean(trees: Any, grouping: Grouping, among: Replicas) -> Any:
    """Averages over the members of each group; one value of each other member comes in.

    To one that is alone beside pairs its own comes, and half of twice it is exact.
    """
    size = max(map(len, grouping))

    def come(x: jax.Array, turn: int) -> jax.Array:
        senders = _senders(grouping, turn)
        if among.stacked:
            return _taken(x, senders)
        pairs = [(source, target) for target, source in enumerate(senders)]
        return lax.ppermute(x, axes_of(among.axis_name), pairs)

    def leaf(x: jax.Array) -> jax.Array:
        return sum((come(x, turn) for turn in range(1, size)), x) / size

    return jax.tree.map(leaf, trees)


def switch(index: jax.Array, branches: Sequence[Callable[[], Any]]) -> Any:
    """Runs one of the branches; of one there is nothing to choose."""
    return branches[0]() if len(branches) == 1 else lax.switch(index, branches)
