"""Ask and tell: any population method as three functions, which remember the best members."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.evolution.strategy import Strategy, fitness_vector
from optkit.transforms.base import check_transformation, map_leaves
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, compute_dtype


class SearchState(NamedTuple):
    """State of a search by ``ask_tell``."""

    params: PyTree  # what the population is drawn around
    opt_state: Any  # state of the strategy and the optimizer after it
    best: PyTree  # (keep, *shape), the best members ever told, the best first
    best_fitness: jax.Array  # (keep,), float32 or better; the worst infinity where none is yet
    evaluations: jax.Array  # int32 scalar, members told


class AskTell(NamedTuple):
    """The functions of a search; each is pure, and can be jitted, scanned and vmapped.

    Attributes:
      init: ``init(params) -> state``.
      ask: ``ask(state) -> members``, leaves ``(N, *shape)``.
      tell: ``tell(state, fitness, members=None, **extra) -> state``.
      top: ``top(state, count=None) -> (members, fitnesses)``, the best ever, the best first.
    """

    init: Callable[[PyTree], SearchState]
    ask: Callable[[SearchState], PyTree]
    tell: Callable[..., SearchState]
    top: Callable[..., tuple[PyTree, jax.Array]]


def ask_tell(
    strategy: Strategy,
    optimizer: optax.GradientTransformation | None = None,
    *,
    keep: int = 1,
    maximize: bool | None = None,
) -> AskTell:
    """Makes three functions of a population method: ask for members, tell their fitness.

    1. ``members = ask(state)``: the population around ``state.params``, materialised;
    2. ``state = tell(state, fitness)``: the strategy's update, the optimizer's, and the best
       members so far. A member whose fitness is NaN is never among the best.

    Args:
      strategy: any ``Strategy``.
      optimizer: what follows it; None for ``optax.sgd(1.0)``, right for ``cma_es``, ``xnes``,
        ``snes`` and others whose step is their own.
      keep: how many of the best members ever told to keep; each is a copy of the parameters.
      maximize: whether larger fitness is better; None for what the strategy was told.

    Returns:
      ``AskTell(init, ask, tell, top)``; the state has the parameters, the optimizer's state,
      ``keep`` members and their fitnesses.

    Raises:
      TypeError: ``strategy`` is none.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optkit.evolution import ask_tell, openai_es
      >>> es = ask_tell(openai_es(32, sigma=0.1), optax.adam(0.1), keep=3)
      >>> state = es.init({"x": jnp.zeros(2)})
      >>> for _ in range(40):
      ...     members = es.ask(state)
      ...     state = es.tell(state, -jnp.sum((members["x"] - 1.0) ** 2, axis=1))
      >>> members, fitness = es.top(state)
      >>> members["x"].shape, bool(fitness[0] > -0.05)
      ((3, 2), True)
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(
            f"strategy is of type {type(strategy).__name__}; give what a population method such as "
            "search.cma_es(sigma=0.3) returns"
        )
    check_static_int("keep", keep)
    after = check_transformation("optimizer", optax.sgd(1.0) if optimizer is None else optimizer)
    tx = optax.chain(strategy, after)
    if maximize not in (None, strategy.maximize):
        raise ValueError(
            f"maximize={maximize}, and the strategy has maximize={strategy.maximize}; leave it out"
        )
    maximize = strategy.maximize
    takes_members = "members" in inspect.signature(strategy.update).parameters
    worst = -jnp.inf if maximize else jnp.inf

    def init(params: PyTree) -> SearchState:
        params = jax.tree.map(jnp.asarray, params)
        members = jax.eval_shape(lambda p: strategy.perturb(p, tx.init(p)), params)
        structure: Any = jax.tree.structure(params)
        if structure != jax.tree.structure(members):
            raise TypeError(
                "the members of this strategy are no parameters that could be told or kept: use "
                "its update as the first link of a chain"
            )
        best = jax.tree.map(lambda p: jnp.repeat(p[None], keep, axis=0), params)
        fitness = jnp.full(keep, worst, compute_dtype(*jax.tree.leaves(params)))
        return SearchState(params, tx.init(params), best, fitness, jnp.zeros((), jnp.int32))

    def ask(state: SearchState) -> PyTree:
        return strategy.perturb(state.params, state.opt_state)

    def tell(
        state: SearchState, fitness: Any, members: PyTree | None = None, **extra: Any
    ) -> SearchState:
        shown = ask(state) if members is None else members
        count = strategy.population or jax.tree.leaves(shown)[0].shape[0]
        if members is not None and not takes_members:
            raise ValueError(
                "members were given, and this strategy draws its noise again: it can't learn from "
                "others than those asked for; repair members inside the fitness, or take cma_es, "
                "sep_cma_es or xnes"
            )
        told = fitness_vector(fitness, count)
        best, best_fitness = _best(state, shown, told.astype(state.best_fitness.dtype))
        if members is not None:
            extra["members"] = members
        updates, opt_state = tx.update(fitness, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        return SearchState(params, opt_state, best, best_fitness, state.evaluations + count)

    def _best(state: SearchState, members: PyTree, fitness: jax.Array) -> tuple[PyTree, jax.Array]:
        joined = jnp.concatenate([state.best_fitness, fitness])
        value = joined if maximize else -joined
        _, index = jax.lax.top_k(jnp.where(jnp.isnan(value), -jnp.inf, value), keep)
        joined = jnp.where(jnp.isnan(joined), worst, joined)
        best = map_leaves(
            lambda held, x: jnp.concatenate([held, x.astype(held.dtype)])[index],
            state.best,
            members,
        )
        return best, joined[index]

    def top(state: SearchState, count: int | None = None) -> tuple[PyTree, jax.Array]:
        if count is not None and not 1 <= count <= keep:
            raise ValueError(f"count={count}: {keep} are kept; build ask_tell(..., keep={count})")
        return jax.tree.map(lambda x: x[:count], state.best), state.best_fitness[:count]

    return AskTell(init, ask, tell, top)
