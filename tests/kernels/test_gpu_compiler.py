"""The kernels go through the GPU's own compiler, which needs no GPU: ``make test-gpu``."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optkit.aot import compile_for
from optkit.codecs import TableCodec
from optkit.kernels.block_codec import update_stored
from optkit.kernels.block_codec.arg_specs import ARG_SPECS, ArgSpec

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("optimizing")]

CODECS = (
    TableCodec(ties="upper", keep_sign=True, scale="extreme"),
    TableCodec(bits=4, exponent_bits=3, block=384),
)


def adam(moments: Any, arrays: Any, scalars: Any) -> Any:
    (m, v), g = moments, arrays[0].astype(jnp.float32)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return [(scalars[0] * m / (jnp.sqrt(v) + 1e-8)).astype(arrays[0].dtype)], [m, v]


def compiled(codecs: list[TableCodec], shape: tuple[int, ...], dtype: Any) -> Any:
    """Adam's step of a leaf."""

    def run(stored: Any, g: Any, rate: Any) -> Any:
        return update_stored(
            adam, stored, [g], [rate], read=codecs, write=codecs, shape=shape, reuse={0: 0},
            implementation="pallas",
        )  # fmt: skip

    return compile_for(
        "h100",
        run,
        [own.shapes(shape) for own in codecs],
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct((), jnp.float32),
        donate=(0, 1),
    )


@pytest.mark.parametrize("spec", ARG_SPECS, ids=lambda spec: spec.name)
def test_moments_of_models_compile(spec: ArgSpec) -> None:
    text = compiled(spec.codecs, spec.shape, jnp.float32).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize("codec", CODECS, ids=("8 bits", "4 bits"))
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((64, 768), jnp.bfloat16), ((5, 7, 386), jnp.float32), ((3, 3, 17, 32), jnp.float32)],
    ids=str,
)
def test_stored_moments_compile_and_are_never_written_in_full(
    codec: TableCodec, shape: tuple[int, ...], dtype: Any
) -> None:
    found = compiled([codec, codec.for_sign(False)], shape, dtype)
    assert found.as_text().count("__gpu$xla.gpu.triton") == 1
    # Beside what is donated: tables and pointers.
    assert found.memory_analysis().temp_size_in_bytes < 1024
