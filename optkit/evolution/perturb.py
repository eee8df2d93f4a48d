"""The first link of a chain without gradients: draws a population, reads its fitness."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optkit.catalogue import register
from optkit.evolution.deviation import check_deviation, deviation_at, next_deviation
from optkit.evolution.drawing import Drawing
from optkit.evolution.estimate import (
    Estimate,
    PerturbState,
    Scale,
)
from optkit.evolution.judging import Judge
from optkit.evolution.noise import Compat, Draws, Law
from optkit.evolution.shaping import NonFinite, Shaping, baseline_difference
from optkit.evolution.spread import Reduce, Spread
from optkit.evolution.strategy import Strategy
from optkit.evolution.summing import check_by_kernel
from optkit.kernels.implementation import Implementation
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import Dims, PyTree, RuleLike, Selector


class PopulationPerturb(Strategy):
    """What ``population_perturb`` returns: an Optax transformation that also draws its population.

    Attributes:
      population: number of members.
      drawing: the settings of the noise.
      judge: from fitnesses to the weights of members.
      spread: over which devices; None for one, or where the compiler decides.
    """

    drawing: Drawing
    judge: Judge
    spread: Spread | None
    _spread_by: Callable[[Spread], "PopulationPerturb"]

    def on_mesh(
        self, mesh: Mesh, axis: str | tuple[str, ...] = "members", *, reduce: Reduce = "replicate"
    ) -> "PopulationPerturb":
        """Returns the same method with its members spread over the devices of a mesh.

        Args:
          mesh: the devices.
          axis: the axis or axes of the mesh that count members.
          reduce: "replicate": every device sums over all members, so that fitnesses alone are
            exchanged; "psum": each over its own, and the sums, as large as the parameters, are
            added up; "auto" takes what is estimated to be faster.

        Raises:
          ValueError: no such axis, or pairs that do not divide over the devices.
        """
        spread = Spread(mesh, (axis,) if isinstance(axis, str) else tuple(axis), reduce)
        if self.drawing.pairs % spread.devices:
            raise ValueError(
                f"a population of {self.population} does not divide over {spread.devices} devices; "
                f"give a multiple of {spread.devices * len(self.drawing.signs)}"
            )
        return self._spread_by(spread)

    def noise(self, params: PyTree, state: Any) -> PyTree:
        """Returns the noise of all pairs, of unit variance and without the members' signs.

        Give it to ``perturb_lazy`` and to ``update`` where it is worth its memory to draw it once.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.

        Returns:
          A tree like ``params`` with leaves ``(pairs, *shape)``, or ``Factors`` of low-rank noise;
          None where nothing is drawn.
        """
        held = self.state(state)
        pairs = jnp.arange(self.drawing.pairs, dtype=jnp.uint32)
        return self.drawing.noise(params, held.es_key, held.es_step, pairs)

    def member(self, params: PyTree, state: Any, index: int | jax.Array) -> PyTree:
        """Returns one member of the population in full; leaves like those of ``params``.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
          index: which member, an integer or an array.
        """
        held, drawing = self.state(state), self.drawing
        size = len(drawing.signs)
        pairs = jnp.asarray(index, jnp.uint32)[None] // size
        noise = drawing.noise(params, held.es_key, held.es_step, pairs)
        scale = drawing.scales(held.es_sigma, pairs)[jnp.asarray(index) % size]
        full = drawing.full_members(params, noise, scale[None])
        return jax.tree.map(lambda x: x[0], full)

    def perturb_lazy(
        self,
        params: PyTree,
        state: Any,
        *,
        noise: PyTree | None = None,
        block: tuple[Any, int] | None = None,
    ) -> PyTree:
        """Returns the population as what its members share and what sets them apart.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
          noise: what ``noise`` returned; None draws it.
          block: ``(index, count)`` for one of so many equal parts of the population, the index an
            integer or an array.

        Returns:
          A tree for ``population_apply``: leaves ``Perturbed`` for low-rank noise, ``Varied`` for
          noise in full, arrays where nothing is drawn.

        Raises:
          ValueError: a number of blocks that does not divide the pairs, or blocks of given noise.
        """
        held, drawing = self.state(state), self.drawing
        index, count = (0, 1) if block is None else block
        if drawing.pairs % count or (noise is not None and count != 1):
            raise ValueError(
                f"{drawing.pairs} pairs of members do not make {count} equal blocks; give a number "
                "that divides them"
                if noise is None
                else "the noise of all pairs was given, and one block of members asked for"
            )
        size = drawing.pairs // count
        pairs = jnp.arange(size, dtype=jnp.uint32) + jnp.asarray(index, jnp.uint32) * size
        if noise is None:
            noise = drawing.noise(params, held.es_key, held.es_step, pairs)
        return drawing.lazy(params, noise, drawing.scales(held.es_sigma, pairs))


@register(
    kind="strategy",
    family="evolution",
    paper=("Evolution Strategies at the Hyperscale", "2511.16652", 2025),
    state_bytes={"*": 0},
    tags=("evolution", "population", "gradient-free", "low-rank"),
    chain="noise of members, shaped fitness, - sum z E",
    example={"population": 32, "sigma": 0.1},
)
def population_perturb(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    noise: Law = "low_rank",
    rank: int = 1,
    antithetic: bool = True,
    shaping: str | Shaping | None = "z_score",
    scale: Scale = "gradient",
    signs: bool = False,
    baseline: bool = False,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    noise_reuse: int = 1,
    full: Selector = (),
    frozen: Selector = (),
    dims: Dims = None,
    rules: Iterable[RuleLike] = (),
    dtype: Any | None = None,
    chunk: int | None = None,
    compat: Compat | None = None,
    draws: Draws = "jax",
    implementation: Implementation = "xla",
    key: Key = None,
) -> PopulationPerturb:
    """Estimates the gradient of a population's mean fitness from the fitnesses of its members.

    1. Member i has ``W + s_i*sigma*E_k``, ``k = i // 2`` its pair and ``s_i`` +1 or -1; ``E_k`` is
       ``A_k B_k^T / sqrt(rank)`` for matrices, unit noise in full for other leaves;
    2. ``z <- shaping(fitness)``, the sign turned if the fitness is minimised;
    3. ``g <- -c * sum_i z_i s_i E_k``, descended by what follows in the chain.

    Transformations that want updates like gradients, such as ``optax.MultiSteps``,
    ``optax.apply_if_finite`` or ``optax.multi_transform``, go behind it and not around it.

    Noise is a function of key, step, leaf and pair: it is not stored, but drawn once for the
    members and again for the update, and is the same on any mesh and in any chunks.

    Args:
      population: number N of members, even for antithetic ones.
      sigma: deviation of the members, a number or a schedule over generations; at any time
        ``optax.tree_utils.tree_set(state, es_sigma=...)`` gives another. While a schedule is not
        above 0 nothing moves. ``perturb`` rounds members of 16 bits: bfloat16 numbers lie 1/256 to
        1/128 of themselves apart, and noise well below that is lost; ``perturb_lazy`` keeps the
        noise of matrices apart, up to the rounding of what the model computes.
      noise: "low_rank", "gaussian" or "rademacher"; the latter two in full for every leaf.
      rank: of low-rank noise; 1 is usual, and the estimate's bias falls as 1/rank.
      antithetic: neighbours (2k, 2k+1) have noise of opposite sign.
      shaping: a name out of ``optkit.evolution.shaping``, a function from ``(N,)`` fitnesses to
        weights, or None for the fitness itself.
      scale: c: "gradient" is ``1/(N sigma)``, unbiased for the smoothed fitness; "paper" is
        ``1/N``; "reference" is ``sigma/sqrt(N)``, as in the authors' code; "sum" is 1. Under Adam
        they are alike.
      signs: sum the signs of A and B instead of themselves.
      baseline: members 0 and 1 are not perturbed, the fitness is ``(questions, N)``, and weights
        are the mean gains over member 0 (``shaping.baseline_difference``).
      maximize: False for losses.
      nonfinite: a member without a finite fitness counts as the "worst" finite one, is left out
        together with its partner ("zero"), or spreads ("propagate").
      noise_reuse: generations that have the same noise. 1: fresh noise for each.
      full: leaves with noise in full instead of low-rank.
      frozen: leaves that are left alone and get a zero gradient. A chain that decays weights decays
        them still: add ``optkit.freeze``.
      dims: which axes of a leaf are its matrix, as for all matrix methods; how a function uses its
        leaves tells ``optkit.evolution.explain(function, params, ...).dims(params)``.
      rules: role rules of yours, tried before the built-in ones.
      dtype: of the noise; None for float32, also for 16-bit parameters.
      chunk: pairs whose noise lives together while the sum is taken; None for what fits in 64 MiB.
      compat: "hyperscalees" repeats the draws of the authors' code, without stacked leaves;
        ``noise_reuse=0`` is then the same noise for ever.
      draws: what low-rank noise is drawn by: "jax" by ``jax.random``; "counters" by those of
        ``optkit.kernels.perturbed_matmul``, other numbers of the same law, which the kernel makes
        itself where ``population_apply(implementation=)`` takes it.
      implementation: of the sum in step 3 over low-rank noise, with ``draws="counters"``: "xla";
        "pallas", the kernel ``optkit.kernels.population_update``, which makes the noise on the chip
        of a TPU or an NVIDIA GPU; "interpret" runs it slowly on any device. Stacks of matrices,
        noise in full and noise that is given to ``update`` are XLA's in any case.
      key: seed or PRNG key; None for 0.

    Returns:
      A ``Strategy``, the first link of a chain; ``perturb``, ``perturb_lazy`` and ``noise`` give
      its population. State: a key, a step and sigma, whatever the model.

    Raises:
      ValueError: an odd population of pairs, a rank above a leaf's smaller side, fitnesses of
        another length, leaves that noise can't be added to, noise that no kernel makes.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> es = optkit.evolution.population_perturb(16, sigma=0.1)
      >>> tx = optax.chain(es, optax.clip_by_global_norm(1.0), optax.adam(0.1))
      >>> params = {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
      >>> state = tx.init(params)
      >>> members = es.perturb(params, state)
      >>> members["dense"]["kernel"].shape
      (16, 4, 3)
      >>> fitness = -jnp.sum((members["dense"]["bias"] - 1) ** 2, axis=-1)
      >>> updates, state = tx.update(fitness, state, params)
      >>> bool((updates["dense"]["bias"] > 0).all())
      True

    Reference:
      Sarkar et al., Evolution Strategies at the Hyperscale, https://arxiv.org/abs/2511.16652. The
      default ``scale`` divides by sigma, which the paper absorbs in the learning rate.
    """
    check_deviation(sigma)
    check_seed(key)
    check_choice("scale", scale, ("gradient", "paper", "reference", "sum"))
    check_by_kernel(implementation, noise, draws)
    drawing = Drawing(
        population,
        antithetic=antithetic,
        law=noise,
        rank=rank,
        full=full,
        frozen=frozen,
        dims=dims,
        rules=tuple(rules),
        dtype=dtype,
        noise_reuse=noise_reuse,
        still=int(baseline),
        compat=compat,
        draws=draws,
    )
    shape = baseline_difference if baseline else shaping
    judge = Judge(population, shape, maximize, nonfinite, paired=antithetic, questions=baseline)
    estimate = Estimate(drawing, judge, scale, signs, chunk, implementation=implementation)
    return _strategy(estimate, sigma, key)


def _strategy(estimate: Estimate, sigma: ScalarOrSchedule, key: Key) -> PopulationPerturb:
    drawing = estimate.drawing

    def init(params: PyTree) -> PerturbState:
        estimate.leaves(params)
        step = jnp.zeros((), jnp.int32)
        return PerturbState(fresh_key(key), step, deviation_at(sigma, step))

    def update(
        fitness: Any,
        state: PerturbState,
        params: PyTree | None = None,
        *,
        noise: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PerturbState]:
        del extra_args
        params = need_params(params, "population_perturb")
        updates = estimate.gradient(params, state, estimate.weights(fitness), noise)
        step = state.es_step + 1
        deviation = next_deviation(sigma, state.es_sigma, step)
        return updates, state._replace(es_step=step, es_sigma=deviation)

    def members(params: PyTree, state: PerturbState) -> PyTree:
        pairs = jnp.arange(drawing.pairs, dtype=jnp.uint32)
        noise = drawing.noise(params, state.es_key, state.es_step, pairs)
        return drawing.full_members(params, noise, drawing.scales(state.es_sigma, pairs))

    made = PopulationPerturb(
        init,
        update,
        population=drawing.population,
        members=members,
        state=PerturbState,
        maximize=estimate.judge.maximize,
    )
    made.drawing, made.judge, made.spread = drawing, estimate.judge, estimate.spread
    made._spread_by = lambda spread: _strategy(replace(estimate, spread=spread), sigma, key)
    return made


def replay(
    tx: Any, params: PyTree, fitnesses: jax.Array, state: Any | None = None
) -> tuple[PyTree, Any]:
    """Returns the parameters and the state that a run ended with, from its fitnesses alone.

    Args:
      tx: the chain of the run, built with the same seed.
      params: the parameters that it started from.
      fitnesses: ``(generations, population)``, the log of the run.
      state: the state that it started from; None for ``tx.init(params)``.

    Returns:
      ``(params, state)`` after the last generation; no member is evaluated.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.evolution.population_perturb(4, sigma=0.1), optax.sgd(0.1))
      >>> log = jnp.array([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
      >>> params, state = optkit.evolution.replay(tx, {"w": jnp.zeros(3)}, log)
      >>> int(state[0].es_step)
      2
    """

    def step(carry: tuple[PyTree, Any], fitness: jax.Array) -> tuple[tuple[PyTree, Any], None]:
        params, state = carry
        updates, state = tx.update(fitness, state, params)
        moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return (moved, state), None

    start = (params, tx.init(params) if state is None else state)
    (params, state), _ = jax.lax.scan(step, start, jnp.asarray(fitnesses))
    return params, state
