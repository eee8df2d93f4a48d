"""The kernel that reads, updates and stores moments equals decoding, updating and encoding."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.codecs import Fp8Codec, TableCodec
from optkit.kernels.block_codec import base, gpu, tpu, update_stored
from tests.kernels.base import ChoiceTests, KernelTests, sides

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


def shapes(codec: TableCodec) -> st.SearchStrategy[Any]:
    """Ragged ones of one to three axes; of rows whose codes fill whole bytes."""
    last = sides(128, 256, 512)
    if codec.bits == 4:
        last = last.map(lambda size: size + size % 2)
    rows = st.one_of(st.just(()), st.tuples(sides(32)), st.tuples(st.integers(1, 4), sides(8)))
    return st.builds(lambda rows, size: (*rows, size), rows, last)


class Moments(KernelTests):
    """Bit for bit what decoding, working and encoding give; a case is (codec, shape, what)."""

    cases = st.sampled_from(CODECS).flatmap(
        lambda codec: st.tuples(
            st.just(codec), shapes(codec), st.sampled_from(["read", "write", "both"])
        )
    )
    example = (TableCodec(), (40, 300), "both")
    degrees = (1, 0, 1, 0, 1)  # what comes out, and codes and scales of both moments
    options: ClassVar[dict[str, Any]]
    kernel: ClassVar[Any]

    @classmethod
    def codecs(cls, case: Any) -> tuple[Any, Any]:
        """What is read, and what is written: a moment of each sign, or none."""
        codec, _, what = case
        both = [codec, codec if codec.kind == "nf4" else codec.for_sign(False)]
        return both if what != "write" else [], both if what != "read" else []

    @classmethod
    def operands(cls, case: Any, seed: int) -> Any:
        """An array with zeros, a bound, and any codes with scales of many sizes."""
        _, shape, _ = case
        rng = np.random.default_rng(seed)
        g = rng.standard_normal(shape) * np.exp(seed % 9 * rng.standard_normal(shape))
        g *= rng.random(shape) > 0.2
        stored = []
        for like in cls.codecs(case)[0]:
            codes, scale = (like.shapes(shape)[name] for name in ("codes", "scale"))
            sizes = np.exp(rng.standard_normal(scale.shape)) * (rng.random(scale.shape) > 0.1)
            stored += [
                rng.integers(0, 256, codes.shape).astype(codes.dtype),
                sizes.astype(scale.dtype),
            ]
        return (g.astype(np.float32), np.float32(0.5), *stored)

    @classmethod
    def by(cls, case: Any, update: Any, **options: Any) -> Any:
        """The operation by an implementation."""
        (read, write), shape = cls.codecs(case), case[1]

        def function(moments: Any, arrays: Any, scalars: Any) -> Any:
            outputs, new = largest(moments or [arrays[0], -arrays[0]], arrays, scalars)
            return outputs, new if write else []

        def run(g: Any, bound: Any, *stored: Any) -> Any:
            parts = [
                {"codes": codes, "scale": scale}
                for codes, scale in zip(stored[::2], stored[1::2], strict=True)
            ]
            return update(function, read, write, parts, [g], [bound], shape, **options)

        return run

    @classmethod
    def program(cls, case: Any) -> Any:
        """By the kernel."""
        return cls.by(case, cls.kernel.update_stored, interpret=True, **cls.options)

    @classmethod
    def check(cls, case: Any, found: Any, *operands: Any) -> None:
        """No bit differs, but for codes of rows whose scale is not a number."""
        wanted = jax.tree.leaves(jax.jit(cls.by(case, base.update_stored))(*operands))
        lost = [np.isnan(x).any(axis=-1) for x in wanted[2::2]]
        for i, (a, b) in enumerate(zip(map(np.asarray, wanted), found, strict=True)):
            if i % 2 and lost[i // 2].any():
                a, b = a[~lost[i // 2]], b[~lost[i // 2]]
            np.testing.assert_array_equal(a, b)

    @classmethod
    def scaled(cls, operands: Any, factor: float) -> Any:
        """All but the codes."""
        f = np.float32(factor)
        return tuple(x if x.dtype == np.uint8 else x * f for x in operands)


class TestOnTpu(Moments):
    """The TPU's kernel, interpreted."""

    kernel = tpu
    options: ClassVar[dict[str, Any]] = {"reuse": {}}


class TestOnGpu(Moments):
    """The GPU's kernel, interpreted, with its output where an array was."""

    kernel = gpu
    options: ClassVar[dict[str, Any]] = {"reuse": {0: 0}}


class TestChoice(ChoiceTests):
    """By name."""

    name = "update_stored"

    @staticmethod
    def call(implementation: Any) -> Any:
        """An encoding."""
        return update_stored(
            lambda moments, arrays, scalars: ([], arrays),
            *([], [jnp.zeros((1, 256))]),
            read=[],
            write=[TableCodec()],
            shape=(1, 256),
            implementation=implementation,
        )


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
    parts = jax.jit(codec.encode)(m)

    def bounds(moments: Any, arrays: Any, scalars: Any) -> Any:
        return [jnp.minimum(moments[0], arrays[0])], [jnp.maximum(moments[0], arrays[0])]

    def run(parts: Any, g: Any, by: Any) -> Any:
        return update_stored(
            bounds, [parts], [g], read=[codec], write=[codec], shape=shape, implementation=by
        )

    wanted = jax.jit(run, static_argnums=2)(parts, g, "xla")
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
