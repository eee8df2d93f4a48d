"""Epsilon of runs, against published numbers and the formulas of single mechanisms."""

import math
import sys

import dp_accounting
import pytest
from dp_accounting import rdp

import optkit
from optkit.privacy import PoissonBatches, calibrate_noise, epsilon, private_gradient

RUN = {"examples": 60000, "batch": 256, "steps": 10000, "delta": 1e-5}
ONE = {"sampling_rate": 1.0, "steps": 1, "delta": 1e-5}


def gaussian_delta(eps: float, sigma: float) -> float:
    """The exact delta of one Gaussian mechanism (Balle and Wang, arXiv 1805.06530)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    a, b = 1 / (2 * sigma), eps * sigma
    return phi(a - b) - math.exp(eps) * phi(-a - b)


@pytest.mark.parametrize(("accountant", "want"), [("rdp", 2.1616), ("pld", 1.9780)])
def test_a_run_of_dp_sgd(accountant: str, want: float) -> None:
    assert epsilon(1.1, accountant=accountant, **RUN) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(("accountant", "want"), [("rdp", 4.2396), ("pld", 3.9213)])
def test_one_gaussian(accountant: str, want: float) -> None:
    got = epsilon(1.1, accountant=accountant, **ONE)
    assert got == pytest.approx(want, abs=1e-4)
    assert gaussian_delta(got, 1.1) <= 1e-5 * (1 + 1e-3)  # no accountant says too little


def test_noise_for_an_epsilon() -> None:
    noise = calibrate_noise(3.0, **RUN)
    assert noise == pytest.approx(0.92481, abs=2e-5)
    assert epsilon(noise, **RUN) <= 3.0 < epsilon(noise - 2e-5, **RUN)


@pytest.mark.slow
def test_noise_is_found_by_the_tighter_accountant_too() -> None:
    noise = calibrate_noise(3.9213, accountant="pld", **ONE)
    assert noise == pytest.approx(1.1, abs=2e-4)
    assert noise < calibrate_noise(3.9213, **ONE)


@pytest.mark.parametrize(
    ("budget", "said"), [(1e5, "less noise than"), (1e-9, "by no noise up to")]
)
def test_budgets_out_of_reach_are_refused(budget: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibrate_noise(budget, sampling_rate=1.0, steps=1, delta=1e-12)


def test_fixed_batches_count_the_noise_half() -> None:
    # All examples at every step: a Gaussian that one replaced example moves by twice the length.
    whole = epsilon(4.0, examples=100, batch=100, steps=5, delta=1e-5, sampling="fixed")
    twice = rdp.RdpAccountant()
    event = dp_accounting.GaussianDpEvent(2.0)
    twice.compose(dp_accounting.SelfComposedDpEvent(event, 5))
    assert whole == pytest.approx(twice.get_epsilon(1e-5), rel=1e-6)
    small = epsilon(4.0, examples=100, batch=10, steps=5, delta=1e-5, sampling="fixed")
    assert small < whole
    poisson = epsilon(4.0, examples=100, batch=10, steps=5, delta=1e-5)
    assert poisson < small
    noise = calibrate_noise(2.0, examples=100, batch=100, steps=5, delta=1e-5, sampling="fixed")
    kept = epsilon(noise, examples=100, batch=100, steps=5, delta=1e-5, sampling="fixed")
    assert kept == pytest.approx(2.0, abs=1e-4)


def test_objects_of_a_run_know_its_epsilon() -> None:
    want = epsilon(1.1, **RUN)
    gradient = private_gradient(
        lambda w, x: w @ x, clip=1.0, noise_multiplier=1.1, expected_batch=256
    )
    assert gradient.epsilon(60000, 10000, 1e-5) == want
    assert PoissonBatches(60000, 256, seed=0).epsilon(1.1, 10000, 1e-5) == want


def test_no_noise_is_no_privacy() -> None:
    assert epsilon(0.0, **RUN) == math.inf


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampling": "shuffled"}, "no guarantee of amplification.*PoissonBatches"),
        ({"sampling": "fixd"}, "did you mean 'fixed'"),
        ({"sampling": "fixed", "accountant": "pld"}, "accountant='pld' has no bound"),
        ({"sampling": "fixed", "batch": 2.5}, "whole number"),
        ({"examples": None}, "give sampling_rate, or examples and batch"),
        ({"sampling_rate": 0.1}, "give sampling_rate, or examples and batch"),
        ({"delta": 0.0}, "delta=0"),
        ({"delta": 1e-3}, "publishing one example whole"),
        ({"batch": 70000}, "batch=70000 is outside"),
        ({"batch": 0}, "sampling_rate=0.0 must be above 0"),
        ({"steps": 1.5}, "steps=1.5"),
    ],
)
def test_broken_assumptions_are_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        epsilon(1.1, **RUN | changed)
    with pytest.raises(ValueError, match=said):
        calibrate_noise(3.0, **RUN | changed)


def test_fixed_sampling_needs_both_numbers() -> None:
    with pytest.raises(ValueError, match="draws batch out of examples"):
        epsilon(1.1, sampling="fixed", **ONE)
    with pytest.raises(ValueError, match="epsilon=0"):
        calibrate_noise(0.0, **RUN)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"optkit\[privacy\]"):
        epsilon(1.1, **RUN)
    assert "dp_accounting" not in optkit.privacy.accounting.__dict__
