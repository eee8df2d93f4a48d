"""DiLoCo: processes meet once a round, a replica each. If one dies the others cannot go on: end
them and start all again, and they rejoin at the folder's last whole checkpoint, and lose no digit.
On host I of N: python examples/multihost_diloco.py HOST0:PORT N I SHARED_FOLDER
Without arguments this file starts four on this machine, kills one, and starts all again."""

import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import CheckpointManager, args

import optkit
from optkit import tasks

ROUNDS, EVERY = 4, 5


def train(folder: str) -> None:
    """What each process runs: inner steps on its own data, and an outer step with all others."""
    task = tasks.get("bytelm", width=32, layers=1, heads=2, context=32, held_out_windows=8)
    mesh, rank = Mesh(np.array(jax.devices()), ("replica",)), jax.process_index()
    own, common = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["replica"], []))
    tx, outer = optkit.adamw(3e-3), optkit.diloco()
    step = tasks.train_step(task, tx)
    inner = lambda carry, batch: ((out := step(batch, *carry))[:2], out[2]["loss"])  # noqa: E731
    first = lambda: optkit.replicas(tasks.start(task, tx, 0), jax.device_count())  # noqa: E731
    work = jax.jit(optkit.on_replicas(optkit.local_rounds(inner, every=EVERY), "replica", mesh))
    meet = jax.jit(outer.step, out_shardings=(own, common))
    with CheckpointManager(os.path.abspath(folder)) as checkpoints:
        carry = jax.jit(first, out_shardings=own)()
        anchor = jax.jit(outer.init, out_shardings=common)(carry[1])
        if (begin := checkpoints.latest_step()) is not None:
            carry, anchor = checkpoints.restore(begin, args=args.StandardRestore((carry, anchor)))
        for index in range(begin or 0, ROUNDS):
            mine = [task.batch(rank, index * EVERY + h) for h in range(EVERY)]
            mine = jax.tree.map(lambda *parts: np.stack(parts)[None], *mine)
            batches = jax.tree.map(lambda x: jax.make_array_from_process_local_data(own, x), mine)
            (state, params), losses = work(carry, batches)
            params, anchor = meet(params, anchor)  # the only exchange
            carry = (state, params)
            nats = losses.addressable_data(0).mean()
            print(f"round {index + 1}: {nats:.6f} nats per byte on replica {rank}", flush=True)
            checkpoints.save(index + 1, args=args.StandardSave((carry, anchor)))


def start(port: int, folder: str, last: str) -> list[str]:
    """Runs four processes, kills one when it prints a line, and returns what it had printed."""
    command = [sys.executable, __file__, f"127.0.0.1:{port}", "4"]
    one = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    jobs = [subprocess.Popen([*command, str(i), folder], env=one) for i in range(3)]
    lines = []
    with subprocess.Popen([*command, "3", folder], env=one, stdout=-1, text=True) as job:
        for line in job.stdout:
            lines += [line] * line.startswith("round")
            if line.startswith(last):
                job.kill()  # SIGKILL: it tells the others nothing
                time.sleep(5)
                print("one is killed; the others exit:", codes := [each.poll() for each in jobs])
                [each.kill() for each in jobs]
                assert 0 not in codes, "one has finished without the others"
    return lines if [each.wait() for each in jobs] else []


if len(sys.argv) == 5:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect elsewhere
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    train(sys.argv[4])
elif len(sys.argv) > 1:
    sys.exit(__doc__)
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        before, after = start(9141, folder, "round 3"), start(9142, folder, "none")
    print("".join([*before, "killed, and started again\n", *after]))
    assert set(before) & set(after) and after[-1].startswith(f"round {ROUNDS}")
