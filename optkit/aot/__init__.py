"""Programs compiled ahead of time, for accelerators that need not be there, and read."""

from optkit.aot.chips import CHIPS, Chip
from optkit.aot.collectives import Collective, find_collectives, sent_bytes
from optkit.aot.comparing import Comparison, compare
from optkit.aot.compiling import IndivisibleShape, compile_for, trace_for
from optkit.aot.flops import matmul_flops
from optkit.aot.hlo import Instruction, Typed, estimated_cycles, kernel_calls, read_hlo
from optkit.aot.kernels import KernelCall
from optkit.aot.models import LAYOUTS, MODELS, abstract_mesh, model_shapes, place_model
from optkit.aot.preflighting import preflight, update_step
from optkit.aot.reports import Memory, Preflight
from optkit.aot.schedules import forget_schedules, scheduled_bundles, write_schedules
from optkit.aot.targets import Target, UnavailableTarget, find_target

__all__ = [
    "CHIPS",
    "LAYOUTS",
    "MODELS",
    "Chip",
    "Collective",
    "Comparison",
    "IndivisibleShape",
    "Instruction",
    "KernelCall",
    "Memory",
    "Preflight",
    "Target",
    "Typed",
    "UnavailableTarget",
    "abstract_mesh",
    "compare",
    "compile_for",
    "estimated_cycles",
    "find_collectives",
    "find_target",
    "forget_schedules",
    "kernel_calls",
    "matmul_flops",
    "model_shapes",
    "place_model",
    "preflight",
    "read_hlo",
    "scheduled_bundles",
    "sent_bytes",
    "trace_for",
    "update_step",
    "write_schedules",
]
