"""Utility gates: inputs whose gates are known, and what noise depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from optkit.transforms.utility_gate import PROFILES
from tests.conformance.hlo import collectives
from tests.conformance.methods import Method
from tests.conformance.test_sharding import AXES, LEAVES, Sharded, check_equal, sharded


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def first(tx, grads, params, **extra):
    return tx.update(grads, tx.init(params), params, **extra)[0]


FEW = settings(max_examples=10, deadline=None)
# Multiples of 1/4: no two are so close that rounding decides which is the larger.
QUARTERS = st.integers(-16, 16).map(lambda x: x / 4)
SIX = st.lists(QUARTERS, min_size=6, max_size=6, unique=True).map(np.float32)


def silent(profile, **options):
    """The first update of a gate without noise, compiled."""
    tx = optkit.utility_gate(sigma=0.0, profile=profile, **options)
    return jax.jit(lambda grads, params: first(tx, grads, params))


def pair(v):
    """Six numbers as two leaves."""
    return {"a": jnp.asarray(v[:3]), "b": jnp.asarray(v[3:])}


GATES = {profile: silent(profile, b=0.75) for profile in PROFILES}


@pytest.mark.parametrize("profile", ["paper_global", "readme_global", "safe"])
@FEW
@given(p=SIX.filter(np.all))
def test_equal_utilities_have_one_gate(profile, p):
    """g*p is the same everywhere: U/max(U) is 1, but for the bias that readme_global leaves in."""
    out = GATES[profile](pair(-1.0 / p), pair(p))
    factor, ratio = (2.0, 4.0) if profile == "readme_global" else (1.0, 1.0)
    want = pair(factor * (-1.0 / p) * (1 - sigmoid(ratio)))
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, w, rtol=1e-6), out, want)


NEW = {profile: silent(profile, b=0.0) for profile in PROFILES}


@pytest.mark.parametrize("profile", list(PROFILES))
@FEW
@given(p=SIX.filter(lambda p: p.max() > 0))
def test_the_most_useful_entry_is_damped_most(profile, p):
    out = NEW[profile](pair(-np.ones_like(p)), pair(p))
    moved, factor = np.concatenate([out["a"], out["b"]]), PROFILES[profile].factor
    if not PROFILES[profile].protects:
        np.testing.assert_array_equal(moved, -1.0)
        return
    if profile.endswith("local"):  # each row by itself
        assert np.argmax(moved[:3]) == np.argmax(p[:3])
        assert np.argmax(moved[3:]) == np.argmax(p[3:])
    else:
        assert np.argmax(moved) == np.argmax(p)
        top = p.max() / (np.abs(p).max() if profile == "safe" else p.max())
        np.testing.assert_allclose(moved.max(), -factor * (1 - sigmoid(top)), rtol=1e-6)
    # What is worse than useless keeps more than half of its step.
    assert np.all(moved[p < 0] < -0.5 * factor)


@FEW
@given(p=st.lists(st.integers(1, 16), min_size=6, max_size=6, unique=True))
def test_a_negative_maximum_turns_the_order_round_but_for_safe(p):
    p, order = np.float32(p) / 4, np.argsort(p)
    moved = {}
    for profile in ("paper_global", "safe"):
        out = NEW[profile](pair(np.ones_like(p)), pair(p))
        moved[profile] = np.concatenate([out["a"], out["b"]])[order]
    assert np.all(np.diff(moved["paper_global"]) < 0)
    assert np.all(np.diff(moved["safe"]) > 0)  # the weight that does most harm moves most


TURNED = optax.contrib.MuonDimensionNumbers(1, 0)
ROWS = {
    "kernel": silent("experiment_local"),
    "turned": silent("experiment_local", dims=TURNED),
    "last": silent("experiment_local", rows="last_axis"),
}


@FEW
@given(p=SIX, g=SIX)
def test_rows_are_the_inputs_of_an_output(p, g):
    """Utilities of one output do not depend on those of the others, whatever the layout."""
    kernel, grads = p.reshape(3, 2), g.reshape(3, 2)  # (in, out)
    out = ROWS["kernel"]({"kernel": grads}, {"kernel": kernel})["kernel"]
    utility = np.float64(-grads * kernel)
    norms = np.maximum(np.linalg.norm(utility, axis=0, keepdims=True), 1e-12)
    np.testing.assert_allclose(out, grads * (1 - sigmoid(utility / norms)), rtol=1e-6)
    for layout in ("turned", "last"):
        got = ROWS[layout]({"k": grads.T}, {"k": kernel.T})["k"]
        np.testing.assert_allclose(got, out.T, rtol=1e-6)


PLAIN = optkit.utility_gate(sigma=0.0, b=0.0)
SECOND = jax.jit(lambda g, p, h: PLAIN.update(g, PLAIN.init(p), p, hessian=h)[1].utility)


@FEW
@given(p=SIX, g=SIX, h=SIX)
def test_a_hessian_adds_the_second_order(p, g, h):
    utility = SECOND(pair(g), pair(p), pair(h))
    got = np.concatenate([utility["a"], utility["b"]])
    np.testing.assert_allclose(got, h * p**2 / 2 - g * p, atol=1e-5)


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
