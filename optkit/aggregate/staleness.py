"""What late reports count: weights from how many rounds ago a client was sent its parameters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import check_number, check_static_number

StalenessWeight: TypeAlias = Callable[[jax.Array], jax.Array]


def _check(**values: tuple[float, float, float]) -> None:
    for name, (value, low, high) in values.items():
        check_static_number(name, value)
        check_number(name, value, low=low, high=high)


def _wide(staleness: jax.Array) -> jax.Array:
    return jnp.asarray(staleness, jnp.float32)


def constant_staleness() -> StalenessWeight:
    """Late reports count like others.

    Returns:
      A function of staleness, an array of any shape, to float32 weights: 1.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.federated.constant_staleness()(jnp.array([0, 9])).tolist()
      [1.0, 1.0]
    """
    return lambda staleness: jnp.ones_like(_wide(staleness))


def polynomial_staleness(exponent: float = 0.5, *, average: float = 1.0) -> StalenessWeight:
    """Late reports count less, by a power of how late they are.

    ``s(t) = (1 + t)**-exponent/(1 + average)**-exponent``.

    Args:
      exponent: in [0, 1]; 0 is ``constant_staleness``.
      average: the staleness that counts 1, such as the mean one; 0 for weights of at most 1.

    Returns:
      A function of staleness, an array of any shape, to float32 weights.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.federated.polynomial_staleness(1.0)(jnp.array([0, 1, 3])).tolist()
      [2.0, 1.0, 0.5]

    Reference:
      Nguyen et al., FedBuff, arXiv 2106.06639, with average=0; the average as in FLSim.
    """
    _check(exponent=(exponent, 0.0, 1.0), average=(average, 0.0, float("inf")))
    return lambda staleness: jnp.power((1.0 + average) / (1.0 + _wide(staleness)), exponent)


def threshold_staleness(cutoff: float, after: float, *, average: float = 1.0) -> StalenessWeight:
    """Reports later than a threshold count less.

    ``s(t) = r(t)/r(average)`` with ``r(t) = 1`` up to ``cutoff`` and ``after`` beyond it.

    Args:
      cutoff: rounds.
      after: what is left, in [0, 1].
      average: the staleness that counts 1.

    Returns:
      A function of staleness, an array of any shape, to float32 weights.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.federated.threshold_staleness(2, 0.5)(jnp.array([1, 2, 3])).tolist()
      [1.0, 1.0, 0.5]

    Reference:
      FLSim's ThresholdStalenessWeight (facebookresearch/FLSim).
    """
    _check(
        cutoff=(cutoff, 0.0, float("inf")),
        after=(after, 0.0, 1.0),
        average=(average, 0.0, float("inf")),
    )
    if after == 0 and average > cutoff:
        raise ValueError(
            f"after={after!r} is what the average={average!r} beyond cutoff={cutoff!r} would be "
            "divided by; give a positive number, or an average of at most the cutoff"
        )
    unit = 1.0 if average <= cutoff else after
    return lambda staleness: jnp.where(_wide(staleness) <= cutoff, 1.0, after) / unit


def exponential_staleness(half: float = 20.0) -> StalenessWeight:
    """Late reports count half as much for every so many rounds.

    ``s(t) = 2**(-t/half)``.

    Args:
      half: rounds in which a weight halves.

    Returns:
      A function of staleness, an array of any shape, to float32 weights.

    Raises:
      ValueError: ``half`` is not positive.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.federated.exponential_staleness()(jnp.array([0, 20, 40])).tolist()
      [1.0, 0.5, 0.25]

    Reference:
      A baseline in the code of arXiv 2309.13536 (pittisl/FL-with-intertwined-heterogeneity).
    """
    check_static_number("half", half)
    check_number("half", half, low=0.0, open_low=True)
    return lambda staleness: jnp.exp2(-_wide(staleness) / half)


_FACTORIES = (constant_staleness, polynomial_staleness, threshold_staleness, exponential_staleness)


def check_staleness_weight(weight: Any) -> None:
    """Raises TypeError unless it is None or a function of staleness, and no factory of them."""
    if any(weight is factory for factory in _FACTORIES):
        name = f"optkit.federated.{weight.__name__}"
        raise TypeError(f"staleness_weight={name} makes such a function; call it: {name}(...)")
    if weight is not None and not callable(weight):
        raise TypeError(
            f"staleness_weight={weight!r} must be a function of staleness, such as "
            "optkit.federated.polynomial_staleness(0.5)"
        )
