"""Merges against sums in float64, the identity of WSM, files, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"kernel": (3, 2), "bias": (4,)}
SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).map(lambda w: sorted(w)[::-1])


def close(got, want, atol=3e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), got, want)


@given(profile=SHARES, seed=st.integers(0, 9))
def test_a_decay_profile_scales_the_steps_between_checkpoints(profile, seed):
    run = gradients(seed, len(profile) + 1, SHAPES)
    weights = optkit.wsm_merge_weights(profile)
    assert sum(weights) == pytest.approx(1.0) and min(weights) >= 0.0
    got = optkit.merge_checkpoints(run, weights)
    for name in SHAPES:
        want = run[0][name].astype(np.float64)
        for share, before, after in zip(profile, run, run[1:], strict=False):
            want = want + share * (after[name].astype(np.float64) - before[name])
        np.testing.assert_allclose(got[name], want, atol=5e-6)


@given(count=st.integers(1, 7))
def test_the_plain_mean_is_the_linear_decay(count):
    profile = [1 - i / (count + 1) for i in range(1, count + 1)]
    plain = optkit.merge_weights(count + 1)
    assert optkit.wsm_merge_weights(profile) == pytest.approx(plain)


@given(count=st.integers(1, 6), index=st.integers(0, 5))
def test_all_weight_on_one_returns_it(count, index):
    run = gradients(1, count, SHAPES)
    for bad in run:
        bad["bias"][0] = np.nan
    kept = index % count
    run[kept]["bias"][0] = 2.0
    weights = [float(i == kept) for i in range(count)]
    got = optkit.merge_checkpoints(run, weights)
    close(got, run[kept], 0.0)


@given(count=st.integers(1, 8), decay=st.floats(0.0, 0.99))
def test_ema_weights_are_those_of_its_recursion(count, decay):
    values = np.arange(count) ** 2.0
    mean = values[0]
    for value in values[1:]:
        mean = decay * mean + (1 - decay) * value
    weights = optkit.merge_weights(count, "ema", decay=decay)
    assert np.dot(weights, values) == pytest.approx(mean) and sum(weights) == pytest.approx(1)
    linear = np.array(optkit.merge_weights(count, "linear"))
    np.testing.assert_allclose(linear / linear[0], np.arange(1, count + 1))


@given(losses=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), power=st.floats(0.0, 30.0))
def test_better_checkpoints_weigh_more(losses, power):
    weights = np.array(optkit.metric_merge_weights(losses, power))
    order = np.argsort(losses)
    assert np.all(np.diff(weights[order]) <= 1e-12) and weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(optkit.metric_merge_weights(losses, 0.0), 1 / len(losses))
    inverse = 1 / np.array(losses)
    np.testing.assert_allclose(weights, optkit.metric_merge_weights(inverse, power, by="step"))


def test_task_vectors_are_a_merge_with_their_base():
    base, one, two = gradients(2, 3, SHAPES)
    got = optkit.merge_checkpoints([base, one, two], [1 - 0.7 - 0.4, 0.7, 0.4])
    close(got, jax.tree.map(lambda b, x, y: b + 0.7 * (x - b) + 0.4 * (y - b), base, one, two))
    # With one scale and nothing masked it is Model Breadcrumbs' task arithmetic.
    both = optkit.merge_checkpoints([base, one, two], [0.4, 0.3, 0.3])
    close(both, optkit.breadcrumbs(base, [one, two], 0.3, beta=1.0, gamma=0.0))


def test_dtypes_stay_and_weights_may_be_traced():
    run = [{"w": jnp.full(2, x, jnp.bfloat16), "n": jnp.int32(3)} for x in (1.0, 2.0)]
    got = jax.jit(lambda a: optkit.merge_checkpoints([r | {"n": None} for r in run], [a, 1 - a]))(
        0.5
    )
    assert got["w"].dtype == jnp.bfloat16 and got["w"].tolist() == [1.5, 1.5]
    assert int(optkit.merge_checkpoints(run)["n"]) == 3
    with pytest.raises(ValueError, match="n: integers that differ have no mean"):
        optkit.merge_checkpoints([run[0], run[1] | {"n": jnp.int32(4)}])


def test_numbers_of_python_and_64_bits_of_numpy_merge():
    run = [{"scale": x, "w": np.full(2, x), "n": np.arange(2)} for x in (1.0, 2.0)]
    got = optkit.merge_checkpoints(run)
    assert float(got["scale"]) == 1.5 and got["w"].tolist() == [1.5, 1.5]
    assert {x.dtype for x in got.values()} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_files_and_trees_merge_with_each_other(tmp_path):
    one, two = gradients(3, 2, SHAPES)
    low = jnp.asarray(two["bias"], jnp.bfloat16)
    np.savez(tmp_path / "one.npz", **one)
    np.savez(tmp_path / "two.npz", kernel=two["kernel"], bias=low)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "three", jax.tree.map(jnp.asarray, two | {"bias": low}))
        checkpointer.wait_until_finished()
    want = optkit.merge_checkpoints([one, two | {"bias": low}])
    for other in (tmp_path / "two.npz", str(tmp_path / "three")):
        close(optkit.merge_checkpoints([tmp_path / "one.npz", other]), want, 0.0)
    with pytest.raises(ValueError, match=r"neither an \.npz file nor a checkpoint"):
        optkit.merge_checkpoints([tmp_path / "nowhere"])


def test_leaves_that_do_not_fit_are_named():
    one, two = gradients(4, 2, SHAPES)
    with pytest.raises(ValueError) as caught:
        optkit.merge_checkpoints([one, {"kernel": two["kernel"].T, "scale": two["bias"]}])
    for line in (
        "bias: in checkpoints[0], not in checkpoints[1]",
        "scale: in checkpoints[1], not in checkpoints[0]",
        "kernel: shape (3, 2) in checkpoints[0], (2, 3) in checkpoints[1]",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda one: optkit.merge_checkpoints([]), "needs checkpoints"),
        (lambda one: optkit.merge_checkpoints(one), "must be a list of trees or files"),
        (lambda one: optkit.merge_checkpoints("a"), "must be a list of trees or files"),
        (lambda one: optkit.merge_checkpoints([one, one], [1.0]), "1 weights for 2"),
        (lambda one: optkit.merge_checkpoints([one, one], [1.0, 1.0]), "the weights sum to 2"),
        (lambda one: optkit.wsm_merge_weights([0.2, 0.5]), "is no decay"),
        (lambda one: optkit.wsm_merge_weights([]), "is no decay"),
        (lambda one: optkit.merge_weights(2, "ema", decay=1.0), r"decay=1\.0 is outside"),
        (lambda one: optkit.metric_merge_weights([1.0, 0.0]), "must be finite numbers above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(gradients(0, 1, SHAPES)[0])
