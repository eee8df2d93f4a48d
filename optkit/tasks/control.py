"""Control by small policies: CartPole, Pendulum, Acrobot and MinAtar's Breakout, all in JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from optkit.evolution import population_apply
from optkit.tasks import base
from optkit.tasks.population import PopulationTask, as_population, count_members

__all__ = ["Policy", "acrobot", "breakout", "cartpole", "pendulum"]

_TEST_EPISODES = 16


class Policy(nn.Module):
    """A perceptron with tanh between its layers.

    Attributes:
      hidden: features of its hidden layers.
      layers: how many there are.
      outputs: one for each action or degree of freedom.
    """

    hidden: int
    layers: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps observations (..., n) to (..., outputs)."""
        for index in range(self.layers):
            x = jnp.tanh(nn.Dense(self.hidden, name=f"hidden_{index}")(x))
        return nn.Dense(self.outputs, name="head")(x)


def cartpole(
    *, hidden: int = 64, layers: int = 2, episodes: int = 1, steps: int | None = None
) -> PopulationTask:
    """Builds the task "cartpole": a pole is kept upright, 1 for each of at most 500 steps.

    Args:
      hidden: features of the policy's hidden layers.
      layers: how many it has.
      episodes: episodes of a member and generation; its fitness is their mean.
      steps: length of an episode; None for the environment's own.

    Returns:
      The task; its fitness is the return.

    Raises:
      ImportError: gymnax is not installed.
      TaskOptionError: sizes that are not above 0.
    """
    return _build("cartpole", "CartPole-v1", hidden, layers, episodes, steps)


def pendulum(
    *, hidden: int = 64, layers: int = 2, episodes: int = 4, steps: int | None = None
) -> PopulationTask:
    """Builds the task "pendulum": it is swung up by a bounded torque, and kept there.

    Args:
      hidden: features of the policy's hidden layers.
      layers: how many it has.
      episodes: episodes of a member and generation; its fitness is their mean.
      steps: length of an episode; None for the environment's own 200.

    Returns:
      The task; its fitness is the return, below 0.

    Raises:
      ImportError: gymnax is not installed.
      TaskOptionError: sizes that are not above 0.
    """
    return _build("pendulum", "Pendulum-v1", hidden, layers, episodes, steps)


def acrobot(
    *, hidden: int = 64, layers: int = 2, episodes: int = 1, steps: int | None = None
) -> PopulationTask:
    """Builds the task "acrobot": two links are swung above a line, -1 for each step until then.

    Args:
      hidden: features of the policy's hidden layers.
      layers: how many it has.
      episodes: episodes of a member and generation; its fitness is their mean.
      steps: length of an episode; None for the environment's own 500.

    Returns:
      The task; its fitness is the return, below 0.

    Raises:
      ImportError: gymnax is not installed.
      TaskOptionError: sizes that are not above 0.
    """
    return _build("acrobot", "Acrobot-v1", hidden, layers, episodes, steps)


def breakout(
    *, hidden: int = 64, layers: int = 2, episodes: int = 1, steps: int | None = None
) -> PopulationTask:
    """Builds the task "breakout": MinAtar's, on 10x10 cells with 4 channels.

    Args:
      hidden: features of the policy's hidden layers.
      layers: how many it has.
      episodes: episodes of a member and generation; its fitness is their mean.
      steps: length of an episode; None for the environment's own 1000.

    Returns:
      The task; its fitness is the number of bricks.

    Raises:
      ImportError: gymnax is not installed.
      TaskOptionError: sizes that are not above 0.
    """
    return _build("breakout", "Breakout-MinAtar", hidden, layers, episodes, steps)


def _build(
    name: str, identifier: str, hidden: int, layers: int, episodes: int, steps: int | None
) -> PopulationTask:
    """Builds the task of an environment."""
    base.check_positive(name, hidden=hidden, layers=layers, episodes=episodes)
    env, settings = _environment(identifier)
    if steps is not None:
        base.check_positive(name, steps=steps)
        settings = settings.replace(max_steps_in_episode=steps)
    length = int(settings.max_steps_in_episode)
    outputs, act = _actions(env.action_space(settings))
    model = Policy(hidden, layers, outputs)
    example = jax.eval_shape(lambda key: env.reset(key, settings)[0], jax.random.key(0))

    def init(key: jax.Array) -> base.Params:
        return dict(model.init(key, jnp.zeros((example.size,), jnp.float32))["params"])

    def policy(params: base.Params, observations: jax.Array) -> jax.Array:
        flat = observations.reshape(*observations.shape[: -example.ndim], -1)
        return act(jnp.asarray(model.apply({"params": params}, flat.astype(jnp.float32))))

    returns = _returns(env, settings, policy, length)

    def fitness(population: base.Params, key: jax.Array) -> jax.Array:
        members = as_population(population)
        count = count_members(members)
        # Partners of opposite sign, members 2k and 2k + 1, live through the same episodes.
        pairs = jax.random.split(key, (-(-count // 2), episodes))
        return returns(members, jnp.repeat(pairs, 2, axis=0)[:count]).mean(axis=1)

    def score(params: base.Params, key: jax.Array) -> dict[str, jax.Array]:
        alone = as_population(jax.tree.map(lambda x: x[None], params))
        found = returns(alone, jax.random.split(key, (1, _TEST_EPISODES)))
        return {"return": found.mean(), "return_min": found.min(), "return_max": found.max()}

    return PopulationTask(
        name=name,
        description=f"{identifier} by a perceptron, {'-'.join([str(hidden)] * layers)}, tanh",
        metric="return",
        init=jax.jit(init),
        fitness=fitness,
        score=jax.jit(score),
        default_generations=30,
        parameters=base.count_parameters(init),
    )


def _environment(identifier: str) -> tuple[Any, Any]:
    """Returns a gymnax environment and its settings."""
    try:
        import gymnax
    except ImportError as error:
        raise ImportError(
            f"the control tasks need gymnax for their environments, and {error.name} is missing: "
            'pip install "optkit[evolve]"'
        ) from error
    return gymnax.make(identifier)


def _actions(space: Any) -> tuple[int, Callable[[jax.Array], jax.Array]]:
    """Returns how many outputs a policy has, and how they become actions."""
    if hasattr(space, "n"):
        return int(space.n), lambda outputs: jnp.argmax(outputs, axis=-1)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return int(space.shape[0]), lambda outputs: middle + half * jnp.tanh(outputs)


def _returns(
    env: Any, settings: Any, policy: Callable[..., jax.Array], length: int
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns ``returns(population, keys)``, the returns (n, episodes) for keys of that shape."""
    reset = jax.vmap(jax.vmap(lambda key: env.reset(key, settings)))
    advance = jax.vmap(jax.vmap(lambda *args: env.step(*args, settings)[:5]))
    keyed = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))

    def returns(population: Any, keys: jax.Array) -> jax.Array:
        def step(carry: Any, time: jax.Array) -> tuple[Any, None]:
            observations, states, alive, total = carry
            actions = population_apply(policy, population, observations)
            observations, states, rewards, ended, cut = advance(keyed(keys, time), states, actions)
            # An environment begins again by itself, which is no longer this episode.
            total = total + jnp.where(alive, rewards, 0.0)
            return (observations, states, alive & ~ended & ~cut, total), None

        alive = jnp.ones(keys.shape, bool)
        begin = (*reset(keyed(keys, length)), alive, jnp.zeros(keys.shape, jnp.float32))
        return jax.lax.scan(step, begin, jnp.arange(length))[0][3]

    return returns
