"""Training with little communication: replicas on their own, and the outer steps between."""

from optkit.outer.base import OuterStep
from optkit.outer.delayed import DelayedNesterovState, delayed_nesterov, dylu_steps
from optkit.outer.diloco import DilocoState, diloco
from optkit.outer.groupings import groupings
from optkit.outer.local import local_rounds
from optkit.outer.noloco import NolocoState, noloco
from optkit.outer.streaming import StreamingDilocoState, StreamingStep, streaming_diloco

__all__ = [
    "DelayedNesterovState",
    "DilocoState",
    "NolocoState",
    "OuterStep",
    "StreamingDilocoState",
    "StreamingStep",
    "delayed_nesterov",
    "diloco",
    "dylu_steps",
    "groupings",
    "local_rounds",
    "noloco",
    "streaming_diloco",
]
