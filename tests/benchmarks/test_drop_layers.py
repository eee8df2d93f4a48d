"""The costs of dropped layers: laws that add up, and less work for later cuts."""

import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from benchmarks import drop_layers
from optkit.transforms.cuts import CutLaw


def test_laws_are_those_of_the_transformation() -> None:
    known = drop_layers.laws(5)
    layers = optkit.layer_order({f"w{i}": jnp.ones((1, 1)) for i in range(5)})
    for name, p in known.items():
        np.testing.assert_allclose(p.sum(), 1.0)
        if name.startswith("epoch_shifted"):
            law = CutLaw("epoch_shifted", 9).probabilities(layers, 9 * name.endswith("last step"))
            np.testing.assert_allclose(p, list(law.values()), rtol=1e-6)


@pytest.mark.slow
def test_quick_run_finds_less_work_for_later_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    drop_layers.main(["--quick", "--clock", "cpu"])
    table, laws = capsys.readouterr().out.split("\n\n")
    shares = [float(line.split()[-4]) for line in table.splitlines()[3:]]
    assert shares[0] == 1.0 and shares == sorted(shares, reverse=True) and shares[-1] < 0.6
    uniform = next(line for line in laws.splitlines() if line.startswith("uniform "))
    assert float(uniform.split()[1]) == pytest.approx(np.mean(shares), abs=0.01)
