"""Shapes of updates of real models, which tests and benchmarks share."""

from typing import NamedTuple


class ArgSpec(NamedTuple):
    """The update of a matrix.

    Attributes:
      name: what is learnt.
      pairs: of members, or members.
      n: inputs of the matrix.
      m: its outputs.
      rank: of the noise.
    """

    name: str
    pairs: int
    n: int
    m: int
    rank: int = 1


ARG_SPECS = (
    ArgSpec("a policy, 4096 pairs", 4096, 1024, 1024),
    ArgSpec("the same, 1024 pairs of rank 4", 1024, 1024, 1024, 4),
    ArgSpec("gpt2-small's MLP, 1024 pairs", 1024, 768, 3072),
    ArgSpec("llama-7b's attention, 512 pairs", 512, 4096, 4096),
)
