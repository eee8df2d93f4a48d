"""Programs of whole arrays, run on the blocks that devices hold; knows no optimizers."""

from optkit.spmd.blocks import Devices, Parts, manual_axes, varying
from optkit.spmd.guard import answers_for_itself, guarded, on_its_own
from optkit.spmd.run import run_on_blocks

__all__ = [
    "Devices",
    "Parts",
    "answers_for_itself",
    "guarded",
    "manual_axes",
    "on_its_own",
    "run_on_blocks",
    "varying",
]
