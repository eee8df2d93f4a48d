"""Files with clients replay stacked and along a mesh: both forms are compared."""

import subprocess
import sys

import jax
import pytest

from tests.golden import cases_federated  # noqa: F401  registers its cases
from tests.golden.meshes import forms, mesh_for, replica_forms
from tests.golden.replay import CASES, DATA, load


@pytest.mark.parametrize(("count", "devices"), [(5, 5), (6, 6), (8, 8), (9, 3), (16, 8)])
def test_a_mesh_has_the_most_devices_that_divide_the_clients(count: int, devices: int) -> None:
    mesh = mesh_for(count)
    assert mesh is not None and mesh.size == devices
    assert forms(count) == [None, mesh]


def test_one_client_or_a_large_prime_of_them_is_stacked_alone() -> None:
    assert forms(1) == forms(11) == [None]
    assert [len(replica_forms(count, "replica")) for count in (4, 11, 16)] == [2, 1, 1]


def test_both_forms_are_compared() -> None:
    golden = load(DATA / "fedavg.npz")
    assert len(list(CASES["fedavg"](golden))) == 2 * golden.steps


@pytest.mark.slow
def test_the_command_has_eight_devices_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    said = "import tests.golden.__main__, jax; print(jax.device_count())"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(jax.device_count()) == "8"
