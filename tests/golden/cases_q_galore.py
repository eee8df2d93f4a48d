"""The case of Q-GaLore: weights and bases as codes, refreshes that wait."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.codecs import AffineCodec, TableCodec
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims


def _last(parts: Any, like: np.ndarray) -> np.ndarray:
    """An array of ours in the shape of the file's, whose groups are rows."""
    return np.asarray(parts).reshape(like.shape)


def _lazy_state(golden: Golden, t: int, leaf: str, state: Any) -> Iterator[Comparison]:
    """Interval, number of decompositions, cosines and the stored basis after a step."""
    lazy, node = state.lazy, state.basis[0][leaf]
    arrays = {name: golden.arrays[f"{name}/{t}/{leaf}"] for name in ("gap", "svd_count", "queue")}
    yield Comparison(difference(lazy.interval[leaf], arrays["gap"]), 0.5)
    yield Comparison(difference(lazy.refreshes[leaf], arrays["svd_count"]), 0.5)
    queue = np.asarray(lazy.cosines[leaf])
    yield Comparison(
        difference(queue[len(queue) - len(arrays["queue"]) :], arrays["queue"]), TOLERANCE
    )
    if f"proj_codes/{t}/{leaf}" in golden.arrays:
        yield from _codes(golden, f"proj_{{}}/{t}/{leaf}", node)
    else:
        want = golden.arrays[f"proj/{t}/{leaf}"]
        own = np.asarray(node)
        yield Comparison(difference(own if own.shape == want.shape else own.T, want), TOLERANCE)


def _codes(golden: Golden, names: str, node: Any) -> Iterator[Comparison]:
    """Codes and zero points are the same, scales but for the last bits."""
    parts = {name.split("@")[0]: value for name, value in node.items()}
    for ours, theirs, tolerance in (
        ("codes", "codes", 0.5),
        ("zero", "zeros", 0.5),
        ("scale", "scales", TOLERANCE),
    ):
        want = golden.arrays[names.format(theirs)]
        yield Comparison(difference(_last(parts[ours], want), want), tolerance)


def q_galore_of(golden: Golden) -> Any:
    """The recipe with a file's hyperparameters, and its uniform numbers."""
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    adam = {"b1": b1, "b2": b2, "eps": hyper["eps"], "weight_decay": hyper["weight_decay"]}
    least = hyper.get("min_8bit_size", 4096)

    def uniforms(path: str, shape: tuple[int, ...], step: jax.Array) -> jax.Array:
        del shape
        drawn = [golden.arrays[f"rand/{t}/{path}"] for t in range(golden.steps)]
        return jnp.asarray(np.stack(drawn))[step]

    bits, group = hyper["quant_n_bit"], hyper["quant_group_size"]
    grid = AffineCodec(group=hyper["group_size"], layout="flat", widen=False)
    return optkit.q_galore(
        hyper["lr"],
        **adam,
        decay="after",
        rank=hyper["rank"],
        scale=hyper["scale"],
        refresh_every=hyper["update_proj_gap"],
        lazy=optkit.LazyRefresh(
            hyper["cos_threshold"], hyper["gamma_proj"], hyper["queue_size"], signed=True
        ),
        side=hyper["proj_type"],
        basis_codec=AffineCodec(bits, group, widen=False) if hyper["quant"] else jnp.float32,
        weight_codec=grid,
        rounding="stochastic" if hyper["stochastic_round"] else "nearest",
        store_weights=True,
        moment_codec=TableCodec(layout="flat"),
        min_size=least,
        uniforms=uniforms,
        # In the kernel, which is before the step.
        other=optkit.adamw_8bit(hyper["lr"], **adam, min_size=least, layout="flat"),
        dims=torch_dims,
    )


@case("q_galore")
def q_galore(golden: Golden) -> Iterator[Comparison]:
    """From end to end: weights, their codes, intervals and bases after every step."""
    tx = q_galore_of(golden)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    matrices = [name for name, p in params.items() if p.ndim >= 2]
    state = tx.init(params)
    for name in matrices:
        yield from _codes(golden, f"{{}}0/{name}", state.routes["q_galore"].codes[name])
    for t in range(golden.steps):
        state, params = step(golden.tree(f"g/{t}"), state, params)
        expected = golden.tree(f"p/{t}")
        yield Comparison(max(difference(params[k], v) for k, v in expected.items()), TOLERANCE)
        own = state.routes["q_galore"]
        for name in matrices:
            yield from _codes(golden, f"{{}}/{t}/{name}", own.codes[name])
            yield from _lazy_state(golden, t, name, own.inner[0])
    for name in matrices:
        moments = own.inner[0].projected[0].inner
        if f"m/{name}" in golden.arrays:
            yield Comparison(difference(moments.mu[name].T, golden.arrays[f"m/{name}"]), TOLERANCE)
            yield Comparison(difference(moments.nu[name].T, golden.arrays[f"v/{name}"]), TOLERANCE)
