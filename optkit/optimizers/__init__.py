"""The recipes: whole optimizers, each a chain of a few parts."""

from optkit.optimizers.adafactor import (
    adafactor,
)
from optkit.optimizers.adago import adago
from optkit.optimizers.adamp import adamp
from optkit.optimizers.adamuon import adamuon
from optkit.optimizers.adamw import adamw
from optkit.optimizers.adamw_kahan import adamw_kahan
from optkit.optimizers.adamw_low_bits import adamw_4bit, adamw_8bit, adamw_fp8
from optkit.optimizers.altlora import altlora, altlora_plus
from optkit.optimizers.am_adamw import am_adamw
from optkit.optimizers.am_msgd import am_msgd
from optkit.optimizers.amsgrad import amsgrad
from optkit.optimizers.apollo import (
    apollo,
    apollo_mini,
)
from optkit.optimizers.auon import auon, hybrid_auon
from optkit.optimizers.badam import (
    badam,
)
from optkit.optimizers.came import (
    came,
)
from optkit.optimizers.cast_adams import cast_adams
from optkit.optimizers.cautious import cautious_adamw, cautious_lion, cautious_muon
from optkit.optimizers.classp import classp
from optkit.optimizers.clipup import clipup
from optkit.optimizers.cwd import cwd_adamw, cwd_lion
from optkit.optimizers.dion import dion
from optkit.optimizers.dion2 import dion2, dion3
from optkit.optimizers.drop_muon import drop_muon
from optkit.optimizers.eco import eco_adamw, eco_sgdm
from optkit.optimizers.ewc_online import ewc_online
from optkit.optimizers.fedopt import fedopt
from optkit.optimizers.fira import (
    fira,
)
from optkit.optimizers.frugal import (
    frugal,
)
from optkit.optimizers.galore import (
    galore_adamw,
)
from optkit.optimizers.galore_adafactor import (
    galore_adafactor,
)
from optkit.optimizers.grams import grams
from optkit.optimizers.hyperp import hyperp
from optkit.optimizers.id3 import id3
from optkit.optimizers.langevin import adam_sgld, langevin_adam, psgld, sgld
from optkit.optimizers.ldadam import (
    ldadam,
)
from optkit.optimizers.lift import lift
from optkit.optimizers.lion import lion, lion_k
from optkit.optimizers.lion_8bit import lion_8bit
from optkit.optimizers.loqt import loqt
from optkit.optimizers.lora_plus import lora_plus
from optkit.optimizers.lora_pro import lora_pro
from optkit.optimizers.mars_adamw import mars_adamw
from optkit.optimizers.mars_lion import mars_lion
from optkit.optimizers.mars_m import mars_m
from optkit.optimizers.mars_shampoo import mars_shampoo
from optkit.optimizers.muon import muon
from optkit.optimizers.muon_dion import muon_dion
from optkit.optimizers.muon_randomized import muon_randomized
from optkit.optimizers.muon_rms import muon_rms
from optkit.optimizers.namo import namo
from optkit.optimizers.namo_d import namo_d
from optkit.optimizers.natural_galore import (
    natural_galore,
)
from optkit.optimizers.normalized_momentum import normalized_momentum
from optkit.optimizers.normuon import normuon, normuon_dion
from optkit.optimizers.oasis import oasis
from optkit.optimizers.psgd_kron import psgd_kron
from optkit.optimizers.q_galore import q_galore
from optkit.optimizers.reg import reg
from optkit.optimizers.schedule_free_adamw import schedule_free_adamw
from optkit.optimizers.scion import scion
from optkit.optimizers.scion_init import scion_init
from optkit.optimizers.sgdp import sgdp
from optkit.optimizers.shampoo import shampoo, shampoo_google
from optkit.optimizers.signsgd import signsgd, signum
from optkit.optimizers.sm3 import (
    sm3,
)
from optkit.optimizers.soap import soap
from optkit.optimizers.sophia import sophia_g, sophia_h
from optkit.optimizers.superpositional import superpositional
from optkit.optimizers.upgd import upgd, upgd_adam

__all__ = [
    "adafactor",
    "adago",
    "adam_sgld",
    "adamp",
    "adamuon",
    "adamw",
    "adamw_4bit",
    "adamw_8bit",
    "adamw_fp8",
    "adamw_kahan",
    "altlora",
    "altlora_plus",
    "am_adamw",
    "am_msgd",
    "amsgrad",
    "apollo",
    "apollo_mini",
    "auon",
    "badam",
    "came",
    "cast_adams",
    "cautious_adamw",
    "cautious_lion",
    "cautious_muon",
    "classp",
    "clipup",
    "cwd_adamw",
    "cwd_lion",
    "dion",
    "dion2",
    "dion3",
    "drop_muon",
    "eco_adamw",
    "eco_sgdm",
    "ewc_online",
    "fedopt",
    "fira",
    "frugal",
    "galore_adafactor",
    "galore_adamw",
    "grams",
    "hybrid_auon",
    "hyperp",
    "id3",
    "langevin_adam",
    "ldadam",
    "lift",
    "lion",
    "lion_8bit",
    "lion_k",
    "loqt",
    "lora_plus",
    "lora_pro",
    "mars_adamw",
    "mars_lion",
    "mars_m",
    "mars_shampoo",
    "muon",
    "muon_dion",
    "muon_randomized",
    "muon_rms",
    "namo",
    "namo_d",
    "natural_galore",
    "normalized_momentum",
    "normuon",
    "normuon_dion",
    "oasis",
    "psgd_kron",
    "psgld",
    "q_galore",
    "reg",
    "schedule_free_adamw",
    "scion",
    "scion_init",
    "sgdp",
    "sgld",
    "shampoo",
    "shampoo_google",
    "signsgd",
    "signum",
    "sm3",
    "soap",
    "sophia_g",
    "sophia_h",
    "superpositional",
    "upgd",
    "upgd_adam",
]
