"""Checkpoints of one mesh that go on on another one."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint
import pytest
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.methods import Method, one_of_each
from tests.conformance.methods import method as method_named
from tests.conformance.test_sharding import Sharded, mesh_of, place, sharded
from tests.conformance.trees import assert_close, assert_same, copy

# The leaves of test_sharding.py, and where they lie on a mesh of 4 x 2.
SPECS = {
    "rows/kernel": P(("x", "y"), None),
    "more/kernel": P("y", None),
    "columns/kernel": P(None, "x"),
    "layers/kernel": P("x", "y", None),
    "rows/bias": P("y"),
    "norm/scale": P(),
}
# Moments, whole matrices, rows and columns, bases with a key, a history and flags.
QUICK = ("adafactor", "adamw", "galore_adamw", "muon", "skip_spikes")


def _on_another_mesh(case: Sharded, held: Any, folder: Path) -> Any:
    """Saves a tree of parameters and state, and restores it on the mesh of 4 x 2."""
    mesh = mesh_of("auto", (4, 2))
    params = held["params"]
    specs = optkit.tree.map_with_path(lambda path, _: SPECS[path], params)
    wanted = {
        "params": jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs),
        "state": optkit.state_sharding(case.tx, params, specs, mesh=mesh),
    }
    shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), held, wanted
    )
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "one", held)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder / "one", shapes)
    for x, place_of in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        # Counters, too, are on the whole mesh: on one device they would not mix with the rest.
        assert x.sharding.is_equivalent_to(place_of, x.ndim), (x.sharding, place_of)
    return restored


def _check(method: Method, folder: Path) -> None:
    case = sharded(method.entry.name, "auto")
    updates, states = case.run()
    held = {"params": case.placed[0], "state": states[1]}
    restored = _on_another_mesh(case, held, folder)
    assert_same(restored, held)
    grads = place(case.plain[2], SPECS, mesh_of("auto", (4, 2)))
    got = jax.jit(case.tx.update)(grads, restored["state"], restored["params"])
    assert_close(copy(jax.device_get(got[0])), jax.device_get(updates[1]))
    assert_close(copy(jax.device_get(got[1])), jax.device_get(states[2]))


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_goes_on_on_another_mesh(name: str, tmp_path: Path) -> None:
    _check(method_named(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*one_of_each()} - {*QUICK}))
def test_checkpoints_go_on_on_another_mesh(name: str, tmp_path: Path) -> None:
    _check(method_named(name), tmp_path)
