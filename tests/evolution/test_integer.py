"""Integer evolution: arithmetic against NumPy, noise, votes, and what a run promises."""

import functools
import itertools
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from optkit.evolution import integer
from optkit.evolution.integer import IntegerPerturbed, format, voting
from optkit.schedules import egg_alpha

WIDTH, MEMBERS = 4, 16


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def clip(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -127, 127)


@pytest.mark.parametrize(("fan_in", "rank"), [(16, 1), (9, 2)])
def test_a_product_is_that_of_each_member_alone(fan_in: int, rank: int) -> None:
    pairs, out, shift = 3, 5, 6
    x, w = drawn(0, pairs, 2, fan_in), drawn(1, out, fan_in)
    a, b = drawn(2, pairs, out, rank), drawn(3, pairs, fan_in, rank)
    leaf = IntegerPerturbed(*map(jnp.asarray, (w, a, b)), shift)
    got = integer.linear(jnp.asarray(x), leaf)
    wide = [y.astype(np.int64) for y in (x, w, a, b)]
    for k in range(pairs):
        for m, sign in enumerate((1, -1)):
            noise = (sign * wide[2][k] @ (wide[3][k].T @ wide[0][k, m])) >> shift
            want = clip((wide[1] @ wide[0][k, m] + noise) // (16 * math.isqrt(fan_in)))
            np.testing.assert_array_equal(got[k, m], want)
    np.testing.assert_array_equal(
        integer.linear(jnp.asarray(x), jnp.asarray(w)),
        clip((wide[0] @ wide[1].T) // (16 * math.isqrt(fan_in))),
    )


def test_rows_and_vectors_are_those_of_each_member() -> None:
    rows, a, b = drawn(0, 7, 4), drawn(1, 2, 7, 1), drawn(2, 2, 4, 1)
    tokens = np.array([[3, 0], [6, 6]])
    got = integer.embed(IntegerPerturbed(*map(jnp.asarray, (rows, a, b)), 8), jnp.asarray(tokens))
    noise = drawn(3, 2, 4).astype(np.int16) * 127
    vectors = integer.vector(IntegerPerturbed(jnp.asarray(rows[0]), jnp.asarray(noise), None, 8))
    for k in range(2):
        for m, sign in enumerate((1, -1)):
            own = sign * a[k, tokens[k, m]].astype(np.int64)
            want = clip(rows[tokens[k, m]] + ((own * b[k, :, 0]) >> 8))
            np.testing.assert_array_equal(got[k, m], want)
            wide = sign * noise[k].astype(np.int64)
            np.testing.assert_array_equal(vectors[k, m], clip(rows[0] + (wide >> 8)))


def test_quotients_are_floors_for_every_numerator_and_divisor() -> None:
    # Rows of 127 numbers whose sum of magnitudes is 127 d, times every weight: all products.
    weights = np.arange(-127, 128)
    quotient = jax.jit(format.quotient)
    products = np.unique(np.multiply.outer(weights, weights))
    for low in range(1, 128, 32):
        divisors = np.arange(low, min(low + 32, 128))[:, None]
        grid = np.broadcast_to(products, (len(divisors), len(products)))
        np.testing.assert_array_equal(
            quotient(jnp.asarray(grid, jnp.int32), jnp.asarray(divisors, jnp.int32)),
            clip(grid // divisors),
        )


@pytest.mark.parametrize("n", [4, 6])
def test_norm_divides_by_the_mean_and_never_by_zero(n: int) -> None:
    x, w = drawn(n, 40, n), drawn(n + 1, n)
    x[0], x[1] = 0, 0
    x[1, 0] = 1  # a mean below one: the reference divides by zero
    mean = np.maximum(1, np.abs(x.astype(np.int64)).sum(axis=1, keepdims=True) // n)
    got = integer.norm(jnp.asarray(x), jnp.broadcast_to(jnp.asarray(w), x.shape))
    np.testing.assert_array_equal(got, clip((x.astype(np.int64) * w) // mean))
    assert got[1, 0] == w[0] and not np.any(got[0])


def test_weights_of_logits_are_floors_of_powers() -> None:
    for k, value in enumerate(format.exp2_table().tolist()):
        # 16 * 2**(k/16) is the 16th root of 2**(64 + k).
        assert value**16 <= 2 ** (64 + k) < (value + 1) ** 16


def test_integer_logarithms_equal_the_table_of_a_gigabyte() -> None:
    bounds = np.ceil(np.exp2(4 + np.arange(1, 16 * 24) / 16)).astype(np.int64)
    near = (bounds[:, None] + np.arange(-2, 3)).ravel()
    some = np.random.default_rng(0).integers(2**17, 2**28, 20_000)
    near = near[near >= 16]
    total = np.unique(np.concatenate([np.arange(16, 2**17), near, some, 2 ** np.arange(4, 28)]))
    got = np.asarray(jax.jit(format.log2_of)(jnp.asarray(total, jnp.int32)))
    table = (np.log2(total / 16) * 16).astype(np.int32)
    np.testing.assert_array_equal(got, table)
    for value, log in zip(near.tolist(), got[np.searchsorted(total, near)].tolist(), strict=True):
        # The largest log with 16 * 2**(log/16) <= value, by whole numbers alone.
        assert 2 ** (64 + log) <= value**16 < 2 ** (64 + log + 1)


@hypothesis.given(st.lists(st.integers(-127, 127), min_size=6, max_size=6), st.integers(0, 5))
def test_likelihoods_are_near_those_of_floats(logits: list[int], target: int) -> None:
    got = integer.log2_likelihood(jnp.array(logits, jnp.int8), jnp.array(target)).item() / 16
    exact = logits[target] / 16 - math.log2(sum(2.0 ** (v / 16) for v in logits))
    assert exact - 1e-6 <= got <= exact + 1 / 16 + 0.1  # rounded down: weights, and their log


def test_tables_have_the_normal_law_of_their_rounding() -> None:
    near, cut = (integer.noise_table(16, rounding=r) for r in ("nearest", "truncate"))
    assert near.min() > -128 and near.dtype == np.int8
    # Rounding adds 1/12 to the variance; cutting takes 2 sigma * E|z| / 2 - 1/3 from it.
    assert near.var() == pytest.approx(256 + 1 / 12, rel=0.02)
    assert cut.var() == pytest.approx(256 - 16 * math.sqrt(2 / math.pi) + 1 / 3, rel=0.02)
    assert np.mean(cut == 0) == pytest.approx(2 * np.mean(near == 0), rel=0.1)
    np.testing.assert_array_equal(cut[np.abs(near) == 0], 0)
    assert np.max(np.abs(near.astype(int)) - np.abs(cut.astype(int))) == 1
    np.testing.assert_array_equal(near[: 2**8], integer.noise_table(8))
    assert np.any(near != integer.noise_table(16, seed=1))


def tree(layers: int = 1) -> dict[str, Any]:
    return integer.egg_init(jax.random.key(0), width=WIDTH, layers=layers, vocab=8)


def few() -> dict[str, Any]:
    """A matrix, a stack of matrices and a stack of vectors."""
    whole = tree()
    return {"head": whole["head"], "blocks": {k: whole["blocks"][k] for k in ("up", "norm1")}}


TOKENS = np.random.default_rng(5).integers(0, 8, (4, MEMBERS // 2, 3)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2, 3))
def generation(es: Any, state: Any, params: Any, hidden: Any, tokens: Any) -> Any:
    population = es.perturb(params, state)
    scores, hidden = integer.egg_scores(population, tokens, hidden)
    updates, state = es.update(scores, state, params)
    return state, optax.apply_updates(params, optax.tree.scale(-1, updates)), hidden


def run(es: Any, start: Any, steps: range) -> Any:
    for t in steps:
        start = generation(es, *start, TOKENS[t])
    return start


def begin(es: Any) -> Any:
    params = tree()
    return es.init(params), params, integer.egg_hidden(params, MEMBERS)


def test_without_noise_members_are_the_model_itself() -> None:
    es = integer.egg(MEMBERS, table=np.zeros(2**16 + 99, np.int8))
    params = tree()
    hidden = integer.egg_hidden(params, MEMBERS)
    population = es.perturb(params, es.init(params))
    tokens = jnp.asarray(np.repeat(TOKENS[0], 2, axis=0))
    of_members = integer.egg_scores(population, jnp.asarray(TOKENS[0]), hidden)
    of_model = integer.egg_scores(params, tokens, hidden)
    jax.tree.map(np.testing.assert_array_equal, of_members, of_model)


def test_a_byte_0_forgets_what_was_before() -> None:
    params = tree()
    full = jnp.asarray(drawn(0, 2, 1, WIDTH))
    fresh = integer.egg_logits(params, jnp.array([0, 3]), jnp.zeros_like(full))
    carried = integer.egg_logits(params, jnp.array([0, 3]), full)
    np.testing.assert_array_equal(fresh[1][0], carried[1][0])
    assert np.any(np.asarray(fresh[1][1]) != np.asarray(carried[1][1]))


def test_runs_resume_bit_for_bit_and_stay_int8(tmp_path: Any) -> None:
    es = integer.egg(MEMBERS, alpha=0.4)
    whole = run(es, begin(es), range(4))
    state, params, hidden = run(es, begin(es), range(2))
    leaves, structure = jax.tree.flatten((params, hidden, state.es_step))
    np.savez(tmp_path / "run.npz", *leaves, key=jax.random.key_data(state.es_key))
    with np.load(tmp_path / "run.npz") as stored:
        read = [jnp.asarray(stored[f"arr_{i}"]) for i in range(len(leaves))]
        key = jax.random.wrap_key_data(jnp.asarray(stored["key"]))
    params, hidden, step = jax.tree.unflatten(structure, read)
    after = run(es, (integer.EggState(key, step), params, hidden), range(2, 4))
    jax.tree.map(np.testing.assert_array_equal, after[1:], whole[1:])
    assert all(p.dtype == jnp.int8 for p in jax.tree.leaves(after[1]))
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after[1], tree())), strict=True)
    )


def test_pairs_a_few_at_a_time_score_as_all_at_once() -> None:
    es, params = integer.egg(MEMBERS), tree()
    fitness = jax.jit(integer.egg_fitness, static_argnums=0, static_argnames="together")
    given = (es, params, es.init(params), TOKENS[0], integer.egg_hidden(params, MEMBERS))
    jax.tree.map(np.testing.assert_array_equal, fitness(*given), fitness(*given, together=2))
    with pytest.raises(ValueError, match="together=3 pairs"):
        fitness(*given, together=3)


@pytest.mark.slow
def test_64_bit_mode_changes_nothing() -> None:
    es = integer.egg(MEMBERS, alpha=egg_alpha())
    narrow = run(es, begin(es), range(1))
    with jax.enable_x64(True):
        wide = run(es, begin(es), range(1))
    jax.tree.map(np.testing.assert_array_equal, narrow[1:], wide[1:])
    assert all(x.dtype == jnp.int8 for x in jax.tree.leaves(wide[1:]))


def test_empty_and_missing_leaves_pass() -> None:
    es = integer.egg(4)
    params = {"none": None, "empty": jnp.zeros((0, 3), jnp.int8), "w": jnp.zeros(3, jnp.int8)}
    updates, _ = es.update(jnp.array([1.0, 0.0, 2.0, 3.0]), es.init(params), params)
    assert updates["none"] is None and updates["empty"].shape == (0, 3)


def updates_of(es: Any, fitness: Any, **extra: Any) -> Any:
    params = few()
    state = es.init(params)
    return es.update(jnp.asarray(fitness), state, params, **extra)[0]


FITNESS = np.random.default_rng(9).permutation(MEMBERS).astype(np.int32)


def test_chunks_given_members_and_signs_make_no_difference() -> None:
    es = integer.egg(MEMBERS, alpha=0.4)
    want = updates_of(es, FITNESS)
    params = few()
    others = [
        updates_of(integer.egg(MEMBERS, alpha=0.4, together=3), FITNESS),
        updates_of(es, FITNESS, members=es.perturb(params, es.init(params))),
        updates_of(es, integer.pair_signs(jnp.asarray(FITNESS), MEMBERS)),
        updates_of(integer.egg(MEMBERS, alpha=0.4, maximize=False), -FITNESS),
    ]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, want)


def test_swapped_partners_turn_the_update_round_and_ties_stop_it() -> None:
    es = integer.egg(MEMBERS, alpha=0.4)
    forth = updates_of(es, FITNESS)
    back = updates_of(es, FITNESS.reshape(-1, 2)[:, ::-1].reshape(-1))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), forth, back)
    ties = updates_of(es, np.ones(MEMBERS, np.float32))
    assert not any(np.any(u) for u in jax.tree.leaves(ties))


def test_where_nothing_voted_nothing_moves_at_alpha_1() -> None:
    ties = np.zeros(MEMBERS, np.int32)
    stay, down = (
        updates_of(integer.egg(MEMBERS, alpha=1.0, unmoved=u), ties) for u in ("stay", "down")
    )
    assert not any(np.any(u) for u in jax.tree.leaves(stay))
    assert all(np.all(u == 1) for u in jax.tree.leaves(down))  # the reference: all one down


def test_steps_stop_at_127_and_large_votes_do_not_overflow() -> None:
    leaf = jnp.array([127, -127, 126, 0], jnp.int8)
    total = jnp.array([2**30, -(2**30), 2**30, 15], jnp.int32)
    got = voting.moved(leaf, total, 16 * 16, 4, False)
    assert got.tolist() == [127, -127, 127, 0]


def test_a_share_alpha_moves_when_fitness_is_noise() -> None:
    params = {"w": jnp.zeros((32, 32), jnp.int8)}
    for alpha in (0.5, 0.1):
        es = integer.egg(512, alpha=alpha)
        signs = jnp.asarray(np.random.default_rng(0).choice([-1, 1], 256).astype(np.int8))
        updates, _ = es.update(signs, es.init(params), params)
        # isqrt is exact here, and quantiles are rounded down to 1/16.
        assert float(np.mean(np.asarray(updates["w"]) != 0)) == pytest.approx(alpha, rel=0.2)


def test_alpha_falls_as_the_paper_has_it() -> None:
    steps = np.arange(0, 3000, 500)
    np.testing.assert_allclose(egg_alpha()(jnp.asarray(steps)), 1 / (0.015 * steps + 1), rtol=1e-6)
    assert float(egg_alpha(0.25)(700)) == 0.25
    for bits, share in ((4, 1.0), (4, 0.5), (6, 0.01)):
        constant = voting.quantile(share, bits)
        assert int(voting.quantile(jnp.float32(share), bits)) == constant


def test_noise_lasts_as_long_as_it_is_reused() -> None:
    params = few()
    for reuse, kept in ((1, [0, 0, 0]), (2, [1, 0, 1]), (0, [1, 1, 1])):
        es = integer.egg(4, noise_reuse=reuse)
        state = es.init(params)
        heads = [
            es.perturb(params, state._replace(es_step=jnp.int32(t)))["head"].a for t in range(4)
        ]
        same = [int(np.array_equal(a, b)) for a, b in itertools.pairwise(heads)]
        assert same == kept


def test_layers_leaves_and_pairs_have_noise_of_their_own() -> None:
    params = tree(layers=2)
    es = integer.egg(MEMBERS)
    population = es.perturb(params, es.init(params))
    blocks = population["blocks"]
    cuts = [blocks[name].a[layer].ravel() for name in ("Wf", "Uf") for layer in range(2)]
    assert len({x.tobytes() for x in map(np.asarray, cuts)}) == 4
    assert len(np.unique(np.asarray(population["head"].a)[..., 0], axis=0)) == MEMBERS // 2
    some = es.perturb(params, es.init(params), jnp.array([5, 2]))
    np.testing.assert_array_equal(some["head"].b, population["head"].b[jnp.array([5, 2])])


def test_fitness_is_compared_as_it_is_given() -> None:
    close = jnp.array([2**24, 2**24 + 1, -(2**30), -(2**30) + 1], jnp.int32)  # equal in float32
    assert integer.pair_signs(close, 4).tolist() == [-1, -1]
    lost = jnp.array([jnp.nan, -jnp.inf, jnp.nan, -5.0, 1.0, jnp.nan])
    assert integer.pair_signs(lost, 6).tolist() == [0, -1, 1]
    assert integer.pair_signs(lost, 6, maximize=False).tolist() == [-1, -1, 1]


@hypothesis.given(
    st.sampled_from([1, 5, 13]).flatmap(
        lambda n: st.lists(st.integers(-1, 1), min_size=n, max_size=n)
    )
)
def test_ternary_numbers_come_back_from_bytes(numbers: list[int]) -> None:
    packed = integer.pack_ternary(jnp.array(numbers, jnp.int8))
    filled = numbers + [0] * (-len(numbers) % 5)
    want = [sum((t + 1) * 3**k for k, t in enumerate(five)) for five in np.reshape(filled, (-1, 5))]
    assert packed.tolist() == want
    assert integer.unpack_ternary(packed, len(numbers)).tolist() == numbers


def test_eight_devices_give_the_bits_of_one_and_exchange_votes_alone() -> None:
    es = integer.egg(MEMBERS, alpha=0.4)
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_each(state: Any, params: Any, hidden: Any, tokens: Any) -> Any:
        own = MEMBERS // 16
        pairs = jax.lax.axis_index("pop") * own + jnp.arange(own, dtype=jnp.int32)
        scores, hidden = integer.egg_scores(es.perturb(params, state, pairs), tokens, hidden)
        packed = integer.pack_ternary(integer.pair_signs(scores, 2 * own))
        every = jax.lax.all_gather(packed, "pop")
        signs = jax.vmap(lambda byte: integer.unpack_ternary(byte, own))(every).reshape(-1)
        updates, state = es.update(signs, state, params)
        return state, optax.apply_updates(params, optax.tree.scale(-1, updates)), hidden

    shared = jax.jit(
        jax.shard_map(
            on_each,
            mesh=mesh,
            in_specs=(P(), P(), P("pop"), P("pop")),
            out_specs=(P(), P(), P("pop")),
            check_vma=False,
        )
    )
    start = begin(es)
    compiled = shared.lower(*start, TOKENS[0]).compile()
    text = compiled.as_text()
    assert text.count(" all-gather(") + text.count(" all-gather-start(") == 1
    assert not any(word in text for word in ("all-reduce", "reduce-scatter", "all-to-all"))
    for t in range(2):
        start = shared(*start, TOKENS[t])
    want = run(es, begin(es), range(2))
    jax.tree.map(np.testing.assert_array_equal, start[1:], want[1:])


def test_wrong_use_is_answered() -> None:
    with pytest.raises(ValueError, match="population=5 must be even"):
        integer.egg(5)
    with pytest.raises(ValueError, match=r"alpha=1.5 is outside"):
        integer.egg(4, alpha=1.5)
    es = integer.egg(4)
    with pytest.raises(ValueError, match=r"leaf 'w' is of float32.*eggroll"):
        es.init({"w": jnp.zeros((2, 2))})
    with pytest.raises(ValueError, match="neither matrix nor vector"):
        es.init({"w": jnp.zeros((), jnp.int8)})
    with pytest.raises(
        ValueError, match=r"takes 40 entries and the table has 16; raise table_bits"
    ):
        integer.egg(4, table=np.zeros(16, np.int8), table_bits=4).init({"w": drawn(0, 20, 20)})
    params = {"w": jnp.zeros(3, jnp.int8)}
    with pytest.raises(ValueError, match="params"):
        es.update(jnp.ones(4), es.init(params))
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(4,\)"):
        es.update(jnp.ones(3), es.init(params), params)
    with pytest.raises(ValueError, match="members has 1 leaves"):
        es.update(jnp.ones(4), es.init(params), params, members={"w": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match="3 streams, which do not divide the 4 members"):
        integer.egg_scores(tree(), jnp.zeros((3, 2), jnp.uint8), integer.egg_hidden(tree(), 4))
