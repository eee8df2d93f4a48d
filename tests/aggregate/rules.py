"""Every aggregate of the catalogue as the suites run it, and rounds of reports for it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from optkit.aggregate import Aggregate, Aggregated

CLIENTS = 8
# Eight rows, one for each device of a mesh.
SHAPES = {"up/kernel": (8, 3), "up/bias": (4,), "scale": ()}
NAMES = [entry.name for entry in optkit.catalogue.entries(kind="aggregate")]


def build(name: str, **options: Any) -> Aggregate:
    """An instance of a rule."""
    entry = optkit.catalogue.get(name)
    return entry.factory(**{**entry.example, **options})


def params() -> dict[str, jax.Array]:
    """The server's parameters."""
    return {path: jnp.zeros(shape) for path, shape in SHAPES.items()}


def sent(seed: int, clients: int = CLIENTS) -> dict[str, jax.Array]:
    """What so many clients report: about 1 in every entry, with spread."""
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(1.0 + 0.3 * rng.standard_normal((clients, *shape)), jnp.float32)
        for path, shape in SHAPES.items()
    }


def rounds(count: int = 3) -> list[tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Reports of some rounds: all, all but two, and another order with other weights."""
    present = np.ones((count, CLIENTS), bool)
    present[1:, [2, 5]] = False
    out = []
    for t in range(count):
        rng = np.random.default_rng(100 + t)
        order = rng.permutation(CLIENTS) if t == 2 else np.arange(CLIENTS)
        weight = 1.0 + rng.integers(0, 3, CLIENTS)
        given = {"client": order, "weight": weight, "present": present[t]}
        out.append((sent(t), {k: jnp.asarray(v) for k, v in given.items()}))
    return out


def run(
    rule: Aggregate, reports: Any, apply: Callable[..., Aggregated] | None = None
) -> list[Aggregated]:
    """All that a rule gives in some rounds."""
    apply = jax.jit(rule.apply) if apply is None else apply
    state, out = rule.init(params(), CLIENTS), []
    for displacement, given in reports:
        out.append(apply(displacement, state, **given))
        state = out[-1].state
    return out
