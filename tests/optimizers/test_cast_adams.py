"""N:M masks against a sort, and what CAST does to kept and to masked weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import optkit
from optkit.linalg import nm_mask
from optkit.transforms.adams import AdamsState
from tests.conformance.hlo import collectives
from tests.conformance.methods import method
from tests.conformance.test_sharding import Sharded, check_equal


def slow_mask(x, n, m):
    """Of the last axis, by a stable sort of each group."""
    out = np.zeros(x.shape, bool)
    for at in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], m):
            group = np.abs(x[at][start : start + m])
            out[at][start + np.argsort(-group, kind="stable")[:n]] = True
    return out


SIZES = [(3, 8), (2, 7), (2, 3, 4), (5,)]


@given(
    shape=st.sampled_from(SIZES), pattern=st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 4)]),
    seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.slow
def test_a_mask_is_that_of_a_stable_sort(shape, pattern, seed):
    x = np.float32(np.random.default_rng(seed).integers(-3, 4, shape))  # many ties
    for axis in range(len(shape)):
        got = np.moveaxis(np.asarray(nm_mask(jnp.asarray(x), *pattern, axis)), axis, -1)
        np.testing.assert_array_equal(got, slow_mask(np.moveaxis(x, axis, -1), *pattern))


def test_exactly_n_are_kept_of_whatever_there_is():
    for fill in (0.0, jnp.inf, jnp.nan):
        assert nm_mask(jnp.full((2, 8), fill), 2, 4, -1).sum() == 8
    assert nm_mask(jnp.zeros((0, 4)), 2, 4, 0).shape == (0, 4)
    assert nm_mask(jnp.arange(4, dtype=jnp.bfloat16), 1, 4, 0).tolist() == [False] * 3 + [True]
    for n, m, axis, match in ((5, 4, 0, "n=5"), (0, 4, 0, "n=0"), (1, True, 0, "m=True")):
        with pytest.raises(ValueError, match=match):
            nm_mask(jnp.ones(4), n, m, axis)
    with pytest.raises(ValueError, match="axis=1"):
        nm_mask(jnp.ones(4), 2, 4, 1)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def kept_of(state):
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, AdamsState))
    return next(x.kept for x in found if isinstance(x, AdamsState) and x.kept is not None)


def test_the_groups_are_those_of_the_inputs_wherever_they_lie():
    w = normal(0, 3, 2, 8)  # (a, b, fan_out)
    dims = {
        "flax": optkit.MatrixDims(0, 1),
        "torch": optkit.MatrixDims(1, 0),
        "apart": optkit.MatrixDims((0, 2), 1),
        "fused": optkit.MatrixDims(0, 1, output_blocks=2),
    }
    params = {"flax": w[:, 0], "torch": w[:, 0].T, "apart": w.transpose(0, 2, 1), "fused": w[:, 1]}
    tx = optkit.cast_adams(dims=dims, pattern=(1, 2))
    kept = kept_of(tx.update(params, tx.init(params), params)[1])
    np.testing.assert_array_equal(kept["flax"], slow_mask(np.asarray(w[:, 0].T), 1, 2).T)
    np.testing.assert_array_equal(kept["torch"], kept["flax"].T)
    np.testing.assert_array_equal(kept["fused"], slow_mask(np.asarray(w[:, 1].T), 1, 2).T)
    flat = np.asarray(w.transpose(2, 0, 1).reshape(8, 6))
    want = slow_mask(flat, 1, 2).reshape(8, 3, 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(kept["apart"], want)


def run(tx, params, grads):
    @jax.jit
    def steps(params, grads):
        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), params

        return jax.lax.scan(body, (params, tx.init(params)), grads)

    return steps(params, grads)


def test_kept_weights_do_not_see_the_decay_and_masked_ones_end_near_zero():
    params = {"kernel": normal(1, 8, 3), "head": {"kernel": normal(2, 3, 4)}}
    grads = jax.tree.map(lambda p: 1e-6 * normal(3, 200, *p.shape), params)
    ends = {}
    for decay in (0.1, 1e-3, 0.0):
        tx = optkit.cast_adams(0.05, l1_decay=decay, total_steps=100, mask_interval=1000)
        (ends[decay], state), _ = run(tx, params, grads)
    kept = kept_of(state)["kernel"]
    np.testing.assert_array_equal(kept, nm_mask(params["kernel"], 2, 4, 0))
    for decay in (0.1, 1e-3):  # whatever its size
        np.testing.assert_array_equal(ends[decay]["kernel"][kept], ends[0.0]["kernel"][kept])
        np.testing.assert_array_equal(ends[decay]["head"]["kernel"], ends[0.0]["head"]["kernel"])
        masked = jnp.abs(ends[decay]["kernel"][~kept])
        assert masked.max() < 6 * 0.05 < jnp.abs(params["kernel"][~kept]).max()


def test_masks_are_renewed_every_interval_before_the_step():
    params = {"kernel": normal(4, 4, 2)}
    update = jax.jit((tx := optkit.cast_adams(1.0, mask_interval=3)).update)
    state, seen = tx.init(params), []
    for time in range(7):
        now = {"kernel": normal(10 + time, 4, 2)}
        state = update(now, state, now)[1]
        seen.append(kept_of(state)["kernel"])
        source = normal(10 + time // 3 * 3, 4, 2)
        np.testing.assert_array_equal(seen[-1], nm_mask(source, 2, 4, 0))


def test_the_rest_may_be_plain_adam():
    params = {"bias": normal(5, 3)}
    grads = {"bias": normal(6, 4, 3)}
    got, _ = run(optkit.cast_adams(0.1, second_moment="gradient"), params, grads)
    want, _ = run(optax.adam(0.1), params, grads)
    np.testing.assert_allclose(got[0]["bias"], want[0]["bias"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_groups_that_lie_whole_on_a_device_exchange_nothing(kind):
    leaves = {
        "rows/kernel": ((32, 3), P("x", None)),
        "conv/kernel": ((2, 16, 4), P(None, "x", None)),
    }
    whole = Sharded(method("cast_adams"), {"rows/kernel": leaves["rows/kernel"]}, kind)
    assert collectives(whole.compiled) == {}
    check_equal(Sharded(method("cast_adams"), leaves, kind))


def test_what_is_out_of_range_is_refused():
    for options, match in (
        ({"pattern": (5, 4)}, "n=5"),
        ({"pattern": 2}, r"\(N, M\)"),
        ({"mask_interval": 0}, "mask_interval=0"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"l1_decay": -1.0}, "l1_decay"),
        ({"second_moment": "momentun"}, "did you mean 'momentum'"),
    ):
        with pytest.raises(ValueError, match=match):
            optkit.cast_adams(**options)
    tx = optkit.cast_adams()
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="cast_adams needs the parameters"):
        tx.update(params, tx.init(params))


def network(p, x):
    for name in ("a", "b"):
        x = jnp.tanh(x @ p[name]["kernel"] + p[name]["bias"][None])
    return x @ p["head"]["kernel"] + p["head"]["bias"][None]


def weights(seed):
    sizes = {"a": (8, 32), "b": (32, 32), "head": (32, 1)}
    return {
        name: {"kernel": normal(seed + i, *size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
        for i, (name, size) in enumerate(sizes.items())
    }


@pytest.mark.slow
def test_pruning_after_it_changes_nothing_where_pruning_after_adam_does():
    x, steps = normal(1, 256, 8), 1500
    y = network(jax.tree.map(lambda p: 2 * p, weights(50)), x)

    def loss(p):
        return jnp.mean((network(p, x) - y) ** 2)

    def trained(tx, params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=steps)[0][0])
        return run(params)

    def pruned(p):
        sparse = {n: p[n]["kernel"] * nm_mask(p[n]["kernel"], 2, 4, 0) for n in ("a", "b")}
        return p | {n: p[n] | {"kernel": kernel} for n, kernel in sparse.items()}

    rate = optax.cosine_decay_schedule(3e-3, steps)
    dense = trained(optax.adam(rate), weights(0))
    cut = pruned(trained(optax.adam(rate), dense))
    assert loss(dense) < 1e-3 and loss(cut) > 0.3
    ours = trained(optkit.cast_adams(rate, l1_decay=1e-2, total_steps=steps), dense)
    assert loss(ours) < 1e-5 and loss(pruned(ours)) < 1e-5
    weak = trained(optkit.cast_adams(rate, l1_decay=1e-4, total_steps=steps), dense)
    assert loss(pruned(weak)) > 0.1
