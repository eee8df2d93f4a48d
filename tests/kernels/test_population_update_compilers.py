"""A population's update goes through the compilers of TPUs and GPUs; neither needs a device."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optkit.aot import compile_for
from optkit.evolution import population_apply, population_perturb
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


@pytest.mark.sweep
@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_mosaic_compiles_it(chip: str, spec: ArgSpec) -> None:
    check(chip, spec, signs=spec.name == "ragged")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_triton_compiles_it(spec: ArgSpec) -> None:
    check("h100", spec, signs=spec.name == "ragged")


@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        pytest.param("v5e:2x2", 2, marks=pytest.mark.tpu),
        pytest.param("h100", 3, marks=pytest.mark.gpu),
    ],
)
def test_a_generation_has_no_noise_outside_of_its_kernels(target: str, kernels: int) -> None:
    es = population_perturb(64, sigma=0.1, draws="counters", implementation="pallas")
    params = {"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)}

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        population = es.perturb_lazy(params, state)
        fitness = population_apply(
            lambda p, x: -jnp.mean((x @ p["w"]) ** 2), population, x, implementation="pallas"
        )
        return es.update(fitness, state, params)

    x = jax.ShapeDtypeStruct((64, 2, 256), jnp.float32)
    text = compile_for(target, step, params, jax.eval_shape(es.init, params), x).as_text()
    call = CALLS["gpu" if target == "h100" else "tpu"]
    assert text.count(f'custom_call_target="{call}"') == kernels
    assert " log(" not in text and "f32[32,256" not in text
