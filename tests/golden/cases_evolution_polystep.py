"""Cases of PolyStep: recorded rotations and losses against the particles after each step."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit.evolution.polystep import (
    AdaptiveRadius,
    cosine_annealing,
    linear_annealing,
    polystep,
    polystep_es,
    polytope_vertices,
)
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims

_ADAPTIVE = {
    "threshold": "stagnation_threshold",
    "patience": "stagnation_patience",
    "increase": "radius_increase",
    "decrease": "radius_decrease",
    "low": "radius_min",
    "high": "radius_max",
}


def number(given: Any) -> Any:
    """A number, or the schedule that a file describes by its class's fields."""
    if not isinstance(given, dict):
        return given
    name = str(given.get("type", given.get("cls", given.get("schedule", "linear")))).lower()
    init, target, decay = (
        given.get(key, default)
        for key, default in (("init", 1.0), ("target", 1e-3), ("decay", 0.01))
    )
    if "cosine" in name:
        total = given.get("total_steps") or None
        return cosine_annealing(init, target, total_steps=total, decay=decay)
    return linear_annealing(init, target, decay=decay)


def shared(hyper: dict[str, Any]) -> dict[str, Any]:
    """Options that all dialects have."""
    scale = hyper.get("scale_cost", 1.0)
    return {
        "epsilon": number(hyper.get("epsilon", 0.1)),
        "polytope": hyper.get("polytope", hyper.get("polytope_type", "orthoplex")),
        "solver": hyper.get("solver", "softmax"),
        "scale_cost": "max" if scale == "max_cost" else scale,
        "maximize": False,
        "nonfinite": "penalty",
    }


def momentum(hyper: dict[str, Any]) -> dict[str, Any]:
    """Options of momentum, whose beta goes from one value to the other over the run."""
    if not hyper.get("use_momentum", "momentum_init" in hyper):
        return {}
    ends = (hyper.get("momentum_init", 0.5), hyper.get("momentum_final", 0.95))
    steps = max(1, hyper.get("max_iterations", 100) - 1)
    return {
        "momentum": optax.linear_schedule(*ends, steps),
        "velocity_lr": hyper.get("velocity_lr", 1.0),
    }


def adaptive(hyper: dict[str, Any]) -> dict[str, Any]:
    """Options of radii that adapt."""
    if not hyper.get("use_adaptive_radius", hyper.get("adaptive_radius", False)):
        return {}
    given = {ours: hyper[theirs] for ours, theirs in _ADAPTIVE.items() if theirs in hyper}
    return {"adaptive_radius": AdaptiveRadius(**given)}


def leaves_in_order(golden: Golden, prefix: str) -> dict[str, Any]:
    """The arrays below a prefix in the order of the file, which a list keeps."""
    return {name: jnp.asarray(x) for name, x in golden.tree(prefix).items()}


def compare(
    golden: Golden,
    tx: optax.GradientTransformation,
    params: list[Any],
    state: Any,
    losses: str,
    expected: Callable[[int], list[Any]],
) -> Iterator[Comparison]:
    """Feeds rotations and losses and compares all leaves after every step."""

    @jax.jit
    def step(loss: Any, rotations: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(loss, state, params, rotations=rotations)
        return state, jax.tree.map(lambda p, u: p - u, params, updates)

    for t in range(golden.steps):
        state, params = step(
            golden.arrays[f"{losses}/{t}"], golden.arrays[f"rot/{t}"], state, params
        )
        pairs = zip(params, expected(t), strict=True)
        yield Comparison(max(difference(got, want) for got, want in pairs), TOLERANCE)


@case("polystep_full", "polystep_subspace")
def parameters(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    p0 = leaves_in_order(golden, "p0")
    found = re.search(r"rank (\d+)", str(hyper.get("subspace") or ""))
    rank = int(hyper.get("rank", found[1] if found else 0)) or None
    es = polystep(
        golden.arrays["losses/0"].shape[0],
        step_radius=number(hyper["step_radius"]),
        probe_radius=number(hyper["probe_radius"]),
        num_probe=hyper.get("num_probe", 1),
        particle_dim=golden.arrays["x0"].shape[1],
        rank=rank,
        basis="dense",
        biased_rotation=hyper.get("biased_rotation", False),
        dims=torch_dims,
        **shared(hyper),
        **momentum(hyper),
        **adaptive(hyper),
    )
    params = list(p0.values())
    state = es.init(params)
    bases = [
        [jnp.asarray(golden.arrays[f"proj/{name}"])[None]]
        if f"proj/{name}" in golden.arrays
        else [()]
        for name in p0
    ]
    state = state._replace(es_basis=bases)

    def expected(t: int) -> list[Any]:
        return [golden.arrays[f"p/{t}/{name}"] for name in p0]

    yield from compare(golden, es, params, state, "losses", expected)


@case("polystep_es")
def swarm(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    start = jnp.asarray(golden.arrays["p0/x"])
    count, dim = start.shape
    options = shared(hyper)
    corners = len(polytope_vertices(options["polytope"], dim))
    es = polystep_es(
        count * corners, particles=count, step_radius=number(hyper["step_radius"]), **options
    )
    params = [start.mean(0)]
    state = es.init(params)._replace(es_offsets=start - start.mean(0, keepdims=True))

    @jax.jit
    def step(loss: Any, rotations: Any, state: Any, params: Any) -> Any:
        members = es.perturb(params, state, rotations=rotations)
        updates, state = es.update(loss, state, params, rotations=rotations)
        return members[0], state, jax.tree.map(lambda p, u: p - u, params, updates)

    for t in range(golden.steps):
        given = (golden.arrays[f"f/{t}"], golden.arrays[f"rot/{t}"])
        members, state, params = step(*given, state, params)
        if f"cand/{t}" in golden.arrays:
            yield Comparison(difference(members, golden.arrays[f"cand/{t}"]), TOLERANCE)
        got = params[0][None] + state.es_offsets
        yield Comparison(difference(got, golden.arrays[f"p/{t}/x"]), TOLERANCE)
