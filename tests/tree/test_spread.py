"""Matrices spread over a mesh: every way computes what one device does, and sends what it says."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree import MatrixFunction, MatrixSharding, map_groups
from optkit.tree.costs import (
    FLOPS_PER_BYTE,
    Batch,
    choose_mode,
    gram_cost,
    layer_bytes,
    layer_cost,
    merge_widths,
    replicate_cost,
)
from tests.conformance.hlo import collectives, sent_bytes

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
MESHES = {(8,): ("x",), (4, 2): ("x", "y"), (2, 2, 2): ("x", "y", "z")}
# Cut by inputs and by outputs, single and stacked, wide, tall and square.
SHAPES = {
    "up": ((8, 16), 0),
    "layers/up": ((3, 8, 16), 0),
    "layers/down": ((3, 16, 8), 1),
    "layers/query": ((3, 8, 8), 0),
    "layers/out": ((3, 8, 8), 1),
}


@functools.cache
def mesh_of(shape: tuple[int, ...], kind: str) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, MESHES[shape], axis_types=(KINDS[kind],) * len(shape))


def specs_on(mesh: jax.sharding.Mesh) -> dict[str, P]:
    """The first axes cut the model's width, the last of several the other side."""
    *width, other = (*mesh.axis_names, None) if len(mesh.axis_names) == 1 else mesh.axis_names
    sides = (tuple(width), other)
    return {
        path: P(*(None,) * (len(shape) - 2), *(sides[::-1] if output else sides))
        for path, (shape, output) in SHAPES.items()
    }


def matrices() -> dict[str, np.ndarray]:
    """Singular values from 1 to 1/2."""
    rng = np.random.default_rng(0)
    out = {}
    for path, (shape, _) in SHAPES.items():
        u, s, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        out[path] = np.float32((u * np.linspace(1.0, 0.5, s.shape[-1])) @ v)
    return out


@functools.cache
def alone() -> dict[str, np.ndarray]:
    tx = optkit.orthogonalize("ns")
    return jax.device_get(jax.jit(lambda u: tx.update(u, tx.init(None))[0])(matrices()))


def compiled(mesh, sharding, grads=None, specs=None, **options):
    """The compiled update and its placed argument."""
    tx = optkit.orthogonalize("ns", sharding=sharding, **options)
    grads, specs = grads or matrices(), specs or specs_on(mesh)
    where = {path: NamedSharding(mesh, specs[path]) for path in grads}
    placed = {path: jax.device_put(x, where[path]) for path, x in grads.items()}
    step = jax.jit(lambda u: tx.update(u, tx.init(None))[0], out_shardings=where)
    with jax.set_mesh(mesh):
        return step.lower(placed).compile(), placed


def check(mesh, sharding) -> None:
    program, placed = compiled(mesh, sharding)
    for path, got in jax.device_get(program(placed)).items():
        np.testing.assert_allclose(got, alone()[path], atol=2e-5, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", MESHES)
def test_whole_matrices_on_single_devices(shape, kind):
    check(mesh_of(shape, kind), "layer")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["gram", "replicate"])
def test_other_ways_compute_the_same(mode, kind):
    check(mesh_of((4, 2), kind), mode)


@pytest.mark.parametrize("mode", ["gram", "replicate", "auto"])
def test_other_ways_on_three_axes(mode):
    check(mesh_of((2, 2, 2), "auto"), mode)


def test_partitions_may_be_told_and_axes_named():
    mesh = mesh_of((4, 2), "auto")
    check(mesh, MatrixSharding("layer", specs=specs_on(mesh)))
    # Replicated over the second axis: nothing crosses it.
    specs = {
        path: P(*("x" if part in ("x", ("x",)) else None for part in spec))
        for path, spec in specs_on(mesh).items()
    }
    for kind, asked in (("auto", MatrixSharding("layer", axes=("x",))), ("explicit", "layer")):
        mesh = mesh_of((4, 2), kind)
        program, placed = compiled(mesh, asked, specs=specs)
        for path, got in jax.device_get(program(placed)).items():
            np.testing.assert_allclose(got, alone()[path], atol=2e-5)
        found = optkit.aot.find_collectives(program.as_text(), 8, axes=dict(mesh.shape))
        assert {each.axes for each in found} == {("x",)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_one_exchange_each_way_of_the_bytes_of_the_formula(kind, dtype):
    mesh = mesh_of((8,), kind)
    # 7 wide and 6 square ones: one of each a device, which is less work than two wide ones.
    program, _ = compiled(mesh, "layer", dtype=dtype)
    assert collectives(program) == {"all-to-all": 4}
    # XLA's CPU compiler has no 16-bit exchanges.
    size = 4
    wanted = layer_bytes(Batch(7, 8, 16, size), 8) + layer_bytes(Batch(6, 8, 8, size), 8)
    assert sent_bytes(program, 8) == wanted


@pytest.mark.parametrize("specs", [None, {"query": P(None, "x"), "out": P(None, None, "x")}])
def test_layers_that_fill_the_mesh_share_an_exchange_whatever_side_is_cut(specs):
    mesh = mesh_of((8,), "auto")
    rng = np.random.default_rng(1)
    grads = {path: np.float32(rng.standard_normal((8, 8, 8))) for path in ("query", "out")}
    given = {"query": P(None, "x"), "out": P(None, None, "x")}
    options = {"coefficients": "classic_cubic", "dtype": jnp.bfloat16}
    sharding = MatrixSharding("layer", specs=specs)
    program, placed = compiled(mesh, sharding, grads, given, **options)
    assert collectives(program) == {"all-to-all": 2}
    tx = optkit.orthogonalize("ns", **options)
    want = tx.update(grads, tx.init(None))[0]
    for path, got in program(placed).items():
        assert got.dtype == jnp.float32
        # The transpose is rounded to bfloat16 elsewhere.
        np.testing.assert_allclose(got, want[path], atol=0.1)
        np.testing.assert_array_equal(np.float32(jnp.bfloat16(got)), got)


@pytest.mark.parametrize("kind", KINDS)
def test_two_shapes_share_an_exchange_where_they_fill_the_devices_together(kind):
    mesh = mesh_of((8,), kind)
    grads = {path: x for path, x in matrices().items() if path in ("layers/up", "layers/out")}
    program, placed = compiled(mesh, "layer", grads)
    assert collectives(program) == {"all-to-all": 2}
    assert sent_bytes(program, 8) == layer_bytes(Batch(6, 8, 16, 4), 8)
    for path, got in jax.device_get(program(placed)).items():
        np.testing.assert_allclose(got, alone()[path], atol=2e-5)


def test_a_gram_of_columns_that_are_cut_moves_no_matrix():
    mesh = mesh_of((8,), "explicit")
    grads = {"up": matrices()["up"]}
    program, placed = compiled(mesh, "gram", grads, {"up": P(None, "x")})
    assert collectives(program) == {"all-reduce": 1}  # and that of a largest entry
    np.testing.assert_allclose(program(placed)["up"], alone()["up"], atol=2e-5)


def test_gram_at_any_scale():
    mesh = mesh_of((8,), "auto")
    up = matrices()["up"] * np.where(np.arange(16) < 14, np.float32(2**-10), 1)  # on one device
    program, placed = compiled(mesh, "gram", {"up": up}, {"up": P(None, "x")})
    want = np.asarray(program(placed)["up"])
    np.testing.assert_array_equal(program({"up": 0 * placed["up"]})["up"], 0 * want)
    for scale in (2.0**-100, 2.0**83):
        got = program({"up": placed["up"] * np.float32(scale)})["up"]
        np.testing.assert_array_equal(got, want)


def test_what_cannot_be_done_is_said():
    mesh = mesh_of((8,), "auto")
    with pytest.raises(ValueError, match="sharding must be one of"):
        optkit.orthogonalize(sharding="rows")
    with pytest.raises(ValueError, match="the mesh has no axis 'fsdp', only"):
        compiled(mesh, MatrixSharding(axes=("fsdp",)))
    with pytest.raises(ValueError, match="give a sequence of names"):
        MatrixSharding(axes="fsdp")
    with pytest.raises(ValueError, match="sharding='gram' is for Newton-Schulz"):
        compiled(mesh, "gram", coefficients="polar_express")


@given(
    count=st.integers(1, 300),
    devices=st.sampled_from([2, 8, 16, 256]),
    m=st.sampled_from([8, 64, 1024]),
    wide=st.integers(1, 8),
)
def test_costs_are_those_of_a_simulation(count, devices, m, wide):
    """Bytes are counted place by place, as an all-to-all and a gathering send them."""
    batch, flops = Batch(count, m, wide * m, 2), 10 * m**3
    places = devices * math.ceil(count / devices)
    part = m * wide * m * 2 / devices  # what a device holds of each place
    sent = sum(part for place in range(places) if place % devices)  # to all others
    assert layer_bytes(batch, devices) == pytest.approx(2 * sent)
    busiest = max(len(range(d, places, devices)) for d in range(devices))
    cost = busiest * flops + FLOPS_PER_BYTE * 2 * sent
    assert layer_cost(batch, devices, flops) == pytest.approx(cost)
    gathered = sum(part for _ in range(count) for _ in range(devices - 1))
    cost = count * flops + FLOPS_PER_BYTE * gathered
    assert replicate_cost(batch, devices, flops) == pytest.approx(cost)
    one = MatrixFunction(
        lambda x: x,
        split=lambda x, axes: x,
        flops=lambda m, n: flops,
        split_flops=lambda m: flops // 2,
    )
    costs = {
        "layer": layer_cost(batch, devices, flops),
        "replicate": replicate_cost(batch, devices, flops),
        "gram": gram_cost(batch, devices, flops // 2, moves=True),
    }
    assert costs[choose_mode(batch, devices, one)] == min(costs.values())


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    devices=st.sampled_from([4, 16, 64]),
)
def test_merged_batches_are_never_dearer(counts, devices):
    batches = [Batch(count, 64, 64 * (i + 1), 2) for i, count in enumerate(counts)]

    def flops(m, n):
        return 20 * m * m * n + 10 * m**3

    def cost(groups):
        merged = [
            Batch(sum(batches[i].count for i in group), 64, batches[max(group)].n, 2)
            for group in groups
        ]
        return sum(layer_cost(each, devices, flops(each.m, each.n)) for each in merged)

    groups = merge_widths(batches, devices, flops)
    assert sorted(i for group in groups for i in group) == list(range(len(batches)))
    assert all(group[0] == max(group) for group in groups)
    assert cost(groups) <= cost([[i] for i in range(len(batches))])


def test_functions_of_which_nothing_is_known_are_not_turned_nor_widened():
    seen = []

    def function(x):
        seen.append(x.shape)
        return x

    mesh = mesh_of((8,), "auto")
    leaves = [jax.device_put(x, NamedSharding(mesh, P())) for x in matrices().values()]
    jax.eval_shape(lambda xs: map_groups(function, xs), leaves)
    assert sorted(seen) == [(8, 8, 8), (8, 8, 16), (8, 16, 8)]
