"""A job of several processes that loses one goes on from its last checkpoint, and ends the same."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.processes import Started, free_port, printed, started

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS, DEVICES = 8, 2


def job(folder: Path, processes: int, devices: int = DEVICES, steps: int = STEPS) -> Any:
    """Starts examples/multihost_train.py, each process with so many devices."""
    port = free_port()
    script = ("examples/multihost_train.py", f"127.0.0.1:{port}", processes)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return started(
        [(*script, index, folder) for index in range(processes)],
        XLA_FLAGS=flags,
        STEPS=steps,
        SAVE_EVERY=2,
    )


def lose_one(processes: Started, after: str) -> None:
    """Kills the last process once it has printed a line, then the others, as schedulers do."""
    *others, last = processes
    assert last.stdout is not None
    assert any(line.startswith(after) for line in last.stdout), last.communicate()[1]
    last.kill()
    for process in others:
        process.kill()
        process.wait()
    assert last.wait() == -9


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """What a checkpoint of any number of devices holds, on one device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handlers = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(folder, item_handlers=handlers) as checkpoints:
        assert checkpoints.latest_step() == step
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            checkpoints.item_metadata(step).tree,
        )
        tree = checkpoints.restore(step, args=ocp.args.StandardRestore(like))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class Job(NamedTuple):
    """One that lost a process in its middle, and one of as many processes that lost none."""

    killed: Path
    ending: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Job]:
    """Runs both with so many processes, once."""

    @functools.cache
    def run(count: int) -> Job:
        whole, cut = (tmp_path_factory.mktemp(name) for name in ("undisturbed", "killed"))
        with job(whole, count) as processes:
            lines = printed(processes)
        last = {line for own in lines for line in own if line.startswith(f"step {STEPS}:")}
        assert len(last) == 1, "all processes train one model"
        with job(cut, count) as processes:
            lose_one(processes, "step 5:")
        return Job(cut, arrays(whole, STEPS))

    return run


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("before", "processes", "devices", "exact"),
    [(4, 4, 2, True), (4, 2, 4, True), (4, 2, 2, False), (2, 2, 2, True), (2, 1, 4, True)],
    ids=[
        "4, the same",
        "4, half of them, as many devices",
        "4, half of them, half the devices",
        "2, the same",
        "2, half of them, as many devices",
    ],
)
def test_a_killed_job_ends_as_an_undisturbed_one(
    jobs: Callable[[int], Job],
    tmp_path: Path,
    before: int,
    processes: int,
    devices: int,
    exact: bool,
) -> None:
    killed, ending = jobs(before)
    folder = shutil.copytree(killed, tmp_path / "job")
    with job(folder, processes, devices) as running:
        resumed = printed(running)[0]
    steps = [line for line in resumed if line.startswith("step ")]
    # From a whole checkpoint: that of step 4, or of step 2 should the last one not be complete.
    assert steps[0].startswith(("step 5:", "step 3:"))
    found = arrays(folder, STEPS)
    assert found.keys() == ending.keys()
    for name, value in ending.items():
        if exact:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
