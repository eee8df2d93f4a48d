"""A population's update goes through the compilers of TPUs and GPUs; neither needs a device."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optkit.aot import compile_for
from optkit.kernels.population_update import Counters, population_update
from optkit.kernels.population_update.arg_specs import ARG_SPECS, ArgSpec

pytestmark = pytest.mark.usefixtures("optimizing")

CALLS = {"tpu": "tpu_custom_call", "gpu": "__gpu$xla.gpu.triton"}
# Ragged; fewer columns than a register has, and rows of several runs; a model's.
CASES = [ArgSpec("ragged", 6, 300, 515, 2), ArgSpec("narrow", 200, 1100, 3), ARG_SPECS[1]]


def compiled(target: str, spec: ArgSpec, signs: bool) -> Any:
    def run(weights: Any, key: Any) -> jax.Array:
        noise = Counters(key, 5, spec.rank)
        shape = (spec.n, spec.m)
        return population_update(weights, noise, shape, signs=signs, implementation="pallas")

    struct = jax.ShapeDtypeStruct
    return compile_for(target, run, struct((spec.pairs,), jnp.float32), struct((2,), jnp.uint32))


def check(target: str, spec: ArgSpec, signs: bool) -> None:
    """One kernel, and no noise through memory: at most a narrow sum in rows of 128."""
    program = compiled(target, spec, signs)
    platform = "gpu" if target == "h100" else "tpu"
    text = program.as_text()
    assert text.count(f'custom_call_target="{CALLS[platform]}"') == 1
    assert " log(" not in text
    turned = 4 * spec.n * 128 if spec.m < 128 else 0
    assert program.memory_analysis().temp_size_in_bytes < turned + 2**18


@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_mosaic_compiles_it(chip: str, spec: ArgSpec) -> None:
    check(chip, spec, signs=spec.name == "ragged")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_triton_compiles_it(spec: ArgSpec) -> None:
    check("h100", spec, signs=spec.name == "ragged")
