"""Cases of compressed averages: every worker has its own gradients and errors."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import optkit
from optkit.tree import leaves_with_paths
from tests.golden.meshes import ALL, AXIS, EACH, forms
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims


def worker_names(golden: Golden) -> list[str]:
    """The workers' names in the keys: 0, 1, ... or w0, w1, ..."""
    names = {key.split("/")[2] for key in golden.arrays if key.startswith("g/0/")}
    return sorted(names, key=lambda name: int(name.lstrip("w")))


def stacked(golden: Golden, prefix: str) -> dict[str, np.ndarray]:
    """What each worker has below ``prefix/<worker>/``, on a leading axis."""
    trees = [golden.tree(f"{prefix}/{name}") for name in worker_names(golden)]
    return {leaf: np.stack([tree[leaf] for tree in trees]) for leaf in trees[0]}


def _running(tx: Any, params: Any, count: int, mesh: Any) -> tuple[Any, Any]:
    """A state of all workers, and the update: on one device, or on one each.

    Results have a leading axis: of workers, or of one where they are known to be equal.
    """
    if mesh is None:
        state = jax.vmap(tx.init, in_axes=None, axis_name=AXIS, axis_size=count)(params)
        return state, jax.vmap(tx.update, in_axes=(0, 0, None), axis_name=AXIS)
    state, specs = optkit.init_workers(tx, params, mesh, AXIS)

    def update(grads: Any, state: Any, params: Any) -> Any:
        out, state = tx.update(jax.tree.map(lambda g: g[0], grads), state, params)
        return _rows(out), state

    ins, outs = (EACH, specs, ALL), (ALL, specs)
    return state, jax.shard_map(update, mesh=mesh, in_specs=ins, out_specs=outs)


def _meshes(count: int) -> list[Any]:
    """None, and a mesh if every worker can have a device."""
    return [mesh for mesh in forms(count) if mesh is None or mesh.size == count]


def _each(tree: Any, count: int, mesh: Any) -> Any:
    """What workers have of their own, (workers, ...): along a mesh it lies end to end."""
    return jax.tree.map(
        lambda x: np.asarray(x) if mesh is None else np.reshape(x, (count, -1, *x.shape[1:])), tree
    )


def _own(tree: Any) -> dict[str, Any]:
    return {} if tree is None else dict(leaves_with_paths(tree.of_worker))


def _powersgd(
    golden: Golden, start: dict[str, dict[str, np.ndarray]], tolerance: float, **options: Any
) -> Iterator[Comparison]:
    """Compares the average, the parameters and the errors of all workers after every step."""
    hyper, first = golden.hyper, golden.tree("p0")
    # The file's factors say for which leaves the reference found that it pays.
    chosen = {name: dims for name, dims in torch_dims(first).items() if name in start["basis"]}
    average = optkit.powersgd_mean(
        AXIS,
        rank=hyper["rank"],
        iterations=hyper.get("iters", 1),
        start_step=hyper.get("start", 0),
        init_factor=lambda path, which, _: start[which][path],
        dims=dict.fromkeys(first) | chosen,
        qr_method="qr",
        **options,
    )
    descent = optax.sgd(hyper["lr"], hyper.get("mom") or None)

    count = len(worker_names(golden))
    for mesh in _meshes(count):
        own, every = _running(average, first, count, mesh)

        @jax.jit
        def step(grads: Any, own: Any, state: Any, params: Any, update: Any = every) -> Any:
            out, own = update(grads, own, params)
            common = jax.tree.map(lambda x: x[0], out)
            updates, state = descent.update(common, state, params)
            return out, own, state, optax.apply_updates(params, updates)

        state, params = descent.init(first), first
        for t in range(golden.steps):
            out, own, state, params = step(stacked(golden, f"g/{t}"), own, state, params)
            for name, want in golden.tree(f"p/{t}").items():
                yield Comparison(difference(params[name], want), tolerance)
            for name, want in golden.tree(f"agg/{t}").items():
                for mean in jax.device_get(out[name]):
                    yield Comparison(difference(mean, want), tolerance)
            if golden.tree(f"err/{t}"):
                waiting = _each(_own(own.error), count, mesh)
                for name, want in stacked(golden, f"err/{t}").items():
                    got = waiting.get(name, np.zeros_like(want))
                    yield Comparison(difference(got, want), tolerance)


@case("powersgd", "powersgd_epfl")
def powersgd_epfl(golden: Golden) -> Iterator[Comparison]:
    whole = "min_compression_rate" in golden.hyper  # the class that chooses what pays
    names = ("P0", "Q0") if whole else ("p_init", "q_init")
    yield from _powersgd(
        golden,
        {which: golden.tree(name) for which, name in zip(("left", "basis"), names, strict=True)},
        2e-3 if whole else TOLERANCE,  # the given one: QR in float32 is repeated twice a step
        schedule="alternating",
        min_compression_rate=golden.hyper.get("min_compression_rate", 0.0),
    )


@case("powersgd_torch")
def powersgd_torch(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    yield from _powersgd(
        golden,
        {"basis": golden.tree("q0")},
        TOLERANCE,
        min_compression_rate=hyper["min_compression_rate"],
        orth_eps=hyper.get("orth_eps", 0.0),
        warm_start=hyper.get("warm_start", True),
        error_feedback=hyper.get("use_error_feedback", True),
    )


@case("onebit_adam")
def onebit_adam(golden: Golden) -> Iterator[Comparison]:
    hyper, first = golden.hyper, golden.tree("p0")
    names = worker_names(golden)
    # Its call that allocates counts as a step.
    warmup = max(1, hyper["freeze"] - int(golden.arrays.get("init_step", 1)))
    tx = optkit.onebit_adam(
        hyper["lr"],
        axis_name=AXIS,
        warmup_steps=warmup,
        b1=hyper["betas"][0],
        b2=hyper["betas"][1],
        eps=hyper["eps"],
        weight_decay=hyper.get("wd", 0.0),
    )
    for t in range(golden.steps):
        if f"compressed/{t}" in golden.arrays:
            same = bool(golden.arrays[f"compressed/{t}"]) == (t >= warmup)
            yield Comparison(float(not same), 0.5)
    for mesh in _meshes(len(names)):
        params, (state, every) = first, _running(tx, first, len(names), mesh)
        update = jax.jit(every)
        for t in range(golden.steps):
            updates, state = update(stacked(golden, f"g/{t}"), state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: u[0], updates))
            held = _held(state, "mu")
            own = _each(held.error.of_worker, len(names), mesh)
            moments = (held.mu, held.nu) if mesh is None else _rows((held.mu, held.nu))
            yield from _onebit_state(golden, t, _rows(params), *moments, own)


def _rows(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


def _onebit_state(
    golden: Golden, t: int, params: Any, mu: Any, nu: Any, own: Any
) -> Iterator[Comparison]:
    """The parameters, the moments of every worker, which are equal, and its errors."""
    for prefix, tree in (("p", params), ("m", mu), ("v", nu)):
        for name, want in golden.tree(f"{prefix}/{t}").items():
            for got in jax.device_get(tree[name]):
                yield Comparison(difference(got, want), TOLERANCE)
    for prefix, side in (("werr", "worker"), ("serr", "server")):
        for index, worker in enumerate(worker_names(golden)):
            for name, want in golden.tree(f"{prefix}/{t}/{worker}").items():
                got = own[side][name][index, 0]
                yield Comparison(difference(got, want), TOLERANCE)


def _held(state: Any, field: str) -> Any:
    """The part of a state that has a field of this name."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, field))
    return next(node for node in nodes if hasattr(node, field))
