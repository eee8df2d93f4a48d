"""AMSGrad's three forms: what they share with Adam and Optax, and where Adam goes astray."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import compiled, directions, gradients, run

FORMS = ("torch", "optax", "paper")
SHAPES = {"w": (3, 4)}
SPIKED = [{"w": g["w"] * (20.0 if t == 2 else 1.0)} for t, g in enumerate(gradients(3, 8, SHAPES))]


def moments(state):
    return [held["w"] for held in (state.nu, getattr(state, "nu_max", None)) if held is not None]


def form_of(form):
    return compiled(
        lambda b1, b2, eps=1e-8: optkit.scale_by_adam(b1, b2, eps, amsgrad=form), moments
    )


STEPS = {form: form_of(form) for form in (None, *FORMS)}
START = {"w": np.zeros((3, 4), np.float32)}
RATES = {"b1": st.floats(0.0, 0.9), "b2": st.floats(0.5, 0.99)}


def steps(form, grads, **rates):
    """Directions of one form (None: Adam)."""
    return STEPS[form](START, grads, **rates)[0]["w"]


@st.composite
def spiked(draw):
    """Eight gradients, of which one, not the last, is many times as large as the others."""
    grads = gradients(draw(st.integers(0, 2**32 - 1)), 8, SHAPES)
    at, size = draw(st.integers(0, 4)), draw(st.floats(10.0, 100.0))
    return [{"w": g["w"] * np.float32(size if t == at else 1.0)} for t, g in enumerate(grads)]


@given(seed=st.integers(0, 2**32 - 1), growth=st.floats(1.0, 1.5), **RATES)
def test_it_is_adam_while_moments_grow(seed, growth, b1, b2):
    first = 1.0 + np.abs(gradients(seed, 1, SHAPES)[0]["w"])
    growing = [{"w": np.float32(growth**t) * first} for t in range(8)]
    want = steps(None, growing, b1=b1, b2=b2)
    for form in ("torch", "optax"):
        np.testing.assert_allclose(steps(form, growing, b1=b1, b2=b2), want, rtol=2e-6)


@given(spiked(), st.floats(0.0, 0.9), st.floats(0.5, 0.9))
def test_after_a_spike_only_adams_steps_grow_back(grads, b1, b2):
    adam, *forms = (np.abs(steps(form, grads, b1=b1, b2=b2)) for form in (None, "torch", "optax"))
    assert all(np.all(x <= adam * (1 + 1e-6)) for x in forms)
    assert all(np.max(adam[-1] / x[-1]) > 1.05 for x in forms)


@given(grads=spiked(), **RATES)
def test_the_papers_form_is_the_definition(grads, b1, b2):
    m = v = most = np.zeros((3, 4))
    for got, tree in zip(steps("paper", grads, b1=b1, b2=b2), grads, strict=True):
        g = np.float64(tree["w"])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        most = np.maximum(most, v)
        # Terms of both signs: what rounding leaves is that of the largest.
        np.testing.assert_allclose(got, m / np.sqrt(most), rtol=1e-5, atol=1e-6)


def optax_form(corrects):
    both = {"bias_correction_mu": corrects, "bias_correction_nu": corrects}
    return compiled(lambda b1, b2: optax.scale_by_amsgrad(b1, b2, 1e-8, **both))


THEIRS = {"optax": optax_form(True), "paper": optax_form(False)}


@pytest.mark.parametrize("form", THEIRS)
@given(grads=spiked(), **RATES)
def test_optax_has_these_forms(form, grads, b1, b2):
    theirs = THEIRS[form](START, grads, b1=b1, b2=b2)[0]["w"]
    np.testing.assert_allclose(steps(form, grads, b1=b1, b2=b2), theirs, rtol=2e-5, atol=1e-7)


@given(grads=spiked(), **RATES)
def test_forms_agree_once_and_then_optax_takes_the_shorter_steps(grads, b1, b2):
    torch, other = (np.abs(steps(form, grads, b1=b1, b2=b2)) for form in ("torch", "optax"))
    np.testing.assert_allclose(torch[0], other[0], rtol=1e-6)
    assert np.all(other <= torch * (1 + 1e-6))


@pytest.mark.parametrize("form", FORMS)
@given(grads=spiked(), exponent=st.integers(-20, 20), **RATES)
def test_the_largest_moment_never_falls_and_scales_cancel(form, grads, exponent, b1, b2):
    numbers = {"b1": b1, "b2": b2, "eps": 0.0}
    out, _, (nu, most) = STEPS[form](START, grads, **numbers)
    assert np.all(np.diff(most, axis=0) >= 0) and np.all(most >= nu)
    assert np.any(most[-1] > nu[-1])
    scaled = jax.tree.map(lambda g: np.float32(2.0**exponent) * g, grads)
    np.testing.assert_allclose(STEPS[form](START, scaled, **numbers)[0]["w"], out["w"], rtol=1e-5)


def test_an_entry_without_gradients_rests_without_eps():
    g = [{"w": np.float32([0.0, 1e-30, 2.0])}] * 3
    for form in FORMS:
        u = directions(optkit.scale_by_adam(0.9, 0.9, 0.0, amsgrad=form), g)["w"]
        assert np.all(np.isfinite(u)) and not np.any(u[:, 0]) and np.all(u[:, 2] > 0)


def test_the_recipe():
    params = SPIKED[-1]
    adam = run(optkit.amsgrad(0.1, b1=0.8, b2=0.9), params, SPIKED)[0]["w"]
    np.testing.assert_allclose(
        adam, -0.1 * steps("torch", SPIKED, b1=0.8, b2=0.9), rtol=1e-5, atol=1e-8
    )
    one = optkit.amsgrad(0.1, form="optax", weight_decay=0.5)
    coupled = run(one, params, [{"w": 0 * params["w"]}])[1]["w"][0]
    np.testing.assert_allclose(coupled, params["w"] - 0.1 * np.sign(params["w"]), rtol=1e-4)
    apart = optkit.amsgrad(0.1, weight_decay=0.5, decay="decoupled")
    shrunk = run(apart, params, [{"w": 0 * params["w"]}])[1]["w"][0]
    np.testing.assert_allclose(shrunk, 0.95 * params["w"], rtol=1e-5)


def _ends(slopes, rate, b1, b2):
    """Where descent on lines of given slopes ends in [-1, 1], for Adam (None) and each form."""
    methods = {f: optkit.scale_by_adam(b1, b2, 1e-12, amsgrad=f) for f in (None, *FORMS)}
    slopes = jnp.asarray(slopes, jnp.float32)

    def body(carry, now):
        t, g = now
        out = {}
        for form, tx in methods.items():
            x, state = carry[str(form)]
            u, state = tx.update(g, state)
            out[str(form)] = jnp.clip(x - rate / jnp.sqrt(t) * u, -1.0, 1.0), state
        return out, None

    @jax.jit
    def go(slopes):
        start = {str(form): (jnp.zeros(()), tx.init(jnp.zeros(()))) for form, tx in methods.items()}
        times = jnp.arange(1.0, len(slopes) + 1.0)
        return {k: x for k, (x, _) in jax.lax.scan(body, start, (times, slopes))[0].items()}

    return {form: float(x) for form, x in go(slopes).items()}


def test_adam_ends_at_the_worst_point_of_a_convex_problem_and_amsgrad_does_not():
    """Theorem 3 of the paper: slope C in one step of three, -1 in the others, b1 = 0."""
    big = 4.0
    slopes = np.where(np.arange(1, 30_001) % 3 == 1, big, -1.0)
    ends = _ends(slopes, 1.0, 0.0, 1 / (1 + big**2))
    assert ends.pop("None") > 0.99
    assert ends["paper"] == pytest.approx(-0.997, abs=0.002)
    assert max(ends.values()) < -0.98, ends


def test_the_papers_synthetic_experiment():
    """Slope 1010 in one step of 101, -10 in the others, with momentum."""
    slopes = np.where(np.arange(1, 100_001) % 101 == 1, 1010.0, -10.0)
    ends = _ends(slopes, 0.5, 0.9, 0.99)
    assert ends.pop("None") == pytest.approx(0.993, abs=0.002)
    assert ends["paper"] == pytest.approx(-0.984, abs=0.002)
    assert max(ends.values()) < -0.9, ends  # Optax's form, of the shortest steps, is on its way


def test_wrong_use_is_answered():
    for form in ("optax", "paper"):
        with pytest.raises(ValueError, match=f"no place in amsgrad='{form}'"):
            optkit.scale_by_adam(amsgrad=form, eps_mode="uncorrected")
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        optkit.amsgrad(0.1, form="papre")
    with pytest.raises(ValueError, match="nu_max"):
        optkit.scale_by_adam(state_dtype={"nu_max": jnp.bfloat16})
    state = optkit.amsgrad(0.1, state_dtype={"nu_max": jnp.bfloat16}).init({"w": jnp.ones((2, 2))})
    assert sorted(str(x.dtype) for x in jax.tree.leaves(state) if x.ndim) == [
        "bfloat16", "float32", "float32"
    ]  # fmt: skip


def test_eps_beside_the_uncorrected_root():
    tx = optkit.scale_by_adam(0.8, 0.9, 1e-2, eps_mode="uncorrected", amsgrad="torch")
    got = directions(tx, SPIKED)["w"]
    m = v = most = np.zeros((3, 4))
    for t, tree in enumerate(SPIKED):
        g = np.float64(tree["w"])
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        most = np.maximum(most, v)
        root = np.sqrt(1 - 0.9 ** (t + 1)) / (1 - 0.8 ** (t + 1))
        np.testing.assert_allclose(got[t], m * root / (np.sqrt(most) + 1e-2), rtol=1e-5)
