"""Fast weights of test-time training (LaCT): a memory that Muon writes inside a sequence model."""

from optkit.fast_weights.chunks import lact, lact_apply, lact_chunk_update
from optkit.fast_weights.elastic import ElasticState, elastic_init, elastic_step
from optkit.fast_weights.state import FastWeights, LactState, draw_fast_weights, lact_init

__all__ = [
    "ElasticState",
    "FastWeights",
    "LactState",
    "draw_fast_weights",
    "elastic_init",
    "elastic_step",
    "lact",
    "lact_apply",
    "lact_chunk_update",
    "lact_init",
]
