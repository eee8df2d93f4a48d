"""Case of Evo-Merging: a weighted sum of adapters whose A factors are thinned out."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution import merge_lora
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference


@case("evo_merging")
def evo_merging(golden: Golden) -> Iterator[Comparison]:
    names = list(golden.tree("lora_A/0"))
    count = golden.hyper["adapters"]

    def adapter(i: int) -> dict[str, Any]:
        sides = {"lora_A": golden.tree(f"lora_A/{i}"), "lora_B": golden.tree(f"lora_B/{i}")}
        return {n: {side: jnp.asarray(sides[side][n]) for side in sides} for n in names}

    adapters = [adapter(i) for i in range(count)]
    merge = jax.jit(lambda alpha, beta: merge_lora(alpha, beta, adapters))
    for t, alpha in sorted(golden.tree("alpha").items(), key=lambda item: int(item[0])):
        merged = merge(alpha, golden.arrays[f"beta/{t}"])
        yield Comparison(
            max(
                difference(merged[n][side], golden.arrays[f"merged/{t}/{n}.{side}.weight"])
                for n in names
                for side in ("lora_A", "lora_B")
            ),
            TOLERANCE,
        )
