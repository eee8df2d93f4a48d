"""The population's product goes through the compilers of TPUs and GPUs; neither needs a device."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optkit.aot import compile_for
from optkit.evolution import population_apply, population_perturb
from optkit.kernels.perturbed_matmul import Counters, perturbed_rows
from optkit.kernels.perturbed_matmul.arg_specs import ARG_SPECS

pytestmark = pytest.mark.usefixtures("optimizing")

# (groups, rows, n, m, rank): groups beside each other; rows in several tiles, columns too.
FEW, MANY = (6, 2, 200, 300, 2), (2, 300, 256, 1100, 1)


def compiled(target: str, shape: Any, dtype: Any, generated: bool) -> Any:
    groups, rows, n, m, rank = shape

    def run(x: Any, w: Any, scale: Any, *noise: Any) -> jax.Array:
        own = Counters(noise[0], 5, rank) if generated else noise
        return perturbed_rows(x, w, own, scale, implementation="pallas")

    struct = jax.ShapeDtypeStruct
    factors = [struct((groups, size, rank), jnp.float32) for size in (m, n)]
    return compile_for(
        target,
        run,
        struct((groups, rows, n), dtype),
        struct((n, m), dtype),
        struct((groups, rows), jnp.float32),
        *([struct((2,), jnp.uint32)] if generated else factors),
    )


CASES = [
    (FEW, jnp.float32, False),
    (FEW, jnp.bfloat16, True),
    (MANY, jnp.bfloat16, False),
    (MANY, jnp.float32, True),
    # Of a policy, and of a model.
    *((tuple(spec[1:]), jnp.bfloat16, True) for spec in ARG_SPECS[:2]),
]


def generation(target: str) -> str:
    """A generation of 64 members, each with rows of its own: evaluated and learnt from."""
    es = population_perturb(64, sigma=0.1)
    params = {name: jax.ShapeDtypeStruct((256, 256), jnp.float32) for name in ("in", "out")}

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        fitness = population_apply(
            lambda p, x: -jnp.mean((jnp.tanh(x @ p["in"]) @ p["out"] - x) ** 2),
            *(es.perturb_lazy(params, state), x),
            implementation="pallas",
        )
        return es.update(fitness, state, params)

    x = jax.ShapeDtypeStruct((64, 2, 256), jnp.float32)
    return compile_for(target, step, params, jax.eval_shape(es.init, params), x).as_text()


@pytest.mark.parametrize(
    "target",
    [pytest.param("v5e:2x2", marks=pytest.mark.tpu), pytest.param("h100", marks=pytest.mark.gpu)],
)
def test_noise_that_a_kernel_makes_is_made_nowhere_else(target: str) -> None:
    es = population_perturb(64, sigma=0.1, draws="counters")
    params = {"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)}

    def evaluate(params: Any, state: Any, x: jax.Array) -> Any:
        population = es.perturb_lazy(params, state)
        return population_apply(lambda p, x: x @ p["w"], population, x, implementation="pallas")

    x = jax.ShapeDtypeStruct((64, 2, 256), jnp.float32)
    text = compile_for(target, evaluate, params, jax.eval_shape(es.init, params), x).as_text()
    assert " log(" not in text and "f32[32,256" not in text


@pytest.mark.tpu
def test_a_generation_on_a_tpu_takes_a_kernel_a_product() -> None:
    assert generation("v5e:2x2").count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.gpu
def test_a_generation_on_a_gpu_takes_two_kernels_a_product() -> None:
    assert generation("h100").count('custom_call_target="__gpu$xla.gpu.triton"') == 4


@pytest.mark.sweep
@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize(("shape", "dtype", "generated"), CASES, ids=str)
def test_mosaic_compiles_it(chip: str, shape: Any, dtype: Any, generated: bool) -> None:
    assert compiled(chip, shape, dtype, generated).as_text().count("tpu_custom_call") == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype", "generated"), CASES, ids=str)
def test_triton_compiles_it(shape: Any, dtype: Any, generated: bool) -> None:
    text = compiled("h100", shape, dtype, generated).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2
