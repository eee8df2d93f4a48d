"""Cases of NorMuon, AdaMuon and AuON."""

from collections.abc import Iterator
from typing import Any

import optkit
from tests.golden.replay import Comparison, Golden, case, torch_dims, trajectory

_SCALES = {"spectral_norm": "rms_op", "rms_norm": "match_rms", None: "none"}


def _adam(hyper: dict[str, Any]) -> Any:
    """The reference's auxiliary Adam."""
    b1, b2 = hyper.get("adam_betas", (0.9, 0.95))
    return optkit.adamw(
        hyper.get("adam_lr", 3e-4),
        b1=b1,
        b2=b2,
        eps=hyper.get("adam_eps", 1e-10),
        weight_decay=hyper.get("adam_weight_decay", 0.0),
    )


def _rows(hyper: dict[str, Any]) -> Any:
    rows = hyper.get("ns_coeffs", "jordan")
    return rows if isinstance(rows, str) else (tuple(rows),)


@case("normuon")
def normuon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.normuon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper.get("nesterov", True),
        b2=hyper["beta2"],
        coefficients=_rows(hyper),
        steps=hyper.get("ns_steps"),
        eps=hyper.get("ns_eps", 1e-7),
        weight_decay=hyper["weight_decay"],
        other=_adam(hyper),
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("normuon_dion")
def normuon_dion(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    decay = "cautious" if hyper["cautious_wd"] else "decoupled"
    other = optkit.adamw(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["epsilon"],
        weight_decay=hyper["weight_decay"],
        decay=decay,
    )
    tx = optkit.normuon_dion(
        hyper["lr"],
        b1=hyper["mu"],
        nesterov=hyper["nesterov"],
        b2=hyper["muon_beta2"],
        coefficients="polar_express_1p02" if hyper["use_polar_express"] else "quintic_you",
        eps=hyper["epsilon"],
        scale=_SCALES[hyper["adjust_lr"]],
        weight_decay=hyper["weight_decay"],
        decay=decay,
        other=other,
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("adamuon")
def adamuon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.adamuon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper["nesterov"],
        b2=hyper.get("beta2", hyper["momentum"]),
        moment_eps=hyper["eps"],
        coefficients=_rows(hyper),
        steps=hyper["ns_steps"],
        eps=hyper.get("ns_eps", 1e-7),
        weight_decay=hyper["weight_decay"],
        other=_adam(hyper),
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("auon")
def auon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.auon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper.get("nesterov", True),
        gamma=hyper["gamma"],
        eps=1e-7,
        weight_decay=hyper["weight_decay"],
    )
    yield from trajectory(golden, tx)


@case("hybrid_auon")
def hybrid_auon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.hybrid_auon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper.get("nesterov", True),
        gamma=hyper["gamma"],
        coefficients=_rows(hyper),
        steps=hyper["ns_steps"],
        eps=1e-7,
        weight_decay=hyper["weight_decay"],
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)
