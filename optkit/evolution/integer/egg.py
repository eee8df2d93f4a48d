"""Integer EGGROLL: int8 parameters that learn from the signs of pairs, without a float anywhere."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.catalogue import register
from optkit.evolution.integer.format import (
    FIXED_POINT,
    SCORE_BITS,
    IntegerPerturbed,
    is_perturbed,
)
from optkit.evolution.integer.noise import (
    IntegerNoise,
    check_table,
    integer_noises,
    noise_table,
    population_leaf,
)
from optkit.evolution.integer.signs import pair_signs
from optkit.evolution.integer.voting import Factors, moved, quantile, summed, votes
from optkit.evolution.strategy import Strategy
from optkit.schedules import egg_alpha
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, Selector

_STACKED = "blocks/**"

_table = functools.lru_cache(maxsize=4)(noise_table)


class EggState(NamedTuple):
    """State of ``egg``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished updates


class IntegerStrategy(Strategy):
    """A strategy whose population is int8 parameters with integer noise beside them."""

    def perturb(self, params: PyTree, state: Any, pairs: jax.Array | None = None) -> PyTree:
        """Returns the population, or some of its pairs, as ``IntegerPerturbed`` leaves.

        Integer noise rounds after the product that it acts on: there is no set of int8 parameters
        that a member equals, so that ``optkit.evolution.integer.linear`` and its like read these.

        Args:
          params: the parameters that the population is drawn around.
          state: this method's state, or that of a chain that has it.
          pairs: int32 ``(K,)`` numbers of pairs; None for all of them.
        """
        return self._members(params, self.state(state), pairs)


@register(
    kind="strategy",
    family="evolution",
    paper=("Evolution Strategies at the Hyperscale", "2511.16652", 2025),
    state_bytes={"*": 0},
    tags=("evolution", "gradient-free", "integer", "int8", "low-rank"),
    chain="votes of antithetic pairs, - one step of 1 where they agree",
    example={"population": 16},
)
def egg(
    population: int,
    *,
    sigma_shift: int = 4,
    alpha: ScalarOrSchedule | None = None,
    rank: int = 1,
    use_clt: bool = True,
    noise_reuse: int = 1,
    table_bits: int = 16,
    table: np.ndarray | jax.Array | None = None,
    unmoved: Literal["stay", "down"] = "stay",
    stacked: Selector = _STACKED,
    together: int | None = None,
    maximize: bool = True,
    fixed_point: int = FIXED_POINT,
    score_bits: int = SCORE_BITS,
    key: Key = 0,
) -> IntegerStrategy:
    """Moves int8 parameters by single steps of 1, where enough pairs agree on the direction.

    1. a pair has noise ``A B^T`` of a matrix, int8 of standard deviation 16, and ``E``, the product
       of two such, of a vector; its members add and subtract it, scaled by ``2**-sigma_shift``;
    2. ``F_k = sign(fitness[2k] - fitness[2k+1])``;
    3. ``Z = sum_k F_k A_k B_k^T`` (or of ``E_k``) in int32, noise drawn again;
    4. entries of ``16*|Z| < int(2**b*PhiInv(1 - alpha/2)) * isqrt(pairs) * 256`` stay, the others
       move by the sign of Z and stop at +-127. Of fitness that is noise a share ``alpha`` moves.

    The update is int8 and to be descended: follow it by ``optax.scale(-1)``, which keeps int8
    (``optax.sgd(1.0)`` works too). There is no optimizer state, and nothing else can be made of Z:
    a step of 1 is the smallest there is.

    Args:
      population: members, even.
      sigma_shift: noise of a weight is ``2**-sigma_shift``.
      alpha: share of entries that move by chance alone, in (0, 1], or a schedule; None for
        ``optkit.schedules.egg_alpha()``, that of the paper.
      rank: of the noise of matrices. Thresholds and forward are as the reference has them, which
        runs rank 1: at a higher one noise is larger by its root, and more moves.
      use_clt: False sums the signs of A, B and E; no factor 256 then.
      noise_reuse: updates that have the same noise; 0 for one noise for ever.
      table_bits: slices of noise begin at ``2**table_bits`` places of a table.
      table: int8, the table itself; None for one of ``noise_table``.
      unmoved: where Z is 0 and the threshold too (alpha 1): "stay", or "down" by 1 as the
        reference's code has it.
      stacked: leaves whose first axis is one of layers; what has three axes or more is a stack of
        matrices anyway.
      together: pairs of which noise is drawn together in an update; None for as many as have 2**24
        entries in the largest leaf.
      maximize: False to minimise the fitness.
      fixed_point: bits behind the point of parameters and noise.
      score_bits: b, those of the quantile in 4, rounded down to ``2**-b``.
      key: seed or PRNG key.

    Returns:
      An ``IntegerStrategy``; its state is a key and a counter. ``update(..., members=tree)`` takes
      the population that was evaluated and draws none.

    Raises:
      ValueError: an odd population, an option out of range, a leaf that is not int8, a table too
        small, or a fitness of another length.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optkit.evolution.integer import egg, vector
      >>> es = egg(256, alpha=0.3)
      >>> tx = optax.chain(es, optax.scale(-1))
      >>> params = {"w": jnp.zeros(2, jnp.int8)}
      >>> state, goal = tx.init(params), jnp.array([5, -9])
      >>> @jax.jit
      ... def generation(params, state):
      ...     members = vector(es.perturb(params, state)["w"]).reshape(256, 2)
      ...     fitness = -jnp.sum(jnp.abs(members - goal[None]), axis=-1)
      ...     updates, state = tx.update(fitness, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(30):
      ...     params, state = generation(params, state)
      >>> params["w"].dtype, bool(jnp.all(jnp.abs(params["w"] - goal) < 3))
      (dtype('int8'), True)

    Reference:
      Sarkar et al., Evolution Strategies at the Hyperscale, arXiv 2511.16652, appendices G to I;
      nano-egg's ``run.py``. Departures: noise is rounded and not truncated, and nothing moves where
      Z is 0; its path for other fitness shaping is broken and not here.
    """
    _check(population, sigma_shift, rank, noise_reuse, table_bits, together, fixed_point)
    check_choice("unmoved", unmoved, ("stay", "down"))
    alpha = egg_alpha() if alpha is None else alpha
    check_number("alpha", alpha, low=1e-6, high=1.0)
    check_seed(key)
    noise = _Noise(
        population, rank, noise_reuse, table_bits, table, stacked, fixed_point, sigma_shift
    )
    pairs = population // 2
    unit = math.isqrt(pairs) * (4**fixed_point if use_clt else 1)

    def init_fn(params: PyTree) -> EggState:
        noise.of(params, None)
        return EggState(fresh_key(key), jnp.zeros((), jnp.int32))

    def update_fn(
        fitness: Any,
        state: EggState,
        params: PyTree | None = None,
        *,
        members: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EggState]:
        del extra_args
        leaves = noise.of(need_params(params, "egg"), state)
        signs = pair_signs(fitness, population, maximize=maximize)
        bound = quantile(value_at(alpha, state.es_step), score_bits) * unit
        given = [None] * len(leaves) if members is None else _given(members, len(leaves))
        out = []
        for leaf, member in zip(leaves, given, strict=True):
            if member is None:
                total = summed(leaf.noise, leaf.draw, signs, use_clt, together)
            else:
                total = votes(signs, (member.a, member.b), use_clt)
            out.append(leaf.base - moved(leaf.base, total, bound, fixed_point, unmoved == "down"))
        updates = jax.tree.unflatten(jax.tree.structure(params), out)
        return updates, EggState(state.es_key, state.es_step + 1)

    return IntegerStrategy(
        init_fn,
        update_fn,
        population=population,
        members=noise.members,
        state=EggState,
        own_step=True,
        maximize=maximize,
    )


@dataclass(frozen=True)
class _Leaf:
    """A leaf and its noise at one step."""

    base: jax.Array
    noise: IntegerNoise
    table: jax.Array
    mask: int
    keys: jax.Array
    epoch: jax.Array

    def draw(self, pairs: jax.Array) -> Factors:
        return self.noise.draw(self.table, self.mask, self.keys, self.epoch, pairs)


@dataclass(frozen=True)
class _Noise:
    """How the noise of a tree is drawn; the options of ``egg``."""

    population: int
    rank: int
    noise_reuse: int
    table_bits: int
    table: Any
    stacked: Selector
    fixed_point: int
    sigma_shift: int

    def of(self, params: PyTree, state: EggState | None) -> list[_Leaf]:
        """The leaves and their noise; without a state only checked, an empty list."""
        plan = integer_noises(params, self.rank, self.stacked)
        longest = max((noise.numbers for noise in plan), default=0)
        table = self.table
        if table is None:
            table = _table(self.table_bits, extra=longest, fixed_point=self.fixed_point)
        check_table(table, self.table_bits, longest)
        if state is None:
            return []
        entries, mask = jnp.asarray(table), 2**self.table_bits - 1
        epoch = state.es_step // self.noise_reuse if self.noise_reuse else jnp.zeros((), jnp.int32)
        return [
            _Leaf(leaf, noise, entries, mask, noise.keys(state.es_key), epoch)
            for noise, leaf in zip(plan, jax.tree.leaves(params), strict=True)
        ]

    def members(self, params: PyTree, state: EggState, pairs: jax.Array | None = None) -> PyTree:
        if pairs is None:
            pairs = jnp.arange(self.population // 2, dtype=jnp.int32)
        shift = self.fixed_point + self.sigma_shift
        leaves = self.of(params, state)
        out = [population_leaf(leaf.base, leaf.draw(pairs), shift) for leaf in leaves]
        return jax.tree.unflatten(jax.tree.structure(params), out)


def _given(members: PyTree, count: int) -> list[IntegerPerturbed]:
    leaves = jax.tree.leaves(members, is_leaf=is_perturbed)
    if len(leaves) != count or not all(map(is_perturbed, leaves)):
        raise ValueError(
            f"members has {len(leaves)} leaves, not the {count} IntegerPerturbed leaves that "
            "perturb(params, state) of this strategy returns"
        )
    return leaves


def _check(
    population: int,
    sigma_shift: int,
    rank: int,
    noise_reuse: int,
    table_bits: int,
    together: int | None,
    fixed_point: int,
) -> None:
    check_static_int("population", population, low=2)
    if population % 2:
        raise ValueError(f"population={population} must be even: members are pairs")
    check_static_int("sigma_shift", sigma_shift, low=0)
    check_static_int("rank", rank)
    check_static_int("noise_reuse", noise_reuse, low=0)
    check_static_int("table_bits", table_bits)
    check_static_int("fixed_point", fixed_point)
    if together is not None:
        check_static_int("together", together)
