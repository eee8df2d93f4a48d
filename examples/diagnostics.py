"""What happens inside a run: sizes, ratios and singular values, measured every few steps."""

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.monitoring import attention_statistics

STEPS, HEADS, WIDTH = 21, 2, 8


def attend(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One layer of attention: its output, and its probabilities (batch, heads, queries, keys)."""
    split = (*x.shape[:-1], HEADS, -1)
    q, k, v = (jnp.moveaxis((x @ params[name]).reshape(split), -2, -3) for name in "qkv")
    looked = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(q.shape[-1]))
    mixed = jnp.moveaxis(looked @ v, -3, -2).reshape(x.shape)
    return mixed @ params["out"], looked


keys = jax.random.split(jax.random.key(0), 6)
params = {
    name: jax.random.normal(k, (WIDTH, WIDTH)) / 3 for name, k in zip("qkv", keys[:3], strict=True)
}
params["out"] = jax.random.normal(keys[3], (WIDTH, WIDTH)) / 3
x = jax.random.normal(keys[4], (4, 6, WIDTH))
goal = jnp.roll(x, 1, axis=1)  # each token is to say what stood before it

# Around everything, so that the updates measured are what the weights move by.
tx = optkit.diagnose(optkit.muon(0.02), every=5, spectrum=True)


@jax.jit
def step(state: tuple, params: dict) -> tuple:
    grads = jax.grad(lambda p: jnp.mean(jnp.square(attend(p, x)[0] - goal)))(params)
    updates, state = tx.update(grads, state, params)
    return state, optax.apply_updates(params, updates)


state = tx.init(params)
for index in range(STEPS):
    state, params = step(state, params)
    if index % 10 == 0:
        seen = optkit.diagnostics(state)  # {"q/top_singular": 1.3, ...}: floats for any logger
        print(f"step {index + 1}")
        for name in "qkv":
            ratio, top = seen[f"{name}/update_to_weight"], seen[f"{name}/top_singular"]
            rank = seen[f"{name}/effective_rank"]
            print(f"  {name}: moves by {ratio:.1%} a step, {top=:.2f}, {rank=:.1f} of {WIDTH}")

print("spectrum of q", optkit.monitoring.spectra(state)["q"].round(2))
looks = attention_statistics(attend(params, x)[1])
print({name: round(float(value), 3) for name, value in looks.items()})
assert 0.0 < looks["entropy_mean"] < jnp.log(6.0)
