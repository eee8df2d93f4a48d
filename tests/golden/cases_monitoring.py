"""Statistics of attention."""

from collections.abc import Iterator

import jax.numpy as jnp

from optkit.monitoring import attention_statistics
from tests.golden.replay import Comparison, Golden, case, difference

TOLERANCE = 1e-5  # the file's


@case("grok_diagnostics")
def grok_diagnostics(golden: Golden) -> Iterator[Comparison]:
    layers = golden.tree("attn")
    found = attention_statistics([jnp.asarray(layers[key]) for key in sorted(layers, key=int)])
    for name, want in golden.tree("out").items():
        yield Comparison(difference(found[name], want), TOLERANCE)
