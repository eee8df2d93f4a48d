"""Cases of the searches that adapt a covariance: CMA-ES, Sep-CMA-ES and xNES."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.evolution import Strategy, search
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference

CHANGES = ("cc", "c1", "cmu", "c_sigma", "d_sigma", "chi_n", "cm", "mu_eff")
# Names in the files -> fields of our states.
FIELDS = {
    "_sigma": "es_sigma",
    "_C": "es_covariance",
    "_p_sigma": "es_path_sigma",
    "_pc": "es_path_c",
    "_B": "es_shape",
    "std": "es_sigma",
    "C": "es_covariance",
    "p_std": "es_path_sigma",
    "p_c": "es_path_c",
}
Make = Callable[[int, int], Strategy]


def told(golden: Golden, make: Make, learning_rate: float = 1.0) -> Iterator[Comparison]:
    """Feeds the recorded members and fitnesses, and compares parameters and states."""
    double = golden.meta["dtype"] == "float64"
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        params: Any = jax.tree.map(lambda x: jnp.asarray(x, dtype), golden.tree("p0"))
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        es = make(size, int(golden.hyper["population"]))
        tx = optax.chain(es, optax.sgd(learning_rate))
        state, step = tx.init(params), jax.jit(tx.update)
        for t in range(golden.steps):
            members = golden.tree(f"x/{t}")
            if not members:  # x = mean + std*z, with what the file has of the state
                members = _made(golden, t, params, es.state(state))
            members = jax.tree.map(lambda x: jnp.asarray(x, dtype), members)
            fitness = jnp.asarray(golden.arrays[f"f/{t}"], dtype)
            updates, state = step(fitness, state, params, members=members)
            params = optax.apply_updates(params, updates)
            for name, want in golden.tree(f"p/{t}").items():
                yield Comparison(difference(params[name], want), TOLERANCE)
            yield from _states(golden.tree(f"state/{t}"), es.state(state))


def _flat(value: Any) -> np.ndarray:
    if isinstance(value, dict):
        return np.concatenate([np.ravel(value[name]) for name in sorted(value)])
    return np.asarray(value)


def _field(state: Any, name: str) -> Any:
    field = FIELDS[name]
    if field == "es_covariance" and not hasattr(state, field):
        field = "es_variance"
    return _flat(getattr(state, field))


def _states(want: dict[str, np.ndarray], state: Any) -> Iterator[Comparison]:
    for name, value in want.items():
        if name in FIELDS:
            scale = max(1.0, float(np.max(np.abs(value))))
            yield Comparison(difference(_field(state, name) / scale, value / scale), TOLERANCE)


def _made(golden: Golden, t: int, params: Any, state: Any) -> dict[str, np.ndarray]:
    spread = state.es_sigma * np.sqrt(_field(state, "C"))
    flat = _flat(params) + np.asarray(spread) * golden.arrays[f"z/{t}"]
    out, start = {}, 0
    for name in sorted(params):
        shape = params[name].shape
        end = start + int(np.prod(shape))
        out[name] = flat[:, start:end].reshape(-1, *shape)
        start = end
    return out


def _changes(golden: Golden) -> dict[str, float]:
    return {name: float(golden.hyper[name]) for name in CHANGES if name in golden.hyper}


def _weights(golden: Golden, population: int) -> tuple[float, ...] | None:
    """The recorded weights, best first, filled with 0 where only the better half is recorded."""
    if "weights" not in golden.arrays:
        return None
    given = [float(w) for w in golden.arrays["weights"]]
    return (*given, *[0.0] * (population - len(given)))


@case("cma_es")
def cma_es(golden: Golden) -> Iterator[Comparison]:
    def make(size: int, population: int) -> Strategy:
        weights = _weights(golden, population)
        constants = search.cma_constants(size, population, weights=weights, **_changes(golden))
        return search.cma_es(
            population, sigma=golden.hyper["sigma"], constants=constants, maximize=False
        )

    yield from told(golden, make)


@case("cma_es_evosax")
def cma_es_evosax(golden: Golden) -> Iterator[Comparison]:
    def make(size: int, population: int) -> Strategy:
        sigma = golden.hyper["std_init"]
        return search.cma_es(population, sigma=sigma, ties="floor", maximize=False)

    yield from told(golden, make)


@case("sep_cma_es")
def sep_cma_es(golden: Golden) -> Iterator[Comparison]:
    def make(size: int, population: int) -> Strategy:
        weights = _weights(golden, population)
        constants = search.sep_cma_constants(size, population, weights=weights, **_changes(golden))
        return search.sep_cma_es(
            population, sigma=golden.hyper["sigma"], constants=constants, maximize=False
        )

    yield from told(golden, make)


@case("sep_cma_es_evosax")
def sep_cma_es_evosax(golden: Golden) -> Iterator[Comparison]:
    def make(size: int, population: int) -> Strategy:
        return search.sep_cma_es(
            population,
            sigma=golden.hyper["std_init"],
            constants="evosax",
            ties="floor",
            maximize=False,
        )

    yield from told(golden, make)


@case("xnes")
def xnes(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper

    def make(size: int, population: int) -> Strategy:
        return search.xnes(
            population,
            sigma=hyper["sigma"],
            eta_sigma=hyper["eta_sigma"],
            eta_shape=hyper["eta_B"],
            ties="order",
            maximize=False,
        )

    yield from told(golden, make, hyper["eta_mean"])
