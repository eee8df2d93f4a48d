"""Cases of methods that train some entries only."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.masks import UpdateMaskState
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims


def _replay(golden: Golden, tx: optax.GradientTransformation, masks: Any) -> Iterator[Comparison]:
    """Compares parameters and masks after every step, and that masked entries do not move."""
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    update, state = jax.jit(tx.update), tx.init(params)
    for t in range(golden.steps):
        updates, state = update(golden.tree(f"g/{t}"), state, params)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, UpdateMaskState))
        kept = next(x.kept for x in held if isinstance(x, UpdateMaskState))
        for name, want in golden.tree(f"mask/{t}").items():
            wrong = jnp.sum(masks(kept[name], want.shape) != want)
            yield Comparison(float(wrong), 0.5)


@case("lift")
def lift(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    # The reference takes the largest where its option's name says so, and is stored with it.
    kind = hyper.get("mask_type", "largest")
    tx = optkit.lift(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        rank=hyper["rank"],
        filter_rank=hyper["filter_rank"],
        interval=hyper["update_interval"],
        smallest=hyper.get("smallest", "largest" not in kind),
        # Its decay changes a copy: no matrix decays, only what is dense does.
        weight_decay=hyper.get("weight_decay", 0.0),
        mask=lambda path, leaf: leaf.ndim < 2,
        dims=torch_dims(golden.tree("p0")),
    )

    def as_mask(index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        entries = jnp.arange(int(jnp.prod(jnp.asarray(shape)))).reshape(shape)
        return jnp.isin(entries, index)

    yield from _replay(golden, tx, as_mask)


@case("id3")
def id3(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    tx = optkit.id3(
        hyper["lr"],
        budget=hyper["budget"],
        steps=hyper.get("max_steps", golden.meta.get("T", golden.steps)),
        exp=hyper["exp"],
        metric_eps=hyper["eps_metric"],
        b1=b1,
        b2=b2,
        eps=hyper["adam_eps"],
        weight_decay=hyper.get("weight_decay", 0.0),
        decay_masked=True,  # torch's AdamW decays all parameters
    )
    yield from _replay(golden, tx, lambda mask, shape: mask)
