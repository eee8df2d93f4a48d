"""The recipes: whole optimizers, each a chain of a few parts."""

from optkit.optimizers.adamw import adamw
from optkit.optimizers.cautious import cautious_adamw, cautious_lion, cautious_muon
from optkit.optimizers.cwd import cwd_adamw, cwd_lion
from optkit.optimizers.drop_muon import drop_muon
from optkit.optimizers.grams import grams
from optkit.optimizers.lion import lion, lion_k
from optkit.optimizers.muon import muon
from optkit.optimizers.muon_dion import muon_dion
from optkit.optimizers.muon_randomized import muon_randomized
from optkit.optimizers.muon_rms import muon_rms
from optkit.optimizers.signsgd import signsgd, signum

__all__ = [
    "adamw",
    "cautious_adamw",
    "cautious_lion",
    "cautious_muon",
    "cwd_adamw",
    "cwd_lion",
    "drop_muon",
    "grams",
    "lion",
    "lion_k",
    "muon",
    "muon_dion",
    "muon_randomized",
    "muon_rms",
    "signsgd",
    "signum",
]
