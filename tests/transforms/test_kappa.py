"""Every convex K: the direction is its gradient, and decay keeps to the dual's domain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients, run

SIZE = 6
KINDS = {
    "l1": ({}, lambda x: np.abs(x).sum()),
    "lp": ({"p": 3.0}, lambda x: (np.abs(x) ** 3).sum() ** (1 / 3)),
    "shrink": ({"e": 0.5}, lambda x: np.maximum(np.abs(x) - 0.5, 0).sum()),
    "topk": ({"k": 2}, lambda x: np.sort(np.abs(x))[-2:].sum()),
    "huber": (
        {"e": 0.5},
        lambda x: np.where(np.abs(x) < 0.5, x**2 / (2 * 0.5), np.abs(x) - 0.25).sum(),
    ),
    "identity": ({}, lambda x: (x**2).sum() / 2),
}
UPDATES = {kind: optkit.scale_by_kappa(kind, **options) for kind, (options, _) in KINDS.items()}
UPDATES["lp2"] = optkit.scale_by_kappa("lp")
APPLY = {
    kind: jax.jit(lambda x, tx=tx: tx.update(x, tx.init(x))[0]) for kind, tx in UPDATES.items()
}
VALUES = st.lists(st.floats(-3, 3, width=32, allow_subnormal=False), min_size=SIZE, max_size=SIZE)


@pytest.mark.parametrize("kind", KINDS)
@given(x=VALUES, y=VALUES)
def test_the_direction_is_a_subgradient(kind, x, y):
    x, y = np.asarray(x), np.asarray(y)
    u = np.float64(APPLY[kind](jnp.asarray(x, jnp.float32)))
    value = KINDS[kind][1]
    assert value(y) >= value(x) + u @ (y - x) - 1e-4
    # Euler and Fenchel-Young pin the gradient from the other side where K is smooth.
    h = 1e-6
    smooth = all(
        abs(value(x + h * d) + value(x - h * d) - 2 * value(x)) < h * 1e-2 for d in np.eye(SIZE)
    )
    if smooth:
        slope = [(value(x + h * d) - value(x - h * d)) / (2 * h) for d in np.eye(SIZE)]
        np.testing.assert_allclose(u, slope, atol=1e-4)


@pytest.mark.parametrize("kind", UPDATES)
def test_the_smallest_subgradient_is_taken_at_kinks(kind):
    assert APPLY[kind](jnp.zeros(SIZE)).tolist() == [0.0] * SIZE
    x = jnp.array([2.0, 0.0, 0.0, -1.0, 0.0, 0.0])
    u = APPLY[kind](x)
    assert np.all((np.asarray(u) == 0) == (np.asarray(x) == 0))


def test_at_the_threshold_of_shrink_nothing_moves():
    assert APPLY["shrink"](jnp.array([0.5, -0.5, 0.0, 0.6, -0.6, 0.0])).tolist() == [
        0, 0, 0, 1, -1, 0
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize("kind", ["l1", "lp", "lp2", "topk"])
def test_norms_have_directions_of_degree_zero(kind, scale):
    x = np.float32([3, -2, 1, 0.5, -0.25, 0])
    np.testing.assert_allclose(APPLY[kind](x * np.float32(scale)), APPLY[kind](x), rtol=1e-5)


def test_lp_of_two_is_normalised():
    x = np.float32([3, 0, 4, 0, 0, 0])
    np.testing.assert_allclose(APPLY["lp2"](x), x / 5, rtol=1e-6)


@pytest.mark.parametrize(("k", "kept"), [(1, 1), (4, 4), (99, 6), (0.5, 3), (0.01, 1)])
def test_topk_counts_and_fractions(k, kept):
    u = optkit.scale_by_kappa("topk", k=k).update(jnp.arange(1.0, 7.0), None)[0]
    assert u.tolist() == [0.0] * (6 - kept) + [1.0] * kept


def gauge(kind, x):
    """1 on the border of dom K*, by the dual norms."""
    x = np.abs(np.asarray(x, np.float64))
    if kind == "lp":
        return (x**1.5).sum() ** (1 / 1.5)  # 1/3 + 1/1.5 = 1
    if kind == "lp2":
        return np.sqrt((x**2).sum())
    return max(x.max(), x.sum() / 2 if kind == "topk" else 0.0)


RATE, DECAY, STEPS = 0.2, 2.0, 12
LION_K = {
    kind: optkit.lion_k(
        RATE,
        kind=kind[:2] if kind == "lp2" else kind,
        weight_decay=DECAY,
        **KINDS.get(kind, ({},))[0],
    )
    for kind in UPDATES
}


# The dual of the identity's K is finite everywhere: decay pulls, and bounds nothing.
@pytest.mark.parametrize("start", [0.9, 5.0], ids=["inside", "outside"])
@pytest.mark.parametrize("kind", [kind for kind in UPDATES if kind != "identity"])
def test_parameters_stay_in_or_approach_the_dual_ball(kind, start):
    grads = gradients(3, STEPS, {"w": (SIZE,)})
    for t, g in enumerate(grads):
        g["w"] = np.abs(g["w"]) * (100.0 if t % 3 else 1e-3)  # a steady push to one side
    p = np.linspace(-1, 1, SIZE) + 0.05
    p = p * start / (DECAY * gauge(kind, p))
    _, moved, _ = run(LION_K[kind], {"w": np.float32(p)}, grads)
    shrink = 1.0
    for q in np.asarray(moved["w"]):
        shrink *= 1 - RATE * DECAY
        # The distance to a symmetric convex body, in its own gauge.
        allowed = 1.0 + shrink * max(start - 1.0, 0.0)
        assert gauge(kind, DECAY * q) <= allowed + 1e-5
        if kind == "l1":
            excess = np.maximum(np.abs(q) - 1 / DECAY, 0)
            bound = shrink * np.maximum(np.abs(p) - 1 / DECAY, 0)
            assert np.all(excess <= bound + 1e-6)


def test_spectral_decay_bounds_the_singular_values():
    grads = gradients(4, STEPS, {"w": (3, 4)})
    tx = optkit.lion_k(RATE, kind="spectral", weight_decay=DECAY)
    u, moved, _ = run(tx, {"w": np.zeros((3, 4), np.float32)}, grads)
    first = np.linalg.svd(np.asarray(u["w"][0]) / RATE)[1]
    assert np.all((first > 0.6) & (first < 1.21))
    tops = np.linalg.svd(np.asarray(moved["w"]))[1][:, 0]
    assert np.all(tops <= 1.21 / DECAY)


@jax.jit
def _identity_and_sgd(params, grads, b1, b2, lam):
    """Parameters after each step, by ``lion_k`` and by a sum of optax's momentum and gradient."""
    ours = optkit.lion_k(RATE, kind="identity", b1=b1, b2=b2, weight_decay=lam)
    momentum = optax.trace(b2)

    def step(carry, g):
        p, q, state, buffer = carry
        u, state = ours.update(g, state, p)
        v, buffer = momentum.update(g, buffer)
        p = p + u
        q = q - RATE * lam * q - RATE * (b1 * (1 - b2) / b2 * v + (1 - b1 / b2) * g)
        return (p, q, state, buffer), (p, q)

    first = (params, params, ours.init(params), momentum.init(params))
    return jax.lax.scan(step, first, grads)[1]


@jax.jit
def _nesterov(params, grads, b2, lam):
    tx = optax.chain(
        optax.trace(b2, nesterov=True), optax.scale(1 - b2), optax.add_decayed_weights(lam)
    )

    def step(carry, g):
        p, state = carry
        u, state = tx.update(g, state, p)
        p = p - RATE * u
        return (p, state), p

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


BETAS = st.floats(0.125, 0.96875, width=32)


@settings(max_examples=20, deadline=None)
@given(
    params=VALUES,
    grads=st.lists(VALUES, min_size=5, max_size=5).map(np.float32),
    betas=st.tuples(BETAS, BETAS).map(sorted),
    lam=st.floats(0, 1, width=32),
)
def test_the_identity_is_sgd_with_momentum(params, grads, betas, lam):
    b1, b2, lam = (jnp.float32(x) for x in (*betas, lam))
    params = jnp.asarray(params, jnp.float32)
    got, want = _identity_and_sgd(params, grads, b1, b2, lam)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    square, _ = _identity_and_sgd(params, grads, b2 * b2, b2, lam)
    np.testing.assert_allclose(square, _nesterov(params, grads, b2, lam), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l2"}, "kind='l2' is not one of"),
        ({"kind": "lp", "p": 1.0}, "p=1.0 is below"),
        ({"kind": "huber", "e": 0.0}, "e=0.0 is below"),
        ({"kind": "l1", "steps": 3}, "options of kind='spectral'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optkit.scale_by_kappa(**options)
