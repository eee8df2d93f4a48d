"""Runs transformations as several workers: along a vmapped axis, and on emulated devices."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optkit

AXIS = "workers"
Tree = Any


def gradients(
    seed: int, steps: int, workers: int, shapes: dict[str, tuple[int, ...]]
) -> list[dict[str, np.ndarray]]:
    """Normal numbers of all workers on a leading axis, one tree a step."""
    random = np.random.default_rng(seed)
    return [
        {name: np.float32(random.standard_normal((workers, *s))) for name, s in shapes.items()}
        for _ in range(steps)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _step(tx: Any, grads: Tree, state: Tree, params: Tree) -> Any:
    return jax.vmap(tx.update, in_axes=(0, 0, None), axis_name=AXIS)(grads, state, params)


def start(tx: Any, grads: Tree) -> Any:
    """The state of all workers on a leading axis."""
    params = jax.tree.map(lambda g: np.zeros_like(g[0]), grads)
    workers = len(jax.tree.leaves(grads)[0])
    return jax.vmap(tx.init, in_axes=None, axis_name=AXIS, axis_size=workers)(params)


def follow(tx: Any, grads: list[Tree], state: Tree = None, params: Tree = None) -> Any:
    """Returns the updates of all workers after each step, the states, and the last state."""
    state = start(tx, grads[0]) if state is None else state
    if params is None:
        params = jax.tree.map(lambda g: np.zeros_like(g[0]), grads[0])
    out, states = [], []
    for g in grads:
        updates, state = _step(tx, g, state, params)
        out.append(jax.device_get(updates))
        states.append(jax.device_get(state))
    return out, states


def mesh_of(workers: int) -> jax.sharding.Mesh:
    devices = jax.devices()[:workers]
    return jax.make_mesh((workers,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def mapped(tx: Any, params: Tree, workers: int) -> Any:
    """Returns the compiled step on so many devices, types checked, and the first state."""
    mesh = mesh_of(workers)
    state, specs = optkit.init_workers(tx, params, mesh, AXIS)

    def update(grads: Tree, state: Tree, params: Tree) -> Any:
        return tx.update(jax.tree.map(lambda g: g[0], grads), state, params)

    step = jax.shard_map(update, mesh=mesh, in_specs=(P(AXIS), specs, P()), out_specs=(P(), specs))
    return jax.jit(step), state


def on_devices(tx: Any, grads: list[Tree], params: Tree = None) -> Any:
    """Returns the updates after each step, the last state, and the compiled step."""
    workers = len(jax.tree.leaves(grads[0])[0])
    if params is None:
        params = jax.tree.map(lambda g: np.zeros_like(g[0]), grads[0])
    step, state = mapped(tx, params, workers)
    compiled, out = step.lower(grads[0], state, params).compile(), []
    for g in grads:
        updates, state = step(g, state, params)
        out.append(jax.device_get(updates))
    return out, jax.device_get(state), compiled
