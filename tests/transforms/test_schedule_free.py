"""Schedule-Free: plain optimizers in disguise, weights, reading and writing of the average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"kernel": (3, 2), "bias": (4,)}
STEPS = 6


def follow(tx, seed=0, dtype=jnp.float32, params=None):
    """Lists of parameters y, averages x and states of some steps with fixed gradients."""
    start, *grads = gradients(seed, STEPS + 1, SHAPES)
    params = jax.tree.map(lambda p: p.astype(dtype), params or start)
    state, rows = tx.init(params), []
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        rows.append((params, optkit.schedule_free_eval_params(state, params), state))
    return rows


def trail(inner, seed=0):
    """Parameters of the inner optimizer alone, fed the same gradients."""
    params, *grads = gradients(seed, STEPS + 1, SHAPES)
    state, out = inner.init(params), []
    for grad in grads:
        updates, state = inner.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def close(got, want, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), got, want)


def test_without_b1_it_is_the_inner_optimizer_and_x_its_mean():
    inner = optkit.adamw(0.1, b1=0.0, weight_decay=0.1)
    rows = follow(optkit.schedule_free(inner, b1=0.0))
    alone = trail(inner)
    for n, (y, x, state) in enumerate(rows, 1):
        close(y, alone[n - 1])
        close(state.z, alone[n - 1])
        close(x, jax.tree.map(lambda *ps: sum(ps) / len(ps), *alone[:n]))


@given(b1=st.sampled_from([0.1, 0.5, 0.9, 0.98]), r=st.sampled_from([0.0, 1.0, 2.5]))
def test_the_average_weighs_z_by_its_weights(b1, r):
    inner = optax.sgd(0.3)  # does not see the parameters: z is where it goes alone
    rates = [0.1, 0.4, 0.2, 0.9, 0.9, 0.3]
    rate = lambda t: jnp.array(rates)[jnp.minimum(t, STEPS - 1)]  # noqa: E731
    tx = optkit.schedule_free(inner, rate, b1=b1, weight_power=r, weight_lr_power=1.5)
    alone, tops = trail(inner), np.maximum.accumulate(rates)
    weights = np.arange(1, STEPS + 1) ** r * tops**1.5
    for n, (y, x, state) in enumerate(follow(tx), 1):
        share = weights[:n] / weights[:n].sum()
        want = jax.tree.map(
            lambda *ps, share=share: sum(w * p for w, p in zip(share, ps, strict=True)), *alone[:n]
        )
        # What is read off y and z carries their rounding, divided by b1.
        close(x, want, 2e-6 / b1)
        close(y, jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, want, alone[n - 1]))
        close(state.z, alone[n - 1])
    assert float(state.weight_sum) == pytest.approx(weights.sum(), rel=1e-5)


def test_a_kept_average_is_the_one_that_is_computed():
    kept, computed = (
        follow(optkit.schedule_free_adamw(0.1, weight_decay=0.1, keep_average=keep))
        for keep in (True, False)
    )
    for one, two in zip(kept, computed, strict=True):
        close(one[:2], two[:2], 5e-6)


def test_a_b1_that_changes_reads_the_average_by_the_one_that_made_y():
    b1 = lambda t: jnp.where(t < 3, 0.5, 0.9)  # noqa: E731
    inner = optax.sgd(0.3)
    alone = trail(inner)
    for n, (_, x, _) in enumerate(follow(optkit.schedule_free(inner, b1=b1)), 1):
        close(x, jax.tree.map(lambda *ps: sum(ps) / len(ps), *alone[:n]), 1e-5)


def test_primal_averaging_forgets_by_a_constant():
    inner = optax.sgd(0.3)
    start, *_ = gradients(0, STEPS + 1, SHAPES)
    rows = follow(optkit.schedule_free(inner, b1=0.8, average_decay=0.75))
    want = start
    for z, (y, x, _) in zip(trail(inner), rows, strict=True):
        want = jax.tree.map(lambda a, z: 0.75 * a + 0.25 * z, want, z)
        close(x, want, 5e-6)
        close(y, jax.tree.map(lambda a, z: 0.8 * a + 0.2 * z, want, z))


@pytest.mark.parametrize("decay_at", ["y", "z"])
def test_decay_is_taken_where_it_is_said(decay_at):
    inner = optkit.descend(optax.identity(), 0.1, weight_decay=0.5)
    rows = follow(optkit.schedule_free(inner, b1=0.6, decay_at=decay_at))
    start, *grads = gradients(0, STEPS + 1, SHAPES)
    y = z = x = start
    for n, (grad, row) in enumerate(zip(grads, rows, strict=True), 1):
        at = y if decay_at == "y" else z
        z = jax.tree.map(lambda z, g, p: z - 0.1 * (g + 0.5 * p), z, grad, at)
        x = jax.tree.map(lambda x, z, n=n: x + (z - x) / n, x, z)
        y = jax.tree.map(lambda x, z: 0.6 * x + 0.4 * z, x, z)
        close(row[0], y)


def test_16_bit_parameters_do_not_lose_small_averaging_steps():
    """Steps of a fiftieth of a bfloat16 rounding at 1: y follows a float32 run to its rounding."""
    ones = jax.tree.map(jnp.ones_like, gradients(0, 1, SHAPES)[0])
    grad = jax.tree.map(jnp.ones_like, ones)
    tx, last = optkit.schedule_free(optax.sgd(2.0**-13), b1=0.9), {}
    run = jax.jit(tx.update)
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), ones)
        state = tx.init(params)
        for _ in range(300):
            updates, state = run(grad, state, params)
            params = optax.apply_updates(params, updates)
        assert {x.dtype for x in jax.tree.leaves(state.z)} == {jnp.dtype("float32")}
        last[dtype] = params, optkit.schedule_free_eval_params(state, params)
    for wide, low in zip(*map(jax.tree.leaves, last.values()), strict=True):
        np.testing.assert_allclose(low.astype(np.float32), wide, atol=2.0**-8)
        assert float(wide.reshape(-1)[0]) < 1 - 2.0**-7, "it has moved"


def test_muon_may_be_the_base():
    params, *grads = gradients(3, 4, {"up/kernel": (3, 4), "bias": (4,)})
    inner = optkit.muon(0.02, b1=0.0)
    tx = optkit.schedule_free(inner, b1=0.9)
    state, inner_state, z = tx.init(params), inner.init(params), params
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        alone, inner_state = inner.update(grad, inner_state, params)
        z = optax.apply_updates(z, alone)
        params = optax.apply_updates(params, updates)
        close(state.z, z)


def test_a_checkpoint_of_the_average_and_the_state_goes_on():
    y, x, state = follow(optkit.schedule_free_adamw(0.1))[-1]
    close(optkit.schedule_free_train_params(state, x), y, 1e-6)


def test_the_average_is_found_below_chains_routes_and_masks():
    free = optkit.schedule_free(optax.sgd(1.0), b1=0.5)
    tx = optax.chain(
        optax.clip(10.0),
        optkit.route({"free": free, "rest": optax.sgd(1.0)}, [("bias", "rest"), ("**", "free")]),
    )
    y, x, _ = follow(tx)[-1]
    np.testing.assert_array_equal(x["bias"], y["bias"])
    mean = jax.tree.map(lambda *ps: sum(ps) / len(ps), *trail(optax.sgd(1.0)))
    close(x["kernel"], mean["kernel"], 5e-6)


def test_optax_reads_the_state_too():
    y, x, state = follow(optkit.schedule_free_adamw(0.1))[-1]
    close(optax.contrib.schedule_free_eval_params(state, y), x)


@pytest.mark.parametrize("learning_rate", [0.0, lambda t: jnp.zeros(())])
def test_a_rate_of_0_moves_nothing_and_stays_finite(learning_rate):
    start = gradients(0, 1, SHAPES)[0]
    for y, x, _ in follow(optkit.schedule_free_adamw(learning_rate)):
        close(y, start, 0.0)
        close(x, start, 1e-6)


def test_a_warm_up_takes_its_share_of_each_step():
    """The first step of a warm-up of 4 is a quarter of the step without one."""
    warm, cold = (
        follow(optkit.schedule_free_adamw(0.1, warmup_steps=steps))[0][0] for steps in (4, 0)
    )
    start = gradients(0, 1, SHAPES)[0]
    move = lambda y: jax.tree.map(jnp.subtract, y, start)  # noqa: E731
    close(move(warm), jax.tree.map(lambda d: d / 4, move(cold)), 1e-6)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="b1=0 makes y = z"):
        optkit.schedule_free(optax.sgd(1.0), b1=0.0, keep_average=False)
    with pytest.raises(ValueError, match=r"average_decay=1\.0 is outside"):
        optkit.schedule_free(optax.sgd(1.0), average_decay=1.0)
    params = {"w": jnp.ones(2)}
    state = optkit.schedule_free_adamw().init(params)
    with pytest.raises(ValueError, match=r"w: shape \(3,\) in the parameters, \(2,\)"):
        optkit.schedule_free_eval_params(state, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"no part of optkit\.schedule_free"):
        optkit.schedule_free_eval_params(optax.sgd(1.0).init(params), params)
