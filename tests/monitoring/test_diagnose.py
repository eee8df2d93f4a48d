"""Measurements: of built spectra, every few steps, and nothing else changed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit
from optkit import monitoring


def built(values: list[float], rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
    right, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
    core = np.zeros((rows, columns))
    np.fill_diagonal(core, values)
    return (left @ core @ right).astype(np.float32)


def params() -> dict:
    stack = np.stack([built([4.0, 1.0, 0.5], 3, 5, s) * (1.0 + s) for s in (0, 1)])
    return {
        "up": {"kernel": jnp.asarray(built([3.0, 1.0, 0.2], 3, 4)), "bias": jnp.full(4, 2.0)},
        "layers": {"down": jnp.asarray(stack)},
        "embed": {"embedding": jnp.ones((5, 3))},
    }


def test_numbers_are_those_of_an_oracle() -> None:
    tree = params()
    tx = optkit.diagnose(optax.sgd(0.1), 1, iterations=6, spectrum=True)
    grads = jax.tree.map(lambda p: 0.5 * p + 1.0, tree)
    _, state = jax.jit(tx.update)(grads, tx.init(tree), tree)
    got = optkit.diagnostics(state)
    g = np.asarray(grads["up"]["bias"], np.float64)
    assert got["up/bias/gradient_rms"] == pytest.approx(np.sqrt(np.mean(g**2)))
    assert got["up/bias/update_to_weight"] == pytest.approx(0.1)
    for path, matrix, values in (
        ("up/kernel", tree["up"]["kernel"], [3.0, 1.0, 0.2]),
        ("layers/down[0]", tree["layers"]["down"][0], [4.0, 1.0, 0.5]),
        ("layers/down[1]", tree["layers"]["down"][1], [8.0, 2.0, 1.0]),
    ):
        squares = np.square(values)
        shares = squares / squares.sum()
        want = {
            "top_singular": values[0],
            "stable_rank": squares.sum() / squares[0],
            "median_singular": values[1],
            "effective_rank": np.exp(-np.sum(shares * np.log(shares))),
            "weight_rms": np.sqrt(squares.sum() / matrix.size),
        }
        for name, value in want.items():
            assert got[f"{path}/{name}"] == pytest.approx(value, rel=1e-4), (path, name)
    assert "embed/embedding/top_singular" not in got
    np.testing.assert_allclose(monitoring.spectra(state)["up/kernel"], [3.0, 1.0, 0.2], rtol=1e-5)


@given(st.floats(1.5, 10.0), st.integers(0, 50), st.sampled_from([1e-25, 1.0, 1e25]))
@pytest.mark.slow
def test_power_iteration_approaches_from_below(gap: float, seed: int, scale: float) -> None:
    matrix = built([gap, 1.0, 0.5], 3, 6, seed)
    v, last = jnp.zeros(3), 0.0
    with jax.disable_jit():
        for _ in range(8):
            sigma, v = monitoring.top_singular(jnp.asarray(matrix * np.float32(scale)), v)
            assert last * (1 - 1e-5) <= float(sigma) <= gap * scale * (1 + 1e-5)
            last = float(sigma)
    assert last == pytest.approx(gap * scale, rel=1e-3)


def test_matrices_of_zeros_and_nan_start_anew() -> None:
    for value in (0.0, jnp.nan, jnp.inf):
        sigma, v = monitoring.top_singular(jnp.full((2, 2, 3), value), jnp.ones((2, 2)))
        assert not np.any(np.asarray(v)) and sigma.shape == (2,)
        assert bool(np.all(np.asarray(sigma) == 0)) == (value == 0.0)


def test_measures_every_few_steps_and_changes_nothing() -> None:
    tree = params()
    plain, tx = optkit.adamw(0.1), optkit.diagnose(optkit.adamw(0.1), 3)
    step = jax.jit(tx.update)
    state, held, seen = tx.init(tree), plain.init(tree), []
    assert set(optkit.diagnostics(state).values()) == {0.0}
    for time in range(5):
        grads = jax.tree.map(lambda p, t=time: p * (t + 1.0), tree)
        updates, state = step(grads, state, tree)
        want, held = plain.update(grads, held, tree)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), updates, want)
        seen.append(optkit.diagnostics(state)["up/bias/gradient_rms"])
    assert seen == pytest.approx([2.0, 2.0, 2.0, 8.0, 8.0])


def test_vectors_go_on_where_they_were() -> None:
    """With one iteration a measurement the top singular value is found over measurements."""
    tree = {"w": jnp.asarray(built([1.1, 1.0, 0.9], 3, 3))}
    tx = optkit.diagnose(optax.sgd(0.0), 1, iterations=1)
    state, errors = tx.init(tree), []
    with jax.disable_jit():
        for _ in range(30):
            _, state = tx.update(tree, state, tree)
            errors.append(1.1 - optkit.diagnostics(state)["w/top_singular"])
    assert errors[0] > 1e-3 and abs(errors[-1]) < 1e-4


def test_sharded_measurements_skip_steps_too() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    host = {"up": jnp.asarray(built([3.0, 1.0], 8, 4)), "bias": jnp.ones(8)}
    specs = {"up": PartitionSpec("data"), "bias": PartitionSpec("data")}
    with jax.set_mesh(mesh):
        tree = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), host, specs)
        tx = optkit.diagnose(optax.sgd(0.1), 2)
        step, state = jax.jit(tx.update), tx.init(tree)
        for _ in range(2):
            _, state = step(tree, state, tree)
    found = optkit.diagnostics(state)
    assert found["up/top_singular"] == pytest.approx(3.0, rel=1e-4)
    assert found["bias/update_rms"] == pytest.approx(0.1)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="every=0"):
        optkit.diagnose(optax.sgd(0.1), 0)
    tx = optkit.diagnose(optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match="attention of layer 0 has shape"):
        monitoring.attention_statistics([jnp.ones((2, 2))])
    with pytest.raises(ValueError, match="at least one"):
        monitoring.attention_statistics([])


def test_attention_of_known_patterns() -> None:
    """Heads that look at one key, and at all: entropies 0 and log(n)."""
    n = 4
    sharp = np.broadcast_to(np.eye(n), (2, n, n))
    wide = np.full((2, n, n), 1.0 / n)
    layer = jnp.asarray(np.stack([sharp, wide], axis=1), jnp.float32)
    got = monitoring.attention_statistics({"one": layer, "two": layer})
    # cos between the patterns: (sum of 1/n over the diagonal) / (sqrt(n) * 1) = 1/sqrt(n).
    want = {
        "mean_similarity": 1 / np.sqrt(n),
        "spectral_gap": 2 / np.sqrt(n),
        "entropy_mean": np.log(n) / 2,
        "entropy_std": np.log(n) / 2,
        "entropy_range": np.log(n),
    }
    assert {k: float(v) for k, v in got.items()} == pytest.approx(want, abs=1e-5)
    alone = monitoring.attention_statistics(layer[:, :1])
    assert float(alone["mean_similarity"]) == float(alone["spectral_gap"]) == 0.0


def test_attention_by_layer_and_head_is_that_of_an_oracle() -> None:
    rng = np.random.default_rng(0)
    causal = np.tri(4, dtype=bool)
    scores = {p: np.where(causal, rng.normal(size=(3, 2, 4, 4)) * 2, -np.inf) for p in ("a", "b")}
    got = jax.jit(monitoring.attention_diagnostics)(
        {path: jnp.asarray(s, jnp.float32) for path, s in scores.items()}
    )
    assert len(got) == 2 * (5 + 2 * 2)
    for path, s in scores.items():
        a = np.exp(s - s.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        rows = -np.sum(a * np.log(np.where(a > 0, a, 1.0)), axis=-1)
        for head in (0, 1):
            assert float(got[f"{path}[{head}]/entropy"]) == pytest.approx(rows[:, head].mean())
            assert float(got[f"{path}[{head}]/max_logit"]) == pytest.approx(s[:, head].max())
        one, two = (a[:, head].ravel() for head in (0, 1))
        alike = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        assert float(got[f"{path}/mean_similarity"]) == pytest.approx(alike)
        assert float(got[f"{path}/spectral_gap"]) == pytest.approx(2 * alike)
        spread = abs(rows[:, 0].mean() - rows[:, 1].mean())
        assert float(got[f"{path}/entropy_range"]) == pytest.approx(spread, rel=1e-4)
    with pytest.raises(ValueError, match="attention of a has shape"):
        monitoring.attention_diagnostics({"a": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="at least one"):
        monitoring.attention_diagnostics({})


def test_what_others_monitor_is_read_too() -> None:
    class Monitor(NamedTuple):
        win_rate: jax.Array | None

    state = ({"a": (Monitor(jnp.float32(0.25)),), "b": (Monitor(None),)},)
    assert optkit.diagnostics(state) == {"a/win_rate": 0.25}
