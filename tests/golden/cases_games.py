"""Closed loops over nodes: the operators are in the file, in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

import optkit
from tests.golden.meshes import ALL, AXIS, EACH, along, axis_of, forms
from tests.golden.replay import Comparison, Golden, case, difference

EXACT = 1e-12
# The authors' matrix of the flow is rounded to float32.
ROUNDED = 1e-6


@case("proxskip_vip")
def proxskip_vip(golden: Golden) -> Iterator[Comparison]:
    hyper, arrays = golden.hyper, golden.arrays
    for mesh in forms(len(arrays["M"])):
        solver = optkit.games.proxskip_vip(hyper["gamma"], hyper["prob"], axis_name=axis_of(mesh))

        def run(matrix: Any, shift: Any, start: Any, coins: Any, solver: Any = solver) -> Any:
            def operator(z: jax.Array) -> jax.Array:
                return jnp.sum(matrix * z[:, None, :], axis=-1) + shift

            def body(state: Any, meets: jax.Array) -> Any:
                state = solver.step(state, operator, meets)
                return state, (state.z, state.control)

            return lax.scan(body, solver.init(start), coins)[1]

        every = along(run, mesh, (EACH, EACH, EACH, ALL), P(None, AXIS))
        with jax.enable_x64(True):
            given = [jnp.asarray(arrays[name]) for name in ("M", "z", "p0/x")]
            points, controls = jax.jit(every)(*given, jnp.asarray(arrays["coins"]) == 1)
        for t in range(golden.steps):
            for prefix, got in (("p", points), ("control", controls)):
                want = arrays[f"{prefix}/{t}/x"]
                size = max(1.0, float(np.max(np.abs(want), initial=0.0)))
                yield Comparison(difference(got[t], want), EXACT * size)


@case("dadao")
def dadao(golden: Golden) -> Iterator[Comparison]:
    hyper, arrays = golden.hyper, golden.arrays
    with jax.enable_x64(True):
        data = jnp.asarray(arrays["data"], jnp.float64)
        labels = jnp.asarray(arrays["labels"], jnp.float64)[..., 0]

        def gradient(node: jax.Array, x: jax.Array) -> jax.Array:
            d = data[node]
            residual = jnp.sum(d * x[None, :], axis=1) - labels[node]
            return 2.0 / d.shape[0] * jnp.sum(d * residual[:, None], axis=0)

        time, kind, first, second = (jnp.asarray(column) for column in arrays["events"].T)
        wait = jnp.diff(time, prepend=0.0)
        events = optkit.games.Events(
            wait, kind == 1, first.astype(jnp.int32), jnp.maximum(second, 0).astype(jnp.int32)
        )
        solver = optkit.games.dadao(hyper["mu"], hyper["L"], hyper["chi1"])

        def body(state: Any, event: Any) -> Any:
            state = solver.step(state, gradient, event)
            return state, state[:6]

        start = solver.init(jnp.asarray(arrays["x0"], jnp.float64))
        _, six = jax.jit(lambda s, e: lax.scan(body, s, e))(start, events)
    names = ("X", "X_tilde", "Y", "Y_tilde", "Z", "Z_tilde")
    for t in range(golden.steps):
        for name, got in zip(names, six, strict=True):
            want = arrays[f"p/{t}/{name}"]
            size = max(1.0, float(np.max(np.abs(want), initial=0.0)))
            yield Comparison(difference(got[t], want), ROUNDED * size)
