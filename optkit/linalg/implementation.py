"""By what an operation is computed; what becomes of it is `optkit.kernels`'."""

from typing import Literal, get_args

# "interpret" runs the Pallas kernel operation by operation, on any device: to test it, slowly.
Implementation = Literal["xla", "pallas", "interpret"]


def check_implementation(implementation: str) -> None:
    """Raises unless an implementation is known.

    Raises:
      ValueError: naming the value and the choice.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation={implementation!r} is none of {', '.join(get_args(Implementation))}"
        )
