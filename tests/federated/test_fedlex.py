"""FedLEx's guidance against NumPy, and the part that multiplies by it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import optkit

RNG = np.random.default_rng(0)
BASE = {"w": RNG.standard_normal((2, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
SCOUTS = {
    "w": RNG.standard_normal((3, 2, 3)).astype(np.float32),
    "b": RNG.standard_normal((3, 4)).astype(np.float32),
}


def far(leaf: str) -> np.ndarray:
    return np.mean(np.square(np.float64(SCOUTS[leaf]) - BASE[leaf]), axis=0)


def test_guidance_by_least_and_most() -> None:
    got = optkit.fold_guidance(SCOUTS, BASE)
    for leaf in BASE:
        spread = far(leaf)
        want = (spread - spread.min()) / (spread.max() - spread.min())
        np.testing.assert_allclose(got[leaf], want, atol=1e-6)
        assert float(got[leaf].min()) == 0.0


def test_guidance_by_quartiles() -> None:
    got = optkit.fold_guidance(SCOUTS, BASE, "robust")
    for leaf in BASE:
        spread = far(leaf)
        middle = np.quantile(spread, 0.5, method="lower")
        want = (spread - middle) / (np.quantile(spread, 0.75) - np.quantile(spread, 0.25))
        np.testing.assert_allclose(got[leaf], want, rtol=1e-4, atol=1e-5)
        assert float(got[leaf].min()) < 0.0


@pytest.mark.parametrize("kind", ["minmax", "robust"])
def test_where_scouts_say_nothing_gradients_stay(kind: Any) -> None:
    base = {"w": jnp.zeros(3), "empty": jnp.zeros((0, 2))}
    scouts = {"w": jnp.ones((2, 3)), "empty": jnp.zeros((2, 0, 2))}
    got = optkit.fold_guidance(scouts, base, kind)
    assert got["w"].tolist() == [1.0, 1.0, 1.0] and got["empty"].shape == (0, 2)


def test_factors_may_stand_above_leaves() -> None:
    tx = optkit.scale_by_tree({"a": 0.5, "b": {"w": jnp.array([1.0, -2.0])}})
    grads = {"a": {"x": jnp.ones(1), "y": jnp.ones(2)}, "b": {"w": jnp.ones(2, jnp.bfloat16)}}
    out, _ = tx.update(grads, tx.init(grads))
    assert out["a"]["x"].tolist() == [0.5] and out["a"]["y"].tolist() == [0.5, 0.5]
    assert out["b"]["w"].tolist() == [1.0, -2.0] and out["b"]["w"].dtype == jnp.bfloat16


def test_what_does_not_fit_is_said() -> None:
    tx = optkit.scale_by_tree({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="no factor for leaf 'b'"):
        tx.update({"b": jnp.ones(2)}, tx.init(None))
    with pytest.raises(ValueError, match=r"shape \(2,\) at leaf 'a' of shape \(3,\)"):
        tx.update({"a": jnp.ones(3)}, tx.init(None))
    with pytest.raises(ValueError, match="stack the scouts along a leading axis"):
        optkit.fold_guidance({"w": jnp.ones(3)}, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="not one of"):
        wrong: Any = "MinMax"
        optkit.fold_guidance(SCOUTS, BASE, wrong)
