"""Estimates of what parameters do to a long inner problem, from short pieces of it."""

from typing import Literal

from optkit.catalogue import LeafBytes, register
from optkit.evolution.drawing import Drawing
from optkit.evolution.judging import Judge
from optkit.evolution.shaping import NonFinite
from optkit.evolution.unrolling.pairs import Unrolled
from optkit.evolution.unrolling.strategy import UnrolledStrategy, unrolled_strategy
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.noise import Key

Accumulate = Literal["store", "replay"]


@register(
    kind="strategy",
    family="evolution",
    paper=("Unbiased Gradient Estimation in Unrolled Computation Graphs", "2112.13835", 2021),
    state_bytes={"*": LeafBytes(64, lambda size: 64 * size, "2 a member")},
    tags=("evolution", "meta-learning", "unrolled", "truncated"),
    chain="sums of noise since the inner problem began, - sum f xi",
    example={"population": 32, "sigma": 0.1, "horizon": 4},
)
def pes(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    horizon: int | None = None,
    truncation: int = 1,
    accumulate: Accumulate = "store",
    staggered: bool = False,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    chunk: int | None = None,
    key: Key = 0,
) -> UnrolledStrategy:
    """Persistent evolution strategies: unbiased although an inner problem is cut into truncations.

    Each pair of members keeps an inner problem of its own (the inner training that parameters are
    to improve, two copies of it), and goes on with it in every truncation:

    1. Members ``params + sigma*eps_k`` and ``params - sigma*eps_k``, fresh noise;
    2. ``xi_k <- xi_k + sigma*eps_k``: all that its inner problem has been perturbed by;
    3. ``g = -1/(N*sigma^2) * sum_k (f+ - f-)*xi_k``, f the fitness of this truncation alone;
    4. ``xi_k = 0`` where the inner problem has ended.

    Where inner problems end within a truncation and go on with a new one at once, give ``done``,
    the flags ``(pairs,)``, with the fitness up to the end as ``fitness`` and that of the rest as
    ``after``: the rest is weighted by ``sigma*eps_k`` alone, and ``xi_k = sigma*eps_k`` for them.

    Evidence: in ``python -m benchmarks.claims unrolled_estimates``, influence balancing in
    truncations of one step, the loss falls from 8.8 above its least to 1e-4 at the best of three
    rates; ``truncated_es`` does not lower it at any.

    Args:
      population: number of members N, even.
      sigma: deviation, a number or a schedule over truncations.
      horizon: steps of an inner problem; None if it ends only where ``done`` says so.
      truncation: steps of one truncation; an inner problem ends in the first to reach its horizon.
      accumulate: "store" keeps xi, half a copy of the parameters a member; "replay" draws all past
        noise of an inner problem again, which takes time that grows with it.
      staggered: pairs begin their inner problem at different truncations, so that no truncation
        sees the same part of all of them; see ``begins``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as, see ``population_perturb``.
      chunk: pairs whose noise lives together in an update with "replay".
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer; ``begins(state)`` tells which members start
      anew. State: ``2*N`` bytes a parameter, or none with "replay", 8 bytes a pair, a key, a step.

    Raises:
      ValueError: an odd population, a horizon below the truncation, flags or fitnesses that do not
        fit, or noise given to "replay".

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> es = optkit.pes(4, sigma=0.1, horizon=20, truncation=10)
      >>> tx = optax.chain(es, optax.adam(1e-3))
      >>> params = {"w": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.array([1.0, 0.0, 2.0, 2.0]), state, params)
      >>> es.begins(state).tolist()
      [False, False, False, False]
      >>> updates, state = tx.update(jnp.array([1.0, 0.0, 2.0, 2.0]), state, params)
      >>> es.begins(state).tolist()
      [True, True, True, True]

    Reference:
      Vicol et al., ICML 2021, https://arxiv.org/abs/2112.13835; ``done`` and ``after`` as in
      learned_optimization of Google.
    """
    check_choice("accumulate", accumulate, ("store", "replay"))
    drawing, judge = Drawing(population), Judge(population, None, maximize, nonfinite)
    store = accumulate == "store"
    unrolled = Unrolled("sum", drawing, sigma, horizon, truncation, store, staggered, chunk)
    return unrolled_strategy(unrolled, judge, key, "pes")


@register(
    kind="strategy",
    family="evolution",
    paper=("Noise-Reuse in Online Evolution Strategies", "2304.12180", 2023),
    state_bytes={"*": 0},
    tags=("evolution", "meta-learning", "unrolled", "truncated"),
    chain="one noise for each inner problem, - sum f eps",
    example={"population": 32, "sigma": 0.1, "horizon": 4},
)
def nres(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    horizon: int | None = None,
    truncation: int = 1,
    staggered: bool = False,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    chunk: int | None = None,
    key: Key = 0,
) -> UnrolledStrategy:
    """Noise-reuse evolution strategies: one perturbation for all truncations of an inner problem.

    1. Members ``params + sigma*eps_k`` and ``params - sigma*eps_k``; ``eps_k`` is drawn where the
       pair's inner problem begins, and the same until it ends;
    2. ``g = -1/(N*sigma) * sum_k (f+ - f-)*eps_k``, f the fitness of this truncation alone.

    Without sums to keep; of lower variance than PES, says its paper. In
    ``python -m benchmarks.claims unrolled_estimates``, influence balancing in truncations of one
    step, the loss falls from 8.8 above its least to 5e-6 at the best of three rates, with PES to
    1e-4; at the smallest both are at 0.04.

    Args:
      population: number of members N, even.
      sigma: deviation, a number or a schedule over truncations.
      horizon: steps of an inner problem; None if it ends only where ``done`` says so.
      truncation: steps of one truncation; an inner problem ends in the first to reach its horizon.
      staggered: pairs begin their inner problem at different truncations; see ``begins``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as, see ``population_perturb``.
      chunk: pairs whose noise lives together in an update.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer; ``begins(state)`` tells which members start
      anew. State: 8 bytes a pair, a key, a step. ``update(..., done=flags)``: bool ``(pairs,)``,
      whose inner problem ended with this truncation.

    Raises:
      ValueError: an odd population, a horizon below the truncation, flags or fitnesses that do not
        fit, or ``after``: an inner problem can't begin within a truncation.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> es = optkit.nres(4, sigma=0.1, horizon=20, truncation=10)
      >>> params = {"w": jnp.zeros(3)}
      >>> state = es.init(params)
      >>> first = es.perturb(params, state)
      >>> _, state = es.update(jnp.arange(4.0), state, params)
      >>> bool((es.perturb(params, state)["w"] == first["w"]).all())
      True

    Reference:
      Li et al., NeurIPS 2023, https://arxiv.org/abs/2304.12180
    """
    drawing, judge = Drawing(population), Judge(population, None, maximize, nonfinite)
    unrolled = Unrolled("same", drawing, sigma, horizon, truncation, False, staggered, chunk)
    return unrolled_strategy(unrolled, judge, key, "nres")


@register(
    kind="strategy",
    family="evolution",
    paper=("Understanding and correcting pathologies in learned optimizers", "1810.10180", 2019),
    state_bytes={"*": 0},
    tags=("evolution", "meta-learning", "unrolled", "truncated"),
    chain="noise of each truncation, - sum f eps",
    example={"population": 32, "sigma": 0.1, "horizon": 4},
)
def truncated_es(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    horizon: int | None = None,
    truncation: int = 1,
    staggered: bool = False,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    chunk: int | None = None,
    key: Key = 0,
) -> UnrolledStrategy:
    """Plain evolution strategies on truncations: they see what parameters do within one alone.

    1. Members ``params + sigma*eps_k`` and ``params - sigma*eps_k``, fresh noise;
    2. ``g = -1/(N*sigma) * sum_k (f+ - f-)*eps_k``, f the fitness of this truncation alone.

    Biased where the effect of parameters outlasts a truncation: what ``pes`` and ``nres`` are
    compared with.

    In ``python -m benchmarks.claims unrolled_estimates``, influence balancing in truncations of one
    step, parameters run away from the optimum at each of three rates.

    Args:
      population: number of members N, even.
      sigma: deviation, a number or a schedule over truncations.
      horizon: steps of an inner problem; None if it ends only where ``done`` says so.
      truncation: steps of one truncation; an inner problem ends in the first to reach its horizon.
      staggered: pairs begin their inner problem at different truncations; see ``begins``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as, see ``population_perturb``.
      chunk: pairs whose noise lives together in an update.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer; ``begins(state)`` tells which members start
      anew. State: 8 bytes a pair, a key, a step. ``update(..., done=flags)``: bool ``(pairs,)``,
      whose inner problem ended with this truncation.

    Raises:
      ValueError: an odd population, a horizon below the truncation, flags or fitnesses that do not
        fit.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> es = optkit.truncated_es(4, sigma=0.1, horizon=20, truncation=10)
      >>> params = {"w": jnp.zeros(3)}
      >>> gradient, state = es.update(jnp.full(4, 7.0), es.init(params), params)
      >>> gradient["w"].tolist() == [0.0, 0.0, 0.0]
      True

    Reference:
      Metz et al., ICML 2019, https://arxiv.org/abs/1810.10180, with their evolution strategy alone
    """
    drawing, judge = Drawing(population), Judge(population, None, maximize, nonfinite)
    unrolled = Unrolled("fresh", drawing, sigma, horizon, truncation, False, staggered, chunk)
    return unrolled_strategy(unrolled, judge, key, "truncated_es")
