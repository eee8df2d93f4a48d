"""Case of the fast weights of test-time training."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

import optkit
from optkit import linalg
from optkit.fast_weights import FastWeights
from tests.golden.replay import Comparison, Golden, case, difference

TOLERANCE = 5e-5

_NAMED = {"jordan": "jordan", "quintic": "quintic_you", "5-row quintic table": "quintic_you"}


def iteration(hyper: dict[str, Any]) -> dict[str, Any]:
    """Options of Newton-Schulz: the file's rows or the table it names, and its number of steps."""
    named = hyper.get("ns_coefficients", hyper.get("coefficients", hyper.get("ns", "quintic")))
    steps = hyper.get("muon_update_steps", hyper.get("ns_steps"))
    if isinstance(named, str):
        rows = _NAMED.get(named, named)
    else:
        rows = linalg.CoefficientSet("the file's", tuple(map(tuple, named)), "cycle", len(named))
    return {"coefficients": rows, "steps": steps, "eps": hyper.get("ns_eps", 1e-7)}


@case("lact")
def lact(golden: Golden) -> Iterator[Comparison]:
    arrays = {name: jnp.asarray(x) for name, x in golden.tree("in").items()}
    weights = FastWeights(arrays["w0"], arrays["w1"], arrays["w2"])
    rates = (arrays["lr0"], arrays["lr1"], arrays["lr2"])
    for key, expected in golden.tree("out").items():
        function, *flags = key.split("/")
        on = {flag.rstrip("01"): flag.endswith("1") for flag in flags}
        got = optkit.lact(
            weights,
            arrays["q"],
            arrays["k"],
            arrays["v"],
            rates,
            arrays["momentum"] if on["momentum"] else None,
            chunk_size=golden.hyper["chunk_size"],
            muon=on["muon"],
            prenorm=function.startswith("prenorm"),
            **iteration(golden.hyper),
        )
        yield Comparison(difference(got, expected), TOLERANCE)
