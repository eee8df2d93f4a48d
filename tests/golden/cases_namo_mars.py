"""Cases of NAMO and of the matrix methods of MARS."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from tests.golden.replay import (
    TOLERANCE,
    Comparison,
    Golden,
    case,
    difference,
    torch_dims,
    trajectory,
)


def moonlight_adamw(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The AdamW that the references keep for what is no matrix; its decay may be its own."""
    b1, b2 = hyper["adamw_betas"]
    decay = hyper.get("adamw_wd")
    return optkit.adamw(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["adamw_eps"],
        eps_mode="uncorrected",
        weight_decay=hyper["wd"] if decay is None else decay,
    )


@case("namo", "namo_d")
def namo(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    columns = "col_state_clamp_c" in hyper
    clamp = hyper.get("col_state_clamp_c", 0.0)
    options: dict[str, Any] = {
        "b1": hyper["momentum"],
        "nesterov": hyper["nesterov"],
        "b2": hyper["mu2"],
        "norm_eps": hyper["adamnorm_eps"],
        "method": "svd" if hyper["use_exact_svd"] else "auto",
        "steps": hyper["ns_steps"],
        "eps": 1e-7,
        "update_rms": hyper["scale_coeff"],
        "shape_from": "first_two_axes",
        "weight_decay": hyper["wd"],
        "other": moonlight_adamw(hyper),
        "dims": torch_dims,
    }
    if columns:
        # Any other value switches the reference's clamp off.
        options["clamp"] = clamp if 0.0 < clamp <= 1.0 else 0.0
    yield from trajectory(
        golden, (optkit.namo_d if columns else optkit.namo)(hyper["lr"], **options)
    )


def matrices_only(params: Any) -> Any:
    """Dimension numbers of leaves of rank 2, (fan_out, fan_in); None for all others."""
    dims = torch_dims(params)
    return jax.tree.map(lambda p, d: d if p.ndim == 2 else None, params, dims)


def reduced(golden: Golden, factory: Any, options: dict[str, Any]) -> Iterator[Comparison]:
    """The trajectory; where the file has a ``gprev``, in exact mode."""
    exact = any(key.startswith("gprev/") for key in golden.arrays)
    tx = factory(golden.hyper["lr"], exact=exact, **options)
    if not exact:
        yield from trajectory(golden, tx)
        return
    step = jax.jit(lambda g, state, p, last: tx.update(g, state, p, prev_grad=last))
    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        updates, state = step(golden.tree(f"g/{t}"), state, params, golden.tree(f"gprev/{t}"))
        params = optax.apply_updates(params, updates)
        expected = golden.tree(f"p/{t}")
        yield Comparison(max(difference(params[k], v) for k, v in expected.items()), TOLERANCE)


@case("mars_m", "mars_m_exact")
def mars_m(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    options: dict[str, Any] = {
        "b1": hyper["momentum"],
        "gamma": hyper["gamma"],
        # The reference clips whatever its clip_c says.
        "clip": 1.0,
        "steps": hyper["ns_steps"],
        "eps": 1e-7,
        "weight_decay": hyper["wd"],
        "other": moonlight_adamw(hyper),
        "dims": matrices_only,
    }
    yield from reduced(golden, optkit.mars_m, options)


@case("mars_m_efficient")
def mars_m_efficient(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.mars_m(
        hyper["lr"],
        b1=hyper["momentum"],
        gamma=hyper["gamma"],
        clip=None,
        one_buffer=True,
        steps=hyper["ns_steps"],
        eps=1e-7,
        weight_decay=hyper["wd"],
        other=moonlight_adamw(hyper),
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("mars_shampoo", "mars_shampoo_exact")
def mars_shampoo(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    amsgrad = hyper.get("amsgrad", False)
    b1, b2 = hyper["betas"]
    first, second = hyper["betas_1d"]
    options: dict[str, Any] = {
        "b1": b1,
        "gamma": hyper["gamma"],
        "steps": hyper.get("ns_steps"),
        "eps": hyper["eps"],
        "weight_decay": hyper["weight_decay"],
        "dims": matrices_only,
    }
    if hyper["optimize_1d"]:
        options |= {
            "optimize_1d": True,
            "b2": b2,
            "adam_eps": hyper["eps"],
            "amsgrad": amsgrad,
        }
    else:
        options["other"] = (optkit.amsgrad if amsgrad else optkit.adamw)(
            hyper["lr_1d"],
            b1=first,
            b2=second,
            eps=hyper["eps"],
            weight_decay=hyper["weight_decay_1d"],
            decay="decoupled",
        )
    yield from reduced(golden, optkit.mars_shampoo, options)
