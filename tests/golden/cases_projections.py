"""Cases of the methods that project updates away from the weights."""

from collections.abc import Iterator

import optkit
from tests.golden.replay import Comparison, Golden, case, torch_dims, trajectory


@case("adamp")
def adamp(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    tx = optkit.adamp(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        nesterov=hyper["nesterov"],
        delta=hyper["delta"],
        wd_ratio=hyper["wd_ratio"],
        weight_decay=hyper["weight_decay"],
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)


@case("sgdp")
def sgdp(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.sgdp(
        hyper["lr"],
        b1=hyper["momentum"],
        dampening=hyper["dampening"],
        nesterov=hyper["nesterov"],
        # The reference projects in place what without a look-ahead is the momentum itself.
        project_buffer=hyper.get("project_buffer", not hyper["nesterov"]),
        delta=hyper["delta"],
        wd_ratio=hyper["wd_ratio"],
        eps=hyper["eps"],
        weight_decay=hyper["weight_decay"],
        dims=torch_dims,
    )
    yield from trajectory(golden, tx)
