"""Dual-free ADMM is dual ADMM to rounding, and ends at the consensus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit

games = optkit.games
NODES, SIZE, RHO = 5, 3, 0.7


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Hessians and right sides of quadratics."""
    random = np.random.default_rng(0)
    roots = random.standard_normal((NODES, SIZE, SIZE))
    return roots @ roots.swapaxes(1, 2) + 0.2 * np.eye(SIZE), random.standard_normal((NODES, SIZE))


def dual_admm(hessian: np.ndarray, b: np.ndarray, rho: float, steps: int) -> list[np.ndarray]:
    """Consensus ADMM with its dual variables, the global model after each step."""
    w, dual, out = np.zeros(SIZE), np.zeros((NODES, SIZE)), []
    for _ in range(steps):
        own = np.array(
            [
                np.linalg.solve(h + rho * np.eye(SIZE), right - y + rho * w)
                for h, right, y in zip(hessian, b, dual, strict=True)
            ]
        )
        w = (own + dual / rho).mean(0)
        dual = dual + rho * (own - w)
        out.append(w)
    return out


def test_it_is_dual_admm_to_rounding() -> None:
    hessian, b = problem()
    with jax.enable_x64(True):
        inverse = jnp.asarray(np.linalg.inv(hessian + RHO * np.eye(SIZE)))

        def operator(z: jax.Array) -> jax.Array:
            return jnp.einsum("nij,nj->ni", jnp.asarray(hessian), z) - jnp.asarray(b)

        def solve(linear: jax.Array, centre: jax.Array) -> jax.Array:
            return jnp.einsum("nij,nj->ni", inverse, linear + b + RHO * centre)

        solver = games.dual_free_admm(RHO, solve=solve)
        step = jax.jit(lambda s: solver.step(s, operator))
        state = solver.init(jnp.zeros((NODES, SIZE)))
        wanted = dual_admm(hessian, b, RHO, 200)
        for want in wanted[:30]:
            state = step(state)
            np.testing.assert_allclose(state.mean, want, rtol=1e-10, atol=1e-12)
        for _ in range(170):
            state = step(state)
        solution = np.linalg.solve(hessian.sum(0), b.sum(0))
        np.testing.assert_allclose(state.mean, solution, atol=1e-6)
        # Enough gradient steps come near it; noise is added to what was sent.
        near = games.dual_free_admm(RHO, step_size=0.1, inner_steps=400)
        other = near.step(near.init(jnp.zeros((NODES, SIZE))), operator)
        np.testing.assert_allclose(other.mean, wanted[0], rtol=1e-6)
        noise = jnp.ones((NODES, SIZE))
        noisy = solver.step(solver.init(jnp.zeros((NODES, SIZE))), operator, noise)
        centre = solver.step(solver.init(jnp.ones((NODES, SIZE))), operator)
        np.testing.assert_allclose(noisy.z, centre.z, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give solve= for an exact step, or step_size="),
        ({"step_size": 0.1, "solve": lambda b, a: a}, "not both"),
        ({"step_size": 0.0}, "step_size=0.0 must be above 0"),
        ({"step_size": 0.1, "inner_steps": 0}, "inner_steps=0"),
    ],
)
def test_wrong_settings_are_named(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        games.dual_free_admm(1.0, **options)
