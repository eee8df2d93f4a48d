"""Sums of gradients that are clipped one by one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optkit.privacy import ClippedSum, per_example_clip
from tests.conformance.test_sharding import mesh_of
from tests.privacy.linear import PARAMS, SIZE, batch, clipped, flat, gradients, loss

SIZES = (None, 1, 3, 4)  # 3 leaves places to fill


@functools.partial(jax.jit, static_argnames="microbatch")
def summed(data: Any, clip: Any, mask: Any, microbatch: int | None = None) -> ClippedSum:
    return per_example_clip(loss, clip, microbatch=microbatch)(PARAMS, data, mask)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 999),
    st.floats(1e-3, 1e3),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    st.sampled_from(SIZES),
)
def test_it_is_the_sum_of_clipped_gradients(
    seed: int, clip: float, mask: list[bool], microbatch: int | None
) -> None:
    data = batch(seed)
    out = summed(data, jnp.float32(clip), np.array(mask), microbatch)
    norms = np.linalg.norm(gradients(data), axis=1)
    atol = 1e-6 * min(clip, norms.max()) * SIZE
    np.testing.assert_allclose(flat(out.total), clipped(data, clip, mask), rtol=2e-5, atol=atol)
    apart = np.abs(norms / clip - 1.0) > 1e-5  # or rounding decides
    assert int(out.examples) == sum(mask)
    assert abs(int(out.clipped) - np.sum((norms > clip) & mask)) <= np.sum(~apart)
    assert int(out.refused) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.floats(1e-3, 1e3), st.integers(0, SIZE - 1))
def test_no_example_is_longer_than_clip(seed: int, clip: float, index: int) -> None:
    alone = np.arange(SIZE) == index
    total = flat(summed(batch(seed, 3.0), jnp.float32(clip), alone).total)
    assert np.linalg.norm(total) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("microbatch", SIZES)
def test_what_is_masked_is_not_read_and_what_is_not_finite_adds_nothing(microbatch) -> None:
    x, y = batch(1)
    mask = np.ones(SIZE, bool)
    mask[[0, 3]] = False
    want = clipped((x, y), 1.0, mask & (np.arange(SIZE) != 5) & (np.arange(SIZE) != 6))
    x[0], y[3], x[5, 1], y[6] = np.nan, np.inf, np.nan, np.inf
    out = summed((x, y), jnp.float32(1.0), mask, microbatch)
    np.testing.assert_allclose(flat(out.total), want, rtol=1e-5)
    assert (int(out.examples), int(out.refused)) == (SIZE - 2, 2)


def test_long_gradients_whose_squares_overflow_are_clipped() -> None:
    x, y = batch(2)
    x[4] = 1e13  # the gradient's entries are about 1e26
    out = summed((x, y), jnp.float32(1.0), np.arange(SIZE) == 4)
    assert np.linalg.norm(flat(out.total)) == pytest.approx(1.0, rel=1e-6)
    assert int(out.clipped) == 1


def test_gradients_of_zero_and_an_infinite_length_pass() -> None:
    data = (np.zeros((SIZE, 3), np.float32), np.full(SIZE, 0.25, np.float32))
    assert not flat(summed(data, jnp.float32(1.0), None).total).any()
    for rows in (data, batch(3)):
        total = summed(rows, jnp.float32(np.inf), None).total
        np.testing.assert_allclose(flat(total), gradients(rows).sum(0), rtol=1e-5, atol=1e-6)


def test_16_bit_gradients_are_summed_in_float32() -> None:
    half = {name: p.astype(jnp.bfloat16) for name, p in PARAMS.items()}
    grads = np.full((512, 1), 1.0 + 2.0**-7)
    data = {name: jnp.asarray(grads.reshape(-1, *[1] * p.ndim)) for name, p in half.items()}
    data = {n: jnp.broadcast_to(x, (512, *half[n].shape)) for n, x in data.items()}
    given = jax.tree.map(lambda x: x.astype(jnp.bfloat16), data)
    run = per_example_clip(lambda p, g: g, jnp.inf, is_gradient=True, microbatch=64)
    total = run(half, given).total
    assert {x.dtype for x in jax.tree.leaves(total)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(flat(total), 512 * (1.0 + 2.0**-7))


@pytest.mark.parametrize("microbatch", [None, 2])
def test_each_device_clips_its_own_examples(microbatch) -> None:
    run = per_example_clip(loss, 0.5, axis_name="x", microbatch=1 if microbatch else None)
    mapped = jax.shard_map(run, mesh=mesh_of("auto"), in_specs=(P(), P("x"), P("x")), out_specs=P())
    data, mask = batch(4), np.arange(SIZE) != 2
    out = jax.jit(mapped)(PARAMS, data, mask)
    np.testing.assert_allclose(flat(out.total), clipped(data, 0.5, mask), rtol=1e-5)
    assert int(out.examples) == SIZE - 1


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_spread_batches_stay_where_they_are(kind: str) -> None:
    mesh = mesh_of(kind)
    spread = NamedSharding(mesh, P("x"))
    rows = [np.concatenate([part] * 2) for part in batch(5)]  # two examples a device
    data, mask = jax.device_put((tuple(rows), np.ones(2 * SIZE, bool)), spread)
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    run = jax.jit(per_example_clip(loss, 0.5, microbatch=SIZE))
    with jax.set_mesh(mesh):
        program = run.lower(params, data, mask).compile().as_text()
        total = run(params, data, mask).total
    assert not any(word in program for word in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(flat(total), 2 * clipped(batch(5), 0.5), rtol=1e-5)


def test_a_forgotten_axis_is_named() -> None:
    mesh = mesh_of("auto")
    run = per_example_clip(loss, 0.5)
    specs = {"mesh": mesh, "out_specs": P()}
    with pytest.raises(ValueError, match=r"examples at leaf '0' vary.*give axis_name='x'"):
        jax.shard_map(run, in_specs=(P(), P("x")), **specs)(PARAMS, batch(0))
    wide = PARAMS | {"w": jnp.zeros(SIZE)}
    data = (np.zeros((SIZE, 1), np.float32), np.zeros(SIZE, np.float32))
    with pytest.raises(ValueError, match="parameters at leaf 'w' vary"):
        jax.shard_map(run, in_specs=({"b": P(), "w": P("x")}, P()), **specs)(wide, data)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"clip=0\.0 must be above 0"):
        per_example_clip(loss, 0.0)
    with pytest.raises(ValueError, match=r"clip=-1\.0 must be above 0"):
        per_example_clip(loss, -1.0)
    with pytest.raises(ValueError, match="microbatch=0"):
        per_example_clip(loss, 1.0, microbatch=0)
    run = per_example_clip(loss, 1.0)
    x, y = batch(0)
    with pytest.raises(ValueError, match=r"shape \(7,\) at leaf '1' and \(8, 3\) at '0'"):
        run(PARAMS, (x, y[1:]))
    for mask in (np.ones(3, bool), np.arange(8)):  # too short; indices
        with pytest.raises(ValueError, match=r"mask is .*give bool\[8\]"):
            run(PARAMS, (x, y), mask)
    with pytest.raises(TypeError, match="loss_fn=3 must be a function"):
        per_example_clip(3, 1.0)
    with pytest.raises(ValueError, match="no arrays"):
        run(PARAMS, ())
    with pytest.raises(ValueError, match="a gradient"):
        per_example_clip(lambda p, e: p["w"], 1.0, is_gradient=True)(PARAMS, (x, y))
