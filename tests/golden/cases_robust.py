"""Robust aggregation: workers' gradients or momenta of a file, its aggregate and its parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import optkit
from optkit.aggregate import Aggregate
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


def along_an_axis(rule: Aggregate, name: str) -> Callable[[Any, Any], Any]:
    """One round of a rule whose clients lie on as many devices as divide their number."""

    def run(sent: Any, state: Any) -> Any:
        count = len(jax.tree.leaves(sent)[0])
        devices = max(d for d in range(1, jax.device_count() + 1) if count % d == 0)
        kinds = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), (name,), devices=jax.devices()[:devices], axis_types=kinds)

        def inside(sent: Any, state: Any, client: jax.Array) -> Any:
            return rule.apply(sent, state, client=client)

        specs = P(name), P(), P(name)
        return jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P())(
            sent, state, jnp.arange(count)
        )

    return run


def replay(golden: Golden, build: Build, **options: Any) -> Iterator[Comparison]:
    """Runs all steps, with all workers on one device and then with some on each."""
    hyper = golden.hyper
    beta = hyper.get("worker_momentum", 0.0)  # m <- beta*m + g, without the factor 1 - beta
    forms = [None, "clients"] if jax.device_count() > 1 else [None]
    for axis_name in forms:
        rule = build(**options, axis_name=axis_name)
        one_round = along_an_axis(rule, axis_name) if axis_name else rule.apply

        @jax.jit
        def step(grads: Any, momenta: Any, state: Any, params: Any, run: Any = one_round) -> Any:
            momenta = jax.tree.map(lambda m, g: beta * m + g, momenta, grads)
            out = run(momenta, state)
            params = jax.tree.map(lambda p, d: p - hyper["lr"] * d, params, out.direction)
            return momenta, out, params

        params = jax.tree.map(jnp.asarray, golden.tree("p0"))
        first = stacked(golden, 0)
        momenta = jax.tree.map(jnp.zeros_like, first)
        state = rule.init(params, len(jax.tree.leaves(first)[0]))
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
