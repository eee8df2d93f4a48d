"""Cases of the Langevin samplers, whose normal numbers are recorded."""

from collections.abc import Iterator

import optkit
from tests.golden.cases_continual import noisy_trajectory
from tests.golden.replay import Comparison, Golden, case


@case("langevin_adam", "adam_sgld")
def langevin(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    options = {
        "b1": b1,
        "b2": b2,
        "eps": hyper["eps"],
        "temperature": hyper["noise_scale"] ** 2,
        "weight_decay": hyper["weight_decay"],
    }
    if golden.meta["method"] == "adam_sgld":
        tx = optkit.adam_sgld(hyper["lr"], drift=hyper["a"], **options)
    else:
        tx = optkit.langevin_adam(hyper["lr"], **options)
    yield from noisy_trajectory(golden, tx)
