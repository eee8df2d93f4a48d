"""The kernels go through the TPU's own compiler, which needs no TPU: ``make test-tpu``."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optkit
from benchmarks import common, tpu, tpu_states
from optkit.kernels.block_codec import update_stored
from optkit.kernels.block_codec.arg_specs import ARG_SPECS, ArgSpec

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("optimizing")]

# Rows of whole blocks; short blocks; fewer rows than a tile; a flat array; a wide one.
SHAPES = ((64, 512), (40, 513), (5, 7, 300), (3, 3, 17, 32), (8, 5000))
SPECS = [ArgSpec(str(shape), shape) for shape in SHAPES]
SPECS += [spec._replace(bits=4) for spec in SPECS if spec.shape[-1] % 2 == 0]


def adam(moments: Any, arrays: Any, scalars: Any) -> Any:
    (m, v), g = moments, arrays[0].astype(jnp.float32)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return [(scalars[0] * m / (jnp.sqrt(v) + 1e-8)).astype(arrays[0].dtype)], [m, v]


@pytest.mark.sweep
@pytest.mark.parametrize("chip", tpu.TOPOLOGIES)
@pytest.mark.parametrize(
    "spec",
    [*SPECS, ArgSpec("(40, 514)", (40, 514), 4), *ARG_SPECS],
    ids=lambda spec: f"{spec.name}-{spec.bits}",
)
def test_the_kernel_compiles(chip: str, spec: ArgSpec) -> None:
    shape, codecs = spec.shape, spec.codecs

    def run(stored: Any, g: Any, rate: Any) -> Any:
        return update_stored(
            adam, stored, [g], [rate], read=codecs, write=codecs, shape=shape,
            implementation="pallas",
        )  # fmt: skip

    dtype = jnp.bfloat16 if shape == SHAPES[0] else jnp.float32
    compiled = tpu.compile_for(
        chip,
        run,
        [own.shapes(shape) for own in codecs],
        spec.abstract(dtype),
        jax.ShapeDtypeStruct((), jnp.float32),
        donate=(0,),
    )
    assert "tpu_custom_call" in compiled.as_text()


@pytest.mark.parametrize("name", ("adamw", "lion", "signum"))
def test_a_step_needs_no_moment_in_full(name: str) -> None:
    shapes = {"w": {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}}
    make = {"adamw": optkit.adamw, "lion": optkit.lion, "signum": optkit.signum}[name]
    tx = optkit.quantize_state(make(1e-3), implementation="pallas")
    arguments = common.abstract_arguments(tx, shapes)
    compiled = tpu.compile_for("v5e", tx.update, *arguments, donate=(1,))
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 512 / 8


def test_the_measurement_runs(capsys: pytest.CaptureFixture[str]) -> None:
    tpu_states.main(["--tree", "tiny", "--only", "adamw", "--only", "dynamic8, kernel"])
    assert "scratch 0.0" in capsys.readouterr().out
