"""``optkit privacy`` prints epsilon and refuses runs that no accountant has a bound for."""

import importlib.util

import pytest

RUN = ("--examples", 60000, "--batch", 256, "--steps", 10000)


def test_it_prints_epsilon_and_what_it_assumes(command):
    done = command("privacy", *RUN, "--noise", 1.1, "--delta", 1e-5)
    assert done.code == 0
    assert "epsilon 2.1616 at delta 1e-05, where one example is added or removed (rdp)" in done.out
    assert "assumes each example drawn by itself" in done.out
    assert "divided by 256" in done.out
    assert "a batch needs 384 places" in done.out


def test_it_finds_noise_for_an_epsilon_and_has_a_delta(command):
    done = command("privacy", *RUN, "--epsilon", 3.0, "--delta", 1e-5)
    assert "epsilon 3.0000" in done.out and "noise multiplier 0.9248" in done.out
    assert "delta 1.66667e-06" in command("privacy", *RUN, "--noise", 1.1).out


def test_fixed_batches_are_told_apart(command):
    words = ("--examples", 50, "--batch", 50, "--steps", 2, "--noise", 8, "--sampling", "fixed")
    done = command("privacy", *words)
    assert "one example is replaced" in done.out and "shuffled epochs are not that" in done.out
    assert "places" not in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--noise", 1, "--sampling", "shuffled"), "no guarantee of amplification"),
        (("--noise", 1, "--sampling", "fixed", "--accountant", "pld"), "has no bound for"),
        (("--noise", 1, "--sampling", "poison"), "did you mean 'poisson'"),
        (("--noise", 1, "--delta", 0.01), "publishing one example whole"),
        (("--noise", 1, "--epsilon", 1), "either --noise, or --epsilon"),
        ((), "either --noise, or --epsilon"),
        (("--epsilon", 0), "epsilon=0"),
    ],
)
def test_broken_assumptions_are_refused(command, words, said):
    done = command("privacy", *RUN, *words)
    assert done.code == 2 and said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("batch", [0, -1, 101, "nan"])
def test_a_batch_out_of_range_names_the_flags(command, batch):
    done = command("privacy", "--examples", 100, "--batch", batch, "--steps", 10, "--noise", 1)
    assert done.code == 2
    assert f"--batch {batch} must be above 0 and at most --examples, which is 100" in done.err


def test_without_the_library_the_extra_is_named(command, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "dp_accounting" else found(name)
    )
    done = command("privacy", *RUN, "--noise", 1)
    assert done.code == 1 and 'pip install "optkit[privacy]"' in done.err
