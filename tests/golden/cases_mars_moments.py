"""Cases of element-wise MARS, AMSGrad and adaptive memory."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.transforms.adaptive_memory import AdaptiveMemoryState
from optkit.transforms.adaptive_memory_adam import AdaptiveMemoryAdamState
from tests.golden.cases_namo_mars import reduced
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, trajectory


def rate_of(hyper: dict[str, Any]) -> Any:
    """The learning rate; a list of them is a schedule."""
    if not isinstance(hyper["lr"], list):
        return hyper["lr"]
    rates = jnp.asarray(hyper["lr"], jnp.float32)
    return lambda count: rates[count]


@case("mars_adamw", "mars_adamw_exact", "mars_lion", "mars_lion_exact")
def mars(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    options: dict[str, Any] = {
        "b1": b1,
        "gamma": hyper["gamma"],
        "amsgrad": hyper.get("amsgrad", False),
        "weight_decay": hyper["weight_decay"],
        "optimize_1d": hyper["optimize_1d"],
        "adam_b1": hyper["betas_1d"][0],
        "adam_b2": hyper["betas_1d"][1],
        "adam_weight_decay": hyper["weight_decay_1d"],
        "matrices": lambda path, leaf: leaf.ndim == 2,
        # The reference knows no roles and clips each leaf whole.
        "roles": [("**", "bias")],
    }
    if not hyper["optimize_1d"]:
        options["adam_learning_rate"] = hyper["lr_1d"]
    if "lion" in golden.meta.get("method", golden.stem):
        yield from reduced(golden, optkit.mars_lion, options | {"adam_eps": hyper["eps"]})
    else:
        yield from reduced(golden, optkit.mars_adamw, options | {"b2": b2, "eps": hyper["eps"]})


@case("amsgrad")
def amsgrad(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    options: dict[str, Any] = {
        "b1": b1,
        "b2": b2,
        "eps": hyper["eps"],
        "weight_decay": hyper["weight_decay"],
        "decay": "decoupled" if hyper.get("decoupled_weight_decay", False) else "coupled",
    }
    kept = hyper.get("amsgrad", True)
    tx = (optkit.amsgrad if kept else optkit.adamw)(rate_of(hyper), **options)
    if hyper.get("maximize", False):
        tx = optax.chain(optax.scale(-1.0), tx)
    yield from trajectory(golden, tx)


def _rank_2(path: str, leaf: Any) -> bool:
    """What decays in the files of adaptive memory."""
    return leaf.ndim > 1


def _with_beta(golden: Golden, tx: Any, kind: type) -> Iterator[Comparison]:
    """The trajectory, and the coefficients that lead it."""
    update = jax.jit(tx.update)
    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        updates, state = update(golden.tree(f"g/{t}"), state, params)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
        found = next(leaf for leaf in leaves if isinstance(leaf, kind))
        beta = found.coefficients[1] if isinstance(found, AdaptiveMemoryAdamState) else found.beta
        if f"beta/{t}" in golden.arrays:
            yield Comparison(difference(beta, golden.arrays[f"beta/{t}"]), TOLERANCE)
        for name, want in golden.tree(f"beta/{t}").items():
            got = beta[sorted(params).index(name)]
            yield Comparison(difference(got, want), TOLERANCE)


@case("am_msgd")
def am_msgd(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.am_msgd(
        rate_of(hyper),
        b1=hyper["beta_max"],
        lam=hyper["model_lambda"],
        weight_decay=hyper["weight_decay"],
        mask=_rank_2,
    )
    yield from _with_beta(golden, tx, AdaptiveMemoryState)


@case("am_adamw")
def am_adamw(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    tx = optkit.am_adamw(
        rate_of(hyper),
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        lam=hyper["model_lambda"],
        weight_decay=hyper["weight_decay"],
        mask=_rank_2,
    )
    yield from _with_beta(golden, tx, AdaptiveMemoryAdamState)
