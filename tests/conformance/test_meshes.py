"""Meshes of two and three axes: every method gives the same numbers there, and moves between them.

The leaves of test_sharding.py lie on them, so that operations compile once for both files, and a
matrix whose two sides are split.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.methods import Method
from tests.conformance.methods import method as method_named
from tests.conformance.test_resharding import go_on
from tests.conformance.test_sharding import LEAVES, Sharded, check_close, check_stable
from tests.conformance.trees import nested

SIZES = {**{path: size for path, (size, _) in LEAVES.items()}, "both/kernel": (8, 4)}
SPECS_4X2 = {
    "rows/kernel": P(("x", "y"), None),
    "more/kernel": P("y", None),
    "columns/kernel": P(None, ("y", "x")),
    "layers/kernel": P("x", "y", None),
    "rows/bias": P("y"),
    "norm/scale": P(),
    "both/kernel": P("x", "y"),
}
SPECS_2X2X2 = {
    "rows/kernel": P(("z", "x"), None),
    "more/kernel": P("y", None),
    "columns/kernel": P(None, ("x", "y", "z")),
    "layers/kernel": P(("x", "z"), "y", None),
    "rows/bias": P(("x", "z")),
    "norm/scale": P(),
    "both/kernel": P("z", ("x", "y")),
}
SPECS = {(4, 2): SPECS_4X2, (2, 2, 2): SPECS_2X2X2}
MESHES = {
    "4x2_auto": ("auto", (4, 2)),
    "4x2_explicit": ("explicit", (4, 2)),
    "2x2x2_auto": ("auto", (2, 2, 2)),
}
pytestmark = [pytest.mark.slow, pytest.mark.sweep]
every_mesh = pytest.mark.parametrize("mesh", MESHES)


@functools.lru_cache(maxsize=3)
def on(name: str, mesh: str) -> Sharded:
    kind, shape = MESHES[mesh]
    leaves = {path: (size, SPECS[shape][path]) for path, size in SIZES.items()}
    # On several Auto axes the compiler moves states whose place it is free to choose, of SOAP for
    # one: as `state_sharding` says, a step has to be told where they lie.
    return Sharded(method_named(name), leaves, kind, shape, pinned=True)


@functools.lru_cache(maxsize=1)
def unsharded(name: str) -> list[Any]:
    """What all meshes have to give."""
    return on(name, "4x2_auto").unsharded()


@every_mesh
def test_every_mesh_gives_the_same_numbers(method: Method, mesh: str) -> None:
    case = on(method.entry.name, mesh)
    check_close(case, case.run()[0], unsharded(method.entry.name))


@every_mesh
def test_state_stays_where_it_was(method: Method, mesh: str) -> None:
    check_stable(on(method.entry.name, mesh))


def test_a_checkpoint_of_one_mesh_goes_on_on_another(method: Method, tmp_path: Path) -> None:
    source, target = (on(method.entry.name, mesh) for mesh in ("2x2x2_auto", "4x2_auto"))
    go_on(source, target, tmp_path)


# 16 x 16 devices, of which no machine with tests has one: traced, not compiled.
LARGE = {
    "rows/kernel": ((256, 4), P(("x", "y"), None)),
    "columns/kernel": ((4, 256), P(None, ("y", "x"))),
    "both/kernel": ((32, 16), P("x", "y")),
    "layers/kernel": ((16, 32, 8), P("x", "y", None)),
    "rows/bias": ((256,), P("y")),
    "norm/scale": ((4,), P()),
}


def test_a_step_keeps_its_types_on_256_devices(method: Method) -> None:
    mesh = jax.sharding.AbstractMesh((16, 16), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    given = method.shapes({path: size for path, (size, _) in LARGE.items()})
    params = nested(
        {
            path: jax.ShapeDtypeStruct(
                size, jnp.float32, sharding=NamedSharding(mesh, LARGE[path][1])
            )
            for path, size in given.items()
        }
    )
    with jax.sharding.use_abstract_mesh(mesh):
        state = jax.eval_shape(method.tx.init, params)
        updates, after = jax.eval_shape(method.tx.update, params, state, params)
    assert _types(updates) == _types(params)
    assert _types(after) == _types(state)
    wanted = jax.tree.leaves(optkit.state_sharding(method.tx, params))
    assert _types(state) == _types(state, wanted)


def _types(tree: Any, places: list | None = None) -> list[tuple]:
    """Paths, shapes and dtypes, and the partition of what has more than one entry."""
    out = []
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, x), place in zip(leaves, places or [x.sharding for _, x in leaves], strict=True):
        spec = () if place is None else place.spec  # a counter is on no mesh
        parts = [part if part is None or isinstance(part, tuple) else (part,) for part in spec]
        parts += [None] * (x.ndim - len(parts))
        out.append((path, x.shape, x.dtype, parts if x.size > 1 else None))
    return out
