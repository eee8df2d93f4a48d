"""Case of forward gradients: projections of recorded gradients on recorded guesses."""

from collections.abc import Iterator

import jax

from optkit.evolution import project_guess
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference

# What the files call a projection.
_NAMES = {"weight": "per_sample", "avg": "avg", "sign": "sign", "span": "span"}


@case("forward_gradient")
def forward_gradient(golden: Golden) -> Iterator[Comparison]:
    eps = golden.hyper.get("eps", 1e-16)
    run = jax.jit(lambda t, g, how: project_guess(t, g, how, eps=eps), static_argnums=2)
    for t in sorted(
        {key.split("/")[1] for key in golden.arrays if key.startswith("target/")}, key=int
    ):
        target, guess = golden.tree(f"target/{t}"), golden.tree(f"guess/{t}")
        for theirs, ours in _NAMES.items():
            expected = golden.tree(f"{theirs}/{t}")
            got = run(target, guess, ours)
            for name, value in expected.items():
                yield Comparison(difference(got[name], value), TOLERANCE)
