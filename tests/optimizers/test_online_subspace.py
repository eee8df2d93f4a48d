"""Online Subspace Descent, and Natural GaLore with its bases, against slow NumPy forms."""

import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import gradients, run

# (fan_in, fan_out)
SHAPES = {"tall": (5, 8), "wide": (8, 5), "square": (6, 6)}
RANK, EVERY, STEPS = 2, 20, 6
LR, B1, B2, EPS, SCALE = 0.03, 0.8, 0.95, 1e-4, 0.5
GIVEN = {"rank": RANK, "b1": B1, "b2": B2, "eps": EPS, "scale": SCALE, "basis": "online"}


def slope(g, p):
    """Derivative of the squared norm of what a basis (m, r) misses of g / |g|, by differences."""
    y = g / np.linalg.norm(g)
    loss = lambda q: np.sum((q @ (q.T @ y) - y) ** 2)  # noqa: E731
    out, h = np.zeros_like(p), 1e-5
    for index in np.ndindex(p.shape):
        e = np.zeros_like(p)
        e[index] = h
        out[index] = (loss(p + e) - loss(p - e)) / (2 * h)
    return out


def reference(start, grads, rates, history=None, damping=1e-3):
    """The weights after each step, (fan_out, fan_in) as in torch; rates are those of bases."""
    w, p, out = np.float64(start), None, []
    m = v = mp = vp = 0.0
    past = []
    for n, g in enumerate(map(np.float64, grads), 1):
        right = g.shape[0] >= g.shape[1]
        x = g.T if right else g  # the projected side first
        moves = p is not None
        if p is None:
            u = np.linalg.svd(x)[0][:, :RANK]
            p = u * np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0))
        low = p.T @ x
        if history:
            past = [*past, low.ravel()][-history:]
            h = np.stack(past, 1)
            low = np.linalg.solve(damping * np.eye(len(h)) + h @ h.T, low.ravel()).reshape(
                low.shape
            )
        m, v = B1 * m + (1 - B1) * low, B2 * v + (1 - B2) * low**2
        step = np.sqrt(1 - B2**n) / (1 - B1**n) * (p @ (m / (np.sqrt(v) + EPS)))
        w = w - LR * SCALE * (step.T if right else step)
        if moves:  # torch's AdamW
            d = slope(x, p)
            mp, vp = 0.9 * mp + 0.1 * d, 0.999 * vp + 0.001 * d**2
            direction = mp / (1 - 0.9 ** (n - 1)) / (np.sqrt(vp / (1 - 0.999 ** (n - 1))) + 1e-8)
            rate = rates(n)
            p = (1 - 0.01 * rate) * p - rate * direction
        out.append(w)
    return out


def check(tx, rates, **options):
    params, *grads = gradients(11, STEPS + 1, SHAPES)
    got = run(tx, params, grads)[1]
    for name in SHAPES:
        want = reference(params[name].T, [g[name].T for g in grads], rates, **options)
        np.testing.assert_allclose(np.swapaxes(got[name], -1, -2), want, atol=5e-6, err_msg=name)


def test_bases_move_by_adamw_from_the_end_of_the_second_step():
    check(optkit.galore_adamw(LR, refresh_every=EVERY, **GIVEN), lambda n: 1 / EVERY)


def test_the_rate_of_bases_may_follow_a_schedule():
    rates = optax.linear_schedule(0.1, 0.0, 5)
    mover = optkit.adamw(lambda n: rates(n + 1), weight_decay=0.01)
    tx = optkit.galore_adamw(LR, basis_optimizer=mover, **GIVEN)
    check(tx, lambda n: float(rates(n - 1)))


def test_natural_galore_takes_them_too():
    tx = optkit.natural_galore(LR, refresh_every=EVERY, history=3, damping=0.1, **GIVEN)
    check(tx, lambda n: 1 / EVERY, history=3, damping=0.1)


def test_a_schedule_alone_is_refused():
    for recipe in (optkit.galore_adamw, optkit.natural_galore):
        with pytest.raises(ValueError, match="basis_optimizer"):
            recipe(optax.constant_schedule(LR), **GIVEN)
