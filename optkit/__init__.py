"""optkit: the optimizers of the last years as parts that snap into any Optax chain."""

from optkit import catalogue, linalg, transforms, tree
from optkit.optimizers import (
    adamw,
    cautious_adamw,
    cautious_lion,
    cautious_muon,
    cwd_adamw,
    cwd_lion,
    grams,
    lion,
    lion_k,
    muon,
    muon_dion,
    muon_rms,
    signsgd,
    signum,
)
from optkit.planning import Plan, PlanRow, plan
from optkit.transforms import (
    accumulate_gradients,
    blend_momentum,
    cautious,
    decay_weights,
    descend,
    freeze,
    get_hyperparam,
    hyperparams,
    in_float32,
    master_weights,
    momentum,
    orthogonalize,
    route,
    scale_by_adam,
    scale_by_kappa,
    scale_by_learning_rate,
    scale_by_shape,
    sign_from_grad,
    skip_nonfinite,
    skip_spikes,
    split_matrices,
    stochastic_round,
)
from optkit.tree import (
    MATRIX_ROLES,
    Role,
    RoleRule,
    export_state,
    restore_state,
    roles,
    state_sharding,
)

__version__ = "0.1.0"

__all__ = [
    "MATRIX_ROLES", "Plan", "PlanRow", "Role", "RoleRule", "accumulate_gradients", "adamw",
    "blend_momentum", "catalogue", "cautious", "cautious_adamw", "cautious_lion", "cautious_muon",
    "cwd_adamw", "cwd_lion", "decay_weights", "descend", "export_state", "freeze",
    "get_hyperparam", "grams", "hyperparams", "in_float32", "linalg", "lion", "lion_k",
    "master_weights", "momentum", "muon", "muon_dion", "muon_rms", "orthogonalize", "plan",
    "restore_state", "roles", "route", "scale_by_adam", "scale_by_kappa",
    "scale_by_learning_rate", "scale_by_shape", "sign_from_grad", "signsgd", "signum",
    "skip_nonfinite", "skip_spikes", "split_matrices", "state_sharding", "stochastic_round",
    "transforms", "tree",
]
