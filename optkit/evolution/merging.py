"""Evo-Merging: several LoRA adapters become one, by what a score alone says."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.evolution.ask_tell import ask_tell
from optkit.evolution.search.cma_es import cma_es
from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, leaves_with_paths, upcast

A_NAMES = ("a", "lora_a")
B_NAMES = ("b", "lora_b")


def keep_largest(x: jax.Array, share: jax.Array | float) -> jax.Array:
    """Returns an array with its largest entries alone, zeros elsewhere.

    Args:
      x: any shape and float dtype.
      share: alpha, a scalar: ``k = max(1, round(alpha*size))`` entries of largest absolute value
        are kept, halves rounded to the even number, and all that equal the smallest kept one. At 0
        or below nothing is kept, at 1 or above everything. May be traced, so that ``vmap`` works.

    Returns:
      An array of the same shape and dtype; what is kept is not rescaled.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import keep_largest
      >>> keep_largest(jnp.array([3.0, -1.0, 2.0, -2.0]), 0.5).tolist()
      [3.0, 0.0, 2.0, -2.0]
    """
    if not x.size:
        return x
    share = jnp.asarray(share, jnp.promote_types(jnp.result_type(share), jnp.float32))
    size = jnp.abs(x)
    count = jnp.clip(_rounded_product(share, x.size), 1, x.size)
    threshold = jnp.sort(size.reshape(-1))[x.size - count]
    kept = (size >= threshold) & (share > 0) | (share >= 1)
    return jnp.where(kept, x, jnp.zeros_like(x))


def _rounded_product(share: jax.Array, size: int) -> jax.Array:
    """Returns ``round(share*size)`` of the exact product, halves to the even number."""
    product = share * size
    if share.dtype != jnp.float32:
        return jnp.round(product).astype(jnp.int32)
    # 0.9*15 is 13.4999996, and 13.5 in float32: the error of the product tells the side.
    (a, b), (c, d) = (_halves(jnp.asarray(x, jnp.float32)) for x in (share, float(size)))
    error = ((a * c - product) + a * d + b * c) + b * d
    below = jnp.floor(product)
    half = (product - below == 0.5) & (error != 0)
    rounded = jnp.where(half, below + (error > 0), jnp.round(product))
    return rounded.astype(jnp.int32)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits float32 numbers in two of 12 bits, whose products are exact."""
    scaled = 4097.0 * x
    high = scaled - (scaled - x)
    return high, x - high


def _side(path: str) -> Literal["a", "b"]:
    """Which factor a leaf is: by the last part of its path that names one."""
    for part in reversed(path.lower().replace(".", "/").split("/")):
        if part in A_NAMES:
            return "a"
        if part in B_NAMES:
            return "b"
    raise ValueError(
        f"leaf {path!r} is neither factor of an adapter: no part of its path is one of "
        f"{', '.join((*A_NAMES, *B_NAMES))}; rename it, or leave it out of the adapters"
    )


def merge_lora(alpha: jax.Array, beta: jax.Array, adapters: Sequence[PyTree]) -> PyTree:
    """Returns the adapter that is a weighted sum of adapters, the A factors thinned out first.

    ``A = sum_i beta_i * keep_largest(A_i, alpha_i)``, leaf by leaf, and ``B = sum_i beta_i * B_i``:
    the merged delta ``B A`` has cross terms of different adapters. Ready for ``vmap`` over alpha
    and beta, a population of merges.

    Args:
      alpha: ``(n,)``, share of the entries of each A that is kept, in [0, 1].
      beta: ``(n,)``, weight of each adapter, of either sign.
      adapters: n trees of equal structure and shapes; a leaf is factor A or B by the last part of
        its path that is "a" or "lora_a", or "b" or "lora_b", in small or capital letters.

    Returns:
      A tree like an adapter, in its dtypes.

    Raises:
      ValueError: adapters that differ in their leaves, a leaf that is neither factor, or vectors
        of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import merge_lora
      >>> one = {"a": jnp.array([[4.0, 1.0]]), "b": jnp.array([[1.0]])}
      >>> two = {"a": jnp.array([[0.0, 2.0]]), "b": jnp.array([[3.0]])}
      >>> merged = merge_lora(jnp.array([0.5, 1.0]), jnp.array([1.0, -1.0]), [one, two])
      >>> merged["a"].tolist(), merged["b"].tolist()
      ([[4.0, -2.0]], [[-2.0]])

    Reference:
      Black-box Model Merging for Language-Model-as-a-Service, https://arxiv.org/abs/2509.12951.
    """
    count = len(adapters)
    if not count:
        raise ValueError("there are no adapters to merge; give at least one")
    for name, vector in (("alpha", alpha), ("beta", beta)):
        if jnp.shape(vector) != (count,):
            raise ValueError(
                f"{name} is of shape {jnp.shape(vector)}, and there are {count} adapters; give "
                f"({count},), and map over a population with jax.vmap"
            )
    for adapter in adapters[1:]:
        check_same_leaves(adapters[0], adapter, "other adapter", shapes=True)
    alpha, beta = (jnp.asarray(x, jnp.float32) for x in (alpha, beta))
    structure: Any = jax.tree.structure(adapters[0])
    columns = zip(*(jax.tree.leaves(adapter) for adapter in adapters), strict=True)
    merged = []
    for (path, like), leaves in zip(leaves_with_paths(adapters[0]), columns, strict=True):
        stack = jnp.stack([upcast(leaf) for leaf in leaves])
        if _side(path) == "a":
            stack = jax.vmap(keep_largest)(stack, alpha)
        merged.append(jnp.tensordot(beta.astype(stack.dtype), stack, 1).astype(like.dtype))
    return structure.unflatten(merged)


class Merge(NamedTuple):
    """What ``evo_merge`` found."""

    alpha: jax.Array  # (n,), shares that are kept
    beta: jax.Array  # (n,), weights
    loss: jax.Array  # scalar, loss of the merge without penalties
    history: tuple[jax.Array, jax.Array]  # (generations,) best loss so far of each stage


def evo_merge(
    loss: Callable[[PyTree], jax.Array],
    adapters: Sequence[PyTree],
    *,
    population: int = 20,
    evaluations: tuple[int, int] = (400, 800),
    sigma: float = 0.05,
    penalty: tuple[float, float] = (0.05, 0.05),
    beta_bound: float = 1.5,
    compare: Literal["raw", "reference"] = "raw",
    key: Key = 0,
) -> Merge:
    """Finds how to merge adapters without gradients: first what to drop, then whom to weigh how.

    1. denoising: CMA-ES on alpha in [0, 1], from 1, with beta 1/n; the search sees ``loss +
       penalty[0]*mean|alpha|``;
    2. scaling: CMA-ES on beta in [-beta_bound, beta_bound], from 1/n, with the best alpha; it sees
       ``loss + penalty[1]*mean|beta|``.

    What the stages search around, alpha = 1 and beta = 1/n, counts as a member too.

    Args:
      loss: an adapter to a scalar, to be minimised; it is mapped over the population.
      adapters: as of ``merge_lora``.
      population: members of a generation.
      evaluations: of each stage; the generations that they fill are run.
      sigma: first deviation of both searches.
      penalty: on mean absolute values, which pull to sparser and smaller merges.
      beta_bound: bound of the weights.
      compare: "raw" returns the merge of lowest loss without penalties, stage by stage, which
        stage 2 can only improve. "reference" keeps one lowest penalised loss over both stages, as
        the authors' code does, though the penalties differ: beta stays 1/n unless stage 2 beats
        what stage 1 paid for its alpha.
      key: seed or PRNG key.

    Returns:
      ``Merge(alpha, beta, loss, history)``; give the first two to ``merge_lora``.

    Raises:
      ValueError: as of ``merge_lora``, or numbers out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import evo_merge
      >>> good = {"a": jnp.ones((1, 4)), "b": jnp.ones((3, 1))}
      >>> bad = {"a": -jnp.ones((1, 4)), "b": 2.0 * jnp.ones((3, 1))}
      >>> loss = lambda lora: jnp.mean((lora["b"] @ lora["a"] - 1.0) ** 2)
      >>> found = evo_merge(loss, [good, bad], population=8, evaluations=(80, 240))
      >>> bool(found.loss < 0.1), bool(abs(found.beta[1]) < abs(found.beta[0]))
      (True, True)

    Reference:
      Black-box Model Merging for Language-Model-as-a-Service, https://arxiv.org/abs/2509.12951.
      Their bounds are pycma's transform; members outside are drawn anew here.
    """
    check_static_int("population", population, low=2)
    check_choice("compare", compare, ("raw", "reference"))
    check_number("beta_bound", beta_bound, low=0.0)
    for number in penalty:
        check_number("penalty", number, low=0.0)
    check_seed(key)
    count = len(adapters)
    uniform = jnp.full(count, 1.0 / max(count, 1), jnp.float32)
    everything = jnp.ones(count, jnp.float32)
    keys = jax.random.split(fresh_key(key))

    def judged(alpha: jax.Array, beta: jax.Array) -> jax.Array:
        return jnp.asarray(loss(merge_lora(alpha, beta, adapters)), jnp.float32)

    def run(stage: int, start: jax.Array, score: Callable[[jax.Array], jax.Array]) -> Any:
        bounds = (0.0, 1.0) if stage == 0 else (-beta_bound, beta_bound)
        generations = max(1, evaluations[stage] // population)
        return _search(
            score, start, sigma, bounds, penalty[stage], population, generations, keys[stage]
        )

    first = run(0, everything, lambda alpha: judged(alpha, uniform))
    alpha = first.best(compare)
    second = run(1, uniform, lambda beta: judged(alpha, beta))
    beta = second.best(compare)
    if compare == "reference":
        beta = jnp.where(second.penalized[0] < first.penalized[0], beta, uniform)
    final = judged(alpha, beta)
    if not isinstance(final, jax.core.Tracer) and not jnp.isfinite(second.raw[0]):
        raise ValueError(
            "the loss was finite for no merge of these adapters; try it on merge_lora(alpha, beta, "
            "adapters) with all ones"
        )
    return Merge(alpha, beta, final, (first.history, second.history))


class _Found(NamedTuple):
    """Best members of a stage by either loss: (loss, member)."""

    raw: tuple[jax.Array, jax.Array]
    penalized: tuple[jax.Array, jax.Array]
    history: jax.Array

    def best(self, compare: str) -> jax.Array:
        return self.raw[1] if compare == "raw" else self.penalized[1]


def _search(
    score: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    sigma: float,
    bounds: tuple[float, float],
    weight: float,
    population: int,
    generations: int,
    key: jax.Array,
) -> _Found:
    """Runs CMA-ES in a box and returns the best members by loss and by penalised loss."""
    es = cma_es(population, sigma=sigma, bounds=bounds, maximize=False, key=key)
    search = ask_tell(es)

    def better(held: tuple[jax.Array, jax.Array], losses: jax.Array, members: jax.Array) -> Any:
        at = jnp.nanargmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
        wins = losses[at] < held[0]
        return jnp.where(wins, losses[at], held[0]), jnp.where(wins, members[at], held[1])

    def both(found: Any, members: jax.Array) -> tuple[Any, jax.Array]:
        raw = jax.vmap(score)(members)
        paid = raw + weight * jnp.mean(jnp.abs(members), axis=-1)
        return (better(found[0], raw, members), better(found[1], paid, members)), paid

    def generation(carry: Any, _: None) -> tuple[Any, jax.Array]:
        state, found = carry
        members = search.ask(state)
        found, paid = both(found, members["x"])
        return (search.tell(state, paid), found), found[0][0]

    worst = (jnp.asarray(math.inf, jnp.float32), start)
    found, _ = both((worst, worst), start[None])
    carry = (search.init({"x": start}), found)
    (_, found), history = jax.lax.scan(generation, carry, length=generations)
    return _Found(found[0], found[1], history)
