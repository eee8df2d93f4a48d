"""Cases of the methods for streams of tasks: UPGD, XGrad, online EWC, CLASSP."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, trajectory


def noisy_trajectory(golden: Golden, tx: optax.GradientTransformation) -> Iterator[Comparison]:
    """Feeds recorded gradients and normal numbers, and compares parameters after every step."""

    @jax.jit
    def step(grads: Any, noise: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, noise=noise)
        return state, optax.apply_updates(params, updates)

    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        grads, noise = (jax.tree.map(jnp.asarray, golden.tree(f"{k}/{t}")) for k in ("g", "noise"))
        # A file without perturbation need not record any.
        noise = noise or jax.tree.map(jnp.zeros_like, grads)
        state, params = step(grads, noise, state, params)
        expected = golden.tree(f"p/{t}")
        yield Comparison(max(difference(params[k], v) for k, v in expected.items()), TOLERANCE)


_PROFILES = {
    "upgd": "readme_global",
    "upgd_local": "experiment_local",
    "upgd_adam": "readme_global",
}


@case("upgd", "upgd_local", "upgd_adam")
def upgd(golden: Golden) -> Iterator[Comparison]:
    hyper, method = golden.hyper, golden.meta["method"]
    options: dict[str, Any] = {
        "b": hyper["beta_utility"],
        "sigma": hyper["sigma"],
        "weight_decay": hyper["weight_decay"],
        "profile": hyper.get("profile", _PROFILES[method]),
        "rows": "last_axis",
    }
    if method == "upgd_adam":
        b1, b2 = hyper.get("betas", (hyper.get("beta1", 0.9), hyper.get("beta2", 0.999)))
        options |= {"b1": b1, "b2": b2, "eps": hyper["eps"]}
    factory = optkit.upgd_adam if method == "upgd_adam" else optkit.upgd
    yield from noisy_trajectory(golden, factory(hyper["lr"], **options))


@case("xgrad_adam", "xgrad_adamw")
def xgrad(golden: Golden) -> Iterator[Comparison]:
    """The points of prediction and the trajectory, whose gradients were recorded beforehand."""
    hyper = golden.hyper
    rate, (b1, b2) = hyper["lr"], hyper["betas"]
    # The reference's Adam takes a decay and does nothing with it.
    decay = hyper["weight_decay"] if golden.meta["method"] == "xgrad_adamw" else 0.0
    betas = {"b1": b1, "b2": b2, "eps": hyper["eps"]}
    adam = optkit.scale_by_adam(amsgrad="torch" if hyper.get("amsgrad") else None, **betas)
    tx = optkit.descend(adam, rate, weight_decay=decay)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        ahead = optkit.predict_weights(params, state, rate, hyper["s"], **betas)
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates), ahead

    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        state, params, ahead = step(golden.tree(f"g/{t}"), state, params)
        for got, name in ((ahead, "pred"), (params, "p")):
            expected = golden.tree(f"{name}/{t}")
            yield Comparison(max(difference(got[k], v) for k, v in expected.items()), TOLERANCE)


@case("ewc_online")
def ewc_online(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.ewc_online(
        hyper["lr"],
        strength=hyper["lamda"],
        b_anchor=hyper["beta_weight"],
        b_fisher=hyper["beta_fisher"],
        weight_decay=hyper.get("weight_decay", 0.0),
    )
    yield from trajectory(golden, tx)


@case("classp")
def classp(golden: Golden) -> Iterator[Comparison]:
    """The reference's reading; where the threshold is 0 and the power 1 also the paper's."""
    hyper = golden.hyper
    options: dict[str, Any] = {
        "threshold": hyper["threshold"],
        "power": hyper["power"],
        "eps": hyper["epsilon"],
        "scaling": hyper.get("apply_scaling", True),
    }
    compat = None if hyper.get("compat") == "paper" else "official"
    both = compat == "official" and (hyper["threshold"], hyper["power"]) == (0, 1)
    for reading in ("official", None) if both else (compat,):
        yield from trajectory(golden, optkit.classp(hyper["lr"], compat=reading, **options))
