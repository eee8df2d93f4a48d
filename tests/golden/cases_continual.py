"""Cases of the methods for streams of tasks: UPGD, XGrad, online EWC, CLASSP."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference


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


_PROFILES = {"upgd": "readme_global", "upgd_local": "experiment_local", "upgd_adam": "readme_global"}


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
