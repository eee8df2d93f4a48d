"""Robust rules: slow oracles on whoever is present, and what no hostile client can do."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.aggregate import Aggregate, Aggregated
from tests.conformance.test_sharding import mesh_of
from tests.golden import oracles_robust as oracles

rules = optkit.aggregate
CLIENTS, HOSTILE = 11, 2
SHAPES = {"w": (2, 3), "s": ()}
SIZE = 7
TIGHT = settings(max_examples=15, deadline=None)
# Each rule that bears HOSTILE of CLIENTS, the clients that it needs, and its oracle.
RULES: dict[str, tuple[Aggregate, int, Any]] = {
    "coordinate_median": (rules.coordinate_median(), 1, lambda v: np.median(v, axis=0)),
    "trimmed_mean": (rules.trimmed_mean(trim=HOSTILE), 5, lambda v: oracles.trimmed_mean(v, 2)),
    "geometric_median": (
        rules.geometric_median(iterations=4, floor=0.3),
        1,
        lambda v: oracles.geometric_median(v, 4, 0.3),
    ),
    "krum": (rules.krum(hostile=HOSTILE), 7, lambda v: oracles.multi_krum(v, 2, 1, False)),
    "multi_krum": (
        rules.multi_krum(hostile=HOSTILE, keep=3),
        7,
        lambda v: oracles.multi_krum(v, 2, 3, False),
    ),
    "bulyan": (rules.bulyan(hostile=HOSTILE), 11, lambda v: oracles.bulyan(v, 2)),
}
ALL = {**RULES, "centered_clipping": (rules.centered_clipping(radius=2.0), 1, None)}
APPLY = {name: jax.jit(rule.apply) for name, (rule, _, _) in ALL.items()}


def tree_of(v: np.ndarray) -> dict[str, jax.Array]:
    """Rows of (W, SIZE) as a tree."""
    v = np.float32(v)
    return {"w": jnp.asarray(v[:, :6].reshape(-1, 2, 3)), "s": jnp.asarray(v[:, 6])}


def flat(tree: Any) -> np.ndarray:
    """A direction as (SIZE,), float64."""
    return np.concatenate([np.ravel(tree["w"]), np.ravel(tree["s"])]).astype(np.float64)


def zeros() -> dict[str, jax.Array]:
    return {path: jnp.zeros(shape) for path, shape in SHAPES.items()}


def vectors(seed: int, clients: int = CLIENTS) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.float32(1.0 + random.standard_normal((clients, SIZE))).astype(np.float64)


def run(name: str, v: np.ndarray, present: np.ndarray | None = None) -> Aggregated:
    """One round of a rule from its first state."""
    here = np.ones(len(v), bool) if present is None else present
    return APPLY[name](tree_of(v), ALL[name][0].init(zeros(), len(v)), present=here)


@pytest.mark.parametrize("name", RULES)
@TIGHT
@given(seed=st.integers(0, 999), away=st.sets(st.integers(0, CLIENTS - 1)))
def test_a_rule_is_its_oracle_on_whoever_is_present(name: str, seed: int, away: set[int]) -> None:
    _, least, oracle = RULES[name]
    v, present = vectors(seed), ~np.isin(np.arange(CLIENTS), list(away))
    sent = np.where(present[:, None], v, np.nan)
    out = run(name, sent, present)
    assert bool(out.moved) == (present.sum() >= least)
    want = oracle(v[present]) if out.moved else np.zeros(SIZE)
    np.testing.assert_allclose(flat(out.direction), want, rtol=1e-5, atol=1e-6)


@TIGHT
@given(seed=st.integers(0, 999), away=st.sets(st.integers(0, CLIENTS - 1)))
def test_centered_clipping_remembers_and_counts_absent_ones_as_its_centre(
    seed: int, away: set[int]
) -> None:
    apply, centre = APPLY["centered_clipping"], np.zeros(SIZE)
    state = ALL["centered_clipping"][0].init(zeros(), CLIENTS)
    for step in range(3):
        v = vectors(seed + step)
        present = ~np.isin((np.arange(CLIENTS) + step) % CLIENTS, list(away))
        want = np.where(present[:, None], v, centre[None])
        centre = oracles.centered_clipping(want, centre, 2.0, 1)
        out = apply(tree_of(np.where(present[:, None], v, np.nan)), state, present=present)
        state = out.state
        assert bool(out.moved) == present.any()
        np.testing.assert_allclose(flat(out.direction), centre, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(out.direction, state.centre)


def test_without_hostile_ones_and_without_bounds_they_are_the_mean() -> None:
    v = vectors(0)
    plain = [
        rules.trimmed_mean(trim=0),
        rules.multi_krum(hostile=0, keep=CLIENTS),
        rules.bulyan(hostile=0),
        rules.centered_clipping(radius=float("inf")),
        rules.geometric_median(floor=1e3),
    ]
    for rule in plain:
        out = rule.apply(tree_of(v), rule.init(zeros(), CLIENTS))
        np.testing.assert_allclose(flat(out.direction), v.mean(0), rtol=2e-6, atol=1e-6)


GARBAGE = st.sampled_from([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e25, 1e12, -1e6])


@pytest.mark.parametrize("name", ALL)
@TIGHT
@given(
    seed=st.integers(0, 99),
    garbage=st.lists(GARBAGE, min_size=HOSTILE, max_size=HOSTILE),
    whole=st.booleans(),
)
def test_hostile_vectors_have_a_bounded_say(
    name: str, seed: int, garbage: list[float], whole: bool
) -> None:
    v = vectors(seed)
    honest = v[HOSTILE:]
    for row, value in enumerate(garbage):
        v[row, : SIZE if whole else 1] = value
    out = run(name, v)
    got = flat(out.direction)
    assert bool(out.moved) and np.isfinite(got).all()
    if name in ("geometric_median", "centered_clipping"):
        # A weighted mean of honest ones, and at most one unit more for each hostile direction.
        assert np.linalg.norm(got) <= 2.0 * np.linalg.norm(honest, axis=1).max()
    else:
        assert (got >= honest.min(0) - 1e-5).all() and (got <= honest.max(0) + 1e-5).all()


@pytest.mark.parametrize("name", RULES)
def test_what_is_shifted_gives_what_is_shifted(name: str) -> None:
    v, shift = vectors(5), np.linspace(-3.0, 3.0, SIZE)
    rule = RULES[name][0]
    if name == "geometric_median":  # it starts from 0: only where it ends is shifted too
        rule = rules.geometric_median(iterations=200, floor=1e-3)
    state, apply = rule.init(zeros(), CLIENTS), jax.jit(rule.apply)
    want = flat(apply(tree_of(v), state).direction) + shift
    got = flat(apply(tree_of(v + shift), state).direction)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_who_lies_at_the_centre_gives_no_nan_and_moves_nothing() -> None:
    rule = rules.centered_clipping(radius=1.0, iterations=3)
    state = rule.init(zeros(), 4)
    out = rule.apply(tree_of(np.zeros((4, SIZE))), state)
    chex.assert_trees_all_equal(out.direction, zeros())
    out = rules.geometric_median().apply(tree_of(np.ones((4, SIZE))), ())
    np.testing.assert_allclose(flat(out.direction), np.ones(SIZE), rtol=1e-6)


def test_more_visible_hostile_ones_than_expected_move_nothing() -> None:
    v = vectors(0)
    v[: 2 * HOSTILE + 2] = np.nan
    for name in ("krum", "multi_krum", "bulyan"):
        out = run(name, v)
        assert not out.moved
        chex.assert_trees_all_equal(out.direction, zeros())
    v[: CLIENTS - 1, 0] = np.inf  # by coordinate
    for name in ("coordinate_median", "trimmed_mean"):
        assert flat(run(name, v).direction)[0] == 0.0


def test_equal_scores_go_to_the_lowest_client_whatever_the_order() -> None:
    v = np.zeros((5, SIZE))
    v[:, 0] = [0.0, 1.0, 10.0, 11.0, 30.0]
    rule = rules.krum(hostile=1)
    for client in (np.arange(5), np.array([4, 2, 0, 1, 3])):
        place = np.argsort(client)
        out = rule.apply(tree_of(v), (), client=client)
        score = oracles.krum_scores(v[place], 1, 1)
        assert flat(out.direction)[0] == v[place][int(np.argmin(score)), 0]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: rules.trimmed_mean(trim=2), "trim=2 needs at least 5"),
        (lambda: rules.krum(hostile=1), "hostile=1 needs at least 5"),
        (lambda: rules.multi_krum(hostile=1, keep=4), "keep=4 needs at least 5"),
        (lambda: rules.bulyan(hostile=1), "bulyan with hostile=1 needs at least 7"),
    ],
)
def test_too_few_clients_ever_are_told_when_traced(build: Any, text: str) -> None:
    rule = build()
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(rule.apply, tree_of(np.zeros((4, SIZE))), ())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: rules.trimmed_mean(trim=-1), "trim=-1"),
        (lambda: rules.krum(hostile=0.5), "hostile=0.5"),
        (lambda: rules.multi_krum(hostile=1, keep=0), "keep=0"),
        (lambda: rules.krum(hostile=1, dialect="flwr"), "did you mean 'flower'"),
        (lambda: rules.geometric_median(floor=0.0), "floor=0.0 must be above 0"),
        (lambda: rules.geometric_median(iterations=0), "iterations=0"),
        (lambda: rules.centered_clipping(radius=0.0), "radius=0.0 must be above 0"),
        (lambda: rules.centered_clipping(radius=float("nan")), "radius=nan"),
    ],
)
def test_wrong_settings_are_named(build: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def collectives(program: Any) -> list[Any]:
    return optkit.aot.find_collectives(program.as_text(), 8)


def test_by_coordinate_rules_need_no_communication_where_coordinates_are_sharded() -> None:
    mesh = mesh_of("auto")
    place = NamedSharding(mesh, P(None, "x"))
    sent = {"w": jax.device_put(jnp.ones((CLIENTS, 16)), place)}
    sizes = {"coordinate_median": 0, "trimmed_mean": 0}
    sizes |= dict.fromkeys(("krum", "multi_krum", "bulyan"), CLIENTS**2)
    sizes |= {"geometric_median": CLIENTS, "centered_clipping": CLIENTS}
    for name, size in sizes.items():
        rule = ALL[name][0]
        state = rule.init({"w": jax.device_put(jnp.ones(16), NamedSharding(mesh, P("x")))}, CLIENTS)
        found = collectives(jax.jit(rule.apply).lower(sent, state).compile())
        assert {c.kind for c in found} <= {"all-reduce"}, (name, found)
        assert sum(c.bytes for c in found) == 4 * size, (name, found)


def test_along_an_axis_each_device_gets_all_clients_at_its_coordinates() -> None:
    mesh, rule = mesh_of("auto"), rules.krum(hostile=2, axis_name="x")
    size = 1600

    def inside(sent: Any) -> Any:
        return rule.apply(sent, ()).direction

    whole = jax.shard_map(inside, mesh=mesh, in_specs=P("x"), out_specs=P())
    found = collectives(jax.jit(whole).lower({"w": jnp.ones((16, size))}).compile())
    by_kind = {c.kind: c.bytes for c in found if c.bytes > 4 * 16**2}
    # A device gets 2 clients' shares from each of 8, and the result.
    assert by_kind == {"all-to-all": 4 * 16 * size // 8, "all-gather": 4 * size}, found


@pytest.mark.parametrize("name", ALL)
def test_float64_leaves_beside_float32_ones_keep_their_dtypes(name: str) -> None:
    rule = ALL[name][0]
    with jax.enable_x64(True):
        sent = jax.tree.map(jnp.asarray, {"a": np.ones((CLIENTS, 2)), "b": np.ones(CLIENTS)})
        sent["b"] = sent["b"].astype(jnp.float32)
        state = rule.init(jax.tree.map(lambda x: x[0], sent), CLIENTS)
        out = jax.eval_shape(rule.apply, sent, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(out.state, state)
        assert out.direction["a"].dtype == jnp.float64 and out.direction["b"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["krum", "centered_clipping"])
def test_clients_along_a_mapped_axis(name: str) -> None:
    options = {"krum": {"hostile": 2}, "centered_clipping": {"radius": 2.0}}[name]
    rule = getattr(rules, name)(**options, axis_name="clients")
    v = vectors(0)
    state = rule.init(zeros(), 1)

    def one(sent: Any, client: jax.Array) -> Any:
        return rule.apply(sent, state, client=client).direction

    each = jax.tree.map(lambda x: x[:, None], tree_of(v))
    got = jax.vmap(one, axis_name="clients")(each, jnp.arange(CLIENTS)[:, None])
    want = flat(run(name, v).direction)
    for row in range(CLIENTS):
        mine = flat(jax.tree.map(lambda x, row=row: x[row], got))
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-6)
