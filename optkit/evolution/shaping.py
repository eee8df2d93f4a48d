"""Fitness shaping: pure functions from fitnesses to weights, larger for better members.

All take ``(N,)`` fitnesses to maximise, NaN where a member could not be judged, and return ``(N,)``
weights. They jit, vmap and keep the dtype.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Shaping = Callable[[jax.Array], jax.Array]
Ties = Literal["average", "floor"]
RankTies = Literal["order", "average", "floor"]
NonFinite = Literal["worst", "zero", "propagate"]


def average_rank(fitness: jax.Array) -> jax.Array:
    """Returns ranks from 0 for the worst to N-1 for the best, ties averaged, NaN below all.

    Args:
      fitness: ``(N,)``, to maximise.

    Returns:
      ``(N,)`` of the same dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.average_rank(jnp.array([5.0, 1.0, 5.0, jnp.nan])).tolist()
      [2.5, 1.0, 2.5, 0.0]
    """
    # Below minus infinity there is nothing, so that NaN is counted apart.
    lost = jnp.isnan(fitness)
    order = jnp.sort(jnp.where(lost, -jnp.inf, fitness))
    missing = jnp.sum(lost)
    value = jnp.where(lost, 0.0, fitness)
    # The lost come first among those sorted as minus infinity.
    first = jnp.maximum(jnp.searchsorted(order, value, side="left"), missing)
    last = jnp.searchsorted(order, value, side="right") - 1
    rank = (first + last).astype(fitness.dtype) / 2
    return jnp.where(lost, (missing - 1).astype(fitness.dtype) / 2, rank)


def centered_rank(fitness: jax.Array) -> jax.Array:
    """Returns ranks spread from -0.5 (worst) to 0.5 (best), ties averaged, NaN worst.

    Args:
      fitness: ``(N,)``, to maximise.

    Returns:
      ``(N,)``; the sum is 0, and monotone maps of the fitness change nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.centered_rank(jnp.array([3.0, -7.0, 100.0])).tolist()
      [0.0, -0.5, 0.5]

    Reference:
      Salimans et al., 2017, https://arxiv.org/abs/1703.03864
    """
    return average_rank(fitness) / max(fitness.shape[0] - 1, 1) - _middle(fitness)


def _middle(fitness: jax.Array) -> float:
    return 0.5 if fitness.shape[0] > 1 else 0.0


def z_score(fitness: jax.Array, *, eps: float = 1e-5, groups: int | None = None) -> jax.Array:
    """Returns ``(f - mean)/sqrt(var + eps)``, NaN left out of the moments and given weight 0.

    Args:
      fitness: ``(N,)``, to maximise.
      eps: inside the root.
      groups: members in a group; each has its own mean, while the variance is that of all. None
        for one group. Use it where groups of members met tasks of different difficulty.

    Returns:
      ``(N,)``.

    Raises:
      ValueError: groups that do not divide the population.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> weights = shaping.z_score(jnp.array([1.0, 3.0, 11.0, 13.0]), groups=2, eps=1.0)
      >>> [round(float(z), 3) for z in weights]
      [-0.192, 0.192, -0.192, 0.192]

    Reference:
      Sarkar et al., Evolution Strategies at the Hyperscale, https://arxiv.org/abs/2511.16652
    """
    if groups is not None and (groups < 1 or fitness.shape[0] % groups):
        raise ValueError(
            f"groups={groups} does not divide the population of {fitness.shape[0]} members; give "
            "the number of members in a group"
        )
    variance = jnp.nanvar(fitness)
    cut = fitness.reshape(-1, groups or fitness.shape[0])
    centred = (cut - jnp.nanmean(cut, axis=1, keepdims=True)).reshape(-1)
    return jnp.nan_to_num(centred / jnp.sqrt(variance + eps), nan=0.0)


def standardize(fitness: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """Returns ``(f - mean)/(std + eps)``, NaN left out of the moments and given weight 0.

    Args:
      fitness: ``(N,)``, to maximise.
      eps: added to the deviation; a flat generation gives zeros.

    Returns:
      ``(N,)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.standardize(jnp.array([1.0, 1.0, 3.0, 3.0])).tolist()
      [-1.0, -1.0, 1.0, 1.0]
    """
    centred = fitness - jnp.nanmean(fitness)
    return jnp.nan_to_num(centred / (jnp.nanstd(fitness) + eps), nan=0.0)


def normalize(fitness: jax.Array) -> jax.Array:
    """Returns fitnesses stretched over [-1, 1]; 0 if all are equal, and for NaN the worst.

    Args:
      fitness: ``(N,)``, to maximise.

    Returns:
      ``(N,)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.normalize(jnp.array([2.0, 4.0, 3.0])).tolist()
      [-1.0, 1.0, 0.0]
    """
    low, high = jnp.nanmin(fitness), jnp.nanmax(fitness)
    spread = jnp.where(high > low, high - low, 1.0)
    out = jnp.where(high > low, 2.0 * (fitness - low) / spread - 1.0, 0.0)
    return jnp.where(jnp.isnan(fitness), -1.0 * (high > low), out).astype(fitness.dtype)


def nes_utilities(fitness: jax.Array, *, ties: Ties = "average") -> jax.Array:
    """Returns the utilities of natural evolution strategies, by rank.

    ``u_k = max(0, ln(N/2 + 1) - ln k)`` for the k-th best, divided by their sum, minus ``1/N``.

    Args:
      fitness: ``(N,)``, to maximise.
      ties: "average" shares the utilities of equal members among them, so that the sum stays 0;
        "floor" gives each the entry of their average rank, rounded down, as evosax does: a flat
        generation then moves the search.

    Returns:
      ``(N,)``.

    Raises:
      ValueError: another word for ties.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.nes_utilities(jnp.array([9.0, 1.0])).tolist()
      [0.5, -0.5]

    Reference:
      Wierstra et al., Natural Evolution Strategies, JMLR 15 (2014), https://arxiv.org/abs/1106.4487
    """
    if ties not in ("average", "floor"):
        raise ValueError(f'ties={ties!r} is neither "average" nor "floor"')
    costs = -jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    return by_rank(nes_table(fitness.shape[0]), costs, ties)


def nes_table(size: int) -> np.ndarray:
    """Returns the utilities of natural evolution strategies, those of the best first.

    Args:
      size: members N.

    Returns:
      float64 ``(N,)`` that sum to 0.

    Example:
      >>> from optkit.evolution import shaping
      >>> shaping.nes_table(2).tolist()
      [0.5, -0.5]
    """
    raw = np.maximum(0.0, math.log(size / 2 + 1) - np.log(np.arange(1, size + 1)))
    return raw / raw.sum() - 1.0 / size


def by_rank(table: Any, costs: jax.Array, ties: RankTies) -> jax.Array:
    """Returns for each member the entry of a table that its rank has, the lowest cost first.

    Args:
      table: ``(N,)``, best first.
      costs: ``(N,)``.
      ties: "order" ranks equal members by their number; "average" shares their entries among them;
        "floor" gives each the entry of their average rank, rounded down.

    Returns:
      ``(N,)`` in the dtype of the costs.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.by_rank([3.0, 1.0, -4.0], jnp.array([9.0, 5.0, 5.0]), "average").tolist()
      [-4.0, 2.0, 2.0]
    """
    # Rounded, so that utilities that sum to 0 do so exactly where all are equal.
    sums = np.round(np.concatenate([[0.0], np.cumsum(table, dtype=np.float64)]), 14)
    table, total = jnp.asarray(table, costs.dtype), jnp.asarray(sums, costs.dtype)
    if ties == "floor":
        return table[jnp.floor(average_rank(costs)).astype(int)]
    if ties == "order":
        return table[jnp.argsort(jnp.argsort(costs, stable=True), stable=True)]
    order = jnp.sort(costs)
    first = jnp.searchsorted(order, costs, side="left")
    last = jnp.searchsorted(order, costs, side="right")
    shared = (total[last] - total[first]) / (last - first)
    return jnp.where(last - first == 1, table[first], shared).astype(costs.dtype)


def top_k(fitness: jax.Array, k: int) -> jax.Array:
    """Returns ``1/k`` for the best k members and 0 for the others, minus the mean ``1/N``.

    Args:
      fitness: ``(N,)``, to maximise; of equal members the first are taken.
      k: how many.

    Returns:
      ``(N,)``.

    Raises:
      ValueError: k outside [1, N].

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.top_k(jnp.array([3.0, 9.0, 1.0, 7.0]), 2).tolist()
      [-0.25, 0.25, -0.25, 0.25]
    """
    size = fitness.shape[0]
    if not 1 <= k <= size:
        raise ValueError(f"k={k} is outside [1, {size}]; give how many of the members to keep")
    _, best = jax.lax.top_k(jnp.where(jnp.isnan(fitness), -jnp.inf, fitness), k)
    return jnp.full(size, -1.0 / size, fitness.dtype).at[best].add(1.0 / k)


def pair_sign(fitness: jax.Array) -> jax.Array:
    """Returns half the sign of the difference of partners: which of the two was better.

    Args:
      fitness: ``(N,)``, to maximise; partners are neighbours (2k, 2k+1).

    Returns:
      ``(N,)`` of -0.5, 0 and 0.5; the weights of a pair differ by its sign.

    Raises:
      ValueError: an odd population.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.pair_sign(jnp.array([3.0, 1.0, 2.0, 2.0])).tolist()
      [0.5, -0.5, 0.0, 0.0]
    """
    return _spread(jnp.sign(_difference(fitness)))


def pair_difference(fitness: jax.Array) -> jax.Array:
    """Returns fitnesses less the mean of each pair of partners.

    Args:
      fitness: ``(N,)``, to maximise; partners are neighbours (2k, 2k+1).

    Returns:
      ``(N,)``; what antithetic estimates see of a fitness is this alone.

    Raises:
      ValueError: an odd population.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.pair_difference(jnp.array([3.0, 1.0, 12.0, 12.0])).tolist()
      [1.0, -1.0, 0.0, 0.0]
    """
    return _spread(_difference(fitness))


def top_pairs(fitness: jax.Array, pairs: int, *, eps: float = 1e-8) -> jax.Array:
    """Returns the weights of augmented random search: the best pairs, in units of their deviation.

    1. Pairs are ranked by the better of their two members, and the best ``b`` are kept;
    2. ``s`` is the deviation of the 2b kept fitnesses, at least ``eps``;
    3. weights ``(f+ - f-)/(2 b s)`` and its negative; 0 for the other pairs.

    Args:
      fitness: ``(N,)``, to maximise; partners are neighbours (2k, 2k+1).
      pairs: how many to keep; of equal ones the first.
      eps: least deviation.

    Returns:
      ``(N,)``.

    Raises:
      ValueError: an odd population, or more pairs than there are.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> shaping.top_pairs(jnp.array([3.0, 1.0, 0.0, 0.0]), 1).tolist()
      [1.0, -1.0, 0.0, 0.0]

    Reference:
      Mania et al., 2018, https://arxiv.org/abs/1803.07055
    """
    difference = _difference(fitness)
    if not 1 <= pairs <= difference.shape[0]:
        raise ValueError(
            f"pairs={pairs} is outside [1, {difference.shape[0]}]; give how many pairs to keep"
        )
    better = jnp.max(fitness.reshape(-1, 2), axis=1)
    _, best = jax.lax.top_k(jnp.where(jnp.isnan(better), -jnp.inf, better), pairs)
    scale = jnp.maximum(jnp.std(fitness.reshape(-1, 2)[best]), eps)
    kept = jnp.zeros_like(difference).at[best].set(difference[best] / (pairs * scale))
    return _spread(kept)


def baseline_difference(fitness: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """Returns how much better members answered each question than the unperturbed model did.

    ``z_j = mean_q (f[q, j] - f[q, 0])/(std_j f[q, :] + eps)``, and 0 for members 0 and 1.

    Args:
      fitness: ``(Q, N)``, to maximise: a row a question. Members 0 and 1 are unperturbed.
      eps: added to the deviations.

    Returns:
      ``(N,)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import shaping
      >>> weights = shaping.baseline_difference(jnp.array([[0.0, 0.0, 3.0, -3.0]]))
      >>> [round(float(z), 3) for z in weights]
      [0.0, 0.0, 1.414, -1.414]

    Reference:
      HyperscaleES, ``eggroll_baseline_subtraction``; see https://arxiv.org/abs/2511.16652
    """
    spread = jnp.std(fitness, axis=1, keepdims=True) + eps
    return jnp.mean((fitness - fitness[:, :1]) / spread, axis=0).at[:2].set(0.0)


def finite(fitness: jax.Array, how: NonFinite) -> tuple[jax.Array, jax.Array]:
    """Returns fitnesses without infinities, and which members count.

    "worst" gives members without a finite fitness the worst finite one; "zero" keeps them as NaN,
    which shaping leaves out, and drops them; "propagate" changes nothing. If none is finite all are
    0, and the weights with them.
    """
    if how == "propagate":
        return fitness, jnp.ones(fitness.shape, bool)
    good = jnp.isfinite(fitness)
    if how == "zero":
        return jnp.where(jnp.any(good), jnp.where(good, fitness, jnp.nan), 0.0), good
    worst = jnp.min(jnp.where(good, fitness, jnp.inf))
    filled = jnp.where(good, fitness, worst)
    return jnp.where(jnp.any(good), filled, 0.0), jnp.ones(fitness.shape, bool)


def _difference(fitness: jax.Array) -> jax.Array:
    if fitness.shape[0] % 2:
        raise ValueError(
            f"the population of {fitness.shape[0]} members is odd, and partners come in pairs; "
            "give an even one"
        )
    plus, minus = fitness.reshape(-1, 2).T
    return plus - minus


def _spread(pairs: jax.Array) -> jax.Array:
    half = pairs / 2
    return jnp.stack([half, 0.0 - half], axis=1).reshape(-1)
