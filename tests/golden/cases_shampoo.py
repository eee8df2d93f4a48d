"""Cases of Shampoo, facebookresearch's and google-research's."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import optax

import optkit
from optkit.tree import merge_dims
from tests.golden.replay import Comparison, Golden, case, trajectory

FACEBOOK, GOOGLE = 2e-5, 2e-4
# The reference does not merge axes of any leaf.
ALL_AXES = 99


def _graft(given: Any) -> dict[str, Any]:
    """Options of a grafting, written as ``Adam(beta2=0.999, epsilon=1e-8)`` or as a mapping."""
    text = str(given or "none").lower()
    name = next(x for x in ("none", "sgd", "adagrad", "rmsprop", "adam") if x in text)
    # (The reference's own defaults.)
    own = {"adagrad": (None, 1e-10), "rmsprop": (0.99, 1e-8), "adam": (0.999, 1e-8)}
    b2, eps = own.get(name, (None, 0.0))
    out = {"graft": name, "graft_b2": b2, "graft_eps": eps}
    names = {"beta2": "graft_b2", "epsilon": "graft_eps"}
    found = re.findall(r"(beta2|epsilon)[\"']?\s*[=:]\s*([-+.\de]+)", text)
    return out | {names[key]: float(value) for key, value in found}


def _root(text: Any) -> str:
    """The method of roots in ``RootInv, eigh, exponent ...``."""
    lowered = str(text or "eigh").lower()
    if "higher" in lowered:
        return "higher_order"
    return "coupled_newton" if "newton" in lowered else "eigh"


def _exponent(hyper: dict[str, Any], order: int) -> float | None:
    """The p of roots ``-1/p`` for tensors of so many axes; None for ``2*order``."""
    given = hyper.get("inv_root_override", 0)
    if isinstance(given, list):
        given = given[order - 1] if order <= len(given) else 0
    if given:
        return given
    pattern = r"exponent\s*-\s*([.\d]+)\s*/\s*\(?\s*([.\d]+)(\s*\*\s*order)?"
    found = re.search(pattern, str(hyper.get("preconditioner")))
    top, below, times = found.groups() if found else (1, 2, "* order")
    p = float(below) / float(top) * (order if times else 1) / hyper.get("exponent_multiplier", 1)
    return None if p == 2 * order else p


def _keep(hyper: dict[str, Any]) -> int:
    if not hyper.get("use_merge_dims", True):
        return ALL_AXES
    return hyper.get("target_parameter_dimensionality", 1)


@case("shampoo")
def shampoo(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper.get("betas", (0.9, 1.0))
    beta3 = hyper.get("beta3", -1.0)
    kind = str(hyper.get("weight_decay_type", "DECOUPLED")).upper().split(".")[-1]
    rate, decay = hyper["lr"], hyper.get("weight_decay", 0.0)
    start = hyper.get("start_preconditioning_step", -1)
    # A constant rate is its own peak, unless the file has another; INDEPENDENT is without a rate.
    if kind in ("CORRECTED", "INDEPENDENT"):
        decay *= rate / hyper.get("peak_lr", rate)
    kinds = {"L2": "coupled", "INDEPENDENT": "independent"}
    block_size = hyper.get("max_preconditioner_dim", 1024)
    recipe = functools.partial(
        optkit.shampoo,
        rate,
        b1=b1,
        b2=b2,
        b3=None if beta3 in (-1.0, b1) else beta3,
        eps=hyper.get("epsilon", 1e-12),
        ridge=0.0,
        **_graft(hyper.get("grafting")),
        refresh_every=hyper.get("precondition_frequency", 1),
        start=None if start == -1 else start,
        stagger=False,
        block_size=block_size,
        keep=_keep(hyper),
        bias_correction=hyper.get("use_bias_correction", True),
        method=_root(hyper.get("preconditioner")),
        weight_decay=decay,
        decay=kinds.get(kind, "decoupled"),
        preconditioned="*",
        dims="tensor",
    )
    # Exponents go by the number of axes, which merging leaves of a leaf.
    exponents = {
        name: _exponent(hyper, len(merge_dims(p.shape, block_size, keep=_keep(hyper))))
        for name, p in golden.tree("p0").items()
    }
    by_name = {str(p): recipe(exponent=p) for p in exponents.values()}
    labels = {name: str(p) for name, p in exponents.items()}
    tx = optax.partition(by_name, labels) if len(by_name) > 1 else by_name.popitem()[1]
    yield from trajectory(golden, tx, tolerance=FACEBOOK)


@case("shampoo_google")
def shampoo_google(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    sides = {"ALL": "all", "INPUT": "in", "OUTPUT": "out"}
    merges = hyper.get("best_effort_shape_interpretation", True)
    decoupled = hyper.get("decoupled_weight_decay", False)
    tx = optkit.shampoo_google(
        hyper["learning_rate"],
        b1=hyper.get("beta1", 0.9),
        b2=hyper.get("beta2", 0.999),
        eps=hyper.get("matrix_epsilon", 1e-6),
        relative=hyper.get("relative_matrix_epsilon", True),
        graft=str(hyper.get("graft_type", "SGD")).split(".")[-1].lower(),
        graft_eps=hyper.get("diagonal_epsilon", 1e-10),
        refresh_every=hyper.get("preconditioning_compute_steps", 1),
        statistics_every=hyper.get("statistics_compute_steps", 1),
        start=hyper.get("start_preconditioning_step", 5),
        block_size=hyper["block_size"],
        merging="first" if merges else "none",
        merge_limit=hyper.get("merge_small_dims_block_size", 4096),
        skip_size=hyper.get("skip_preconditioning_dim_size_gt", 4096),
        skip_rank=hyper.get("skip_preconditioning_rank_lt", 1),
        sides=sides[str(hyper.get("preconditioner_type", "ALL")).split(".")[-1].upper()],
        exponent=hyper.get("exponent_override", 0) or None,
        nesterov=hyper.get("nesterov", True),
        moving_average=hyper.get("moving_average_for_momentum", False),
        weight_decay=hyper.get("weight_decay", 0.0),
        decay="decoupled" if decoupled else "coupled",
        preconditioned="*",
        dims="tensor",
    )
    yield from trajectory(golden, tx, tolerance=GOOGLE)
