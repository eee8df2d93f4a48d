"""Integer-only evolution: int8 parameters, int8 noise, steps of 1, and the language model EGG."""

from optkit.evolution.integer.egg import EggState, IntegerStrategy, egg
from optkit.evolution.integer.fitness import egg_fitness
from optkit.evolution.integer.format import (
    IntegerPerturbed,
    add,
    embed,
    linear,
    log2_likelihood,
    norm,
    saturate,
    vector,
)
from optkit.evolution.integer.model import (
    bits_per_byte,
    egg_hidden,
    egg_init,
    egg_logits,
    egg_scores,
)
from optkit.evolution.integer.noise import noise_table
from optkit.evolution.integer.signs import pack_ternary, pair_signs, unpack_ternary

__all__ = [
    "EggState",
    "IntegerPerturbed",
    "IntegerStrategy",
    "add",
    "bits_per_byte",
    "egg",
    "egg_fitness",
    "egg_hidden",
    "egg_init",
    "egg_logits",
    "egg_scores",
    "embed",
    "linear",
    "log2_likelihood",
    "noise_table",
    "norm",
    "pack_ternary",
    "pair_signs",
    "saturate",
    "unpack_ternary",
    "vector",
]
