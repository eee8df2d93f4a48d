"""The matrix kernels go through the compilers of accelerators: make test-tpu, make test-gpu."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import tpu_newton_schulz as bench
from optkit import linalg
from optkit.aot import compile_for
from optkit.kernels import symmetric_matmul
from optkit.kernels.newton_schulz import iterate
from optkit.kernels.newton_schulz.arg_specs import ARG_SPECS, ArgSpec
from optkit.linalg.factor import standard_flops

pytestmark = pytest.mark.usefixtures("optimizing")

ROWS = linalg.get_coefficients("jordan", 2)
TPUS = ("v5e:2x2", "v5p:2x2x1")
CALLS = {"tpu": "tpu_custom_call", "gpu": "__gpu$xla.gpu.triton"}


def calls(chip: str, function: Any, *shapes: Any) -> int:
    """Returns how many kernels a program for a device calls."""
    text = compile_for(chip, function, *shapes).as_text()
    return max(text.count(f'custom_call_target="{call}"') for call in CALLS.values())


# No whole tiles; whole ones of a model.
PRODUCTS = (ArgSpec("ragged", (2, 300, 515)), ARG_SPECS[3])


def products(chip: str, spec: ArgSpec, dtype: Any) -> None:
    """Each operation once."""
    by = {"implementation": "pallas"}
    b, m, _ = spec.shape
    x, a = spec.abstract(dtype), jax.ShapeDtypeStruct((b, m, m), dtype)
    gram, polynomial, add = (
        partial(function, **by)
        for function in (
            symmetric_matmul.gram,
            partial(symmetric_matmul.polynomial, b=1.0, c=2.0),
            partial(symmetric_matmul.add_product, beta=2.0),
        )
    )

    def run(x: Any, a: Any) -> Any:
        return add(a, x), polynomial(a), gram(x)

    assert calls(chip, run, x, a) == 3


@pytest.mark.sweep
@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize("spec", PRODUCTS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float32))
def test_products_compile_for_tpus(chip: str, spec: ArgSpec, dtype: Any) -> None:
    products(chip, spec, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", PRODUCTS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float32, jnp.float16))
def test_products_compile_for_gpus(spec: ArgSpec, dtype: Any) -> None:
    products("h100", spec, dtype)


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize("resets", (None, ()), ids=("standard", "gram"))
def test_the_iteration_is_one_kernel_on_tpus(chip: str, resets: Any) -> None:
    run = partial(iterate, rows=ROWS, resets=resets, implementation="pallas")
    for shape, dtype in (((2, 100, 300), jnp.float32), ((2, 512, 768), jnp.bfloat16)):
        assert calls(chip, run, jax.ShapeDtypeStruct(shape, dtype)) == 1


@pytest.mark.tpu
@pytest.mark.parametrize("spec", ARG_SPECS[-1:], ids=lambda spec: spec.name)
def test_a_matrix_larger_than_the_chip_compiles(spec: ArgSpec) -> None:
    run = partial(iterate, rows=ROWS[:1], implementation="pallas")
    assert calls(TPUS[0], run, spec.abstract()) == 3


@pytest.mark.gpu
def test_the_iteration_compiles_for_gpus() -> None:
    run = partial(linalg.newton_schulz, coefficients=ROWS, implementation="pallas")
    assert calls("h100", run, jax.ShapeDtypeStruct((3, 700, 300), jnp.bfloat16)) == 6


@pytest.mark.tpu
def test_the_kernel_takes_fewer_cycles_than_whole_products_can() -> None:
    spec = ArgSpec("one matrix", (1, 768, 1536))
    rows = linalg.get_coefficients(bench.COEFFICIENTS, bench.STEPS)
    least = standard_flops(768, 1536, rows) / (2 * bench.MULTIPLICATIONS)
    assert bench.measure(spec, "pallas", "gram_ns").cycles < 0.8 * least
