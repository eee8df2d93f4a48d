"""Searches and guided estimates of parameters that lie on eight devices with Explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit

OPTIONS = {
    "cma_es": {},
    "xnes": {},
    "sep_cma_es": {},
    "pes": {},
    "nres": {},
    "guided_es": {"subspace": 2},
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OPTIONS)
def test_spread_parameters_move_as_whole_ones_do(name):
    rng = np.random.default_rng(0)
    whole = {"w": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    spread = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("d")))
    es = getattr(optkit, name)(8, sigma=0.1, **OPTIONS[name])
    fitness = jnp.asarray(rng.normal(size=8), jnp.float32)

    @jax.jit
    def step(params, state):
        updates, state = es.update(fitness, state, params)
        return jax.tree.map(jnp.subtract, params, updates), state

    ends = []
    for params in (whole, spread):
        state = es.init(params)
        if name == "guided_es":
            state = es.guide(state, params)
        ends.append(step(*step(params, state))[0]["w"])
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    assert ends[1].sharding.is_equivalent_to(spread["w"].sharding, 2)
