"""Names, options and their error messages."""

import sys

import pytest

from optkit import tasks
from optkit.tasks import digits_data


def test_unknown_task_lists_names_and_close_matches() -> None:
    with pytest.raises(tasks.UnknownTask) as caught:
        tasks.get("digit")
    message = str(caught.value)
    assert message.startswith("no task 'digit'. Did you mean 'digits'")
    assert all(name in message for name in tasks.names())
    assert isinstance(caught.value, KeyError)


def test_unknown_task_without_a_close_match_lists_names_only() -> None:
    with pytest.raises(tasks.UnknownTask, match="Tasks: bytelm, digits") as caught:
        tasks.get("zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bytelm", {"wdth": 64}, "no option 'wdth'. Did you mean 'width'?.*layers=2"),
        ("regression", {"width": 3}, "no option 'width'.*condition=100.0"),
        ("bytelm", {"width": "64"}, "width='64' must be of type int"),
        ("bytelm", {"layers": True}, "layers=True must be of type int"),
        ("bytelm", {"layers": 0}, "layers=0 must be finite and above 0"),
        ("bytelm", {"width": 20, "heads": 4}, r"width=20 must be a multiple of 2 \* heads=8"),
        ("bytelm", {"text": 3}, "text=3 must be of type"),
        ("bytelm", {"text": "/no/such/place"}, "'/no/such/place' does not exist; give a file"),
        ("digits", {"batch": 2000}, "batch=2000 must be at most 1437"),
        ("digits", {"channels": -1}, "channels=-1 must be 0 or above"),
        ("regression", {"condition": 0.5}, "condition=0.5 must be finite and 1 or above"),
        ("regression", {"condition": float("nan")}, "condition=nan must be finite"),
        ("regression", {"teacher_seed": -1}, "teacher_seed=-1 must be 0 or above"),
    ],
)
def test_option_errors_name_the_value_and_what_is_allowed(
    name: str, options: dict, message: str
) -> None:
    with pytest.raises(tasks.TaskOptionError, match=message):
        tasks.get(name, **options)


def test_whole_numbers_pass_for_floats() -> None:
    assert tasks.get("regression", condition=10).parameters == 32 * 24 + 24 * 24


@pytest.mark.parametrize("name", ["digits", "digits_linen"])
def test_missing_scikit_learn_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digits_data.load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "optkit\[cli\]"'):
        tasks.get(name)
