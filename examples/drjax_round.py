"""Clients mapped by DrJAX over a mesh, the server's step by optkit: a round without a loop of ours.

Needs ``pip install drjax``. A placement is a mesh axis: each device works for its clients, and what
they report stays where it is until the aggregate sums it.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import drjax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit

CLIENTS, EXAMPLES, LOCAL_STEPS = 8, 16, 4
TRUTH = jnp.array([1.0, -2.0, 3.0])

x = jax.random.normal(jax.random.key(0), (CLIENTS, EXAMPLES, 3))
data = {"x": x, "y": x @ TRUTH}


def local(params, data):
    """A client's own steps of gradient descent."""

    def step(params, _):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(data["x"] @ p - data["y"])))(params)
        return params - 0.1 * grads, None

    return jax.lax.scan(step, params, length=LOCAL_STEPS)[0]


@drjax.program(placements={"clients": CLIENTS})
def displacements(params, data):
    """Where clients started minus where they ended: what the server wants of each."""
    sent = drjax.broadcast(params)
    return drjax.map_fn(lambda start, own: start - local(start, own), (sent, data))


server = optkit.server_step(optkit.aggregate.trimmed_mean(trim=1), optax.sgd(1.0, momentum=0.5))
mesh = jax.make_mesh((4,), ("clients",), axis_types=(AxisType.Auto,))
with jax.set_mesh(mesh):
    placed = jax.device_put(data, NamedSharding(mesh, P("clients")))
    params, state = jnp.zeros(3), server.init(jnp.zeros(3), CLIENTS)
    turn = jax.jit(lambda p, s, d: server.step(p, s, displacements(p, d)))
    for _ in range(12):
        params, state = turn(params, state, placed)

one_machine = jax.jit(optkit.federated_round(local, server))
want, kept = jnp.zeros(3), server.init(jnp.zeros(3), CLIENTS)
for _ in range(12):
    want, kept, _ = one_machine(want, kept, data)
assert jnp.allclose(params, want, atol=1e-5), (params, want)
assert jnp.allclose(params, TRUTH, atol=0.1), params
print("after 12 rounds:", params)
