"""What every aggregate of the catalogue keeps."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.aggregate import Reports
from tests.aggregate.rules import CLIENTS, NAMES, build, params, rounds, run, sent
from tests.conformance.test_sharding import mesh_of
from tests.conformance.trees import numbers

# Sums over clients in another order, or in parts.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def close(got: Any, want: Any) -> None:
    chex.assert_trees_all_close(numbers(got), numbers(want), **CLOSE)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.sweep
def test_compiled_equals_eager(name: str) -> None:
    rule = build(name)
    close(run(rule, rounds()), run(rule, rounds(), rule.apply))


@pytest.mark.sweep
def test_state_and_direction_keep_shapes_and_dtypes(name: str) -> None:
    rule = build(name)
    state = rule.init(params(), CLIENTS)
    out = run(rule, rounds())
    for each in out:
        chex.assert_trees_all_equal_shapes_and_dtypes(each.direction, params())
        chex.assert_trees_all_equal_shapes_and_dtypes(each.state, state)
        assert each.moved.shape == () and each.moved.dtype == bool


@pytest.mark.sweep
def test_16_bit_reports_give_float32(name: str) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sent(0))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    got, want = (run(build(name), [(x, {})])[0].direction for x in (half, wide))
    chex.assert_trees_all_equal_dtypes(got, params())
    close(got, want)


def test_the_order_of_clients_does_not_matter(name: str) -> None:
    order = np.random.default_rng(0).permutation(CLIENTS)
    turned = [
        (
            jax.tree.map(lambda x: x[order], displacement),
            {key: value[order] for key, value in given.items()},
        )
        for displacement, given in rounds()
    ]
    close(run(build(name), turned), run(build(name), rounds()))


def test_what_is_absent_is_not_read(name: str) -> None:
    spoilt = []
    for displacement, given in rounds():
        away = ~given["present"]
        spoilt.append((jax.tree.map(lambda x, i=away: x.at[i].set(jnp.nan), displacement), given))
    got, want = run(build(name), spoilt), run(build(name), rounds())
    chex.assert_trees_all_equal(numbers(got), numbers(want))


@pytest.mark.sweep
def test_an_empty_round_keeps_finite(name: str) -> None:
    rule = build(name)
    nobody = (sent(3), {"present": jnp.zeros(CLIENTS, bool)})
    first, empty, again = run(rule, [rounds()[0], nobody, rounds()[1]])
    chex.assert_tree_all_finite(numbers((first, empty, again)))


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in NAMES if build(name).fold])
def test_chunks_give_what_the_whole_gives(name: str) -> None:
    rule = build(name)
    assert rule.fold is not None
    state = rule.init(params(), CLIENTS)
    for displacement, given in rounds():
        whole = rule.apply(displacement, state, **given)
        carry = rule.fold.start(params(), state)
        for part in np.split(np.arange(CLIENTS), [3, 4]):
            carry = rule.fold.add(
                carry,
                Reports(
                    jax.tree.map(lambda x, part=part: x[part], displacement),
                    *(given[key][part] for key in ("client", "weight", "present")),
                ),
            )
        close(rule.fold.finish(carry), whole)
        state = whole.state


@pytest.mark.sweep
@pytest.mark.parametrize("spec", [P("x"), P(None, "x")], ids=["clients", "coordinates"])
def test_clients_or_coordinates_on_a_mesh_change_nothing(name: str, spec: P) -> None:
    mesh, rule = mesh_of("auto"), build(name)

    def leaf(x: jax.Array) -> jax.Array:
        whole = len(spec) > x.ndim or any(axis and x.shape[i] % 8 for i, axis in enumerate(spec))
        return jax.device_put(x, NamedSharding(mesh, P() if whole else spec))

    placed = [(jax.tree.map(leaf, displacement), given) for displacement, given in rounds()]
    assert not placed[0][0]["up/kernel"].sharding.is_fully_replicated
    close(run(rule, placed), run(rule, rounds()))


@pytest.mark.sweep
def test_clients_along_an_axis_name_give_what_a_leading_axis_gives(name: str) -> None:
    mesh = mesh_of("auto")
    rule = build(name, axis_name="x")

    def one(displacement: Any, state: Any, weight: Any, present: Any) -> Any:
        out = rule.apply(displacement, state, weight=weight, present=present)
        return out.direction, out.moved, out.state

    def first() -> Any:
        return rule.init(params(), 1)

    probe = jax.vmap(first, axis_name="x", axis_size=CLIENTS)
    specs = optkit.worker_specs(jax.eval_shape(probe), "x")
    state = jax.jit(jax.shard_map(first, mesh=mesh, in_specs=(), out_specs=specs))()
    step = jax.jit(
        jax.shard_map(
            one, mesh=mesh, in_specs=(P("x"), specs, P("x"), P("x")), out_specs=(P(), P(), specs)
        )
    )
    reports = rounds(2)
    for want, (displacement, given) in zip(run(build(name), reports), reports, strict=True):
        got, moved, state = step(displacement, state, given["weight"], given["present"])
        close((got, moved), (want.direction, want.moved))


@pytest.mark.sweep
def test_a_server_runs_it_in_chunks(name: str) -> None:
    server = optkit.server_step(build(name), optax.sgd(1.0))
    ends = jax.tree.map(jnp.negative, sent(0))

    def local(x: Any, end: Any) -> Any:
        del x
        return end

    first = params()
    whole, whole_state = server.step(first, server.init(first, CLIENTS), sent(0))
    round_of = jax.jit(optkit.federated_round(local, server, chunk=3))
    parts, parts_state, info = round_of(first, server.init(first, CLIENTS), ends)
    close((parts, parts_state), (whole, whole_state))
    assert int(info.reports) == CLIENTS
    assert float(info.bytes_up) == CLIENTS * optkit.tree.tree_bytes(first)
