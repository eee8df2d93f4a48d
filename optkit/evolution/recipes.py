"""Published strategies that differ in noise, shaping and scale alone."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.estimate import Scale
from optkit.evolution.noise import Compat, Draws, Law
from optkit.evolution.perturb import PopulationPerturb, population_perturb
from optkit.evolution.shaping import NonFinite, Shaping, top_pairs
from optkit.kernels.implementation import Implementation
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number
from optkit.transforms.noise import Key
from optkit.tree import Dims, PyTree, RuleLike, Selector


@register(
    kind="strategy",
    family="evolution",
    paper=("Evolution Strategies at the Hyperscale", "2511.16652", 2025),
    state_bytes={"*": 0},
    tags=("evolution", "low-rank", "large models", "reinforcement"),
    chain="population_perturb(low_rank, z_score)",
    example={"population": 32, "sigma": 0.1},
)
def eggroll(
    population: int,
    *,
    sigma: ScalarOrSchedule,
    rank: int = 1,
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
    chunk: int | None = None,
    compat: Compat | None = None,
    draws: Draws = "jax",
    implementation: Implementation = "xla",
    key: Key = None,
) -> PopulationPerturb:
    """Evolution strategies whose members differ from the model by matrices of low rank.

    1. ``W_i = W + s_i*sigma*A_k B_k^T/sqrt(rank)``, members 2k and 2k+1 with opposite signs;
    2. ``z = (f - mean)/sqrt(var + 1e-5)``;
    3. ``g = -1/(N sigma) * sum_i z_i s_i A_k B_k^T/sqrt(rank)``.

    Choose it for models with large matrices: through ``population_apply`` a population costs little
    more than as many inputs of one model, whereas noise in full costs a matrix a member.
    ``python -m benchmarks.evolution_generation`` sets it beside ``openai_es`` on a small policy; in
    ``python -m benchmarks.claims eggroll`` rank 1 learns CartPole and Pendulum in as many
    generations as full rank, up to what seeds differ by, and a generation is 9.0 and 3.8 times as
    fast. The paper's results on language models are not reproduced here.

    Args:
      population: number N of members, even.
      sigma: deviation of the members; the paper has 0.05 to 0.5 for policies, 7e-4 to 2e-3 for
        language models.
      rank: of the noise; the paper has 1, 2 and 4.
      shaping: see ``population_perturb``; the authors also rank (``"centered_rank"``).
      scale: see ``population_perturb``; "reference" is what the authors' learning rates are for.
      signs: the update sums the signs of A and B.
      baseline: members 0 and 1 are the unperturbed model; fitness ``(questions, N)``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as.
      noise_reuse: generations with the same noise; the authors' default, 0, is the same for ever.
      full: leaves with noise in full.
      frozen: leaves that are left alone; ``frozen=("norm", "bias")`` is ``freeze_nonlora``.
      dims: which axes of a leaf are its matrix.
      rules: role rules of yours.
      chunk: pairs whose noise lives together while the update is summed.
      compat: "hyperscalees" repeats the draws of the authors' code.
      draws: "counters" for noise that kernels make themselves; see ``population_perturb``.
      implementation: of the update's sum; see ``population_perturb``.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer. State: a key, a step and sigma.

    Raises:
      ValueError: see ``population_perturb``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.eggroll(64, sigma=0.1, rank=2), optax.adam(1e-2))
      >>> state = tx.init({"kernel": jnp.zeros((16, 16))})
      >>> updates, state = tx.update(jnp.arange(64.0), state, {"kernel": jnp.zeros((16, 16))})
      >>> updates["kernel"].shape
      (16, 16)

    Reference:
      Sarkar et al., https://arxiv.org/abs/2511.16652. Embeddings are perturbed too, which the
      authors' code leaves alone, and the noise is fresh in each generation.
    """
    return population_perturb(
        population,
        sigma=sigma,
        noise="low_rank",
        rank=rank,
        shaping=shaping,
        scale=scale,
        signs=signs,
        baseline=baseline,
        maximize=maximize,
        nonfinite=nonfinite,
        noise_reuse=noise_reuse,
        full=full,
        frozen=frozen,
        dims=dims,
        rules=rules,
        chunk=chunk,
        compat=compat,
        draws=draws,
        implementation=implementation,
        key=key,
    )


@register(
    kind="strategy",
    family="evolution",
    paper=("Evolution Strategies as a Scalable Alternative to RL", "1703.03864", 2017),
    state_bytes={"*": 0},
    tags=("evolution", "reinforcement", "baseline"),
    chain="population_perturb(gaussian, centered_rank)",
    example={"population": 32, "sigma": 0.1},
)
def openai_es(
    population: int,
    *,
    sigma: ScalarOrSchedule = 0.05,
    noise: Law = "gaussian",
    antithetic: bool = True,
    shaping: str | Shaping | None = "centered_rank",
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    noise_reuse: int = 1,
    frozen: Selector = (),
    chunk: int | None = None,
    key: Key = None,
) -> PopulationPerturb:
    """Evolution strategies with Gaussian noise in full and ranked fitness.

    1. ``x_i = x + s_i*sigma*eps_k``, members 2k and 2k+1 with opposite signs;
    2. z are the ranks, from -0.5 for the worst to 0.5 for the best;
    3. ``g = -1/(N sigma) * sum_i z_i s_i eps_k``.

    The baseline of the family: nothing to tune but sigma and the rate of what follows, but a whole
    model of noise a member. On models with matrices ``eggroll`` learns alike for less.

    Args:
      population: number N of members.
      sigma: deviation of the members; usual are 0.02 to 0.1.
      noise: "gaussian", or "rademacher" for random signs.
      antithetic: neighbours have noise of opposite sign.
      shaping: see ``population_perturb``.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as.
      noise_reuse: generations with the same noise.
      frozen: leaves that are left alone.
      chunk: pairs whose noise lives together while the update is summed.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``, to be followed by an optimizer. State: a key, a step and sigma.

    Raises:
      ValueError: see ``population_perturb``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.openai_es(8, sigma=0.1), optax.adam(1e-2))
      >>> state = tx.init({"w": jnp.zeros(5)})
      >>> updates, state = tx.update(jnp.arange(8.0), state, {"w": jnp.zeros(5)})
      >>> updates["w"].shape
      (5,)

    Reference:
      Salimans et al., https://arxiv.org/abs/1703.03864
    """
    return population_perturb(
        population,
        sigma=sigma,
        noise=noise,
        antithetic=antithetic,
        shaping=shaping,
        maximize=maximize,
        nonfinite=nonfinite,
        noise_reuse=noise_reuse,
        frozen=frozen,
        chunk=chunk,
        key=key,
    )


@register(
    kind="strategy",
    family="evolution",
    paper=("Simple random search provides a competitive approach to RL", "1803.07055", 2018),
    state_bytes={"*": 0},
    tags=("evolution", "random search", "reinforcement"),
    chain="population_perturb(gaussian, top_pairs, sum)",
    example={"population": 32},
)
def ars(
    population: int,
    *,
    sigma: ScalarOrSchedule = 0.03,
    elite: float = 0.5,
    eps: float = 1e-8,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    frozen: Selector = (),
    chunk: int | None = None,
    key: Key = None,
) -> PopulationPerturb:
    """Augmented random search: the best pairs alone, in units of their fitnesses' deviation.

    1. ``x_i = x + s_i*sigma*eps_k``; pairs are ranked by the better of their members, and the best
       ``b = max(1, floor(elite*N) // 2)`` are kept;
    2. s is the deviation of the 2b kept fitnesses, at least ``eps``;
    3. ``g = -1/(b s) * sum_k (f+ - f-) eps_k``: not divided by sigma.

    Made for linear policies with few parameters. Observations are to be normalised by the user:
    the "V2" of the paper keeps a running mean and deviation, which belong to the environment.

    Args:
      population: number N of members, even.
      sigma: deviation of the members.
      elite: share of the pairs that are kept; 1 keeps all.
      eps: least deviation.
      maximize: False for losses.
      nonfinite: what a member without a finite fitness counts as.
      frozen: leaves that are left alone.
      chunk: pairs whose noise lives together while the update is summed.
      key: seed or PRNG key.

    Returns:
      A ``Strategy``; follow it by ``optax.sgd(0.02)``. State: a key, a step and sigma.

    Raises:
      ValueError: an elite outside (0, 1]; see ``population_perturb``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.ars(8, elite=0.25), optax.sgd(0.02))
      >>> state = tx.init({"w": jnp.zeros(5)})
      >>> updates, state = tx.update(jnp.arange(8.0), state, {"w": jnp.zeros(5)})
      >>> updates["w"].shape
      (5,)

    Reference:
      Mania et al., https://arxiv.org/abs/1803.07055. The authors keep all pairs that tie with the
      last; here, as in evosax, exactly b.
    """
    check_number("elite", elite, low=0.0, high=1.0)
    check_number("eps", eps, low=0.0)
    if not elite > 0:
        raise ValueError(f"elite={elite} keeps no pair; give a share above 0")
    return population_perturb(
        population,
        sigma=sigma,
        noise="gaussian",
        shaping=partial(top_pairs, pairs=max(1, int(elite * population) // 2), eps=eps),
        scale="sum",
        maximize=maximize,
        nonfinite=nonfinite,
        frozen=frozen,
        chunk=chunk,
        key=key,
    )


@register(
    kind="strategy",
    family="evolution",
    paper=("Fine-Tuning Language Models with Just Forward Passes", "2305.17333", 2023),
    state_bytes={"*": 0},
    tags=("evolution", "fine-tuning", "memory", "spsa"),
    chain="population_perturb(gaussian, no shaping)",
    example={"sigma": 0.1, "pairs": 2},
)
def mezo(
    *,
    sigma: ScalarOrSchedule = 1e-3,
    pairs: int = 1,
    noise: Law = "gaussian",
    rank: int = 1,
    maximize: bool = False,
    nonfinite: NonFinite = "zero",
    frozen: Selector = (),
    dims: Dims = None,
    rules: Iterable[RuleLike] = (),
    chunk: int | None = None,
    key: Key = None,
) -> PopulationPerturb:
    """Zeroth-order SGD: two losses a step, and the noise of both replayed from its key.

    1. ``L+ = loss(x + sigma z)``, ``L- = loss(x - sigma z)``;
    2. ``p = (L+ - L-)/(2 sigma)``;
    3. ``g = p z``, the mean over ``pairs``.

    For fine-tuning where gradients do not fit: memory is that of the forward pass. Parameters are
    never changed and changed back, so that nothing drifts. The decay of the paper's code comes
    after it in the chain: ``optax.add_decayed_weights``.

    Args:
      sigma: how far the two points lie from the parameters.
      pairs: directions a step; the fitness has two losses of each, (2k, 2k+1) for + and -.
      noise: "gaussian"; "low_rank" perturbs matrices by few numbers, "rademacher" is SPSA.
      rank: of low-rank noise.
      maximize: True for fitnesses; the default is a loss.
      nonfinite: a loss that is not finite drops its pair ("zero").
      frozen: leaves that are left alone.
      dims: which axes of a leaf are its matrix.
      rules: role rules of yours.
      chunk: pairs whose noise lives together while the update is summed.
      key: seed or PRNG key.

    Returns:
      A ``Strategy`` of ``2*pairs`` members; follow it by ``optax.sgd``. State: a key, a step and
      sigma; a run is its log of losses, see ``optkit.evolution.replay``.

    Raises:
      ValueError: see ``population_perturb``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> es, params = optkit.mezo(sigma=1e-3), {"w": jnp.ones(5)}
      >>> state = es.init(params)
      >>> losses = jnp.sum(es.perturb(params, state)["w"] ** 2, axis=-1)
      >>> gradient, state = es.update(losses, state, params)
      >>> gradient["w"].shape
      (5,)

    Reference:
      Malladi et al., https://arxiv.org/abs/2305.17333
    """
    return population_perturb(
        2 * pairs,
        sigma=sigma,
        noise=noise,
        rank=rank,
        shaping=None,
        maximize=maximize,
        nonfinite=nonfinite,
        frozen=frozen,
        dims=dims,
        rules=rules,
        chunk=chunk,
        key=key,
    )


def spsa_value_and_grad(
    loss: Callable[..., jax.Array], **options: Any
) -> Callable[..., tuple[jax.Array, PyTree]]:
    """Turns a loss into a function that estimates its gradient from values alone.

    The counterpart of ``jax.value_and_grad`` for losses that have no useful gradient.

    Args:
      loss: ``loss(params, *args) -> scalar``.
      **options: those of ``mezo``, but its key and ``maximize``.

    Returns:
      ``function(params, key, *args) -> (mean loss, gradient)``; the two points of each pair are
      evaluated one after the other, so that no more than one copy of the parameters lives.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> estimate = optkit.evolution.spsa_value_and_grad(lambda x: jnp.sum(x**2), sigma=0.01)
      >>> value, gradient = estimate(jnp.ones(3), jax.random.key(0))
      >>> value.shape, gradient.shape
      ((), (3,))
    """
    es = mezo(**options)

    def value_and_grad(params: PyTree, key: jax.Array, *args: Any) -> tuple[jax.Array, PyTree]:
        state = es.init(params)._replace(es_key=key)
        one = lambda member: loss(es.member(params, state, member), *args)  # noqa: E731
        losses = jax.lax.map(one, jnp.arange(es.population))
        return jnp.mean(losses), es.update(losses, state, params)[0]

    return value_and_grad
