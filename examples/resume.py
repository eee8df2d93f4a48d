"""Saving optimizer state by name: goes on bit for bit, and survives a change of the chain."""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

import optkit
from optkit import tasks


def main() -> None:
    """Trains, saves, resumes with the same and with another chain, and compares."""
    task = tasks.get("regression")
    tx = optkit.muon(0.02)
    step = tasks.train_step(task, tx)

    def advance(state: optax.OptState, params: dict, begin: int, end: int) -> tuple:
        for index in range(begin, end):
            state, params, metrics = step(task.batch(0, index), state, params)
        return state, params, float(metrics["loss"])

    state, params, early = advance(*tasks.start(task, tx, 0), 0, 20)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.npz"
        np.savez(file, **optkit.export_state(state))
        saved = jax.device_get(params)
        with np.load(file) as loaded:
            exported = dict(loaded)
    for name in sorted(exported):
        print(f"{name:78}{exported[name].shape}")

    _, params, late = advance(state, params, 20, 40)
    resumed_state = optkit.restore_state(tx.init(saved), exported)
    _, resumed, _ = advance(resumed_state, jax.device_put(saved), 20, 40)
    same = jax.tree.map(np.array_equal, jax.device_get(params), jax.device_get(resumed))
    print(
        f"loss {early:.4f} at step 20, {late:.4f} at 40; resumed bit for bit: "
        f"{all(jax.tree.leaves(same))}"
    )
    assert all(jax.tree.leaves(same))

    # A link more in front: a positional checkpoint would not fit any more, names still do.
    longer = optax.chain(optax.clip_by_global_norm(1.0), tx)
    moved = optkit.restore_state(longer.init(saved), exported)
    kept = sum(leaf.size for leaf in jax.tree.leaves(moved))
    print(f"restored {kept} numbers into a chain with gradient clipping in front")


if __name__ == "__main__":
    main()
