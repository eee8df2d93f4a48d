"""Cases of sparse training."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.transforms.adams import AdamsState
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims


@case("cast_adams")
def cast_adams(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    tx = optkit.cast_adams(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        l1_decay=hyper["l1_decay"],
        total_steps=hyper.get("total_steps", golden.meta.get("T", golden.steps)),
        pattern=(hyper["N"], hyper["M"]),
        mask_interval=hyper["mask_interval"],
        weight_decay=hyper.get("weight_decay", 0.0),
        dims=torch_dims(params),
    )
    update, state = jax.jit(tx.update), tx.init(params)
    for t in range(golden.steps):
        updates, state = update(golden.tree(f"g/{t}"), state, params)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, AdamsState))
        kept = next(x.kept for x in held if isinstance(x, AdamsState) and x.kept is not None)
        for name, want in golden.tree(f"mask/{t}").items():
            yield Comparison(float(jnp.sum(kept[name] != want)), 0.5)


@case("breadcrumbs")
def breadcrumbs(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    options: dict[str, Any] = {
        "beta": hyper["beta"],
        "gamma": hyper["gamma"],
        "dims": torch_dims(params),
    }
    mask = jax.jit(lambda delta: optkit.mask_task_vector(delta, **options))
    tuned = []
    for task in range(hyper["num_tasks"]):
        delta = golden.tree(f"delta/{task}")
        got = mask(delta)
        for name, want in golden.tree(f"masked/{task}").items():
            yield Comparison(difference(got[name], want), TOLERANCE)
        tuned.append(jax.tree.map(lambda p, d: p + d, params, delta))
    merged = optkit.breadcrumbs(params, tuned, hyper["alpha"], **options)
    for name, want in golden.tree("merged").items():
        yield Comparison(difference(merged[name], want), TOLERANCE)
