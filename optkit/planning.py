"""What an optimizer will do to a model, leaf by leaf, before anything is allocated."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, PartitionSpec

from optkit.transforms.base import check_transformation
from optkit.transforms.recording import Recording, recording
from optkit.transforms.route import FROZEN
from optkit.tree import (
    MatrixView,
    PyTree,
    Role,
    RoleRule,
    RuleLike,
    StateLeaf,
    leaf_bytes,
    leaves_with_paths,
    match_state,
    rule_of,
    state_sharding,
    tree_bytes,
)


@dataclass(frozen=True)
class PlanRow:
    """One leaf of the model.

    Attributes:
      path: its path.
      shape: its shape.
      dtype: its dtype.
      role: what it is, by the role rules of the route that serves it.
      method: which route serves it, below which other; without routes, the parts that keep state
        for it.
      state_dtype: dtypes of its state, ``"-"`` if there is none.
      state_bytes: bytes of its state.
      matrices: how a matrix recipe reads it, ``number x (fan_in -> fan_out)``; ``"-"`` for others.
      wrappers: wrappers that it is inside of, the outer ones first; those that a recipe is made of
        are not listed.
      device_bytes: bytes of its state on one device; None if the plan was not told of shardings.
      factors: by what laws of transfer multiply its hyperparameters; ``"-"`` without any.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    method: str
    state_dtype: str
    state_bytes: int
    matrices: str = "-"
    wrappers: tuple[str, ...] = ()
    device_bytes: int | None = None
    factors: str = "-"


@dataclass(frozen=True)
class Plan:
    """The table that ``optkit.plan`` makes; ``print`` it or read its fields.

    Attributes:
      rows: one ``PlanRow`` a leaf, in flattening order.
      shared_bytes: state that belongs to no leaf: counters, keys, hyperparameters.
      parameter_bytes: bytes of the parameters.
      notes: what may be a mistake: rules that serve no leaf.
    """

    rows: tuple[PlanRow, ...]
    shared_bytes: int
    parameter_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def device_bytes(self) -> int | None:
        """Bytes of the whole state on one device; None if the plan was not told of shardings."""
        each = [row.device_bytes for row in self.rows if row.device_bytes is not None]
        return sum(each) + self.shared_bytes if each else None

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole optimizer state."""
        return sum(row.state_bytes for row in self.rows) + self.shared_bytes

    def __str__(self) -> str:
        columns = {
            "path": [row.path or "(root)" for row in self.rows],
            "shape": ["x".join(map(str, row.shape)) or "scalar" for row in self.rows],
            "role": [str(row.role) for row in self.rows],
            "method": [row.method for row in self.rows],
            "fan_in -> fan_out": [row.matrices for row in self.rows],
            "wrapped by": [" > ".join(row.wrappers) or "-" for row in self.rows],
            "factors": [row.factors for row in self.rows],
            "state": [row.state_dtype for row in self.rows],
        }
        for name in ("fan_in -> fan_out", "wrapped by", "factors"):
            if all(cell == "-" for cell in columns[name]):
                del columns[name]
        numbers = [["state bytes", *(f"{row.state_bytes:,}" for row in self.rows)]]
        if self.device_bytes is not None:
            numbers.append(["on a device", *(f"{row.device_bytes:,}" for row in self.rows)])
        sides = [[name, *cells] for name, cells in columns.items()]
        padded = [[cell.ljust(max(map(len, side))) for cell in side] for side in sides]
        padded += [[cell.rjust(max(map(len, side))) for cell in side] for side in numbers]
        lines = ["  ".join(cells) for cells in zip(*padded, strict=True)]
        ratio = self.state_bytes / self.parameter_bytes if self.parameter_bytes else 0.0
        total = (
            f"{len(self.rows)} leaves, parameters {self.parameter_bytes:,} bytes, state "
            f"{self.state_bytes:,} bytes ({ratio:.2f} x), of which shared {self.shared_bytes:,}"
        )
        if self.device_bytes is not None:
            total += f"; on a device {self.device_bytes:,}"
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], total, *self.notes])


def _parts(matches: list[StateLeaf]) -> str:
    names = dict.fromkeys(match.owner.rsplit("/", 1)[-1] for match in matches)
    return "+".join(names) or "stateless"


def _reading(views: Iterable[MatrixView]) -> str:
    """How a leaf is read: ``4 x (512 -> 2048)``; the parts of a fused one joined by a plus."""
    out = []
    for view in views:
        batch = "".join(f"{size} x " for size in view.batch_shape)
        one = f"{view.fan_in} -> {view.fan_out}"
        out.append(f"{batch}({one})" if batch else one)
    return " + ".join(out) or "-"


def _idle_roles(rules: Iterable[RuleLike], params: PyTree) -> Iterator[str]:
    """Says which of the user's role rules match no leaf."""
    leaves = leaves_with_paths(params)
    for rule in rules:
        whole = rule if isinstance(rule, RoleRule) else RoleRule(rule[0], Role(rule[1]))
        if not any(whole.applies(path, np.ndim(leaf)) for path, leaf in leaves):
            yield f"role rule {whole.pattern!r} -> {whole.role} matches no leaf"


def _notes(found: Recording, roles: Iterable[RuleLike], params: PyTree) -> tuple[str, ...]:
    rules = [*roles]
    for record in found.routes:
        rules += [rule for rule in record.roles if rule not in rules]
    idle = [line for record in found.routes for line in (*record.idle, *record.unread)]
    return tuple(dict.fromkeys([*idle, *_idle_roles(rules, params)]))


def plan(
    tx: optax.GradientTransformation,
    params: PyTree,
    *,
    roles: tuple[RuleLike, ...] = (),
    axis_sizes: Mapping[str, int] | None = None,
    shardings: PyTree = None,
) -> Plan:
    """Returns a table of who serves each leaf and what state it costs; allocates nothing.

    A role is the one that the innermost route with roles sees, and its ``roles=`` rules with it. A
    line below the table names each rule that serves no leaf: in a general configuration that is in
    order, and otherwise a misspelt pattern.

    Args:
      tx: any Optax transformation; routes may sit anywhere in it.
      params: parameters or ``jax.ShapeDtypeStruct``s, for example from ``jax.eval_shape``.
      roles: your own ``(pattern, role)`` rules for the role column, in place of those that the
        transformation was built with.
      axis_sizes: how many workers there are along each axis that ``tx`` averages over, such as
        ``{"data": 8}``; bytes are those of one worker then.
      shardings: where the parameters lie, a tree like them (or for whole subtrees) of
        ``NamedSharding``; adds the bytes of one device, by ``optkit.state_sharding``.

    Returns:
      A ``Plan``: ``print(plan)`` is the table with totals; ``plan.state_bytes`` and
      ``plan.rows`` are its numbers. Columns without an entry are left out.

    Raises:
      TypeError: ``tx`` is no transformation.
      NameError: ``tx`` averages over an axis that ``axis_sizes`` does not have.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"up": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
      >>> print(optkit.plan(optkit.muon(), params))
      path       shape  role    method  fan_in -> fan_out  state    state bytes
      -------------------------------------------------------------------------
      up/bias    8      bias    adamw   -                  float32           64
      up/kernel  4x8    matrix  muon    4 -> 8             float32          128
      2 leaves, parameters 160 bytes, state 216 bytes (1.35 x), of which shared 24
    """
    tx = check_transformation("tx", tx, swapped_with=params)
    with recording() as found:
        # A fresh function: eval_shape would otherwise answer from its cache and record nothing.
        state = _state(lambda p: tx.init(p), params, dict(axis_sizes or {}))
    owned: dict[str | None, list[StateLeaf]] = {}
    local: dict[str | None, int] = {}
    places = _places(state, params, shardings)
    for match, place in zip(match_state(state, params), places, strict=True):
        owned.setdefault(match.param_path, []).append(match)
        if place is not None:
            part = math.prod(place.shard_shape(match.leaf.shape)) * match.leaf.dtype.itemsize
            local[match.param_path] = local.get(match.param_path, 0) + part
    rows = [
        _row(path, leaf, owned.get(path, []), found, roles, None if shardings is None else local)
        for path, leaf in leaves_with_paths(params)
    ]
    shared = sum(leaf_bytes(match.leaf) for match in owned.get(None, []))
    return Plan(tuple(rows), shared, tree_bytes(params), _notes(found, roles, params))


def _state(init: Callable[[PyTree], PyTree], params: PyTree, sizes: dict[str, int]) -> PyTree:
    """Shapes of the state, of one worker where there are axes of them."""
    if sizes:  # on a mesh that need not be there
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        init = jax.shard_map(
            init, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
        )
    try:
        return jax.eval_shape(init, params)
    except NameError as error:
        if "axis" not in str(error):
            raise
        raise NameError(
            f"{error}. Here: tell plan how many workers there are along it, "
            "plan(tx, params, axis_sizes={'data': 8})"
        ) from error


def _places(state: PyTree, params: PyTree, shardings: PyTree) -> list[Any]:
    """The sharding of each leaf of the state, or None if nothing is known of the parameters'."""
    if shardings is None:
        return [None] * len(jax.tree.leaves(state))
    return jax.tree.leaves(state_sharding(state, params, shardings))


def _row(
    path: str,
    leaf: Any,
    matches: list[StateLeaf],
    found: Recording,
    roles: tuple[RuleLike, ...],
    local: Mapping[str | None, int] | None,
) -> PlanRow:
    records = [record for record in found.routes if path in record.routes]
    # Nested routes may bear one name: muon's own route below a route called muon.
    routes = [name for name, _ in itertools.groupby(record.routes[path] for record in records)]
    seen = next((record.roles for record in reversed(records) if record.by_role), ())
    views = next((record.matrices[path] for record in records if path in record.matrices), ())
    return PlanRow(
        path,
        tuple(np.shape(leaf)),
        str(leaf.dtype),
        rule_of(path, leaf, roles or seen).role,
        FROZEN if FROZEN in routes else "/".join(routes) or _parts(matches),
        "+".join(dict.fromkeys(str(match.leaf.dtype) for match in matches)) or "-",
        sum(leaf_bytes(match.leaf) for match in matches),
        _reading(views),
        tuple(name for name, paths in found.wrappers if path in paths),
        None if local is None else local.get(path, 0),
        found.factors.get(path, "-"),
    )


__all__ = ["Plan", "PlanRow", "plan"]
