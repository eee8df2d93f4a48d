"""Cases of schedules (levanter, Optax, refinement) and of Schedule-Free AdamW."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from optkit import schedules
from tests.golden.replay import Comparison, Golden, case, difference

# levanter's names of decays, in the names of entries too.
_SHAPES = {
    "linear": "linear",
    "inv": "inverse",
    "inverse": "inverse",
    "cosine": "cosine",
    "sqrt": "sqrt",
}
RATES = 1e-5  # levanter and Optax compute in float32
REFINED = 1e-9


def _relative(got: Any, expected: np.ndarray, top: float) -> float:
    """Largest relative difference; of values below a hundredth of the top, to that."""
    got = np.asarray(got, np.float64)
    if got.shape != expected.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.max(np.abs(got - expected) / np.maximum(np.abs(expected), 1e-2 * top)))


def _lengths(ends: list[int], total: int) -> list[int]:
    ends = list(ends) if ends and ends[-1] == total else [*ends, total]
    return [int(end) for end in ends]


def course(name: str, entry: dict[str, Any]) -> schedules.Schedule:
    """Returns the schedule that an entry of the file's meta describes."""
    peak, total = entry["peak"], entry["total"]
    warmup = entry.get("warmup_steps", entry.get("warmup", 0))
    if "levanter" not in entry.get("reference", ""):
        return schedules.linear(peak, total, warmup=warmup, final=entry.get("min_lr_ratio", 0.0))
    kind = entry.get("lr_schedule", name.split("_")[-1])
    decay = entry.get("decay_steps", entry.get("decay", total - warmup))
    options: dict[str, Any] = {
        "warmup": warmup,
        "decay": decay,
        "final": entry.get("min_lr_ratio", 0.1),
        "shape": _SHAPES[kind],
        "exact": False,
    }
    ends = entry.get("cycle_ends", entry.get("cycles"))
    if ends is None:
        return schedules.wsd(peak, total, **options)
    rewarmup = entry.get("rewarmup_steps", entry.get("rewarmup", 0))
    return schedules.wsd_s(peak, _lengths(ends, total), rewarmup=rewarmup, **options)


def _refinement(golden: Golden, name: str, entry: dict[str, Any]) -> Iterator[Comparison]:
    expected = golden.arrays[name]
    about = golden.meta["entries"].get("gradnorm_filtered", {})
    smooth = about.get("sigma", 0.1)
    unit = name.endswith("_unit")
    twin = golden.meta["entries"].get(name.removesuffix("_unit"), {})
    entry = {**twin, **entry}
    constant = "constant" in name
    norms = np.ones(expected.size) if constant else golden.arrays["gradnorm"]
    kind = "sgd" if "G^-2" in entry.get("weights", "G^-2") else "adam"
    got = schedules.refine(
        norms,
        kind,
        smooth=smooth if entry.get("filtered", True) else 0.0,
        scale="max" if unit else "last",
    )
    top = float(np.max(np.abs(expected)))
    yield Comparison(float(np.max(np.abs(got - expected))) / top, REFINED)
    if unit:
        rate = schedules.refined(1.0, norms, kind, smooth=smooth)
        steps = jnp.arange(expected.size)
        yield Comparison(_relative(rate(steps), expected, top), RATES)


@case("schedules")
def every_schedule(golden: Golden) -> Iterator[Comparison]:
    for name, entry in golden.meta["entries"].items():
        if name in ("gradnorm", "gradnorm_filtered"):
            continue  # read by the others
        if name.startswith("refined"):
            yield from _refinement(golden, name, entry)
            continue
        expected = golden.arrays[name]
        rate = course(name, entry)
        assert schedules.from_dict(rate.to_dict()) == rate
        got = rate(jnp.arange(expected.size))
        yield Comparison(_relative(got, expected, entry["peak"]), RATES)


@case("schedule_free_adamw")
def schedule_free_adamw(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    tx = optkit.schedule_free_adamw(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        weight_decay=hyper.get("weight_decay", 0.0),
        decay_at="z" if hyper.get("decay_at_z", False) else "y",
        warmup_steps=hyper.get("warmup_steps", 0),
        weight_power=hyper.get("r", 0.0),
        weight_lr_power=hyper.get("weight_lr_power", 2.0),
        inner_momentum=hyper.get("inner_momentum", 0.0),
    )

    @jax.jit
    def step(grads: Any, state: Any, y: Any) -> Any:
        updates, state = tx.update(grads, state, y)
        y = jax.tree.map(jnp.add, y, updates)
        return state, y, optkit.schedule_free_eval_params(state, y)

    y = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(y)
    for t in range(golden.steps):
        grads = jax.tree.map(jnp.asarray, golden.tree(f"g/{t}"))
        state, y, x = step(grads, state, y)
        # The average is read off y and z: their rounding is divided by b1.
        for got, key in ((y, "p"), (x, "x"), (state.z, "z")):
            for name, expected in golden.tree(f"{key}/{t}").items():
                yield Comparison(difference(got[name], expected), 1e-5)
