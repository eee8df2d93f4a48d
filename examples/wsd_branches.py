"""Warmup-stable-decay: one trunk, a checkpoint at each budget, and a decay branch from each."""

import tempfile
from pathlib import Path

import jax
import orbax.checkpoint

import optkit
from optkit import schedules, tasks

BUDGETS = (40, 80, 160)
DECAY = 0.25  # share of a budget in which its branch falls


def main() -> None:
    """Trains a trunk at a constant rate and lets three branches fall from its checkpoints."""
    task = tasks.get("regression")
    trunk = schedules.constant(0.05, warmup=8)

    def train(rate: schedules.Schedule, state: object, params: object, begin: int) -> tuple:
        """Follows a rate from a step to its end, or to the last budget's branching point."""
        step = tasks.train_step(task, optkit.adamw(rate))
        for index in range(begin, rate.steps or max(starts)):
            state, params, _ = step(task.batch(0, index), state, params)
            if rate is trunk and index + 1 in starts:
                saver.save(folder / str(index + 1), {"state": state, "params": params})
        return state, params

    starts = {round(budget * (1 - DECAY)): budget for budget in BUDGETS}
    with (
        tempfile.TemporaryDirectory() as name,
        orbax.checkpoint.StandardCheckpointer() as saver,
    ):
        folder = Path(name)
        fresh = tasks.start(task, optkit.adamw(trunk), 0)
        shapes = dict(zip(("state", "params"), jax.eval_shape(lambda: fresh), strict=True))
        train(trunk, *fresh, 0)
        saver.wait_until_finished()
        for at, budget in starts.items():
            # The optimizer's state goes on: its counter says `at`, and the branch knows that step.
            branch = schedules.branch(trunk, at, budget - at, final=0.1)
            saved = saver.restore(folder / str(at), shapes)
            before = task.evaluate(saved["params"])["loss"]
            state, params = train(branch, saved["state"], saved["params"], at)
            after = task.evaluate(params)["loss"]
            last = float(optkit.get_hyperparam(state, "learning_rate"))
            assert branch.steps == budget and last == float(branch(budget - 1))
            print(f"budget {budget:3}: loss {before:.4f} at step {at}, {after:.4f} after the fall")
            assert after < before


if __name__ == "__main__":
    main()
