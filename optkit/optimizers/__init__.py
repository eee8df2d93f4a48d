"""The recipes: whole optimizers, each a chain of a few parts."""

from optkit.optimizers.adago import adago
from optkit.optimizers.adamuon import adamuon
from optkit.optimizers.adamw import adamw
from optkit.optimizers.auon import auon, hybrid_auon
from optkit.optimizers.cautious import cautious_adamw, cautious_lion, cautious_muon
from optkit.optimizers.cwd import cwd_adamw, cwd_lion
from optkit.optimizers.drop_muon import drop_muon
from optkit.optimizers.grams import grams
from optkit.optimizers.hyperp import hyperp
from optkit.optimizers.lion import lion, lion_k
from optkit.optimizers.muon import muon
from optkit.optimizers.muon_dion import muon_dion
from optkit.optimizers.muon_randomized import muon_randomized
from optkit.optimizers.muon_rms import muon_rms
from optkit.optimizers.normuon import normuon, normuon_dion
from optkit.optimizers.reg import reg
from optkit.optimizers.scion import scion
from optkit.optimizers.scion_init import scion_init
from optkit.optimizers.signsgd import signsgd, signum

__all__ = [
    "adago",
    "adamuon",
    "adamw",
    "auon",
    "cautious_adamw",
    "cautious_lion",
    "cautious_muon",
    "cwd_adamw",
    "cwd_lion",
    "drop_muon",
    "grams",
    "hybrid_auon",
    "hyperp",
    "lion",
    "lion_k",
    "muon",
    "muon_dion",
    "muon_randomized",
    "muon_rms",
    "normuon",
    "normuon_dion",
    "reg",
    "scion",
    "scion_init",
    "signsgd",
    "signum",
]
