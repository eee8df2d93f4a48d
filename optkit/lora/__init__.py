"""Low-rank adapters: which leaves they are, and what their methods do with both factors."""

from optkit.lora.adalora import AdaLoraState, adalora
from optkit.lora.algebra import adjust, equivalent_gradient
from optkit.lora.budget import adalora_budget, orthogonality_penalty
from optkit.lora.find import Adapter, adapters, delta
from optkit.lora.initial import lora_sb_init
from optkit.lora.loqt import Merged, merge_and_reinit, merge_steps
from optkit.lora.pro import ScaleByLoraProState, scale_by_lora_pro

__all__ = [
    "AdaLoraState",
    "Adapter",
    "Merged",
    "ScaleByLoraProState",
    "adalora",
    "adalora_budget",
    "adapters",
    "adjust",
    "delta",
    "equivalent_gradient",
    "lora_sb_init",
    "merge_and_reinit",
    "merge_steps",
    "orthogonality_penalty",
    "scale_by_lora_pro",
]
