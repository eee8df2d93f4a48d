"""Shapes of populations of real models, which tests and benchmarks share."""

from typing import NamedTuple


class ArgSpec(NamedTuple):
    """A product of a population.

    Attributes:
      name: what is evaluated.
      groups: pairs of members, or members.
      rows: of a group, those of both members of a pair.
      n: inputs of the weights.
      m: their outputs.
      rank: of the noise.
    """

    name: str
    groups: int
    rows: int
    n: int
    m: int
    rank: int = 1


ARG_SPECS = (
    ArgSpec("a policy, one observation each", 256, 2, 1024, 1024),
    ArgSpec("a wide model, 16 tokens each", 64, 32, 1024, 4096),
    ArgSpec("the same, rank 4", 64, 32, 1024, 4096, 4),
    ArgSpec("llama-7b's attention, 64 tokens each", 32, 128, 4096, 4096),
    ArgSpec("gpt2-small's MLP, 512 tokens each", 32, 1024, 768, 3072),
)
