"""A jitted training step that reuses its buffers, and a plain timed training loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
import optax

from optkit.tasks.base import Batch, Metrics, Params, Task
from optkit.transforms.schedule_free import evaluation_params

State = Any  # the optimizer's own pytree
Step = Callable[[Batch, State, Params], tuple[State, Params, Metrics]]


@dataclass(frozen=True)
class Record:
    """One line of a training log.

    Attributes:
      step: training steps done.
      loss: mean training loss of the steps since the previous record.
      seconds: training time so far, without compilation and evaluation.
      held_out: what `task.evaluate` returned at this step.
    """

    step: int
    loss: float
    seconds: float
    held_out: dict[str, float]


def train_step(task: Task, tx: optax.GradientTransformation) -> Step:
    """Returns the jitted training step `step(batch, state, params) -> (state, params, metrics)`.

    State and params are donated: their buffers hold the results afterwards, so the caller must not
    use the arguments again. Donated inputs are matched with outputs of equal shape in order, which
    is why the outputs come in the order of the arguments. Swapped, a new parameter would land in
    the buffer of a moment, and each such buffer would first be copied.

    The transformation gets `value`, `grad` and `value_fn` as extra arguments, if it takes any, and
    `logits_fn` of a task that has logits.

    Args:
      task: gives the loss.
      tx: any Optax transformation.

    Returns:
      The step. Its metrics are those of the task, `loss`, and over all leaves `gradient_norm` and
      `gradient_norm_l1`, from which `optkit.schedules.refined` makes the next run's learning rate.
    """
    tx = optax.with_extra_args_support(tx)
    logits = task.logits

    def step(batch: Batch, state: State, params: Params) -> tuple[State, Params, Metrics]:
        (loss, metrics), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        extras: dict[str, Any] = {}
        if logits is not None:
            extras["logits_fn"] = lambda trial: logits(trial, batch)
        updates, state = tx.update(
            gradient,
            state,
            params,
            value=loss,
            grad=gradient,
            value_fn=lambda trial: task.loss(trial, batch)[0],
            **extras,
        )
        updated: Any = optax.apply_updates(params, updates)
        norms = {
            "gradient_norm": optax.tree.norm(gradient),
            "gradient_norm_l1": optax.tree.norm(gradient, ord=1),
        }
        return state, updated, {**metrics, "loss": loss, **norms}

    return jax.jit(step, donate_argnums=(1, 2))


class _Model(Protocol):
    """Any task: what has initial parameters."""

    @property
    def init(self) -> Callable[[jax.Array], Params]: ...


def start(task: _Model, tx: optax.GradientTransformation, seed: int) -> tuple[State, Params]:
    """Returns the first `(state, params)` of a run, each leaf in its own buffer, ready to donate.

    Args:
      task: gives the initial parameters.
      tx: gives the initial state.
      seed: run seed, 0 or above.

    Returns:
      State and params, for `train_step` to consume.
    """
    params = task.init(jax.random.key(seed))
    # A state may hold the parameters themselves; donating one buffer twice is an error.
    return _fresh(tx.init(params)), params


def run(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    steps: int | None = None,
    seed: int = 0,
    eval_every: int | None = None,
    callback: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Trains from scratch and returns one record per evaluation.

    Args:
      task: what to learn.
      tx: any Optax transformation.
      steps: training steps; None takes the task's default.
      seed: decides the initial parameters and the order of the data.
      eval_every: steps between evaluations; None evaluates once. The last step is always
        evaluated.
      callback: called with each record as soon as it exists, for example `print`.

    Returns:
      The records in order.
    """
    steps = task.default_steps if steps is None else steps
    eval_every = steps if eval_every is None else eval_every
    if steps < 1 or eval_every < 1:
        raise ValueError(f"steps and eval_every must be 1 or above, got {steps} and {eval_every}")
    step = train_step(task, tx)
    state, params = start(task, tx, seed)
    _warm_up(task, step, state, params, seed)
    records: list[Record] = []
    losses: list[jax.Array] = []
    seconds = 0.0
    started = time.perf_counter()
    for index in range(steps):
        state, params, metrics = step(task.batch(seed, index), state, params)
        losses.append(metrics["loss"])
        if (index + 1) % eval_every and index + 1 < steps:
            continue
        jax.block_until_ready((state, params))
        seconds += time.perf_counter() - started
        held_out = task.evaluate(evaluation_params(state, params))
        record = Record(index + 1, float(np.mean(jax.device_get(losses))), seconds, held_out)
        records.append(record)
        if callback is not None:
            callback(record)
        losses.clear()
        started = time.perf_counter()
    return records


def _warm_up(task: Task, step: Step, state: State, params: Params, seed: int) -> None:
    # Two steps, because a state whose types settle only after the first update compiles twice.
    task.evaluate(params)
    state, params = _fresh(state), _fresh(params)
    for _ in range(2):
        state, params, _ = step(task.batch(seed, 0), state, params)
    jax.block_until_ready((state, params))


def _fresh(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)
