"""By what an operation is computed; what becomes of it is `optkit.kernels`'."""

from typing import Any, Literal, get_args

# "interpret" runs the Pallas kernel operation by operation, on any device: to test it, slowly.
Implementation = Literal["xla", "pallas", "interpret"]


# "auto" takes the kernel where the compiler's estimates say that it wins, else plain JAX.
Choice = Literal["xla", "pallas", "interpret", "auto"]


def check_implementation(implementation: str, choice: Any = Implementation) -> None:
    """Raises unless an implementation is known.

    Args:
      implementation: its name.
      choice: `Implementation`, or `Choice` where "auto" is one.

    Raises:
      ValueError: naming the value and the choice.
    """
    if implementation not in get_args(choice):
        raise ValueError(
            f"implementation={implementation!r} is none of {', '.join(get_args(choice))}"
        )
