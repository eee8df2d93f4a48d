"""Cases of replicas that work on their own: stacked on one device, and each on its own device."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

import optkit
from tests.golden.cases_communication import stacked, worker_names
from tests.golden.meshes import replica_forms
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference

AXIS = "replica"
Outer = Callable[[int, Any, Any], tuple[Any, Any]]


def inner(hyper: dict[str, Any]) -> Any:
    """torch's AdamW, or Adam where the file has no decay; eps outside of the root."""
    b1, b2 = hyper.get("inner_betas", (0.9, 0.999))
    options = {"b1": b1, "b2": b2, "eps": hyper.get("inner_eps", 1e-8)}
    return optax.adamw(hyper["inner_lr"], weight_decay=hyper.get("inner_wd", 0.0), **options)


def follow(golden: Golden, make: Callable[..., tuple[Any, Outer]]) -> Iterator[Comparison]:
    """Compares all replicas after each inner step, and after the outer one if there was one.

    Args:
      golden: the file.
      make: (axis_name, of one replica -> of all) -> init, and (steps, parameters, state) -> both.
    """
    count = len(worker_names(golden))
    tx = inner(golden.hyper)

    @jax.jit
    def work(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    for axis, mapped in forms(count):
        init, outer = make(axis, mapped)
        params: Any = optkit.replicas(golden.tree("p0"), count)
        own, state = tx.init(params), init(params)
        for t in range(golden.steps):
            own, params = work(stacked(golden, f"g/{t}"), own, params)
            params, state = outer(t + 1, params, state)
            params = jax.device_get(params)  # whatever devices they were on
            for name, want in stacked(golden, f"pw/{t}").items():
                yield Comparison(difference(params[name], want), TOLERANCE)


def forms(count: int) -> list[tuple[str | None, Callable[[Any], Any]]]:
    """Stacked, and along an axis: of as many devices, or of one where there are not as many."""
    return [(None, lambda function: function), (AXIS, replica_forms(count, AXIS)[-1])]


def rounds(golden: Golden, outer_tx: Any) -> Iterator[Comparison]:
    def make(axis: str | None, mapped: Any) -> tuple[Any, Outer]:
        outer = optkit.diloco(outer_tx, axis_name=axis)
        step = jax.jit(mapped(outer.step))

        def due(count: int, params: Any, state: Any) -> tuple[Any, Any]:
            return (params, state) if count % golden.hyper["local_steps"] else step(params, state)

        return jax.jit(mapped(outer.init)), due

    yield from follow(golden, make)


@case("diloco")
def diloco(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    yield from rounds(golden, optax.sgd(hyper["outer_lr"], hyper["outer_momentum"], nesterov=True))


@case("diloco_heavyball")
def diloco_heavyball(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    yield from rounds(golden, optax.sgd(hyper["outer_lr"], hyper["outer_momentum"]))


@case("streaming_diloco")
def streaming_diloco(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper

    def make(axis: str | None, mapped: Any) -> tuple[Any, Outer]:
        outer = optkit.streaming_diloco(
            optax.sgd(hyper["outer_lr"], hyper["outer_momentum"], nesterov=True),
            fragments=hyper["fragments"],
            every=hyper["sync_every"],
            delay=hyper.get("delay", 0),
            alpha=hyper.get("alpha", 0.0),
            axis_name=axis,
        )

        @functools.partial(jax.jit, static_argnums=2)
        def step(params: Any, state: Any, what: Any) -> Any:
            return mapped(lambda p, s: outer.step(p, s, what))(params, state)

        def due(count: int, params: Any, state: Any) -> tuple[Any, Any]:
            what = outer.due(count)
            return step(params, state, what) if what else (params, state)

        return jax.jit(mapped(outer.init)), due

    yield from follow(golden, make)


@case("noloco")
def noloco(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper

    def make(axis: str | None, mapped: Any) -> tuple[Any, Outer]:
        outer = optkit.noloco(
            alpha=hyper["outer_momentum"],
            beta=hyper["outer_lr"],
            gamma=hyper.get("gamma"),
            group=hyper["group"],
            axis_name=axis,
        )

        @functools.partial(jax.jit, static_argnums=2)
        def step(params: Any, state: Any, groups: Any) -> Any:
            return mapped(lambda p, s: outer.step(p, s, groups=groups))(params, state)

        def due(count: int, params: Any, state: Any) -> tuple[Any, Any]:
            if count % hyper["local_steps"]:
                return params, state
            groups = np.asarray(golden.arrays[f"groups/{count - 1}"]).tolist()
            return step(params, state, tuple(map(tuple, groups)))

        return jax.jit(mapped(outer.init)), due

    yield from follow(golden, make)
