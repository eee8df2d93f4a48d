"""Checkpoints of one mesh that go on on another one; test_meshes.py takes every method."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint
import pytest
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.methods import method as method_named
from tests.conformance.test_sharding import LEAVES, Sharded, sharded
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


def _moved(held: Any, target: Sharded, folder: Path) -> Any:
    """Saves a tree of parameters and state, and restores it on the target's mesh."""
    params = held["params"]
    specs = optkit.tree.map_with_path(lambda path, _: target.specs[path], params)
    wanted = {
        "params": jax.tree.map(lambda spec: jax.sharding.NamedSharding(target.mesh, spec), specs),
        "state": optkit.state_sharding(target.tx, params, specs, mesh=target.mesh),
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


def go_on(source: Sharded, target: Sharded, folder: Path) -> None:
    """Takes the second step of two on another mesh than the first."""
    updates, states = source.run()
    held = {"params": source.placed[0], "state": states[1]}
    restored = _moved(held, target, folder)
    assert_same(restored, held)
    with jax.set_mesh(target.mesh):
        got = target.compiled(target.placed[2], restored["state"], restored["params"])
    assert_close(copy(jax.device_get(got[0])), jax.device_get(updates[1]))
    assert_close(copy(jax.device_get(got[1])), jax.device_get(states[2]))


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_goes_on_on_another_mesh(name: str, tmp_path: Path) -> None:
    leaves = {path: (size, SPECS[path]) for path, (size, _) in LEAVES.items()}
    target = Sharded(method_named(name), leaves, "auto", (4, 2))
    go_on(sharded(name, "auto"), target, tmp_path)
