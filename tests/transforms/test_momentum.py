"""Momentum, Lion's blend and Adam against float64 accounts, and against Optax."""

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import directions, gradients, run

GRADS = gradients(0, 5, {"w": (3, 2), "b": (4,)})
GRADS[2] = {name: np.zeros_like(g) for name, g in GRADS[2].items()}


def check(tx, oracle, grads=GRADS, rtol=2e-6):
    out = directions(tx, grads)
    for name in grads[0]:
        wanted = oracle([np.float64(g[name]) for g in grads])
        np.testing.assert_allclose(out[name], wanted, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "nesterov", "debias", "schedule"),
    [
        ("ema", False, False, False),
        ("ema", True, False, True),
        ("ema", False, True, False),
        ("ema", True, True, False),
        ("heavy_ball", False, False, True),
        ("heavy_ball", True, False, False),
    ],
)
def test_momentum(kind, nesterov, debias, schedule):
    rates = [0.9 - 0.1 * t * schedule for t in range(5)]

    def oracle(gs):
        m, out = np.zeros_like(gs[0]), []
        for t, (g, b) in enumerate(zip(gs, rates, strict=True)):
            fresh = 1 - b if kind == "ema" else 1.0
            m = b * m + fresh * g
            c, ahead = (1 - b ** (t + 1), 1 - b ** (t + 2)) if debias else (1.0, 1.0)
            out.append(fresh * g / c + b * m / ahead if nesterov else m / c)
        return out

    rate = (lambda t: 0.9 - 0.1 * t) if schedule else 0.9
    check(optkit.momentum(rate, kind=kind, nesterov=nesterov, debias=debias), oracle)


def test_a_heavy_ball_has_no_debiasing():
    with pytest.raises(ValueError, match="debias=True needs kind='ema'"):
        optkit.momentum(kind="heavy_ball", debias=True)


def test_blend_momentum_uses_the_old_momentum():
    def oracle(gs):
        m, out = np.zeros_like(gs[0]), []
        for g in gs:
            out.append(0.7 * m + 0.3 * g)
            m = 0.8 * m + 0.2 * g
        return out

    check(optkit.blend_momentum(0.7, 0.8), oracle)


@pytest.mark.parametrize("eps", [1e-8, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eps_mode", ["corrected", "uncorrected"])
def test_adam(eps_mode, nesterov, eps):
    b1, b2 = 0.8, 0.95

    def oracle(gs):
        m, v, out = np.zeros_like(gs[0]), np.zeros_like(gs[0]), []
        for n, g in enumerate(gs, 1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            c1, c2 = 1 - b1**n, 1 - b2**n
            top = b1 * m / (1 - b1 ** (n + 1)) + (1 - b1) * g / c1 if nesterov else m / c1
            if eps_mode == "corrected":
                out.append(top / (np.sqrt(v / c2) + eps))
            else:
                out.append(top * np.sqrt(c2) / (np.sqrt(v) + eps))
        return out

    tx = optkit.scale_by_adam(b1, b2, eps, eps_mode=eps_mode, nesterov=nesterov)
    check(tx, oracle)
    if eps_mode == "corrected":
        theirs = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)
        chex.assert_trees_all_close(
            directions(tx, GRADS), directions(theirs, GRADS), rtol=1e-5, atol=1e-6
        )


def test_half_precision_gradients_get_float32_statistics():
    # eps = 1e-8 and the squares of 1e-4 are 0 in float16: the direction would be NaN or infinite.
    grads = [{"w": jnp.full(3, 1e-4, jnp.float16)}] * 4
    out = directions(optkit.scale_by_adam(), grads)["w"]
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out.astype(np.float32), 1.0, atol=2e-3)


def test_a_second_moment_of_16_bits_stalls_and_the_default_does_not():
    grads = [{"w": np.full(1, 0.1, jnp.bfloat16)}] * 300
    params = {"w": np.zeros(1, jnp.bfloat16)}
    exact = (1 - 0.99**300) * float(jnp.bfloat16(0.1)) ** 2
    state = run(optkit.scale_by_adam(b2=0.99), params, grads)[2]
    assert state.nu["w"].dtype == state.mu["w"].dtype == jnp.float32
    assert float(state.nu["w"][0]) == pytest.approx(exact, rel=1e-3)
    state = run(optkit.scale_by_adam(b2=0.99, state_dtype={"nu": jnp.bfloat16}), params, grads)[2]
    assert (state.nu["w"].dtype, state.mu["w"].dtype) == (jnp.bfloat16, jnp.float32)
    assert float(state.nu["w"][0]) < 0.93 * exact


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optkit.momentum(1.0), r"b1=1.0 is outside \[0.0, 1.0\)"),
        (lambda: optkit.blend_momentum(1.1), "b1=1.1 is outside"),
        (lambda: optkit.scale_by_adam(b2=-0.1), "b2=-0.1 is outside"),
        (lambda: optkit.scale_by_adam(eps=True), "eps must be a number"),
        (lambda: optkit.scale_by_adam(eps_mode="correct"), "did you mean 'corrected'"),
        (lambda: optkit.scale_by_adam(state_dtype={"v": jnp.float32}), r"\['v'\].*keeps mu, nu"),
        (lambda: optkit.momentum(kind="heavyball"), "did you mean 'heavy_ball'"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("dampening", [0.5, lambda count: 0.5])
def test_an_average_refuses_a_dampening_that_it_would_not_use(dampening):
    with pytest.raises(ValueError, match="needs kind='heavy_ball'"):
        optkit.momentum(dampening=dampening)


@pytest.mark.parametrize("mode", ["corrected", "uncorrected", "inside"])
def test_without_eps_an_entry_that_has_seen_no_gradient_rests(mode):
    out = directions(optkit.scale_by_adam(eps=0.0, eps_mode=mode), [{"w": np.float32([0, 2])}])
    np.testing.assert_allclose(out["w"][0], [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("debias", [False, True])
def test_eps_inside_the_root_and_moments_as_they_are(debias):
    tx = optkit.scale_by_adam(0.9, 0.99, 0.5, eps_mode="inside", debias=debias)

    def oracle(grads):
        m = v = 0.0
        out = []
        for n, g in enumerate(grads, 1):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            c1, c2 = (1 - 0.9**n, 1 - 0.99**n) if debias else (1.0, 1.0)
            out.append(m / c1 / np.sqrt(v / c2 + 0.5))
        return out

    check(tx, oracle)


def test_updates_of_another_tree_are_refused_by_path():
    tx = optkit.momentum()
    state = tx.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"b: in the other tree, not in the updates"):
        tx.update({"a": jnp.ones(2)}, state)
