"""``optkit privacy``: epsilon of a run, or the noise for an epsilon, before anything is trained."""

from typing import Annotated, Any

import typer

from optkit.cli.console import say
from optkit.cli.errors import CommandError, message_of, require_extra
from optkit.privacy import PoissonBatches, calibrate_noise, epsilon

__all__ = ["privacy_of_run"]

_ASSUMES = {
    "poisson": "each example drawn by itself at every step (optkit.privacy.PoissonBatches), sums "
    "divided by {batch:g} and not by how many came",
    "fixed": "{batch:g} different examples drawn from all at every step; shuffled epochs are not "
    "that",
}
_BETWEEN = {"poisson": "one example is added or removed", "fixed": "one example is replaced"}


def privacy_of_run(
    examples: Annotated[int, typer.Option(help="How many there are to draw from.")],
    batch: Annotated[float, typer.Option(help="How many a batch has on average.")],
    steps: Annotated[int, typer.Option(help="Gradients taken.")],
    noise: Annotated[
        float | None, typer.Option(help="Noise multiplier: its deviation over the clipping length.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--epsilon", help="Find the noise for this, instead of --noise.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Default: a tenth of one over the examples.")
    ] = None,
    sampling: Annotated[
        str, typer.Option(help="How batches are drawn: poisson, fixed or shuffled.")
    ] = "poisson",
    accountant: Annotated[str, typer.Option(help="rdp, or pld: tighter, no fixed.")] = "rdp",
) -> None:
    """Print what a run of DP-SGD costs in privacy; refuses samplings that have no bound."""
    if (noise is None) == (target is None):
        raise CommandError("give either --noise, or --epsilon to find the noise for it")
    require_extra(["dp_accounting"], purpose="privacy accounting", extra="privacy")
    if examples < 1:
        raise CommandError(f"--examples {examples} must be at least 1")
    if not 0 < batch <= examples:
        raise CommandError(
            f"--batch {batch:g} must be above 0 and at most --examples, which is {examples}"
        )
    chance = 0.1 / examples if delta is None else delta
    run: dict[str, Any] = {
        **{"examples": examples, "batch": batch, "steps": steps, "delta": chance},
        **{"sampling": sampling, "accountant": accountant},
    }
    try:
        if noise is None:
            noise = calibrate_noise(target or 0.0, **run)
        spent = epsilon(noise, **run)
    except ValueError as error:
        raise CommandError(message_of(error)) from error
    say(f"epsilon {spent:.4f} at delta {chance:g}, where {_BETWEEN[sampling]} ({accountant})")
    say(f"noise multiplier {noise:.5g}, {steps} steps, {batch:g} of {examples} examples a step")
    say("assumes " + _ASSUMES[sampling].format(batch=batch))
    if sampling == "poisson":
        places = PoissonBatches(examples, batch, seed=0).size
        say(f"a batch needs {places} places to hold whatever is drawn")
