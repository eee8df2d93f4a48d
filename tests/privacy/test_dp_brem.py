"""DP-BREM: what it reduces to, and what a hostile client can do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optkit.privacy import DPBrem, dp_brem
from optkit.transforms.noise import normal_like
from tests.privacy.linear import PARAMS, SIZE, batch, clipped, flat, gradients, loss

CLIENTS = 4
PLAIN: dict[str, Any] = {"example_clip": np.inf, "clip": np.inf, "noise_multiplier": 0.0, "key": 0}


def clients(seed: int) -> Any:
    """Data of all clients, (CLIENTS, SIZE, ...)."""
    rows = [batch(seed + i) for i in range(CLIENTS)]
    return tuple(np.stack(parts) for parts in zip(*rows, strict=True))


def method(**options: Any) -> DPBrem:
    return dp_brem(loss, optax.sgd(0.0), **PLAIN | options)  # parameters stay, gradients are known


def test_without_noise_and_clipping_it_is_the_mean_of_reported_momenta() -> None:
    made = method(b1=0.75)
    run = jax.jit(made.step)
    params, state = PARAMS, made.init(PARAMS, CLIENTS)
    momenta = np.zeros((CLIENTS, 4))
    for t, present in enumerate(([1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1])):
        data = clients(10 * t)
        params, state = run(params, state, data, present=np.array(present, bool))
        for i in range(CLIENTS):
            own = gradients((data[0][i], data[1][i])).mean(0)
            momenta[i] = 0.75 * momenta[i] + 0.25 * own
        want = momenta[np.array(present, bool)].mean(0)
        np.testing.assert_allclose(
            flat(state.server.aggregate.centre), want, rtol=1e-4, atol=1e-5 * np.abs(want).max()
        )
        np.testing.assert_allclose(
            np.stack([flat(jax.tree.map(lambda m, i=i: m[i], state.momentum)) for i in range(4)]),
            momenta,
            rtol=1e-4,
            atol=1e-5 * np.abs(momenta).max(),
        )


@pytest.mark.parametrize("spoilt", [1e3, 1e30, np.inf, np.nan])
def test_a_hostile_client_moves_the_centre_by_clip_over_clients(spoilt: float) -> None:
    # Its gradients are whatever it likes: nobody clips what it says it has clipped.
    made = dp_brem(
        lambda p, g: g, optax.sgd(0.1), is_gradient=True, **PLAIN | {"clip": 0.5, "b1": 0.5}
    )
    run = jax.jit(made.step)
    rng = np.random.default_rng(0)
    state = made.init(PARAMS, CLIENTS)

    def sent(last: float) -> Any:
        rows = {n: rng.standard_normal((CLIENTS, 2, *p.shape)) for n, p in PARAMS.items()}
        for x in rows.values():
            x[-1] *= last
        return {n: x.astype(np.float32) for n, x in rows.items()}

    _, state = run(PARAMS, state, sent(1.0))
    before = flat(state.server.aggregate.centre)
    data = sent(spoilt)
    present = np.array([True, True, False, True])
    _, hostile = run(PARAMS, state, data, present=present)
    # Without it the other two move the centre as they do, divided by three all the same.
    _, without = run(PARAMS, state, data, present=np.array([True, True, False, False]))
    others = before + (flat(without.server.aggregate.centre) - before) * 2.0 / 3.0
    moved = np.linalg.norm(flat(hostile.server.aggregate.centre) - others)
    assert moved <= 0.5 / 3.0 * (1 + 1e-5)
    if np.isfinite(spoilt):  # else its gradients count for nothing
        assert moved == pytest.approx(0.5 / 3.0, rel=1e-5)


def test_lengths_fall_and_noise_falls_with_them() -> None:
    falling = optax.linear_schedule(2.0, 0.6, 4)
    zero = dp_brem(
        lambda p, g: g,
        optax.sgd(0.0),
        is_gradient=True,
        **PLAIN | {"example_clip": falling, "noise_multiplier": 0.5, "b1": 0.0},
    )
    nothing = jax.tree.map(lambda p: jnp.zeros((CLIENTS, 1, *p.shape)), PARAMS)
    noise = []
    for rounds in (0, 2):
        state = zero.init(PARAMS, CLIENTS)
        held = state.server._replace(rounds=jnp.int32(rounds))
        held = held._replace(aggregate=held.aggregate._replace(rounds=jnp.int32(rounds)))
        _, after = jax.jit(zero.step)(PARAMS, state._replace(server=held), nothing)
        noise.append(flat(after.server.aggregate.centre))
    for got, rounds, length in zip(noise, (0, 2), (2.0, 1.3), strict=True):
        drawn = normal_like(PARAMS, jax.random.key(0), jnp.int32(rounds), None)
        np.testing.assert_allclose(got, 0.5 * length * flat(drawn) / CLIENTS, rtol=1e-5)


def test_masked_examples_and_a_fixed_divisor() -> None:
    data, mask = clients(40), np.ones((CLIENTS, SIZE), bool)
    mask[:, 5:] = False
    sums = [clipped((data[0][i], data[1][i]), 0.5, mask[i]) for i in range(CLIENTS)]
    for divisor, below in ((None, 5.0), (16.0, 16.0)):
        made = method(example_clip=0.5, b1=0.0, eps=0.0, expected_batch=divisor, microbatch=4)
        _, state = jax.jit(made.step)(PARAMS, made.init(PARAMS, CLIENTS), data, mask=mask)
        want = np.mean(sums, axis=0) / below
        np.testing.assert_allclose(flat(state.server.aggregate.centre), want, rtol=1e-4, atol=1e-7)


def test_a_round_without_reports_moves_nothing_but_the_clients() -> None:
    made = dp_brem(loss, optax.sgd(1.0), **PLAIN | {"example_clip": 1.0, "noise_multiplier": 1.0})
    state = made.init(PARAMS, CLIENTS)
    params, after = jax.jit(made.step)(PARAMS, state, clients(0), present=np.zeros(4, bool))
    np.testing.assert_array_equal(flat(params), flat(PARAMS))
    assert not flat(after.server.aggregate.centre).any() and int(after.server.rounds) == 0
    assert flat(after.momentum).any()


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="example_clip=inf with noise_multiplier="):
        method(noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"b1=1\.0 is outside"):
        method(b1=1.0)
    with pytest.raises(ValueError, match=r"^clip=0\.0 must be above 0"):
        method(clip=0.0)
    with pytest.raises(TypeError, match="example_clip may be a schedule"):
        method(noise_multiplier=lambda count: 1.0)
