"""Cases of Newton-Schulz, the first Muons, and the sign and cautious families."""

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

import optkit
from optkit import linalg
from tests.golden.replay import Comparison, Golden, case, difference, torch_dims, trajectory

_REPEAT = {"repeat_last": "last", "cycle": "cycle"}


def exact_newton_schulz(x: np.ndarray, rows: Any, eps: float = 0.0) -> np.ndarray:
    """The polynomial in float64: what both float32 programs approximate."""
    x = x.astype(np.float64)
    tall = x.shape[-2] > x.shape[-1]
    x = np.swapaxes(x, -1, -2) if tall else x
    x = x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
    for a, b, c in rows:
        gram = x @ np.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return np.swapaxes(x, -1, -2) if tall else x


def function_tolerance(exact: np.ndarray, reference: np.ndarray) -> float:
    """5e-5, or three times the reference's own float32 error where that is more.

    On rank-deficient and ill-conditioned input the polynomials' slope at 0 lifts rounding noise:
    the stored float32 results themselves are up to 4e-3 from the exact polynomial (cans on the
    rank-1 row; 1.3e-3 for the Gram form without reset), and two programs that sum in another order
    cannot agree better than that.
    """
    return max(5e-5, 3.0 * difference(reference, exact))


@case("newton_schulz", "newton_schulz coefficient sets")
def newton_schulz(golden: Golden) -> Iterator[Comparison]:
    for key, expected in golden.arrays.items():
        if not key.startswith("y/"):
            continue
        _, name, steps, matrix = key.split("/")
        rows = tuple(map(tuple, golden.hyper["coefficients"][name]))
        repeat = _REPEAT.get(golden.hyper["iter_mode"].get(name, ""), "none")
        coefficients = linalg.CoefficientSet(
            name=name, rows=rows, repeat=repeat, steps=int(steps), source="the file"
        )
        got = linalg.newton_schulz(
            jnp.asarray(golden.arrays[f"x/{matrix}"]),
            coefficients,
            int(steps),
            eps=golden.hyper["eps"],
            eps_mode="clamp",
        )
        exact = exact_newton_schulz(golden.arrays[f"x/{matrix}"], coefficients.expand(int(steps)))
        yield Comparison(difference(got, expected), function_tolerance(exact, expected))


@case("gram_newton_schulz")
def gram_newton_schulz(golden: Golden) -> Iterator[Comparison]:
    for key, expected in golden.arrays.items():
        if not key.startswith("y/"):
            continue
        _, dtype, name, form, matrix = key.split("/")
        if dtype == "float16" and form == "resetnone":
            continue  # numerically void by the reference's own account
        x = jnp.asarray(golden.arrays[f"x/{matrix}"])
        rows = tuple(map(tuple, golden.hyper["coefficients"][name]))
        options: dict[str, Any] = {"eps": golden.hyper["ns_epsilon"], "compute_dtype": dtype}
        if form == "standard" or x.shape[-1] == x.shape[-2]:
            got = linalg.newton_schulz(x, rows, len(rows), **options)
        else:
            digits = form.removeprefix("reset")
            resets = () if digits == "none" else tuple(int(i) for i in digits.split("_"))
            got = linalg.gram_newton_schulz(x, rows, len(rows), resets=resets, **options)
        exact = exact_newton_schulz(golden.arrays[f"x/{matrix}"], rows, golden.hyper["ns_epsilon"])
        # float16 has 3 digits; ill-conditioned input multiplies its rounding by some ten.
        tolerance = function_tolerance(exact, expected) if dtype == "float32" else 5e-2
        yield Comparison(difference(got, expected), tolerance)


def _rows(hyper: dict[str, Any]) -> Any:
    rows = hyper.get("ns_coeffs", "jordan")
    return rows if isinstance(rows, str) else (tuple(rows),)


@case("muon", "muon_no_nesterov", "muon_conv")
def muon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper.get("adam_betas", (0.9, 0.95))
    other = optkit.adamw(
        hyper.get("adam_lr", 3e-4),
        b1=b1,
        b2=b2,
        eps=hyper.get("adam_eps", 1e-10),
        weight_decay=hyper.get("adam_weight_decay", 0.0),
    )
    tx = optkit.muon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper.get("nesterov", True),
        coefficients=_rows(hyper),
        steps=hyper.get("ns_steps", 5),
        eps=hyper.get("ns_eps", 1e-7),
        weight_decay=hyper["weight_decay"],
        other=other,
        dims=torch_dims,
        shape_from="last_two_axes",
    )
    yield from trajectory(golden, tx)


@case("muon_bf16")
def muon_bf16(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.muon(
        hyper["lr"],
        b1=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        nesterov=hyper.get("nesterov", True),
        # With the rounding of the reference; even exact arithmetic is 2.01e-3 from it.
        method=functools.partial(linalg.newton_schulz_rounded, steps=hyper.get("ns_steps")),
        dims=torch_dims,
    )
    # Rounding of one step is about one bfloat16 ulp times lr, and the steps add up.
    tolerance = min(1e-2, 1e-2 * hyper["lr"] * golden.steps)
    yield from trajectory(golden, tx, tolerance=tolerance)


@case("muon_rms")
def muon_rms(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["adamw_betas"]
    other = optkit.adamw(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["adamw_eps"],
        eps_mode="uncorrected",
        weight_decay=hyper["wd"],
    )
    tx = optkit.muon_rms(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper["nesterov"],
        steps=hyper["ns_steps"],
        weight_decay=hyper["wd"],
        eps=1e-7,
        other=other,
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("muon_dion")
def muon_dion(golden: Golden) -> Iterator[Comparison]:
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
    tx = optkit.muon_dion(
        hyper["lr"],
        b1=hyper["mu"],
        nesterov=hyper["nesterov"],
        decay=decay,
        coefficients="polar_express_1p02" if hyper["use_polar_express"] else "quintic_you",
        scale={"spectral_norm": "rms_op", "rms_norm": "match_rms", None: "none"}[
            hyper["adjust_lr"]
        ],
        weight_decay=hyper["weight_decay"],
        eps=hyper["epsilon"],
        other=other,
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


def _adam_options(hyper: dict[str, Any]) -> dict[str, Any]:
    b1, b2 = hyper["betas"]
    options = {"b1": b1, "b2": b2, "weight_decay": hyper["weight_decay"]}
    return options | ({"eps": hyper["eps"]} if "eps" in hyper else {})


@case("lion", "cautious_lion", "cwd_lion", "cautious_adamw", "cwd_adamw", "grams")
def two_rates(golden: Golden) -> Iterator[Comparison]:
    factory = optkit.catalogue.get(golden.meta["method"]).factory
    yield from trajectory(golden, factory(golden.hyper["lr"], **_adam_options(golden.hyper)))


@case("signsgd", "signum")
def signum(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    decay = {"weight_decay": hyper["weight_decay"]}
    if hyper["momentum"] == 0.0:
        yield from trajectory(golden, optkit.signsgd(hyper["lr"], **decay))
    yield from trajectory(golden, optkit.signum(hyper["lr"], b1=hyper["momentum"], **decay))


@case("cautious_muon")
def cautious_muon(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["adam_betas"]
    tx = optkit.cautious_muon(
        hyper["lr"],
        b1=hyper["momentum"],
        nesterov=hyper["nesterov"],
        steps=hyper["ns_steps"],
        weight_decay=hyper["weight_decay"],
        adam_learning_rate=hyper["adam_lr"],
        adam_b1=b1,
        adam_b2=b2,
        adam_eps=hyper["adam_eps"],
        eps=1e-7,
        dims=torch_dims,
        # One weight_decay serves both groups of the reference.
        adam_weight_decay=hyper.get("adam_weight_decay", hyper["weight_decay"]),
    )
    yield from trajectory(golden, tx)
