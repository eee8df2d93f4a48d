"""The policies that choose entries, columns, channels and layers: the laws of their papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import masks
from tests.transforms.driver import gradients, run

SHAPES = {"kernel": (5, 7), "stack": (2, 4, 6), "bias": (6,)}
PARAMS = jax.tree.map(jnp.asarray, gradients(1, 1, SHAPES)[0])
GRADS = gradients(0, 9, SHAPES)


def kept(policy, params=PARAMS, state="hold"):
    """The masks that init chooses."""
    tx = optkit.update_mask(optax.sgd(1.0), policy, state=state)
    return jax.tree.map(np.asarray, jax.jit(tx.init)(params).kept)


def follow(tx, params=PARAMS, grads=GRADS):
    """Masks and parameters after every step, stacked."""
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *grads)

    def step(carry, g):
        params, state = carry
        u, state = tx.update(g, state, params)
        params = optax.apply_updates(params, u)
        return (params, state), (state.kept, params)

    scan = jax.jit(lambda g: jax.lax.scan(step, (params, tx.init(params)), g)[1])
    return jax.tree.map(np.asarray, scan(stacked))


@functools.cache
def chooser(policy):
    return jax.jit(optkit.update_mask(optax.sgd(1.0), policy).init)


@given(st.integers(0, 999), st.sampled_from([1, 12, 35]))
def test_magnitude_and_random_keep_exactly_k(seed, count):
    params = {"kernel": np.float32(np.random.default_rng(seed).integers(-2, 3, (5, 7)))}
    assert chooser(masks.random(count))(params).kept["kernel"].sum() == count
    ones = np.asarray(chooser(masks.magnitude(count))(params).kept["kernel"])
    assert ones.sum() == count
    size = np.abs(params["kernel"])
    assert count == 35 or size[ones].min() >= size[~ones].max()


def test_pafi_takes_the_smallest_of_all_leaves():
    ones = kept(masks.magnitude(9, smallest=True, over="all"))
    size = np.concatenate([np.abs(PARAMS[k]).reshape(-1) for k in ("kernel", "stack")])
    chosen = np.concatenate([ones[k].reshape(-1) for k in ("kernel", "stack")])
    assert chosen.sum() == 9 and size[chosen].max() <= size[~chosen].min()


def test_random_draws_anew_after_an_interval_and_never_by_neighbours():
    tx = optkit.update_mask(optax.sgd(0.0), masks.random(0.3, interval=3, key=5))
    found, _ = follow(tx)
    changed = [bool(np.any(a != b)) for a, b in zip(found["kernel"], found["kernel"][1:])]  # noqa: B905
    assert changed == [False, False, True, False, False, True, False, False]
    alone = kept(masks.random(0.3, key=5), {"kernel": PARAMS["kernel"]})
    np.testing.assert_array_equal(alone["kernel"], kept(masks.random(0.3, key=5))["kernel"])


def plain_lift(matrix, count, rank):
    u, s, v = np.linalg.svd(np.float64(matrix), full_matrices=False)
    score = np.abs((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(-1)
    out = np.zeros(score.size, bool)
    out[np.argsort(-score, kind="stable")[:count]] = True
    return out.reshape(matrix.shape)


def test_lift_keeps_what_stands_out_at_low_rank_in_every_matrix_of_a_stack():
    ones = kept(masks.lift(1, 2))
    np.testing.assert_array_equal(ones["kernel"], plain_lift(PARAMS["kernel"], 12, 2))
    for own, matrix in zip(ones["stack"], PARAMS["stack"], strict=True):
        np.testing.assert_array_equal(own, plain_lift(matrix, 10, 2))
    assert ones["bias"] is None


def test_lift_with_a_filter_of_full_rank_is_magnitude():
    for rank in (5, 99):
        np.testing.assert_array_equal(
            kept(masks.lift(1, rank))["kernel"], kept(masks.magnitude(12))["kernel"]
        )


def test_lift_changes_nothing_between_its_choices():
    """Masked entries stay bit for bit, and there are always as many that train."""
    policy = masks.lift(1, 2, interval=4)
    found, params = follow(optkit.update_mask(optkit.adamw(0.3), policy))
    before = np.asarray(PARAMS["kernel"])
    for t, (mask, now) in enumerate(zip(found["kernel"], params["kernel"], strict=True)):
        assert mask.sum() == 12
        np.testing.assert_array_equal(now[~mask], before[~mask])
        if t % 4 != 3 and t:
            np.testing.assert_array_equal(mask, found["kernel"][t - 1])
        elif t:
            np.testing.assert_array_equal(mask, plain_lift(before, 12, 2))
        before = now


@pytest.mark.parametrize("state", ["hold", "zero"])
def test_id3_unmasks_its_budget_and_never_masks_again(state):
    policy = masks.id3(20, 6, exp=0.7, eps=0.01)
    found, params = follow(optkit.update_mask(optkit.adamw(0.1), policy, state=state))
    flat = np.concatenate([found[k].reshape(9, -1) for k in SHAPES], axis=1)
    np.testing.assert_array_equal(flat.sum(1), [4, 8, 11, 14, 17, 20, 20, 20, 20])
    assert np.all(flat[1:] >= flat[:-1])
    start = jax.tree.map(np.asarray, PARAMS)
    moved = np.concatenate([(params[k] != start[k]).reshape(9, -1) for k in SHAPES], axis=1)
    np.testing.assert_array_equal(moved, flat)


def test_id3_with_equal_scores_still_unmasks_the_right_number():
    """Where the reference masks entries again that train already."""
    params, g = {"w": jnp.ones(12)}, {"w": jnp.ones(12)}
    tx = optkit.id3(0.1, budget=7, steps=3)
    state, update = tx.init(params), jax.jit(tx.update)
    for wanted in (3, 5, 7, 7):
        u, state = update(g, state, params)
        assert int(jnp.sum(u["w"] != 0)) == wanted


def test_id3_takes_a_share_and_compares_all_leaves():
    params = {"a": jnp.ones(10), "b": jnp.ones(10)}
    g = {"a": jnp.full(10, 1.0), "b": jnp.full(10, 2.0)}
    tx = optkit.id3(0.1, budget=0.25, steps=1)
    u, _ = tx.update(g, tx.init(params), params)
    assert (int((u["a"] != 0).sum()), int((u["b"] != 0).sum())) == (0, 5)


def test_paca_trains_the_same_number_of_inputs_in_every_matrix():
    ones = kept(masks.paca(2))
    assert ones["kernel"].shape == (5, 1) and ones["kernel"].sum() == 2
    assert ones["stack"].shape == (2, 4, 1)
    np.testing.assert_array_equal(ones["stack"].sum((1, 2)), [2, 2])
    state = optkit.update_mask(optax.trace(0.9), masks.paca(2), state="drop").init(PARAMS)
    assert state.inner.trace["kernel"].shape == (2, 7)  # (rank, fan_out)
    assert state.inner.trace["bias"] == optax.MaskedNode()


def test_paca_knows_inputs_by_fan_and_not_by_axis():
    dims = optkit.MatrixDims(1, 0)  # (fan_out, fan_in)
    assert kept(masks.paca(2, dims=dims), {"w": PARAMS["kernel"]})["w"].shape == (1, 7)


def test_paca_of_more_columns_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match="rank=6 is more than the 5 input columns of leaf 'kernel'"
    ):
        kept(masks.paca(6))


def test_paca_with_alpha_is_a_learning_rate_times_alpha_over_rank():
    """The reference trains ``W[columns] / s``: a trap for who forgets s."""
    rate, s = 0.01, 4.0 / 2
    w, grads = {"kernel": PARAMS["kernel"]}, [{"kernel": g["kernel"]} for g in GRADS]
    tx = optkit.update_mask(
        optkit.adamw(s * rate, eps=0.0, weight_decay=0.0), masks.paca(2, key=1), state="drop"
    )
    _, params, state = run(tx, w, grads)
    rows = np.asarray(state.kept["kernel"])
    stored = {"kernel": w["kernel"][rows] / s}
    theirs = [{"kernel": s * g["kernel"][rows]} for g in grads]
    _, want, _ = run(optkit.adamw(rate, eps=0.0, weight_decay=0.0), stored, theirs)
    got = np.asarray(params["kernel"][-1])[rows]
    np.testing.assert_allclose(got, s * np.asarray(want["kernel"][-1]), atol=1e-5)


BLOCKS = {
    f"blocks_{i}": {
        "up": {"kernel": (3, 8), "bias": (8,)},
        "gate": {"kernel": (3, 8)},
        "down": {"kernel": (8, 3)},
    }
    for i in range(2)
}
MODEL = jax.tree.map(
    lambda shape: jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape)),
    BLOCKS, is_leaf=lambda x: isinstance(x, tuple),
)  # fmt: skip


@pytest.mark.parametrize("select", ["random", "weight"])
def test_s2ft_chooses_the_same_channels_of_coupled_matrices(select):
    ones = kept(masks.s2ft(3, select=select), MODEL)
    for block in ones.values():
        own = block["up"]["kernel"][0]
        assert own.sum() == 3
        np.testing.assert_array_equal(block["gate"]["kernel"][0], own)
        np.testing.assert_array_equal(block["down"]["kernel"][:, 0], own)
        assert block["up"]["bias"] is None  # frozen, as all that is not coupled


def test_s2ft_by_weight_takes_the_channels_of_largest_sums():
    block = MODEL["blocks_0"]
    sums = sum(np.abs(block[k]["kernel"]).sum(0) for k in ("up", "gate"))
    sums = sums + np.abs(block["down"]["kernel"]).sum(1)
    ones = kept(masks.s2ft(3, select="weight"), MODEL)["blocks_0"]["up"]["kernel"][0]
    np.testing.assert_array_equal(np.flatnonzero(ones), np.sort(np.argsort(-sums)[:3]))


def test_s2ft_of_heads_and_what_it_refuses():
    heads = kept(masks.s2ft(1, units=4), MODEL)["blocks_1"]["down"]["kernel"][:, 0]
    assert heads.reshape(4, 2).all(1).sum() == 1 and heads.sum() == 2
    for options, message in (
        ({"units": 3}, "units=3 does not divide the 8 channels of leaf"),
        ({"couplings": [{"upp": "out", "down": "in"}]}, "no matrices are coupled"),
        ({"couplings": [{"up": "in", "down": "in"}]}, "different numbers of channels"),
    ):
        with pytest.raises(ValueError, match=message):
            kept(masks.s2ft(3, **options), MODEL)


def mlp(params, x):
    for block in params.values():
        up = x @ block["up"]["kernel"] + block["up"]["bias"][None]
        x = x + (jnp.tanh(up) * (x @ block["gate"]["kernel"])) @ block["down"]["kernel"]
    return x


def test_chosen_channels_moved_to_the_front_leave_the_model_what_it_is():
    ones = kept(masks.s2ft(3), MODEL)
    moved = masks.s2ft_permute(MODEL, ones)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    np.testing.assert_allclose(mlp(moved, x), mlp(MODEL, x), rtol=1e-4, atol=1e-4)
    for name, block in MODEL.items():
        columns = np.flatnonzero(ones[name]["up"]["kernel"][0])
        np.testing.assert_array_equal(
            moved[name]["gate"]["kernel"][:, :3], block["gate"]["kernel"][:, columns]
        )
        np.testing.assert_array_equal(moved[name]["up"]["bias"][:3], block["up"]["bias"][columns])
        np.testing.assert_array_equal(
            moved[name]["down"]["kernel"][:3], block["down"]["kernel"][columns]
        )


LAYERS = {f"dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(6)}


def moved_layers(u):
    whole = [[bool(jnp.all(x != 0)) for x in jax.tree.leaves(layer)] for layer in u.values()]
    assert all(len(set(layer)) == 1 for layer in whole)
    return np.array([layer[0] for layer in whole])


def test_ist_trains_exactly_its_number_of_layers_and_seldom_those_of_high_importance():
    tx = optkit.update_mask(optax.sgd(1.0), masks.ist(2, key=3))
    update = jax.jit(tx.update)
    state, total = tx.init(LAYERS), np.zeros(6)
    importance = jnp.array([4.0, 0.0, 0.0, 0.0, 0.0, -4.0])
    for _ in range(40):
        u, state = update(LAYERS, state, LAYERS, importance=importance)
        total += (moved := moved_layers(u))
        assert moved.sum() == 2
    # Weights of sigmoid(-I): 0.018 for the first layer, 0.98 for the last, 0.5 for the others.
    assert total[0] <= 4 and total[5] > total[1:5].max()
    np.testing.assert_array_equal(state.policy.importance, importance)


def test_ist_learns_nothing_from_equal_losses_and_much_from_others():
    scores = jnp.array([0.3, -1.0, 0.0, 2.0])
    sets = jnp.array([[True, True, False, False], [False, True, True, False]])
    np.testing.assert_array_equal(masks.ist_scores(scores, sets, jnp.array([1.5, 1.5])), scores)
    new = masks.ist_scores(scores, sets, jnp.array([0.0, 50.0]), rate=2.0)
    s = 1 / (1 + np.exp(-np.float64(scores)))
    gain = 2.0 * s * (1 - s) * np.array([0.5, 0.0, -0.5, 0.0])
    np.testing.assert_allclose(new, scores + gain, rtol=1e-6)
    drawn = masks.ist_sets(jax.random.key(0), scores)
    assert drawn.shape == (3, 4) and np.all(np.asarray(drawn).sum(1) == 2)


def test_ist_refuses_importances_of_another_number_of_layers():
    tx = optkit.update_mask(optax.sgd(1.0), masks.ist(2))
    with pytest.raises(ValueError, match=r"shape \(3,\) for 6 layers.*give one number a layer"):
        tx.update(LAYERS, tx.init(LAYERS), LAYERS, importance=jnp.zeros(3))
    with pytest.raises(ValueError, match="share=7 is more than the 6 layers"):
        optkit.update_mask(optax.sgd(1.0), masks.ist(7)).init(LAYERS)


def test_snella_anneals_its_budget_and_gives_it_to_sensitive_matrices():
    shapes = {"a": (6, 8), "b": (6, 8)}
    params = {k: jnp.ones(s) for k, s in shapes.items()}
    drawn = gradients(3, 9, shapes)
    grads = [{"a": 2 * g["a"], "b": g["b"]} for g in drawn]
    policy = masks.snella(0.25, initial=1.0, begin=2, end=6, interval=2)
    found, _ = follow(optkit.update_mask(optax.sgd(0.0), policy), params, grads)
    counts = {k: x.reshape(9, -1).sum(1) for k, x in found.items()}
    # Budgets are set at the steps 0, 2, 4, ...; of 96 entries a quarter is left from step 6 on.
    shares = [float(masks.snella_share(t - t % 2, 1.0, 0.25, 2, 6)) for t in range(9)]
    np.testing.assert_allclose(shares[::2], [1.0, 1.0, 0.25 + 0.75 / 8, 0.25, 0.25])
    assert counts["a"][-1] + counts["b"][-1] in (23, 24, 25)
    assert counts["a"][-1] > 2 * counts["b"][-1]
    for k in shapes:
        assert np.all(np.diff(counts[k]) <= np.where(np.arange(8) % 2, 48, 0))


def test_a_policy_of_your_own_chooses_every_few_steps():
    policy = masks.own(lambda step, g, p: jax.tree.map(lambda g: g > 0, g), interval=4)
    found, _ = follow(optkit.update_mask(optax.sgd(0.1), policy))
    for t in range(9):
        np.testing.assert_array_equal(found["kernel"][t], GRADS[t - t % 4]["kernel"] > 0)


def test_lift_recipe_is_the_wrapper_around_adam_and_decays_what_trains_only():
    tx = optkit.lift(0.1, rank=1, filter_rank=2, interval=3, weight_decay=0.4, rest="freeze")
    _, params, state = run(tx, PARAMS, GRADS)
    dense = optkit.adamw(0.1, b2=0.95, eps=1e-6, eps_mode="uncorrected", weight_decay=0.4)
    want = run(dense, PARAMS, GRADS)[1]
    first = plain_lift(PARAMS["kernel"], 12, 2)
    for t in range(2):  # until the mask changes
        got = np.asarray(params["kernel"][t])
        np.testing.assert_allclose(got[first], np.asarray(want["kernel"][t])[first], atol=2e-7)
        np.testing.assert_array_equal(got[~first], np.asarray(PARAMS["kernel"])[~first])
    np.testing.assert_array_equal(params["bias"][-1], PARAMS["bias"])
    # Index and two moments of 12 + 2*10 active entries, four counters, the learning rate.
    assert optkit.tree.tree_bytes(state) == 12 * 32 + 4 * 4 + 4
