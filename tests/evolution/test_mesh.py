"""Populations over eight devices: the same numbers, and fitnesses are all that is exchanged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit
from optkit.evolution import Perturbed, evaluate
from optkit.evolution.spread import Spread
from tests.conformance.hlo import collectives

POPULATION = 32
PARAMS = {"kernel": jnp.ones((16, 8)), "bias": jnp.zeros(8)}
DATA = jnp.linspace(-1.0, 1.0, 16)
ES = optkit.eggroll(POPULATION, sigma=0.1)


def fitness(population: Any, x: jax.Array, own: jax.Array) -> jax.Array:
    w = population["kernel"]
    pairs = (jnp.repeat(w.a, 2, axis=0), jnp.repeat(w.b, 2, axis=0))
    each = lambda a, b, s: Perturbed(w.base, a, b, s, w.left, w.right).materialize()  # noqa: E731
    out = jnp.einsum("d,nde->ne", x, jax.vmap(each)(*pairs, w.scale)) + population["bias"].value
    return -jnp.sum(out**2, axis=-1) + own


def generation(
    es: Any, params: Any, state: Any, x: jax.Array, own: jax.Array, **options: Any
) -> Any:
    tx = optax.chain(es, optax.adam(1e-2))
    found = evaluate(es, fitness, params, state, x, own, in_axes=(None, 0), **options)
    updates, state = tx.update(found, state, params)
    return optax.apply_updates(params, updates), state, found


STATE = optax.chain(ES, optax.adam(1e-2)).init(PARAMS)
OWN = jnp.linspace(0.0, 3.0, POPULATION)
ARGS = (PARAMS, STATE, DATA, OWN)
ALONE = jax.jit(lambda *args: generation(ES, *args))


def mesh_of(kind: AxisType, shape: dict[str, int]) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape))


def assert_same(a: Any, b: Any, atol: float) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=0)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_only_fitnesses_are_exchanged(kind: AxisType) -> None:
    mesh = mesh_of(kind, {"members": 8})
    es = ES.on_mesh(mesh)
    args = jax.device_put(ARGS, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda *args: generation(es, *args)).lower(*args).compile()
    assert collectives(step, scalars=True) == {"all-gather": 1}
    assert f"f32[{POPULATION}]" in next(
        x for x in step.as_text().splitlines() if " all-gather(" in x
    )
    params, state, found = step(*args)
    wanted, _, fitnesses = ALONE(*ARGS)
    assert_same(found, fitnesses, 1e-5)
    assert_same(params, wanted, 1e-6)
    for leaf in jax.tree.leaves((params, state[1])):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all((copy == copies[0]).all() for copy in copies)


def test_sums_that_are_added_up() -> None:
    mesh = mesh_of(AxisType.Auto, {"members": 8})
    es = ES.on_mesh(mesh, reduce="psum")
    step = jax.jit(lambda *args: generation(es, *args))
    assert_same(step(*ARGS)[0], ALONE(*ARGS)[0], 1e-6)
    args = jax.device_put(ARGS, NamedSharding(mesh, PartitionSpec()))
    assert collectives(step.lower(*args).compile()) == {"all-gather": 1, "all-reduce": 1}


@pytest.mark.parametrize("spec", [PartitionSpec(None, "model"), PartitionSpec("members", "model")])
def test_the_update_of_sharded_parameters_needs_no_exchange(spec: PartitionSpec) -> None:
    mesh = mesh_of(AxisType.Auto, {"members": 4, "model": 2})
    es = ES.on_mesh(mesh)
    places = {"kernel": NamedSharding(mesh, spec), "bias": NamedSharding(mesh, PartitionSpec())}
    params = jax.device_put(PARAMS, places)
    whole = NamedSharding(mesh, PartitionSpec())
    update = jax.jit(lambda f, p: es.update(f, ES.init(PARAMS), p)[0], out_shardings=places)
    compiled = update.lower(jax.device_put(OWN, whole), params).compile()
    assert collectives(compiled, scalars=True) == {}
    found = jax.jit(lambda p: evaluate(es, fitness, p, STATE, DATA, OWN, in_axes=(None, 0)))(params)
    assert_same(found, ALONE(*ARGS)[2], 1e-5)


def test_members_in_blocks_are_the_members() -> None:
    mesh = mesh_of(AxisType.Auto, {"members": 4, "more": 2})
    for es in (ES, ES.on_mesh(mesh), ES.on_mesh(mesh, ("members", "more"))):
        found = jax.jit(lambda *args, es=es: generation(es, *args, blocks=2)[2])(*ARGS)
        assert_same(found, ALONE(*ARGS)[2], 1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_outside_of_a_program_too(kind: AxisType) -> None:
    mesh = mesh_of(kind, {"members": 4, "model": 2})
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(PARAMS, {"kernel": split, "bias": whole})
    found = evaluate(ES.on_mesh(mesh), fitness, params, STATE, DATA, OWN, in_axes=(None, 0))
    assert_same(found, ALONE(*ARGS)[2], 1e-5)


def test_what_is_summed_apart_is_weighed() -> None:
    mesh = mesh_of(AxisType.Auto, {"members": 8})
    spread = Spread(mesh, ("members",), "auto")
    assert not spread.sums_apart(64, 1)
    assert spread.sums_apart(2**16, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda mesh: ES.on_mesh(mesh, "rows"), "axis=.'rows'. names no axis"),
        (lambda mesh: ES.on_mesh(mesh, reduce="sum"), "reduce"),
        (lambda mesh: optkit.eggroll(24, sigma=0.1).on_mesh(mesh), "24 does not divide over 8"),
        (lambda mesh: generation(ES.on_mesh(mesh), *ARGS, blocks=3), "multiple of 48"),
        (lambda mesh: generation(ES, PARAMS, STATE, DATA, OWN[:5]), "argument 1 has leading axes"),
        (
            lambda mesh: evaluate(ES, lambda p: jnp.zeros(3), PARAMS, STATE),
            r"fitness returned \(3,\)",
        ),
        (
            lambda mesh: evaluate(ES, lambda p, x: x, PARAMS, STATE, DATA, in_axes=1),
            "in_axes=1 for 1 arguments",
        ),
        (lambda mesh: evaluate(ES, fitness, PARAMS, STATE, DATA, OWN), "give in_axes=None"),
    ],
)
def test_wrong_use_is_named(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(mesh_of(AxisType.Auto, {"members": 8}))
