"""Utility gates: inputs whose gates are known, and what noise depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.transforms.utility_gate import PROFILES
from tests.conformance.hlo import collectives
from tests.conformance.methods import Method
from tests.conformance.test_sharding import AXES, LEAVES, Sharded, check_equal, sharded


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def first(tx, grads, params, **extra):
    return tx.update(grads, tx.init(params), params, **extra)[0]


@pytest.mark.parametrize("profile", ["paper_global", "readme_global", "safe"])
def test_equal_utilities_have_one_gate(profile):
    """g*p is the same everywhere: U/max(U) is 1, but for the bias that readme_global leaves in."""
    params = {"a": jnp.array([1.0, 2.0, -4.0]), "b": jnp.array([[0.5]])}
    grads = jax.tree.map(lambda p: -1.0 / p, params)
    out = first(optkit.utility_gate(sigma=0.0, profile=profile, b=0.75), grads, params)
    factor, ratio = (2.0, 4.0) if profile == "readme_global" else (1.0, 1.0)
    want = jax.tree.map(lambda g: factor * g * (1 - sigmoid(ratio)), grads)
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, w, rtol=1e-6), out, want)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_the_most_useful_entry_is_damped_most(profile):
    params = {"a": jnp.array([0.1, 3.0, -2.0]), "b": jnp.array([1.0, 0.5, 0.2])}
    grads = jax.tree.map(lambda p: -jnp.ones_like(p), params)
    out = first(optkit.utility_gate(sigma=0.0, b=0.0, profile=profile), grads, params)
    moved, factor = np.concatenate([out["a"], out["b"]]), PROFILES[profile].factor
    if not PROFILES[profile].protects:
        np.testing.assert_array_equal(moved, -1.0)
        return
    if profile.endswith("local"):
        assert np.argmax(moved[:3]) == 1 and np.argmax(moved[3:]) == 0  # each row by itself
    else:
        assert np.argmax(moved) == 1
        np.testing.assert_allclose(moved[1], -factor * (1 - sigmoid(1.0)), rtol=1e-6)
    assert moved[2] < -0.5 * factor  # worse than useless: more than half of the step is left


def test_a_negative_maximum_turns_the_order_round_but_for_safe():
    params, grads = {"w": jnp.array([1.0, 3.0])}, {"w": jnp.ones(2)}
    moved = {
        profile: first(optkit.utility_gate(sigma=0.0, profile=profile), grads, params)["w"]
        for profile in ("paper_global", "safe")
    }
    assert moved["paper_global"][0] > moved["paper_global"][1]
    assert moved["safe"][0] < moved["safe"][1]  # the weight that does most harm moves most


def test_rows_are_the_inputs_of_an_output():
    """Utilities of one output do not depend on those of the others, whatever the layout."""
    kernel = jnp.array([[1.0, 10.0], [2.0, -10.0], [2.0, 0.0]])  # (in, out)
    grads = -jnp.ones((3, 2))
    tx = optkit.utility_gate(sigma=0.0, profile="experiment_local")
    out = first(tx, {"kernel": grads}, {"kernel": kernel})["kernel"]
    norms = np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(out, -(1 - sigmoid(kernel / norms[None])), rtol=1e-6)
    dims = optax.contrib.MuonDimensionNumbers(1, 0)
    turned = optkit.utility_gate(sigma=0.0, profile="experiment_local", dims=dims)
    last = optkit.utility_gate(sigma=0.0, profile="experiment_local", rows="last_axis")
    for tx in (turned, last):
        np.testing.assert_array_equal(first(tx, {"k": grads.T}, {"k": kernel.T})["k"], out.T)


def test_a_hessian_adds_the_second_order():
    params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, 0.5])}
    hessian = {"w": jnp.array([4.0, 1.0])}
    tx = optkit.utility_gate(sigma=0.0, b=0.0)
    _, state = tx.update(grads, tx.init(params), params, hessian=hessian)
    np.testing.assert_allclose(state.utility["w"], [4.0 / 2 - 0.5, 4.0 / 2 - 1.0])


def test_noise_depends_on_key_step_and_path_only():
    params, zeros = {"a": jnp.ones(64), "b": jnp.ones(64)}, {"a": jnp.zeros(64), "b": jnp.zeros(64)}

    def noise(key, tree=params, steps=1):
        tx = optkit.utility_gate(sigma=1.0, key=key)
        state, grads = tx.init(tree), {name: zeros[name] for name in tree}
        for _ in range(steps):
            out, state = tx.update(grads, state, tree)
        return out

    drawn = noise(1)
    np.testing.assert_array_equal(drawn["a"], noise(jax.random.key(1))["a"])
    np.testing.assert_array_equal(drawn["a"], noise(1, {"a": params["a"]})["a"])
    for other in (drawn["b"], noise(2)["a"], noise(1, steps=2)["a"]):
        assert np.abs(np.corrcoef(drawn["a"], other)[0, 1]) < 0.5
    assert 0.3 < jnp.std(drawn["a"]) < 0.7  # a gate of 1/2; 4.5 sigma of 64 numbers


def test_recorded_noise_is_taken_and_has_to_fit():
    params = {"w": jnp.ones(2)}
    tx, zeros = optkit.utility_gate(sigma=0.5), {"w": jnp.zeros(2)}
    out = first(tx, zeros, params, noise={"w": jnp.array([4.0, -4.0])})
    np.testing.assert_allclose(out["w"], [1.0, -1.0])
    with pytest.raises(ValueError, match=r"w: shape \(2,\) in the updates, \(3,\) in the noise"):
        first(tx, zeros, params, noise={"w": jnp.ones(3)})


def test_wrong_use_is_answered():
    with pytest.raises(ValueError, match="utility_gate needs the parameters"):
        tx = optkit.utility_gate()
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))
    with pytest.raises(ValueError, match=r"profile='papr_global'.*'paper_global'"):
        optkit.upgd(profile="papr_global")
    with pytest.raises(ValueError, match="neither an integer seed nor one PRNG key"):
        optkit.upgd_adam(key=0.5)
    with pytest.raises(ValueError, match=r"state_dtype names .*'utilty'"):
        optkit.upgd_adam(state_dtype={"utilty": jnp.bfloat16})


def test_each_average_may_have_its_own_dtype():
    tx = optkit.upgd_adam(state_dtype={"utility": jnp.bfloat16, "nu": jnp.float32})
    sizes = [x.dtype.itemsize for x in jax.tree.leaves(tx.init({"w": jnp.ones(3)})) if x.shape]
    assert sorted(sizes) == [2, 4, 4]


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.slow
def test_rows_that_lie_on_several_devices_are_whole(kind):
    method = Method(optkit.catalogue.get("utility_gate"))
    method.tx = optkit.utility_gate(profile="experiment_local", b=0.5)
    check_equal(Sharded(method, LEAVES, kind))


def test_sharded_leaves_exchange_one_number_together():
    assert collectives(sharded("utility_gate", "auto").compiled, scalars=True) == {"all-reduce": 1}
