"""Cases of the low-rank subspace methods."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.golden.replay import Comparison, Golden, case, torch_dims, trajectory

# Whether singular vectors are computed as well, beside those that a file recorded.
END_TO_END = True


def _periods(golden: Golden, name: str, every: int) -> np.ndarray:
    """What a file recorded under ``name/<t>/...`` at each refresh."""
    kind, leaf = name.split("/", 1)
    steps = range(0, golden.steps, every)
    return np.stack([golden.arrays[f"{kind}/{t}/{leaf}"] for t in steps])


def recorded_bases(golden: Golden, every: int) -> Callable[..., jax.Array]:
    """Feeds the recorded bases: those of the right side are stored as rows."""

    def draw(path: str, side: str, shape: tuple[int, ...], refresh: jax.Array) -> jax.Array:
        full = f"proj/0/{path}/{side}" in golden.arrays
        stack = _periods(golden, f"proj/{path}/{side}" if full else f"proj/{path}", every)
        return jnp.asarray(np.swapaxes(stack, -1, -2) if side == "right" else stack)[refresh]

    return draw


def _galore(golden: Golden) -> dict[str, Any]:
    hyper = golden.hyper
    return {
        "rank": hyper["rank"],
        "refresh_every": hyper["update_proj_gap"],
        "scale": hyper["scale"],
        "side": hyper["proj_type"],
        "weight_decay": hyper["weight_decay"],
        "dims": torch_dims,
    }


@case(
    "galore_adamw",
    "galore_adamw_reverse_std",
    "galore_adamw_left",
    "galore_adamw_right",
    "galore_adamw_full",
)
def galore_adamw(golden: Golden) -> Iterator[Comparison]:
    """Fed the recorded bases, and, where only one side is projected, from end to end.

    With two sides a refresh makes R diagonal up to rounding, which Adam divides by its own root.
    """
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    options = _galore(golden) | {"b1": b1, "b2": b2, "eps": hyper["eps"], "decay": "after"}
    draw = recorded_bases(golden, hyper["update_proj_gap"])
    yield from trajectory(golden, optkit.galore_adamw(hyper["lr"], draw=draw, **options))
    if END_TO_END and hyper["proj_type"] != "full":
        yield from trajectory(golden, optkit.galore_adamw(hyper["lr"], **options))


def last_two_axes(params: Any) -> Any:
    """The references' reading of every leaf: a batch of matrices of the last two axes."""
    return jax.tree.map(lambda p: MuonDimensionNumbers(-1, -2) if p.ndim >= 2 else None, params)


@case("adafactor_hf")
def adafactor_hf(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    eps, eps2 = hyper["eps"]
    tx = optkit.adafactor(
        None if hyper["relative_step"] else hyper["lr"],
        decay_rate=hyper["decay_rate"],
        eps=eps,
        eps2=eps2,
        clip_threshold=hyper["clip_threshold"],
        b1=hyper["beta1"],
        scale_parameter=hyper["scale_parameter"],
        warmup_init=hyper["warmup_init"],
        weight_decay=hyper["weight_decay"],
        dims=last_two_axes,
    )
    yield from trajectory(golden, tx)


@case("adafactor_torch")
def adafactor_torch(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    eps, eps2 = hyper["eps"]
    tx = optkit.adafactor(
        hyper["lr"],
        dialect="torch",
        decay_rate=hyper["beta2_decay"],
        eps=eps,
        eps2=eps2,
        clip_threshold=hyper["d"],
        weight_decay=hyper["weight_decay"],
        dims=last_two_axes,
    )
    yield from trajectory(golden, tx)


@case("galore_adafactor")
def galore_adafactor(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    eps, eps2 = hyper["eps"]
    tx = optkit.galore_adafactor(
        None if hyper["relative_step"] else hyper["lr"],
        decay_rate=hyper["decay_rate"],
        eps=eps,
        eps2=eps2,
        clip_threshold=hyper["clip_threshold"],
        b1=hyper["beta1"],
        scale_parameter=hyper["scale_parameter"],
        warmup_init=hyper["warmup_init"],
        draw=recorded_bases(golden, hyper["update_proj_gap"]),
        **_galore(golden),
    )
    yield from trajectory(golden, tx)


def _adam_after(hyper: dict[str, Any]) -> dict[str, Any]:
    b1, b2 = hyper["betas"]
    decay = {"weight_decay": hyper["weight_decay"], "decay": "after"}
    return {"b1": b1, "b2": b2, "eps": hyper["eps"], **decay, "dims": torch_dims}


@case("apollo", "apollo_mini", "apollo_svd")
def apollo(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    svd = hyper["proj"] == "svd"
    options = _adam_after(hyper) | {
        "rank": hyper["rank"],
        "per": {"channel": "channel", "tensor": "matrix"}[hyper["scale_type"]],
        "alpha": hyper["scale"],
        "scale_front": hyper["scale_front"],
        "official_zero_norm": True,
        "refresh_every": hyper["update_proj_gap"],
        "basis": "svd" if svd else "gaussian",
    }
    draw = recorded_bases(golden, hyper["update_proj_gap"])
    yield from trajectory(golden, optkit.apollo(hyper["lr"], draw=draw, **options))
    if END_TO_END and svd:
        yield from trajectory(golden, optkit.apollo(hyper["lr"], **options))


@case("fira")
def fira(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    options = _adam_after(hyper) | {
        "rank": hyper["rank"],
        "alpha": hyper["alpha"],
        "side": hyper["proj_type"],
        "official_zero_norm": True,
        "refresh_every": hyper["update_proj_gap"],
    }
    draw = recorded_bases(golden, hyper["update_proj_gap"])
    for own in (draw, None) if END_TO_END else (draw,):
        yield from trajectory(golden, optkit.fira(hyper["lr"], draw=own, **options))
