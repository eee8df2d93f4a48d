"""Processes on several hosts train one sharded model. If one dies, end the others, which wait for
it, and start again: with as many processes or others, at the last whole checkpoint of the folder.

On host I of N: python examples/multihost_train.py HOST0:PORT N I SHARED_FOLDER
Without arguments this file starts two processes of two emulated devices on this machine.
"""

import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optkit
from optkit import tasks

STEPS, SAVE_EVERY = int(os.environ.get("STEPS", "6")), int(os.environ.get("SAVE_EVERY", "3"))


def train(folder: str) -> None:
    """What each process runs: the same program, on arrays spread over the devices of all."""
    task = tasks.get("bytelm", width=32, layers=1, heads=2, context=32, held_out_windows=8)
    tx, mesh = optkit.muon(0.02), Mesh(np.array(jax.devices()), ("fsdp",))
    start, step = lambda: tasks.start(task, tx, 0), tasks.train_step(task, tx)
    state, params = jax.eval_shape(start)
    where = optkit.fully_sharded(params, mesh)
    where = optkit.state_sharding(tx, params, where), where
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    with ocp.CheckpointManager(os.path.abspath(folder)) as checkpoints:
        if (begin := checkpoints.latest_step()) is None:
            state, params = jax.jit(start, out_shardings=where)()
        else:
            like = jax.tree.map(lambda x, s: x.update(sharding=s), (state, params), where)
            state, params = checkpoints.restore(begin, args=ocp.args.StandardRestore(like))
        for index in range(begin or 0, STEPS):
            cut = lambda x: jax.make_array_from_callback(x.shape, rows, x.__getitem__)  # noqa: E731
            batch = jax.tree.map(cut, task.batch(0, index))  # each process has its own rows
            state, params, metrics = step(batch, state, params)
            print(f"step {index + 1}: {metrics['bits_per_byte']:.6f} bits per byte", flush=True)
            if (index + 1) % SAVE_EVERY == 0:
                checkpoints.save(index + 1, args=ocp.args.StandardSave((state, params)))


if len(sys.argv) == 5:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect elsewhere
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    train(sys.argv[4])
elif len(sys.argv) > 1:
    sys.exit(__doc__)
elif __name__ == "__main__":
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, __file__, "127.0.0.1:9137", "2"]
        both = [subprocess.Popen([*start, str(i), folder], env=flags) for i in range(2)]
        assert [process.wait() for process in both] == [0, 0]
