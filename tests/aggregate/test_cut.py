"""Robust rules in ``shard_map`` whose leaves are cut along an axis: norms are of whole vectors."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.test_sharding import mesh_of

rules = optkit.aggregate
CLIENTS = 8
SHAPES = {"both": (8, 2), "one": (4,), "whole": (3,)}
# How leaves are cut, without the axis of clients.
ALONG_Y = {"both": P("y"), "one": P("y"), "whole": P()}
ALONG_TWO = {"both": P("x", "y"), "one": P("y"), "whole": P()}
OPTIONS: dict[str, dict[str, Any]] = {
    "krum": {"hostile": 1},
    "multi_krum": {"hostile": 1, "keep": 3},
    "bulyan": {"hostile": 1},
    "geometric_median": {"iterations": 4, "floor": 0.3},
    "centered_clipping": {"radius": 2.0, "iterations": 2},
}
FORMS = {
    "stacked": (None, "y", ALONG_Y),
    "along": ("x", "y", ALONG_Y),
    "two": (None, ("x", "y"), ALONG_TWO),
}


def sent(seed: int, bad: float | None = None) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    out = {
        k: np.float32(1.0 + rng.standard_normal((CLIENTS, *shape))) for k, shape in SHAPES.items()
    }
    if bad is not None:  # in one block of one leaf of one client
        out["one"][5, 3] = bad
    return jax.tree.map(jnp.asarray, out)


def zeros() -> dict[str, jax.Array]:
    return {k: jnp.zeros(shape) for k, shape in SHAPES.items()}


def mapped(rule: Any, clients: Any, specs: dict[str, P], **options: Any) -> Any:
    """A round on a mesh of 4 by 2: (reports, state, present) -> ``Aggregated``."""
    of_state = jax.tree.map(lambda x: P(), rule.init(zeros(), CLIENTS))
    if of_state:
        of_state = of_state._replace(centre=specs)

    def run(displacement: Any, state: Any, present: Any, client: Any) -> Any:
        return rule.apply(displacement, state, present=present, client=client)

    reports = {k: P(clients, *spec) for k, spec in specs.items()}
    return jax.shard_map(
        run,
        mesh=mesh_of("auto", (4, 2)),
        in_specs=(reports, of_state, P(clients), P(clients)),
        out_specs=optkit.aggregate.Aggregated(specs, of_state, P()),
        **options,
    )


@functools.cache
def compiled(name: str, form: str) -> tuple[Any, Any]:
    clients, cut, specs = FORMS[form]
    rule = getattr(rules, name)(**OPTIONS[name], axis_name=clients, coordinates_axis=cut)
    plain = getattr(rules, name)(**OPTIONS[name])
    return jax.jit(mapped(rule, clients, specs)), jax.jit(plain.apply)


@pytest.mark.sweep
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 999),
    bad=st.sampled_from([None, np.nan, np.inf, 3e38, 1e3]),
    away=st.sampled_from([None, 2]),
)
def test_cut_leaves_give_what_whole_ones_give(
    name: str, form: str, seed: int, bad: float | None, away: int | None
) -> None:
    cut, plain = compiled(name, form)
    present = jnp.asarray(np.arange(CLIENTS) != (CLIENTS if away is None else away))
    state = getattr(rules, name)(**OPTIONS[name]).init(zeros(), CLIENTS)
    for step in range(2):
        reports = sent(seed + step, bad)
        want = plain(reports, state, present=present)
        got = cut(reports, state, present, jnp.arange(CLIENTS))
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
        state = want.state
    assert bool(want.moved)


def test_one_matrix_of_distances_is_all_that_is_sent() -> None:
    rule = rules.krum(hostile=1, coordinates_axis="y")
    step = jax.jit(mapped(rule, None, ALONG_Y))
    program = step.lower(sent(0), (), jnp.ones(CLIENTS, bool), jnp.arange(CLIENTS)).compile()
    found = optkit.aot.find_collectives(program.as_text(), 8)
    assert [(c.kind, c.bytes) for c in found] == [("all-reduce", 4 * CLIENTS**2)]


@pytest.mark.parametrize("name", ["bulyan", "centered_clipping"])
def test_servers_of_their_own_see_nothing_of_each_other(name: str) -> None:
    rule = getattr(rules, name)(**OPTIONS[name], coordinates_axis=())
    both = jnp.stack([sent(seed)["both"] for seed in range(8)])  # a server each

    def run(mine: Any) -> Any:
        return rule.apply(mine[0], rule.init(jnp.zeros((8, 2)), CLIENTS)).direction[None]

    each = jax.shard_map(run, mesh=mesh_of("auto"), in_specs=P("x"), out_specs=P("x"))
    got = jax.jit(each)(both)
    for server in range(8):
        state = rule.init(jnp.zeros((8, 2)), CLIENTS)
        want = rule.apply(both[server], state).direction
        np.testing.assert_allclose(got[server], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_axis_that_was_forgotten_is_named(name: str) -> None:
    rule = getattr(rules, name)(**OPTIONS[name])
    here = (jnp.ones(CLIENTS, bool), jnp.arange(CLIENTS))
    with pytest.raises(ValueError, match=f"{name} has norms .* 'both' .* coordinates_axis='y'"):
        jax.eval_shape(mapped(rule, None, ALONG_Y), sent(0), rule.init(zeros(), CLIENTS), *here)


@pytest.mark.parametrize("name", ["fedvarp", "mifa"])
def test_memories_keep_all_parts_of_a_report_or_none(name: str) -> None:
    plain = getattr(rules, name)()
    specs: Any = {k: P(None, *spec) for k, spec in ALONG_Y.items()}
    state = plain.init(zeros(), CLIENTS)
    held = state._replace(last=specs) if name == "fedvarp" else specs

    def mapped(**options: Any) -> Any:
        rule = getattr(rules, name)(**options)
        return jax.shard_map(
            rule.apply,
            mesh=mesh_of("auto", (4, 2)),
            in_specs=(specs, held),
            out_specs=optkit.aggregate.Aggregated(ALONG_Y, held, P()),
        )

    step, whole = jax.jit(mapped(coordinates_axis="y")), jax.jit(plain.apply)
    for seed, bad in ((0, None), (1, np.nan)):
        want = whole(sent(seed, bad), state)
        got = step(sent(seed, bad), state)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(got))
        state = want.state
    with pytest.raises(ValueError, match=f"{name} leaves out .* 'both' .* coordinates_axis='y'"):
        jax.eval_shape(mapped(), sent(0), state)


@pytest.mark.parametrize("name", ["dp_mean", "dp_centered_clipping"])
def test_private_rules_refuse_to_clip_parts(name: str) -> None:
    entry = optkit.catalogue.get(name)
    rule = entry.factory(**entry.example)

    def run(displacement: Any) -> Any:
        return rule.apply(displacement, rule.init({"both": displacement["both"][0]}, CLIENTS))

    cut = {"both": P(None, "y")}
    whole = jax.shard_map(run, mesh=mesh_of("auto", (4, 2)), in_specs=(cut,), out_specs=P("y"))
    with pytest.raises(ValueError, match=f"{name} bounds the length .* 'both' .* 'y'.*jax.jit on"):
        jax.eval_shape(whole, {"both": sent(0)["both"]})


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="both have 'x'"):
        rules.krum(hostile=1, axis_name="x", coordinates_axis=("y", "x"))
    with pytest.raises(TypeError, match="coordinates_axis=3 must be"):
        rules.bulyan(hostile=1, coordinates_axis=3)
    rule = rules.krum(hostile=1, coordinates_axis="y")
    here = (jnp.ones(CLIENTS, bool), jnp.arange(CLIENTS))
    with pytest.raises(ValueError, match="check_vma=True"):
        jax.eval_shape(mapped(rule, None, ALONG_Y, check_vma=False), sent(0), (), *here)
    with pytest.raises(NameError, match="krum averages over the axis 'y'"):
        rule.apply(sent(0), ())
