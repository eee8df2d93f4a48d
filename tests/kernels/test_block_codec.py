"""The kernel that reads, updates and stores moments equals decoding, updating and encoding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.codecs import Fp8Codec, TableCodec
from optkit.kernels.block_codec import base, gpu, tpu, update_stored, why_not

SHAPES = ((3, 256), (40, 512), (2, 3, 300), (7, 33, 3), (5, 1100), (1, 2048))
CODECS = (
    TableCodec(),
    TableCodec(ties="upper", keep_sign=True, scale="extreme"),
    TableCodec("linear", floor=1e-3),
    TableCodec(block=1024),
    TableCodec(layout="flat"),
    TableCodec(bits=4, exponent_bits=3, block=128),
    TableCodec("nf4", bits=4, block=256),
)


def largest(moments: Any, arrays: Any, scalars: Any) -> Any:
    """An update without a rounding: whatever order the compiler takes, the result is one."""
    m, v = moments
    return [jnp.minimum(m, v) * 2.0], [jnp.maximum(m, arrays[0]), jnp.minimum(v, scalars[0])]


# Interpreting is slow: a failing example is shown as it was found.
@settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@drawn(
    codec=st.sampled_from(CODECS),
    shape=st.sampled_from(SHAPES),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_kernel_equals_its_meaning_bit_for_bit(
    codec: TableCodec, shape: tuple[int, ...], spread: float, seed: int
) -> None:
    codecs = [codec, codec if codec.kind in ("nf4",) else codec.for_sign(False)]
    rng = np.random.default_rng(seed)

    def values() -> np.ndarray:
        sizes = np.exp(spread * rng.standard_normal(shape))
        # Zeros, too: among others, and whole blocks of them.
        return (rng.standard_normal(shape) * sizes * (rng.random(shape) > 0.2)).astype(np.float32)

    if why_not(codecs, shape) is not None:
        assert codec.bits == 4 and shape[-1] % 2, "nothing else among these is refused"
        return
    given = (values(), values() ** 2)
    stored = [own.encode(jnp.asarray(x)) for own, x in zip(codecs, given, strict=True)]
    g = values() if seed % 3 else np.zeros(shape, np.float32)
    wanted, *found = (
        jax.jit(
            lambda stored, g, bound, by=by, more=more: by(
                largest, codecs, codecs, stored, [g], [bound], shape, **more
            )
        )(stored, jnp.asarray(g), jnp.float32(0.5))
        for by, more in (
            (base.update_stored, {}),
            (tpu.update_stored, {"reuse": {}, "interpret": True}),
            (gpu.update_stored, {"reuse": {0: 0}, "interpret": True}),
        )
    )
    for own in found:
        for a, b in zip(*map(jax.tree.leaves, (wanted, own)), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("codec", (TableCodec(), CODECS[5]), ids=("8 bits", "4 bits"))
def test_with_nothing_to_read_it_encodes_and_with_nothing_to_write_it_decodes(
    codec: TableCodec,
) -> None:
    shape = (33, 260)
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    _, (parts,) = update_stored(
        lambda moments, arrays, scalars: ([], arrays),
        [],
        [x],
        read=[],
        write=[codec],
        shape=shape,
        implementation="interpret",
    )
    wanted = codec.encode(x)
    for name, part in parts.items():
        np.testing.assert_array_equal(np.asarray(part), np.asarray(wanted[name]), err_msg=name)
    (read,), _ = update_stored(
        lambda moments, arrays, scalars: (moments, []),
        [parts],
        [],
        read=[codec],
        write=[],
        shape=shape,
        implementation="interpret",
    )
    np.testing.assert_array_equal(np.asarray(read), np.asarray(codec.decode(parts, shape)))


@pytest.mark.parametrize(
    ("codecs", "shape", "dtype", "text"),
    [
        ([Fp8Codec()], (4, 256), jnp.float32, "e4m3fn.*only optkit.codecs.TableCodec"),
        ([TableCodec(rounding="stochastic")], (4, 256), jnp.float32, "at random"),
        ([TableCodec(block=64)], (4, 256), jnp.float32, "block=64 is not a multiple of 128"),
        ([TableCodec(block=8192)], (2, 8192), jnp.float32, "block=8192 .* up to 4096"),
        ([TableCodec(), TableCodec(block=512)], (4, 512), jnp.float32, "differ in block"),
        ([CODECS[5]], (4, 257), jnp.float32, "rows of 257 codes of 4 bits"),
        ([TableCodec()], (0, 256), jnp.float32, "holds nothing"),
        ([TableCodec()], (4, 256), jnp.float16, "float16"),
    ],
)
def test_what_it_does_not_serve_is_refused_with_the_numbers(
    codecs: Any, shape: tuple[int, ...], dtype: Any, text: str
) -> None:
    x = jnp.zeros(shape, dtype)
    with pytest.raises(ValueError, match=text):
        update_stored(
            lambda moments, arrays, scalars: ([], [arrays[0]] * len(codecs)),
            [],
            [x],
            read=[],
            write=codecs,
            shape=shape,
            implementation="interpret",
        )


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="implementation='triton' is none of xla, pallas"):
        update_stored(
            lambda *_: ([], []), [], [], read=[], write=[], shape=(), implementation="triton"
        )  # type: ignore[arg-type]


def test_on_the_cpu_the_kernel_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotImplementedError, match="not for cpu; give implementation='xla'"):
        update_stored(
            lambda moments, arrays, scalars: ([], arrays),
            *([], [jnp.zeros((1, 256))]),
            read=[],
            write=[TableCodec()],
            shape=(1, 256),
            implementation="pallas",
        )


def test_a_block_that_is_not_a_number_is_not_hidden_on_a_gpu() -> None:
    x = np.ones((2, 256), np.float32)
    x[0, 3] = np.nan
    _, (parts,) = gpu.update_stored(
        lambda moments, arrays, scalars: ([], arrays),
        *([], [TableCodec()], [], [jnp.asarray(x)], [], x.shape, {}),
        interpret=True,
    )
    read = np.asarray(TableCodec().decode(parts, x.shape))
    assert np.isnan(read[0]).all() and not np.isnan(read[1]).any()


# ---- several devices

FLAT = TableCodec(layout="flat", block=128)


@pytest.mark.parametrize(
    ("codec", "shape", "spec"),
    [
        (TableCodec(block=128), (8, 300), P("x")),
        (CODECS[5], (4, 512), P("x", "y")),
        (FLAT, (8, 100), P()),
    ],
    ids=("rows", "whole blocks of rows", "not split"),
)
def test_each_device_works_on_its_own_blocks(
    codec: TableCodec, shape: tuple[int, ...], spec: P
) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    m, g = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    parts = codec.encode(m)

    def bounds(moments: Any, arrays: Any, scalars: Any) -> Any:
        return [jnp.minimum(moments[0], arrays[0])], [jnp.maximum(moments[0], arrays[0])]

    def run(parts: Any, g: Any, by: Any) -> Any:
        return update_stored(
            bounds, [parts], [g], read=[codec], write=[codec], shape=shape, implementation=by
        )

    wanted = run(parts, g, "xla")
    with jax.set_mesh(mesh):
        g = jax.device_put(g, NamedSharding(mesh, spec))
        compiled = jax.jit(run, static_argnums=2).lower(parts, g, "interpret").compile()
        found = compiled(parts, g)
    jax.tree.map(np.testing.assert_array_equal, wanted, jax.device_get(found))
    assert jax.typeof(found[0][0]).sharding.spec == P(*spec, *[None] * (2 - len(spec)))
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    ("codec", "spec", "kind", "text"),
    [
        (TableCodec(), P(None, "x"), AxisType.Explicit, "128 entries of each row of 1024, and bl"),
        (TableCodec(layout="flat"), P("x"), AxisType.Explicit, "blocks of 256 are cut from its fl"),
        (TableCodec(), P("x"), AxisType.Auto, "give the mesh Explicit axes, or call it inside"),
    ],
    ids=("columns", "flattened", "Auto"),
)
def test_blocks_that_would_cross_devices_are_refused(
    codec: TableCodec, spec: P, kind: AxisType, text: str
) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=text):
        jax.jit(
            lambda x: update_stored(
                lambda moments, arrays, scalars: ([], arrays),
                *([], [x]),
                read=[],
                write=[codec],
                shape=x.shape,
                implementation="interpret",
            )
        )(jax.device_put(jnp.zeros((8, 1024)), NamedSharding(mesh, spec)))
