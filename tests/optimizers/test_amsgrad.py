"""AMSGrad's three forms: what they share with Adam and Optax, and where Adam goes astray."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import directions, gradients, run

FORMS = ("torch", "optax", "paper")
GRADS = gradients(3, 8, {"w": (3, 4)})
SPIKED = [{"w": g["w"] * (20.0 if t == 2 else 1.0)} for t, g in enumerate(GRADS)]


@functools.cache
def steps(form, kind="spiked"):
    """Directions of one form (None: Adam), with b1 = 0.8 and b2 = 0.9."""
    growing = [{"w": np.float32(1.3**t) * (1.0 + np.abs(GRADS[0]["w"]))} for t in range(8)]
    tx = optkit.scale_by_adam(0.8, 0.9, 1e-8, amsgrad=form)
    return np.asarray(directions(tx, growing if kind == "growing" else SPIKED)["w"])


@pytest.mark.parametrize("form", ["torch", "optax"])
def test_it_is_adam_while_moments_grow(form):
    np.testing.assert_allclose(steps(form, "growing"), steps(None, "growing"), rtol=2e-6)
    # After a spike Adam's steps grow back.
    assert np.max(np.abs(steps(None)[-1] / steps(form)[-1])) > 1.2


def test_the_papers_form_is_the_definition():
    m = v = most = np.zeros((3, 4))
    for got, tree in zip(steps("paper"), SPIKED, strict=True):
        g = np.float64(tree["w"])
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        most = np.maximum(most, v)
        np.testing.assert_allclose(got, m / np.sqrt(most), rtol=1e-5)


@pytest.mark.parametrize(("form", "corrects"), [("optax", True), ("paper", False)])
def test_optax_has_these_forms(form, corrects):
    both = {"bias_correction_mu": corrects, "bias_correction_nu": corrects}
    theirs = optax.scale_by_amsgrad(0.8, 0.9, 1e-8, **both)
    np.testing.assert_allclose(steps(form), directions(theirs, SPIKED)["w"], rtol=2e-5, atol=1e-7)


def test_forms_agree_once_and_then_optax_takes_the_shorter_steps():
    torch, other = np.abs(steps("torch")), np.abs(steps("optax"))
    np.testing.assert_allclose(torch[0], other[0], rtol=1e-6)
    assert np.all(other <= torch * (1 + 1e-6))
    assert np.mean(other[1] < torch[1] * (1 - 1e-3)) > 0.3


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_moment_never_falls(form):
    tx = optkit.scale_by_adam(0.8, 0.9, amsgrad=form)
    state, before = tx.init(GRADS[0]), np.zeros((3, 4))
    for g in SPIKED[:5]:
        _, state = tx.update(g, state)
        after = np.asarray(state.nu_max["w"])
        assert np.all(after >= before) and np.all(after >= state.nu["w"])
        before = after
    assert np.any(after > state.nu["w"])


def test_an_entry_without_gradients_rests_without_eps():
    g = [{"w": np.float32([0.0, 1e-30, 2.0])}] * 3
    for form in FORMS:
        u = directions(optkit.scale_by_adam(0.9, 0.9, 0.0, amsgrad=form), g)["w"]
        assert np.all(np.isfinite(u)) and not np.any(u[:, 0]) and np.all(u[:, 2] > 0)


def test_the_recipe():
    params = GRADS[-1]
    adam = run(optkit.amsgrad(0.1, b1=0.8, b2=0.9), params, SPIKED)[0]["w"]
    np.testing.assert_allclose(adam, -0.1 * steps("torch"), rtol=1e-5, atol=1e-8)
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
