"""Integer EGG at settings that the recorded file does not have, against NumPy, bit for bit."""

import numpy as np
import pytest

from tests.golden import oracles_egg as oracle
from tests.golden.cases_evolution_egg import egg_int8
from tests.golden.replay import DATA, Golden, load

HYPER = {
    "n_embd": 4,
    "n_layer": 1,
    "population": 6,
    "tokens_per_update": 2,
    "group_size": 2,
    "sigma_shift": 3,
    "alpha_per_step": [0.5, 0.2],
    "use_clt": True,
    "noise_reuse": 1,
    "rank": 1,
    "fixed_point": 4,
}


def test_the_oracle_agrees_with_the_recorded_file() -> None:
    golden = load(DATA / "egg_int8.npz")
    hyper = golden.hyper
    shape = {name: value.shape for name, value in golden.tree("p0").items()}
    table = golden.arrays["noise_table"]
    noise = oracle.draw(golden.arrays, hyper, shape, table, 2**16 - 1, 1)
    np.testing.assert_array_equal(
        noise["blocks.mlp.0.weight"][0], golden.arrays["A/1/blocks.mlp.0.weight"]
    )
    np.testing.assert_array_equal(noise["ln_out.weight"][0], golden.arrays["E/1/ln_out.weight"])
    for m in (4, 5):
        own = {
            name: [np.take(x, m, axis=int(name.startswith("blocks"))) for x in parts]
            for name, parts in noise.items()
        }
        member = oracle.Member(golden.tree("p/0"), own, 4, hyper["sigma_shift"])
        score, state = member.score(golden.arrays["tokens/1"][m], golden.arrays["state/0"][m])
        assert score == golden.arrays["score/1"][m]
        np.testing.assert_array_equal(state, golden.arrays["state/1"][m])
    shaped = golden.arrays["shaped/1"]
    for name, value in golden.tree("p/0").items():
        bound = int(golden.arrays["threshold/1"])
        after = oracle.moved(hyper, value, noise[name], shaped, bound)
        np.testing.assert_array_equal(after, golden.arrays[f"p/1/{name}"])


@pytest.mark.sweep
@pytest.mark.parametrize(
    "other",
    [
        {"use_clt": False, "noise_reuse": 2, "n_embd": 9, "alpha_per_step": [1.0, 0.9, 0.3]},
        {"rank": 2, "group_size": 1, "noise_reuse": 0, "n_layer": 2},
        {"fixed_point": 5, "sigma_shift": 0, "group_size": 6},
    ],
    ids=lambda other: "-".join(other),
)
def test_other_settings(other: dict) -> None:
    golden: Golden = oracle.record({**HYPER, **other})
    assert (
        len({v for key in golden.arrays if key.startswith("score/") for v in golden.arrays[key]})
        > 3
    )
    wrong = [comparison.error for comparison in egg_int8(golden)]
    assert wrong and max(wrong) == 0
