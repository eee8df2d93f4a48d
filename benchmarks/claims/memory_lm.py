"""Loss against bytes of state: which methods are near AdamW on a language model, and at what state?

The papers' claims in short: GaLore (arXiv 2403.03507) nearly reaches full Adam at a quarter of the
short side, Q-GaLore (2407.08296) at much less state; Fira (2410.01623) and APOLLO (2412.05270), its
Mini, too, match or beat it; FRUGAL (2411.07837) beats GaLore at equal memory and is near Adam with
a quarter of its state; 8-bit Adam (2110.02861), Adafactor (1804.04235) and CAME (2307.02047) train
as Adam does. Here: two blocks of width 128 on bytes, 32 directions of 128 at most, new ones every
50 steps. Of the methods that serve matrices alone, embedding and head, a seventh of the parameters,
have all of Adam's state.

The experiment was specified (as H2) with 1,000 steps; here are 250, and the rates have fallen by
then: what methods do after that, as bases grow stale or moments begin anew, is not seen.

GaLore and its like take matrices' steps at a quarter of the rate of the other leaves. That alone
may be better than one rate for all, whatever the subspace does. So AdamW is run both ways, and each
method compared with the AdamW of its own ratio; where steps have other lengths than Adam's (APOLLO,
Adafactor), with the better one. FRUGAL, too, is run both ways, to be compared with GaLore.
"""

from typing import Any

import optkit
from benchmarks.claims import lm
from benchmarks.claims.engine import Outcome, Setting, number, spread

RANK, EVERY = 32, 50
NEAR = 0.01  # of AdamW's loss
QUARTER = 0.25  # GaLore's factor of matrices' steps
LOW: dict[str, Any] = {"rank": RANK, "refresh_every": EVERY}
ADAMW = ("adamw", "adamw, 1/4")  # the same rate for all, and a quarter of it for matrices
ONE_RATE = ("adamw_8bit", "came", "frugal 0.25", "frugal 0")
OWN_LENGTHS = ("apollo r=32", "apollo_mini", "adafactor")
# Of each pair the first is said to have the lower loss at nearly the same state.
ORDER = (
    ("fira r=32", "galore r=32"),
    ("apollo r=32", "galore r=32"),
    ("frugal 0.25, 1/4", "galore r=32"),
)


def two_rates(rate: Any) -> Any:
    """AdamW whose matrices have the rates of GaLore's."""
    matrices = optkit.adamw(lambda count: QUARTER * rate(count), weight_decay=0.0)
    return optkit.split_matrices(matrices, optkit.adamw(rate, weight_decay=0.0))


# Three rates for each, found by a first look with another seed.
METHODS: dict[str, tuple[lm.Build, tuple[float, ...]]] = {
    "adamw": (lambda rate: optkit.adamw(rate, weight_decay=0.0), (7.5e-4, 1.5e-3, 3e-3)),
    "adamw, 1/4": (two_rates, (3e-3, 6e-3, 1.2e-2)),
    "galore r=32": (lambda rate: optkit.galore_adamw(rate, **LOW), (6e-3, 1.2e-2, 2.4e-2)),
    "q_galore r=32": (lambda rate: optkit.q_galore(rate, **LOW), (6e-3, 1.2e-2, 2.4e-2)),
    "fira r=32": (lambda rate: optkit.fira(rate, **LOW), (3e-3, 6e-3, 1.2e-2)),
    "apollo r=32": (lambda rate: optkit.apollo(rate, **LOW), (6e-3, 1.2e-2, 2.4e-2)),
    "apollo_mini": (
        lambda rate: optkit.apollo_mini(rate, refresh_every=EVERY),
        (3e-3, 6e-3, 1.2e-2),
    ),
    "frugal 0.25": (lambda rate: optkit.frugal(rate, refresh_every=EVERY), (1e-3, 2e-3, 4e-3)),
    "frugal 0.25, 1/4": (
        lambda rate: optkit.frugal(rate, full_scale=QUARTER, refresh_every=EVERY),
        (6e-3, 1.2e-2, 2.4e-2),
    ),
    "frugal 0": (
        lambda rate: optkit.frugal(rate, density=0.0, refresh_every=EVERY),
        (1e-3, 2e-3, 4e-3),
    ),
    "adamw_8bit": (lambda rate: optkit.adamw_8bit(rate, weight_decay=0.0), (7.5e-4, 1.5e-3, 3e-3)),
    "adafactor": (optkit.adafactor, (1.5e-2, 3e-2, 6e-2)),
    "came": (optkit.came, (1e-4, 2e-4, 4e-4)),
}


def experiment(setting: Setting) -> Outcome:
    """Trains all methods and sets their losses against their bytes."""
    model = setting.pick(lambda: lm.problem(128, 32, 4), lambda: lm.problem(64, 16, 2))()
    steps = setting.pick(250, 4)
    runs = {
        name: lm.trained(model, build, rates, steps, setting)
        for name, (build, rates) in METHODS.items()
    }
    full = runs[ADAMW[0]]
    best = min(ADAMW, key=lambda name: runs[name].losses.mean())

    def beside(name: str) -> str:
        if name in OWN_LENGTHS:
            return best
        return ADAMW[0] if name in (*ONE_RATE, ADAMW[0]) else ADAMW[1]

    def above(name: str, other: str) -> float:
        return float(runs[name].losses.mean() / runs[other].losses.mean() - 1.0)

    def lower(better: str, worse: str) -> tuple[bool, str]:
        gain = runs[worse].losses - runs[better].losses
        text = f"{better} {gain.mean():+.4f} (+- {gain.std(ddof=1):.4f}) below {worse}"
        return bool(gain.mean() > gain.std(ddof=1)), text

    near = {name: above(name, beside(name)) <= NEAR for name in METHODS if name not in ADAMW}
    orders = [lower(*pair) for pair in ORDER]
    beyond = (f"{name} {100 * above(name, beside(name)):+.1f}%" for name in near if not near[name])
    return Outcome(
        claim="every method with less state is within 1% of the held-out loss of the AdamW whose "
        "matrices have the same share of the rate (of the better AdamW where steps have lengths of "
        "their own), and "
        + ", ".join(f"{better} below {worse}" for better, worse in ORDER)
        + ", by more than the spread of the difference over seeds",
        holds=all(near.values()) and all(yes for yes, _ in orders),
        finding=f"{sum(lm.parameters(model)):,} parameters, {steps} steps; AdamW with matrices at "
        f"a quarter of the rate {100 * above(ADAMW[1], ADAMW[0]):+.1f}% beside AdamW; within 1%: "
        + (", ".join(name for name, yes in near.items() if yes) or "none")
        + f"; not: {', '.join(beyond) or 'none'}; "
        + ", ".join(f"{text}: {'yes' if yes else 'NO'}" for yes, text in orders),
        header=(
            "method",
            "state bytes",
            "of AdamW's",
            "learning rate",
            "held-out loss",
            "to its AdamW",
            "to the better",
        ),
        rows=tuple(
            (
                name,
                f"{run.state_bytes:,}",
                f"{100 * run.state_bytes / full.state_bytes:.1f}%",
                number(run.rate),
                spread(run.losses),
                f"{1.0 + above(name, beside(name)):.4f}",
                f"{1.0 + above(name, best):.4f}",
            )
            for name, run in runs.items()
        ),
        seeds=setting.seeds,
    )
