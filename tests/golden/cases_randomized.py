"""Case of Muon with a randomized low-rank polar factor."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit import linalg
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims

_SOLVERS = {
    "quintic_ns_theoretical": "quintic_2",
    "quintic_ns_empirical": "jordan",
    "cubic_ns_theoretical": "classic_cubic",
}


def _solver(name: str) -> Any:
    """The script's solver; its Polar Express has 1.01 in all rows but the last, and in the norm."""
    if name != "polar_express":
        return _SOLVERS[name]
    *rows, last = linalg.COEFFICIENTS["polar_express"].rows
    folded = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in rows)
    return linalg.CoefficientSet(name, (*folded, last), "last", len(rows), margin=1.01)


@case("muon_randomized")
def muon_randomized(golden: Golden) -> Iterator[Comparison]:
    hyper, params = golden.hyper, jax.tree.map(jnp.asarray, golden.tree("p0"))
    options: dict[str, Any] = {"method": "auto"}
    if hyper["randomized"]:
        # The recorded sketches decide the number of directions; the reference takes any rank.
        short = min(min(len(p), p.size // len(p)) for p in params.values() if p.ndim > 1)
        options = {
            "rank": min(hyper["rank"], short),
            "oversampling": hyper["oversampling"],
            "power_iterations": hyper["power_iters"],
            "sketch": hyper["projection_method"],
            "side": hyper.get("side", "columns"),
        }
    tx = optkit.muon_randomized(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper["nesterov"],
        coefficients=_solver(hyper["orth_method"]),
        steps=hyper["orth_steps"],
        eps=hyper.get("eps", 1e-7),
        weight_decay=hyper.get("weight_decay", 0.0),
        sphere=hyper.get("sphere", True),  # the class of the CIFAR script has no switch for it
        dims=torch_dims,
        **options,
    )

    @jax.jit
    def step(grads: Any, state: Any, params: Any, extra: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params)
    for time in range(golden.steps):
        recorded = golden.tree(f"h/{time}")
        extra = {"sketch": {k.rsplit("/", 1)[0]: _sketch(v) for k, v in recorded.items()}}
        extra = extra if hyper["randomized"] else {}
        state, params = step(golden.tree(f"g/{time}"), state, params, extra)
        expected = golden.tree(f"p/{time}")
        yield Comparison(max(difference(params[k], v) for k, v in expected.items()), TOLERANCE)


def _sketch(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if np.issubdtype(values.dtype, np.integer) else values
