"""The int8 language model EGG on source text, as a task for populations."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution import integer
from optkit.tasks import base
from optkit.tasks import int8_bytes as egg_bytes
from optkit.tasks.population import PopulationTask

__all__ = ["int8_bytes"]


def int8_bytes(
    *, width: int = 32, layers: int = 1, streams: int = 32, tokens: int = 64
) -> PopulationTask:
    """Builds the task "int8_bytes" for populations of integer parameters, which ``egg`` moves.

    Each generation reads its bytes from an empty state, so that a run is its parameters and the
    method's state alone; ``optkit.tasks.int8_bytes`` carries the state on.

    Args:
      width: features of the model, best a power of four.
      layers: its blocks.
      streams: texts that are read at once; they divide the population.
      tokens: bytes of each text in a generation.

    Returns:
      The task; its fitness is the log-likelihood of a member's bytes in 1/16 bit, int32.

    Raises:
      TaskOptionError: sizes that are not above 0, or too little text.
    """
    task = egg_bytes.build(width=width, layers=layers, streams=streams, tokens=tokens)

    def fitness(population: Any, data: base.Batch) -> jax.Array:
        head = population["head"]
        if not isinstance(head, integer.IntegerPerturbed):
            raise ValueError("task 'int8_bytes' reads integer populations alone: take egg")
        hidden = task.hidden(population, 2 * len(head.a))
        return task.fitness(population, data["tokens"], hidden)[0]

    return PopulationTask(
        name="int8_bytes",
        description=f"bytes of source text by an int8 model, width {width}",
        metric="bits_per_byte",
        init=task.init,
        fitness=fitness,
        score=lambda params, key: task.evaluate(params),
        default_generations=100,
        parameters=base.count_parameters(task.init),
        sample=lambda seed, step: {"tokens": jnp.asarray(task.batch(step))},
    )
