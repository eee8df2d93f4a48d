"""What an optimizer will do to a model, leaf by leaf, before anything is allocated."""

from dataclasses import dataclass

import jax
import numpy as np
import optax

from optkit.transforms.route import FROZEN, recording
from optkit.tree import (
    PyTree,
    Role,
    RuleLike,
    StateLeaf,
    leaf_bytes,
    leaves_with_paths,
    match_state,
    tree_bytes,
)
from optkit.tree import (
    roles as roles_of,
)


@dataclass(frozen=True)
class PlanRow:
    """One leaf of the model.

    Attributes:
      path: its path.
      shape: its shape.
      dtype: its dtype.
      role: what it is.
      method: which route serves it; without routes, the parts that keep state for it.
      state_dtype: dtypes of its state, ``"-"`` if there is none.
      state_bytes: bytes of its state.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    method: str
    state_dtype: str
    state_bytes: int


@dataclass(frozen=True)
class Plan:
    """The table that ``optkit.plan`` makes; ``print`` it or read its fields.

    Attributes:
      rows: one ``PlanRow`` a leaf, in flattening order.
      shared_bytes: state that belongs to no leaf: counters, keys, hyperparameters.
      parameter_bytes: bytes of the parameters.
    """

    rows: tuple[PlanRow, ...]
    shared_bytes: int
    parameter_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole optimizer state."""
        return sum(row.state_bytes for row in self.rows) + self.shared_bytes

    def __str__(self) -> str:
        head = ("path", "shape", "role", "method", "state", "state bytes")
        cells = [
            (
                row.path or "(root)",
                "x".join(map(str, row.shape)) or "scalar",
                str(row.role),
                row.method,
                row.state_dtype,
                f"{row.state_bytes:,}",
            )
            for row in self.rows
        ]
        table = [head, *cells]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(width) if i == len(head) - 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        ratio = self.state_bytes / self.parameter_bytes if self.parameter_bytes else 0.0
        total = (
            f"{len(self.rows)} leaves, parameters {self.parameter_bytes:,} bytes, state "
            f"{self.state_bytes:,} bytes ({ratio:.2f} x), of which shared {self.shared_bytes:,}"
        )
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], total])


def _parts(matches: list[StateLeaf]) -> str:
    names = dict.fromkeys(match.owner.rsplit("/", 1)[-1] for match in matches)
    return "+".join(names) or "stateless"


def plan(
    tx: optax.GradientTransformation, params: PyTree, *, roles: tuple[RuleLike, ...] = ()
) -> Plan:
    """Returns a table of who serves each leaf and what state it costs; allocates nothing.

    Args:
      tx: any Optax transformation; routes may sit anywhere in it.
      params: parameters or ``jax.ShapeDtypeStruct``s, for example from ``jax.eval_shape``.
      roles: your own ``(pattern, role)`` rules, for the role column.

    Returns:
      A ``Plan``: ``print(plan)`` is the table with totals; ``plan.state_bytes`` and
      ``plan.rows`` are its numbers.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"up": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
      >>> print(optkit.plan(optkit.muon(), params))
      path       shape  role    method  state    state bytes
      ------------------------------------------------------
      up/bias    8      bias    adamw   float32           64
      up/kernel  4x8    matrix  muon    float32          128
      2 leaves, parameters 160 bytes, state 216 bytes (1.35 x), of which shared 24
    """
    with recording() as records:
        # A fresh function: eval_shape would otherwise answer from its cache and record nothing.
        state = jax.eval_shape(lambda p: tx.init(p), params)
    owned: dict[str | None, list[StateLeaf]] = {}
    for match in match_state(state, params):
        owned.setdefault(match.param_path, []).append(match)
    role_leaves = jax.tree.leaves(roles_of(params, roles))
    rows = []
    for (path, leaf), role in zip(leaves_with_paths(params), role_leaves, strict=True):
        matches = owned.get(path, [])
        routes = [record[path] for record in records if path in record]
        method = FROZEN if FROZEN in routes else "/".join(routes) or _parts(matches)
        dtypes = dict.fromkeys(str(match.leaf.dtype) for match in matches)
        state_bytes = sum(leaf_bytes(match.leaf) for match in matches)
        rows.append(
            PlanRow(
                path,
                tuple(np.shape(leaf)),
                str(leaf.dtype),
                role,
                method,
                "+".join(dtypes) or "-",
                state_bytes,
            )
        )
    shared = sum(leaf_bytes(match.leaf) for match in owned.get(None, []))
    return Plan(tuple(rows), shared, tree_bytes(params))


__all__ = ["Plan", "PlanRow", "plan"]
