"""AuON: what is it between SGD with momentum and Muon?

The released AuON divides the momentum by a number that is 1 but for small matrices, so it should
be SGD with momentum; the paper's form normalises first; its hybrid takes one Newton-Schulz step
(Maity, arXiv 2509.24320, whose own table has AuON behind AdamW and Hybrid behind Muon).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import optkit
from benchmarks.claims.engine import Outcome, Setting, Trainer, language_model, number, spread

ADAM_RATE = 3e-3
Factory = Callable[[Any], optax.GradientTransformation]


def split(direction: Factory, rate: Any) -> optax.GradientTransformation:
    """Gives hidden matrices to a method and everything else to AdamW, as all contestants do."""
    return optkit.split_matrices(direction(rate), optkit.adamw(ADAM_RATE))


def sgd(rate: Any) -> optax.GradientTransformation:
    """SGD with the momentum that AuON keeps."""
    return optkit.descend(optkit.momentum(0.95, nesterov=True), rate)


def normalised_sgd(rate: Any) -> optax.GradientTransformation:
    """The same momentum, each leaf divided by its norm."""
    unit = optax.stateless_with_tree_map(lambda u, _: u / (1e-30 + optax.tree.norm(u)))
    return optkit.descend(optax.chain(optkit.momentum(0.95, nesterov=True), unit), rate)


METHODS: dict[str, tuple[Factory, tuple[float, ...]]] = {
    "sgd with momentum": (sgd, (0.1, 0.3, 1.0, 3.0)),
    "auon (code)": (lambda rate: optkit.auon(rate, form="code"), (0.1, 0.3, 1.0, 3.0)),
    "normalised sgd": (normalised_sgd, (0.03, 0.1, 0.3, 1.0)),
    "auon (paper)": (lambda rate: optkit.auon(rate, form="paper"), (0.03, 0.1, 0.3, 1.0)),
    "hybrid (paper, 1 step)": (
        lambda rate: optkit.hybrid_auon(rate, form="paper", other=optkit.adamw(ADAM_RATE)),
        (0.03, 0.1, 0.3, 1.0),
    ),
    "hybrid (code, 5 steps)": (
        lambda rate: optkit.hybrid_auon(rate, form="code", other=optkit.adamw(ADAM_RATE)),
        (0.01, 0.03, 0.1, 0.3),
    ),
    "muon": (
        lambda rate: optkit.muon(rate, adam_learning_rate=ADAM_RATE),
        (0.01, 0.03, 0.1, 0.3),
    ),
}


def experiment(setting: Setting) -> Outcome:
    """Trains all of them on the byte language model and compares final losses."""
    problem = setting.pick(language_model, lambda: language_model(16, 16, 2, 1))()
    steps, evaluations = setting.pick((200, 10), (4, 2))
    final, rows = {}, []
    for name, (factory, rates) in METHODS.items():
        whole = name.startswith(("hybrid", "muon"))

        def build(rate: Any, factory: Factory = factory, whole: bool = whole) -> Any:
            return factory(rate) if whole else split(factory, rate)

        trainer = Trainer(problem, build, steps=steps, evaluations=evaluations)
        curves = trainer.tuned(rates[: setting.pick(None, 1)], setting)
        bits = curves.held_out[0, :, -1] / np.log(2)
        final[name] = float(bits.mean())
        rows.append((name, number(curves.rates[0]), spread(bits)))
    same = abs(final["auon (code)"] - final["sgd with momentum"])
    between = final["muon"] <= final["hybrid (paper, 1 step)"] <= final["auon (paper)"]
    return Outcome(
        claim="AuON as released is SGD with momentum (within 0.02 bits), and one Newton-Schulz "
        "step brings the paper's form part of the way to Muon",
        holds=same <= 0.02 and between,
        finding=f"auon (code) differs from sgd by {same:.4f} bits/byte; paper form "
        f"{final['auon (paper)']:.3f}, hybrid {final['hybrid (paper, 1 step)']:.3f}, "
        f"muon {final['muon']:.3f}",
        header=("method on the matrices", "learning rate", "bits/byte"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
