"""Late reports: what they count, what they are converted to, and where they started."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit import federated

LATE = np.array([0, 1, 2, 5, 20])


def test_weights_of_staleness() -> None:
    for got, want in (
        (federated.constant_staleness(), np.ones(5)),
        (federated.polynomial_staleness(0.5), (2.0 / (1.0 + LATE)) ** 0.5),
        (federated.polynomial_staleness(0.7, average=0.0), (1.0 + LATE) ** -0.7),
        (federated.polynomial_staleness(0.0, average=9.0), np.ones(5)),
        (federated.threshold_staleness(2, 0.25), np.where(LATE <= 2, 1.0, 0.25)),
        (federated.threshold_staleness(2, 0.25, average=3.0), np.where(LATE <= 2, 4.0, 1.0)),
        (federated.exponential_staleness(), 2.0 ** (-LATE / 20)),
    ):
        np.testing.assert_allclose(got(jnp.asarray(LATE)), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: federated.polynomial_staleness(1.5), "exponent=1.5 is outside"),
        (lambda: federated.threshold_staleness(0, 0.0), "divided by"),
        (lambda: federated.exponential_staleness(0.0), r"half=0\.0 must be above 0"),
        (lambda: federated.dc_asgd(-1.0), "lam=-1.0 is below 0"),
        (lambda: federated.keep_params(jnp.zeros(1), 0), "steps=0 must be"),
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_delay_compensation_is_first_order_where_squares_are_the_hessian() -> None:
    """For exp(x) gradient, square and Hessian are e^x, e^2x and e^x: exact with lam = e^-x."""
    x = jnp.array([0.3])
    for step in (1e-1, 1e-2):
        convert = federated.dc_asgd(float(np.exp(-0.3)))
        late = convert({"w": jnp.exp(x)}, {"w": x}, {"w": x + step})["w"]
        error = abs(float((late - jnp.exp(x + step))[0]))
        assert error < np.exp(0.3) * step**2


def test_each_client_is_converted_from_where_it_started() -> None:
    rng = np.random.default_rng(0)
    sent, started = (rng.standard_normal((3, 2)).astype(np.float32) for _ in range(2))
    params = {"w": jnp.array([1.0, -1.0])}
    got = optkit.convert_stale({"w": sent}, {"w": started}, params, federated.dc_asgd(0.5))
    want = sent + 0.5 * sent**2 * (np.asarray(params["w"]) - started)
    np.testing.assert_allclose(got["w"], want, rtol=1e-5)
    untouched = optkit.convert_stale({"w": sent}, {"w": started}, params, lambda d, old, new: d)
    chex.assert_trees_all_equal(untouched["w"], jnp.asarray(sent))
    with pytest.raises(ValueError, match="parameters they started from"):
        optkit.convert_stale({"w": sent}, {"w": started[:2]}, params, federated.dc_asgd(0.5))


def test_a_history_is_the_list_of_what_was_pushed() -> None:
    history = federated.keep_params({"w": jnp.zeros(2)}, 3)
    push, read = jax.jit(federated.push_params), jax.jit(federated.stale_params)
    pushed = [0.0]
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        history = push(history, {"w": jnp.full(2, value)})
        pushed.append(value)
        for delay in (0, 1, 3, 7):
            want = pushed[max(len(pushed) - 1 - min(delay, 3), 0)]
            assert read(history, delay)["w"].tolist() == [want, want]


def test_late_clients_of_a_history_are_those_of_a_schedule() -> None:
    """Displacements at stale models, as the equation has them: x <- x - sum_i d_i D_i(x_old)."""
    times, shares = [1.0, 0.45], [1.0, 3.0]
    plan = optkit.async_schedule(times, 3.0, "fedfix", interval=0.5)
    weights = optkit.async_weights(times, shares, "fedfix", interval=0.5)
    targets = np.array([2.0, -1.0])
    rule = optkit.aggregate.fedbuff(1, staleness_weight=federated.constant_staleness())
    server = optkit.server_step(rule, optax.sgd(1.0))
    params = jnp.zeros(1)
    state, history = server.init(params, 2), federated.keep_params(params, 3)
    versions = [0.0]
    for t in range(len(plan.at)):
        started = jax.vmap(lambda late, h=history: federated.stale_params(h, late))(
            jnp.asarray(plan.staleness[t], jnp.int32)
        )
        sent = 0.1 * (started - jnp.asarray(targets, jnp.float32)[:, None])
        given: Any = {"present": plan.present[t], "weight": weights}
        params, state = server.step(params, state, sent, **given)
        history = federated.push_params(history, params)
        x = versions[-1]
        for i in np.flatnonzero(plan.present[t]):
            x -= weights[i] * 0.1 * (versions[plan.version[t, i]] - targets[i])
        versions.append(x)
        np.testing.assert_allclose(params, [x], rtol=1e-5)
