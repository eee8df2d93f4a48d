"""Regression onto an ill-conditioned matrix: synthetic, exact, and without a framework."""

import jax
import jax.numpy as jnp
import numpy as np

from optkit.tasks import base

_HELD_OUT = 512


def build(
    *,
    inputs: int = 32,
    outputs: int = 24,
    condition: float = 100.0,
    batch: int = 64,
    teacher_seed: int = 0,
) -> base.Task:
    """Builds "regression": learn y = x W from samples, with x standard normal and no noise.

    The singular values of the teacher W fall geometrically from 1 to 1 / condition. The student is
    a product of two matrices, so that gradient descent learns each direction at a speed that falls
    with its singular value: the small ones come last.

    Args:
      inputs: features of x.
      outputs: features of y.
      condition: largest over smallest singular value of the teacher, 1 or above.
      batch: samples per training step.
      teacher_seed: decides the teacher and the held-out samples.
    """
    base.check_positive("regression", inputs=inputs, outputs=outputs, batch=batch)
    _check_teacher(condition, teacher_seed)
    rank = min(inputs, outputs)
    random = np.random.default_rng(teacher_seed)
    teacher = ill_conditioned(random, inputs, outputs, condition)
    held_out = _samples(random, teacher, _HELD_OUT)

    def init(key: jax.Array) -> base.Params:
        first, second = jax.random.split(key)
        normal = jax.nn.initializers.variance_scaling(0.25, "fan_in", "normal")
        return {
            "first": {"kernel": normal(first, (inputs, rank), jnp.float32)},
            "second": {"kernel": normal(second, (rank, outputs), jnp.float32)},
        }

    def sample(seed: int, step: int) -> base.Batch:
        return _samples(base.generator(seed, step), teacher, batch)

    held_out_loss = jax.jit(squared_loss)

    def evaluate(params: base.Params) -> dict[str, float]:
        return {"loss": float(held_out_loss(params, held_out)[0])}

    return base.Task(
        name="regression",
        description=f"two-factor fit of a {inputs}x{outputs} matrix, condition {condition:g}",
        metric="loss",
        init=jax.jit(init),
        loss=squared_loss,
        batch=sample,
        evaluate=evaluate,
        default_steps=500,
        parameters=base.count_parameters(init),
    )


def squared_loss(params: base.Params, batch: base.Batch) -> tuple[jax.Array, base.Metrics]:
    """Returns half the mean squared length of the error, float32, and no metrics."""
    predicted = batch["x"] @ params["first"]["kernel"] @ params["second"]["kernel"]
    error = (predicted - batch["y"]).astype(jnp.float32)
    return 0.5 * jnp.square(error).sum(axis=-1).mean(), {}


def ill_conditioned(
    random: np.random.Generator, rows: int, columns: int, condition: float
) -> np.ndarray:
    """Returns a float64 matrix whose singular values fall geometrically from 1 to 1 / condition."""
    rank = min(rows, columns)
    left, _ = np.linalg.qr(random.standard_normal((rows, rank)))
    right, _ = np.linalg.qr(random.standard_normal((columns, rank)))
    return (left * np.geomspace(1.0, 1.0 / condition, rank)) @ right.T


def _check_teacher(condition: float, teacher_seed: int) -> None:
    if not 1.0 <= condition < float("inf"):
        raise base.TaskOptionError(
            f"task 'regression': option condition={condition} must be finite and 1 or above"
        )
    if teacher_seed < 0:
        raise base.TaskOptionError(
            f"task 'regression': option teacher_seed={teacher_seed} must be 0 or above"
        )


def _samples(random: np.random.Generator, teacher: np.ndarray, count: int) -> base.Batch:
    x = random.standard_normal((count, teacher.shape[0]))
    return {"x": x.astype(np.float32), "y": (x @ teacher).astype(np.float32)}
