"""Robust aggregation: workers' gradients or momenta of a file, its aggregate and its parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from optkit.aggregate import Aggregate
from tests.golden.meshes import ALL, EACH, along, axis_of, forms
from tests.golden.replay import Comparison, Golden, case, difference

TOLERANCE = 2e-6
aggregate = optkit.aggregate
Build = Callable[..., Aggregate]


def stacked(golden: Golden, step: int) -> dict[str, np.ndarray]:
    """Gradients of one step, (workers, ...)."""
    found = golden.tree(f"g/{step}")
    workers = sorted({int(key.split("/")[0]) for key in found})
    leaves = [key.split("/", 1)[1] for key in found if key.startswith("0/")]
    return {leaf: np.stack([found[f"{w}/{leaf}"] for w in workers]) for leaf in leaves}


def replay(golden: Golden, build: Build, **options: Any) -> Iterator[Comparison]:
    """Runs all steps, with all workers on one device and then with some on each."""
    hyper = golden.hyper
    beta = hyper.get("worker_momentum", 0.0)  # m <- beta*m + g, without the factor 1 - beta
    count = len(jax.tree.leaves(stacked(golden, 0))[0])
    for mesh in forms(count):
        rule = build(**options, axis_name=axis_of(mesh))

        def inside(sent: Any, state: Any, client: jax.Array, rule: Aggregate = rule) -> Any:
            return rule.apply(sent, state, client=client)

        one_round = along(inside, mesh, (EACH, ALL, EACH), ALL)

        @jax.jit
        def step(grads: Any, momenta: Any, state: Any, params: Any, run: Any = one_round) -> Any:
            momenta = jax.tree.map(lambda m, g: beta * m + g, momenta, grads)
            out = run(momenta, state, jnp.arange(count))
            params = jax.tree.map(lambda p, d: p - hyper["lr"] * d, params, out.direction)
            return momenta, out, params

        params = jax.tree.map(jnp.asarray, golden.tree("p0"))
        momenta = jax.tree.map(jnp.zeros_like, stacked(golden, 0))
        state = rule.init(params, count)
        for t in range(golden.steps):
            momenta, out, params = step(stacked(golden, t), momenta, state, params)
            state = out.state
            yield Comparison(0.0 if bool(out.moved) else np.inf, TOLERANCE)
            for prefix, got in (("agg", out.direction), ("p", params)):
                for leaf, want in golden.tree(f"{prefix}/{t}").items():
                    size = max(1.0, float(np.max(np.abs(want), initial=0.0)))
                    yield Comparison(difference(got[leaf], want), TOLERANCE * size)


@case("centered_clipping")
def centered_clipping(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    yield from replay(
        golden, aggregate.centered_clipping, radius=hyper["tau"], iterations=hyper["n_iter"]
    )


@case("krum", "multi_krum_sum")
def krum_squared_twice(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    options = {"hostile": hyper["f"], "dialect": "epfl"}
    if hyper["m"] == 1:
        yield from replay(golden, aggregate.krum, **options)
    yield from replay(golden, aggregate.multi_krum, keep=hyper["m"], **options)


@case("krum_flwr", "multi_krum_flwr")
def krum_of_flower(golden: Golden) -> Iterator[Comparison]:
    hostile, keep = golden.hyper["f"], golden.hyper.get("to_keep", 0)
    if keep:
        yield from replay(golden, aggregate.multi_krum, hostile=hostile, keep=keep)
    else:
        yield from replay(golden, aggregate.krum, hostile=hostile)


@case("trimmed_mean", "trimmed_mean_flwr")
def trimmed_mean(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    workers = len(stacked(golden, 0)[next(iter(golden.tree("p0")))])
    trim = hyper["b"] if "b" in hyper else int(hyper["proportiontocut"] * workers)
    yield from replay(golden, aggregate.trimmed_mean, trim=trim)


@case("coordinate_median")
def coordinate_median(golden: Golden) -> Iterator[Comparison]:
    yield from replay(golden, aggregate.coordinate_median)


@case("geometric_median")
def geometric_median(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    yield from replay(golden, aggregate.geometric_median, iterations=hyper["T"], floor=hyper["nu"])


@case("bulyan_flwr")
def bulyan(golden: Golden) -> Iterator[Comparison]:
    yield from replay(golden, aggregate.bulyan, hostile=golden.hyper["f"])
