"""quantize_state on eight devices, and the bytes of states and steps."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from benchmarks.memory_shapes import gpt2_small, llama_7b
from optkit.codecs import Codec, Fp8Codec, TableCodec
from optkit.transforms import quantize_state
from tests.conformance.hlo import collectives

# ---- shards

PLACES = {
    "rows": ((64, 64), P("x", None)),
    "columns": ((16, 512), P(None, "x")),  # 64 of each row's 512 on a device: a quarter block
    "odd": ((8, 300), P("x", None)),
    "stack": ((8, 4, 256), P("x", None, None)),
    "narrow": ((64, 8), P("x", None)),
}


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "codec",
    [
        TableCodec(),
        *(
            pytest.param(codec, marks=pytest.mark.slow)
            for codec in (
                TableCodec(rounding="stochastic"),
                TableCodec(bits=4, exponent_bits=3),
                Fp8Codec(),
            )
        ),
    ],
    ids=lambda c: c.name,
)
@pytest.mark.slow
def test_eight_devices_store_what_one_does(codec: Codec, kind: AxisType) -> None:
    tx = quantize_state(optax.adam(0.1), codec, min_size=0)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    rng = np.random.default_rng(0)
    plain = [
        {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, (s, _) in PLACES.items()}
        for _ in range(3)
    ]
    place = {k: NamedSharding(mesh, spec) for k, (_, spec) in PLACES.items()}
    placed = [jax.device_put(x, place) for x in plain]
    params, state = plain[0], tx.init(plain[0])
    with jax.set_mesh(mesh):
        sharded = tx.init(placed[0])
        moved = jax.jit(tx.update)
        compiled = moved.lower(placed[1], sharded, placed[0]).compile()
    for time in (1, 2):
        _, state = jax.jit(tx.update)(plain[time], state, params)
        with jax.set_mesh(mesh):
            _, sharded = moved(placed[time], sharded, placed[0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(sharded.inner), state.inner)
    for key in PLACES:
        node = sharded.inner[0].mu[key]
        codes = next(v for name, v in node.items() if name.startswith("codes"))
        if codes.ndim == len(PLACES[key][0]):  # what is packed flat is whole on each device
            assert codes.sharding.is_equivalent_to(place[key], codes.ndim), key
    # Only the few maxima of blocks that lie on several devices travel.
    packed = isinstance(codec, TableCodec) and codec.bits == 4
    most = 64 * 64 // 2 if packed else 16 * 16  # codes of "rows" and "narrow" are packed flat
    assert max(_gathered(compiled.as_text()), default=0) <= most, collectives(compiled)


def _gathered(text: str) -> list[int]:
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    return [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]


# ---- memory


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("model", "size", "codec", "formula"),
    [
        (gpt2_small, 124_439_808, "dynamic8", lambda n: 2 * n * (1 + 4 / 256)),
        (gpt2_small, 124_439_808, TableCodec(block=2048, layout="flat"), None),
        (gpt2_small, 124_439_808, "fp8", lambda n: 2 * n * (1 + 4 / 256)),
        (gpt2_small, 124_439_808, "dynamic4", lambda n: n + 8 * n / 128),
        pytest.param(
            *(llama_7b, 6_738_415_616, "dynamic8", lambda n: 2 * n * (1 + 4 / 256)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bytes_are_exactly_those_of_the_formula(
    model: Any, size: int, codec: Any, formula: Any
) -> None:
    params = model()
    leaves = [p.size for p in jax.tree.leaves(params)]
    formula = formula or (lambda n: 2 * n + 8 * -(-n // 2048))
    assert sum(leaves) == size
    for least in (0, 4096):
        plan = optkit.plan(quantize_state(optax.scale_by_adam(), codec, min_size=least), params)
        want = sum(formula(n) if n >= least else 8 * n for n in leaves)
        assert plan.state_bytes - plan.shared_bytes == want
        assert plan.shared_bytes == 4  # Adam's counter
    if least == 4096 and codec == "dynamic8":
        assert 8 * size / plan.state_bytes >= 2.9


def test_moments_are_not_decoded_all_at_once(monkeypatch: Any) -> None:
    """Of 16 equal leaves the compiled step holds a few in full, and not all of their moments."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # these are for a single CPU
    params = {f"w{i}": jnp.zeros((64, 1024)) for i in range(16)}
    tx = quantize_state(optkit.adamw(0.1))

    def train(state: Any, params: Any, grads: Any) -> tuple:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    arguments = (jax.eval_shape(tx.init, params), params, params)
    compiled = jax.jit(train, donate_argnums=(0, 1)).lower(*arguments).compile()
    full = 2 * optkit.tree.tree_bytes(params)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * full
