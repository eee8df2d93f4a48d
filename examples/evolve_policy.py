"""A policy that balances a pole, evolved in Flax's TrainState: fitness goes where gradients went.

All members act in one program. The environment needs `pip install "optkit[evolve]"`.
"""

import gymnax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import optkit
from optkit.evolution import evaluate, population_apply

MEMBERS, STEPS, GENERATIONS = 64, 100, 10
env, settings = gymnax.make("CartPole-v1")
policy = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(env.action_space(settings).n)])


def episode_returns(population, keys):
    """The steps for which each member keeps its pole up; keys (members,)."""
    act = jax.vmap(lambda *args: env.step(*args, settings)[:5])

    def step(carry, time):
        observations, states, alive = carry
        actions = population_apply(policy.apply, population, observations).argmax(-1)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
        observations, states, rewards, fallen, _ = act(step_keys, states, actions)
        return (observations, states, alive & ~fallen), rewards * alive

    begin = jax.vmap(lambda key: env.reset(key, settings))(keys)
    alive = jnp.ones(keys.shape, bool)
    return jax.lax.scan(step, (*begin, alive), jnp.arange(STEPS))[1].sum(axis=0)


def main():
    es, params = optkit.eggroll(MEMBERS, sigma=0.2), policy.init(jax.random.key(0), jnp.zeros(4))
    tx = optax.chain(es, optax.adam(0.05))
    train_state = TrainState.create(apply_fn=policy.apply, params=params, tx=tx)

    @jax.jit
    def generation(train_state, key):
        # Members 2k and 2k + 1 have noise of opposite sign, and the same episode.
        keys = jnp.repeat(jax.random.split(key, MEMBERS // 2), 2)
        own = train_state.params, train_state.opt_state
        fitness = evaluate(es, episode_returns, *own, keys, in_axes=0)
        return train_state.apply_gradients(grads={"fitness": fitness}), fitness.mean()

    means = []
    for key in jax.random.split(jax.random.key(1), GENERATIONS):
        train_state, mean = generation(train_state, key)
        means.append(float(mean))
    print(f"mean return of {MEMBERS} members: {means[0]:.1f} -> {means[-1]:.1f} of {STEPS}")
    assert means[-1] > 2 * means[0]


if __name__ == "__main__":
    main()
