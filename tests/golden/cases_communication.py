"""Cases of compressed averages: every worker has its own gradients and errors."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import optkit
from optkit.tree import leaves_with_paths
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims

AXIS = "workers"


def worker_names(golden: Golden) -> list[str]:
    """The workers' names in the keys: 0, 1, ... or w0, w1, ..."""
    names = {key.split("/")[2] for key in golden.arrays if key.startswith("g/0/")}
    return sorted(names, key=lambda name: int(name.lstrip("w")))


def stacked(golden: Golden, prefix: str) -> dict[str, np.ndarray]:
    """What each worker has below ``prefix/<worker>/``, on a leading axis."""
    trees = [golden.tree(f"{prefix}/{name}") for name in worker_names(golden)]
    return {leaf: np.stack([tree[leaf] for tree in trees]) for leaf in trees[0]}


def _own(tree: Any) -> dict[str, Any]:
    return {} if tree is None else dict(leaves_with_paths(tree.of_worker))


def _powersgd(
    golden: Golden, start: dict[str, dict[str, np.ndarray]], tolerance: float, **options: Any
) -> Iterator[Comparison]:
    """Compares the average, the parameters and the errors of all workers after every step."""
    hyper, params = golden.hyper, golden.tree("p0")
    # The file's factors say for which leaves the reference found that it pays.
    chosen = {name: dims for name, dims in torch_dims(params).items() if name in start["basis"]}
    average = optkit.powersgd_mean(
        AXIS,
        rank=hyper["rank"],
        iterations=hyper.get("iters", 1),
        start_step=hyper.get("start", 0),
        init_factor=lambda path, which, _: start[which][path],
        dims=dict.fromkeys(params) | chosen,
        qr_method="qr",
        **options,
    )
    descent = optax.sgd(hyper["lr"], hyper.get("mom") or None)

    @jax.jit
    def step(grads: Any, own: Any, state: Any, params: Any) -> Any:
        out, own = jax.vmap(average.update, axis_name=AXIS)(grads, own)
        common = jax.tree.map(lambda x: x[0], out)
        updates, state = descent.update(common, state, params)
        return out, own, state, optax.apply_updates(params, updates)

    count = len(worker_names(golden))
    own = jax.vmap(average.init, in_axes=None, axis_name=AXIS, axis_size=count)(params)
    state = descent.init(params)
    for t in range(golden.steps):
        out, own, state, params = step(stacked(golden, f"g/{t}"), own, state, params)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), tolerance)
        for name, want in golden.tree(f"agg/{t}").items():
            for mean in out[name]:
                yield Comparison(difference(mean, want), tolerance)
        if golden.tree(f"err/{t}"):
            waiting = _own(own.error)
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
    hyper, params = golden.hyper, golden.tree("p0")
    names = worker_names(golden)
    # Its call that allocates counts as a step.
    first = int(golden.arrays.get("init_step", 1))
    warmup = max(1, hyper["freeze"] - first)
    tx = optkit.onebit_adam(
        hyper["lr"],
        axis_name=AXIS,
        warmup_steps=warmup,
        b1=hyper["betas"][0],
        b2=hyper["betas"][1],
        eps=hyper["eps"],
        weight_decay=hyper.get("wd", 0.0),
    )
    update = jax.jit(jax.vmap(tx.update, in_axes=(0, 0, None), axis_name=AXIS))
    state = jax.vmap(tx.init, in_axes=None, axis_name=AXIS, axis_size=len(names))(params)
    for t in range(golden.steps):
        if f"compressed/{t}" in golden.arrays:
            same = bool(golden.arrays[f"compressed/{t}"]) == (t >= warmup)
            yield Comparison(float(not same), 0.5)
        updates, state = update(stacked(golden, f"g/{t}"), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: u[0], updates))
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        held = _held(state, "mu")
        for prefix, field in (("m", "mu"), ("v", "nu")):
            for name, want in golden.tree(f"{prefix}/{t}").items():
                for got in getattr(held, field)[name]:
                    yield Comparison(difference(got, want), TOLERANCE)
        for prefix, side in (("werr", "worker"), ("serr", "server")):
            for index, worker in enumerate(names):
                for name, want in golden.tree(f"{prefix}/{t}/{worker}").items():
                    got = held.error.of_worker[side][name][index, 0]
                    yield Comparison(difference(got, want), TOLERANCE)


def _held(state: Any, field: str) -> Any:
    """The part of a state that has a field of this name."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, field))
    return next(node for node in nodes if hasattr(node, field))
