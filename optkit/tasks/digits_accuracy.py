"""Handwritten digits by the share of right answers, which has no useful gradient."""

import jax
import jax.numpy as jnp

from optkit.evolution import population_apply
from optkit.tasks import base, digits_data
from optkit.tasks.digits_linen import Classifier
from optkit.tasks.population import PopulationTask, as_population

__all__ = ["digits"]


def digits(*, width: int = 32, batch: int = 512) -> PopulationTask:
    """Builds the task "digits" for populations: right answers of a small perceptron.

    Args:
      width: hidden features of its two layers.
      batch: images of a generation, the same for all members, drawn without replacement.

    Returns:
      The task; its fitness is the share of right answers, from 0 to 1.

    Raises:
      TaskOptionError: sizes that are not above 0, or more images than there are.
      ImportError: scikit-learn, which has the images, is not installed.
    """
    base.check_positive("digits", width=width, batch=batch)
    data, model = digits_data.load(), Classifier(width)
    count = len(data.train["labels"])
    if batch > count:
        raise base.TaskOptionError(
            f"task 'digits': batch={batch} must be at most {count}, the training images"
        )

    def init(key: jax.Array) -> base.Params:
        return dict(model.init(key, jnp.zeros((1, 8, 8, 1), jnp.float32))["params"])

    def apply(params: base.Params, images: jax.Array) -> jax.Array:
        return jnp.asarray(model.apply({"params": params}, images))

    def fitness(population: base.Params, key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, count, (batch,), replace=False)
        images, labels = (jnp.asarray(data.train[name])[rows] for name in ("images", "labels"))
        logits = population_apply(apply, as_population(population), images, in_axes=None)
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels[None], axis=-1, dtype=jnp.float32)

    def score(params: base.Params, key: jax.Array) -> dict[str, jax.Array]:
        del key  # all held-out images
        images, labels = (jnp.asarray(data.held_out[name]) for name in ("images", "labels"))
        loss, metrics = digits_data.cross_entropy(apply(params, images), labels)
        return {"accuracy": 1.0 - metrics["error"], "loss": loss}

    return PopulationTask(
        name="digits",
        description="8x8 handwritten digits, right answers of a perceptron",
        metric="accuracy",
        init=jax.jit(init),
        fitness=fitness,
        score=jax.jit(score),
        default_generations=100,
        parameters=base.count_parameters(init),
    )
