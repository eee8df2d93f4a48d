"""Cases of the low-rank subspace methods."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

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
        "inner": hyper.get("inner", "adam"),
        "alpha": hyper["alpha"],
        "side": hyper["proj_type"],
        "official_zero_norm": True,
        "refresh_every": hyper["update_proj_gap"],
    }
    draw = recorded_bases(golden, hyper["update_proj_gap"])
    for own in (draw, None) if END_TO_END else (draw,):
        yield from trajectory(golden, optkit.fira(hyper["lr"], draw=own, **options))


_SELECT = {"random": "orthonormal", "randperm": "permutation"}
_FREE = {"sign_sgd": "sign", "sgd": "sgd", "no": "drop"}


def _selection(golden: Golden, select: str, every: int) -> Callable[..., Any]:
    """What a file recorded: bases, indices of columns, rows or entries, or active leaves."""
    if select == "blocks":
        leaves = sorted(k for k, v in golden.tree("p0").items() if v.ndim >= 2)
        flags = [_periods(golden, f"active/{leaf}", every) for leaf in leaves]
        return lambda turn: jnp.asarray(np.stack(flags, axis=-1))[turn]
    if select in ("columns", "rows", "randk"):

        def draw(path: str, side: str, shape: tuple[int, ...], refresh: jax.Array) -> jax.Array:
            if select != "randk":
                return jnp.asarray(_periods(golden, f"idx/{path}", every))[refresh]
            rows, columns = (_periods(golden, f"{k}/{path}", every) for k in ("rows", "cols"))
            width = golden.arrays[f"p0/{path}"].shape[1]
            return jnp.asarray(rows * width + columns, jnp.int32)[refresh]

        return draw
    return recorded_bases(golden, every)


def _entries_cut(golden: Golden, density: float) -> bool:
    """Whether a file has fewer entries than the density says: its product was rounded down."""
    counts = {k.split("/")[2]: v.size for k, v in golden.arrays.items() if k.startswith("rows/0/")}
    sizes = {k: golden.arrays[f"p0/{k}"].size for k in counts}
    return any(counts[k] < int(density * sizes[k]) for k in counts)


@case(
    "frugal_svd",
    "frugal_svd_full",
    "frugal_random",
    "frugal_randperm",
    "frugal_columns",
    "frugal_rows",
    "frugal_randk",
    "frugal_block",
    "frugal_block_descending",
    "frugal_columns_lion",
    "frugal_columns_sgdm",
)
def frugal(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    kind = hyper.get("proj_type") or hyper.get("coord_choice") or "blocks"
    select = _SELECT.get(kind, kind)
    inner = "sgdm" if "momentum" in hyper else "adam" if "eps" in hyper else "lion"
    b1, b2 = hyper.get("betas", (hyper.get("momentum"), None))
    every = hyper["update_gap"]
    options = {
        "density": float(hyper["density"]),
        "select": select,
        "free": _FREE[hyper.get("inactive_update_rule", "sign_sgd")],
        "inner": inner,
        "b1": b1,
        "b2": b2,
        "eps": hyper.get("eps", 1e-8),
        "dampening": hyper.get("dampening", 0.0),
        "full_scale": float(hyper.get("proj_params_lr_scale", 1.0)),
        "free_scale": float(hyper.get("inactive_lr_scale", 1.0)),
        "refresh_every": every,
        "state_on_refresh": "reset" if hyper.get("reset_statistics", True) else "keep",
        "side": hyper.get("proj_side", "std"),
        "order": hyper.get("block_order", "random"),
        "weight_decay": hyper["weight_decay"],
        "dims": torch_dims,
    }
    if inner == "sgdm":
        # The reference begins other leaves' momentum with a copy of the parameter.
        kept = {k: v for k, v in golden.arrays.items() if not k.endswith("/bias")}
        golden = dataclasses.replace(golden, arrays=kept)
    if select == "randk" and _entries_cut(golden, options["density"]):
        options["density"] = float(np.nextafter(options["density"], 0.0))
    draw = _selection(golden, select, every)
    yield from trajectory(golden, optkit.frugal(hyper["lr"], draw=draw, **options))
    if END_TO_END and select == "svd" and options["side"] != "full":
        yield from trajectory(golden, optkit.frugal(hyper["lr"], **options))


@case("badam")
def badam(golden: Golden) -> Iterator[Comparison]:
    """Fed the recorded turns, and, where they follow an order, from end to end."""
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    every, blocks = hyper["switch_block_every"], hyper["blocks"]
    options = {
        "blocks": tuple(map(tuple, blocks)),
        "refresh_every": every,
        "first_short": True,
        "b1": b1,
        "b2": b2,
        "eps": hyper["eps"],
        "weight_decay": hyper["weight_decay"],
        "mask": "**",
    }
    turns = sorted({0, *range(every - 1, golden.steps, every)})
    flags = [[golden.arrays[f"active/{t}/{block[0]}"] for block in blocks] for t in turns]
    draw = lambda turn: jnp.asarray(np.asarray(flags))[turn]  # noqa: E731
    yield from trajectory(golden, optkit.badam(hyper["lr"], draw=draw, **options))
    if hyper["switch_mode"] in ("ascending", "descending"):
        tx = optkit.badam(hyper["lr"], order=hyper["switch_mode"], **options)
        yield from trajectory(golden, tx)


@case("ldadam")
def ldadam(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    tx = optkit.ldadam(
        hyper["lr"],
        rank=hyper["rank"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        rho=hyper["rho"],
        error_feedback=hyper["error_feedback"],
        tracking=hyper["proj_method"],
        weight_decay=hyper["weight_decay"],
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("natural_galore_transform", "natural_fisher_woodbury")
def natural_galore_transform(golden: Golden) -> Iterator[Comparison]:
    """Sizes up to 1/damping: errors are those of units of it."""
    hyper = golden.hyper
    damping = hyper["lambda_damping"]
    tx = optkit.scale_by_natural_fisher(hyper["natural_history"], damping=damping)
    update = jax.jit(tx.update)
    keys = sorted(
        (k for k in golden.arrays if k.startswith("g/")), key=lambda k: int(k.split("/")[1])
    )
    state = tx.init(jnp.asarray(golden.arrays[keys[0]]))
    for key in keys:
        got, state = update(jnp.asarray(golden.arrays[key]), state)
        want = golden.arrays["out" + key[1:]]
        yield Comparison(difference(got, want) * damping, TOLERANCE)


@case("came")
def came(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    eps, eps2 = hyper["eps"]
    b1, b2, b3 = hyper["betas"]
    tx = optkit.came(
        hyper["lr"],
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        eps2=eps2,
        clip_threshold=hyper["clip_threshold"],
        weight_decay=hyper["weight_decay"],
        dims=last_two_axes,
    )
    yield from trajectory(golden, tx)


@case("sm3")
def sm3(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    options = {"b1": hyper["momentum"], "b2": hyper["beta"] or None, "eps": hyper["eps"]}
    yield from trajectory(golden, optkit.sm3(hyper["lr"], **options, dims=last_two_axes))
