"""S2FT: channels that the matrices of a layer share."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.masks.compact import whole
from optkit.masks.lines import Lines, Side, top, view_of
from optkit.masks.policy import (
    Active,
    Keep,
    Look,
    Policy,
    Rest,
    check_keep,
    count_of,
)
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    RuleLike,
    dims_by_path,
    leaves_with_paths,
    upcast,
)
from optkit.tree.roles import rule_of

__all__ = ["COUPLINGS", "s2ft", "s2ft_permute"]

# Names of Flax models and of the common JAX code bases: what the one writes the other reads.
COUPLINGS: tuple[tuple[tuple[str, Side], ...], ...] = (
    (("up", "out"), ("gate", "out"), ("down", "in")),
    (("up_proj", "out"), ("gate_proj", "out"), ("down_proj", "in")),
    (("wi", "out"), ("wi_0", "out"), ("wi_1", "out"), ("wo", "in")),
    (("v_proj", "out"), ("o_proj", "in")),
    (("value", "out"), ("out", "in")),
)


class _Coupled(NamedTuple):
    """Matrices that share channels, of one layer."""

    name: str
    members: dict[str, Lines]  # path -> its rows or columns
    vectors: list[str]  # paths of biases and the like that have one number a channel


def _couple(
    params: PyTree, couplings: Sequence[Any], dims: Dims, roles: Sequence[RuleLike]
) -> list[_Coupled]:
    """Finds matrices below one parent whose names are coupled."""
    named = dims_by_path(params, dims)
    groups: dict[str, dict[str, Lines]] = {}
    vectors: dict[str, list[str]] = {}
    for path, leaf in leaves_with_paths(params):
        parts = path.split("/")
        for number, coupling in enumerate(couplings):
            sides = dict(coupling)
            at = next((i for i, part in enumerate(parts) if part in sides), None)
            if at is None or not np.size(leaf):
                continue
            name, side = f"{'/'.join(parts[:at])}#{number}", sides[parts[at]]
            if rule_of(path, leaf, roles).role not in MATRIX_ROLES:
                vectors.setdefault(name, []).extend([path] if side == "out" else [])
            else:
                own = Lines(view_of(path, leaf, dims, named, roles), side)
                groups.setdefault(name, {})[path] = own
            break
    out = [
        _Coupled(name, own, vectors.get(name, [])) for name, own in groups.items() if len(own) > 1
    ]
    for group in out:
        sizes = {path: (own.batch, own.count) for path, own in group.members.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{path!r}: {n[1]}" for path, n in sizes.items())
            raise ValueError(
                f"coupled matrices have different numbers of channels: {listed}; give couplings "
                "in which what one writes the others read"
            )
    return out


@cached_factory
def s2ft(
    keep: Keep,
    *,
    couplings: Sequence[Mapping[str, Side] | Sequence[tuple[str, Side]]] = COUPLINGS,
    units: int | None = None,
    select: Literal["random", "weight"] = "random",
    rest: Rest = "freeze",
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses channels, or heads, that matrices of a layer share: rows of one, columns of another.

    Matrices below one parent whose names a coupling lists share their channels: what "up" and
    "gate" write is what "down" reads. The same channels of all of them train, so that a permutation
    could make them one slice.

    Args:
      keep: channels that train of each group: a number, or a share in (0, 1]; heads with ``units``.
      couplings: groups of (component of the path, side that indexes the channels): "out" for what a
        matrix writes, "in" for what it reads. By default the names of the common models.
      units: number of equal blocks of neighbouring channels that are chosen as one, such as heads;
        None chooses single channels.
      select: "random", or "weight" for the largest sums of magnitudes over the group.
      rest: what becomes of leaves that are not coupled, "train" or "freeze".
      key: seed or PRNG key; None for 0.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``; it keeps a key. Masks have one entry a channel.

    Raises:
      ValueError: an option out of range; at init no coupled matrices, different numbers of
        channels, or fewer than ``keep``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"up": {"kernel": jnp.ones((2, 6))}, "down": {"kernel": jnp.ones((6, 2))}}
      >>> state = optkit.update_mask(optax.sgd(1.0), optkit.masks.s2ft(2)).init(params)
      >>> bool((state.kept["up"]["kernel"][0] == state.kept["down"]["kernel"][:, 0]).all())
      True

    Reference:
      S2FT, arXiv 2412.06289, written from the implementation inside of LIFT's repository.
    """
    check_keep("keep", keep)
    check_choice("rest", rest, ("train", "freeze"))
    check_choice("select", select, ("random", "weight"))
    check_seed(key)
    if units is not None:
        check_static_int("units", units)

    def count(group: _Coupled) -> tuple[int, int]:
        """How many blocks there are, and how many are kept."""
        path, lines = next(iter(group.members.items()))
        blocks = lines.count if units is None else units
        if lines.count % blocks:
            raise ValueError(
                f"units={units} does not divide the {lines.count} channels of leaf {path!r}"
            )
        what = "channels" if units is None else "units"
        return blocks, count_of("keep", keep, blocks, path, what)

    def groups_of(params: PyTree) -> list[_Coupled]:
        groups = _couple(params, couplings, dims, roles)
        if not groups and any(np.ndim(x) >= 2 for x in jax.tree.leaves(params)):
            paths = [path for path, _ in leaves_with_paths(params)]
            raise ValueError(
                f"no matrices are coupled in {', '.join(map(repr, paths[:6]))}; name them, for "
                'example couplings=[{"up": "out", "down": "in"}]'
            )
        return groups

    def active(params: PyTree) -> PyTree:
        slots: dict[str, Any] = {}
        for group in groups_of(params):
            blocks, kept = count(group)
            for path, lines in group.members.items():
                each = lines.count // blocks * kept
                slots[path] = Active(lines.shape, lines.batch * each)
        out = [slots.get(path, rest == "train") for path, _ in leaves_with_paths(params)]
        return jax.tree.unflatten(jax.tree.structure(params), out)

    def mask(state: jax.Array, look: Look) -> tuple[PyTree, jax.Array]:
        leaves = dict(leaves_with_paths(look.params))
        masks: dict[str, Any] = {}
        for group in groups_of(look.params):
            blocks, kept = count(group)
            first = next(iter(group.members.values()))
            if select == "weight":
                parts = [
                    whole(jnp.sum(jnp.abs(upcast(lines.flat(leaves[path]))), axis=-1))
                    for path, lines in group.members.items()
                ]
                scores = functools.reduce(jnp.add, parts)
                scores = jnp.sum(scores.reshape(first.batch, blocks, -1), axis=-1)
            else:
                own = jax.random.fold_in(state, zlib.crc32(group.name.encode()))
                scores = jax.random.uniform(own, (first.batch, blocks))
            chosen = jnp.repeat(top(scores, kept), first.count // blocks, axis=-1)
            masks |= {path: lines.mask(chosen) for path, lines in group.members.items()}
        out = [masks.get(path) for path in leaves]
        return jax.tree.unflatten(jax.tree.structure(look.params), out), state

    return Policy("s2ft", active, mask, lambda params: fresh_key(key))


def s2ft_permute(
    params: PyTree,
    kept: PyTree,
    *,
    couplings: Sequence[Mapping[str, Side] | Sequence[tuple[str, Side]]] = COUPLINGS,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Moves the channels that ``s2ft`` chose to the front, so that they are one slice.

    Coupled matrices, and the biases of those that write, are permuted alike: a model whose layers
    act on each channel by itself between them computes what it did.

    Args:
      params: parameters.
      kept: the masks, ``state.kept`` of ``optkit.update_mask`` with "hold" or "zero".
      couplings: as given to ``s2ft``.
      dims: as given to ``s2ft``.
      roles: as given to ``s2ft``.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: coupled matrices of different numbers of channels.
    """
    leaves = dict(leaves_with_paths(params))
    chosen = dict(leaves_with_paths(kept))
    for group in _couple(params, couplings, dims, roles):
        path, first = next(iter(group.members.items()))
        order = jnp.argsort(~first.flat(chosen[path])[..., 0], axis=-1, stable=True)
        for name, lines in group.members.items():
            flat = jnp.take_along_axis(lines.flat(leaves[name]), order[..., None], axis=1)
            leaves[name] = lines.leaf(flat)
        for name in group.vectors:
            flat = leaves[name].reshape(first.batch, first.count)
            moved = jnp.take_along_axis(flat, order, axis=1)
            leaves[name] = moved.reshape(leaves[name].shape)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
