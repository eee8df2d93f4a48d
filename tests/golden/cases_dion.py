"""Cases of Dion, Dion2 and Dion3."""

from collections.abc import Iterator
from typing import Any

import optax

import optkit
from tests.golden.replay import Comparison, Golden, case, torch_dims, trajectory

_SCALES = {"spectral_norm": "rms_op", "rms_norm": "match_rms", None: "none"}
# The reference's "cqr" begins with 150 steps of Householder QR.
_CHOLESKY_FROM = 150


def _decay(hyper: dict[str, Any]) -> str:
    return "cautious" if hyper.get("cautious_wd", False) else "decoupled"


def _adam(hyper: dict[str, Any]) -> optax.GradientTransformation:
    b1, b2 = hyper["betas"]
    decay = {"weight_decay": hyper["weight_decay"], "decay": _decay(hyper)}
    return optkit.adamw(hyper["lr"], b1=b1, b2=b2, eps=hyper["epsilon"], **decay)


def _common(hyper: dict[str, Any]) -> dict[str, Any]:
    return {
        "eps": hyper["epsilon"],
        "weight_decay": hyper["weight_decay"],
        "decay": _decay(hyper),
        "other": _adam(hyper),
        "dims": torch_dims,
    }


@case("dion", "dion_fullrank")
def dion(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    qr_method = hyper.get("qr_method", "rcqr")
    if qr_method == "cqr" and golden.steps <= _CHOLESKY_FROM:
        qr_method = "qr"
    tx = optkit.dion(
        hyper["lr"],
        b1=hyper["mu"],
        rank_fraction=float(hyper.get("rank_fraction", 1.0)),
        rank_multiple_of=hyper.get("rank_multiple_of", 1),
        power_iterations=hyper.get("power_iters", 1),
        qr_method=qr_method,
        init_basis=lambda path, shape: golden.arrays[f"h/q0/{path}"],
        **_common(hyper),
    )
    yield from trajectory(golden, tx)


def _newton_schulz(hyper: dict[str, Any]) -> dict[str, Any]:
    polar = hyper.get("use_polar_express", True)
    return {
        "coefficients": "polar_express_1p02" if polar else "quintic_you",
        "scale": _SCALES[hyper["adjust_lr"]],
    }


@case("dion2")
def dion2(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.dion2(
        hyper["lr"],
        b1=hyper["ef_decay"],
        fraction=float(hyper["fraction"]),
        **_newton_schulz(hyper),
        **_common(hyper),
    )
    yield from trajectory(golden, tx)


@case("dion3", "nordion2")
def dion3(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.dion3(
        hyper["lr"],
        b1=hyper["mu"],
        b2=hyper["muon_beta2"],
        fraction=float(hyper["fraction"]),
        **_newton_schulz(hyper),
        **_common(hyper),
    )
    yield from trajectory(golden, tx)
