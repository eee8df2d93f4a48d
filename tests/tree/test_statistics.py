"""Where numbers of rows, columns and matrices lie on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree.sharding import place_statistic, statistic_spec, zeros_beside

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(KINDS[kind],) * 2)


@pytest.mark.parametrize(
    ("shape", "leaf", "spec", "want"),
    [
        ((8,), (4, 8), P("x", "y"), P()),  # rows of a matrix: on every device
        ((4, 8), (4, 8), P("x", "y"), P()),
        ((), (4, 8), P("x", "y"), P()),
        ((4,), (4, 2, 8), P("x", None, "y"), P("x")),  # one a layer
        ((4, 8), (4, 2, 8), P("x", None, "y"), P("x")),  # rows of each layer
        ((4, 2), (4, 2, 6, 8), P("x", "y"), P("x", "y")),  # layers and experts
        ((3, 8), (4, 2, 8), P("x"), P()),  # something else
    ],
)
def test_statistics_lie_with_the_batch_axes_of_their_leaf(shape, leaf, spec, want):
    assert statistic_spec(shape, leaf, spec) == want


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_new_values_lie_in_the_same_place(kind):
    mesh = mesh_of(kind)
    leaf = jax.device_put(jnp.ones((4, 2, 8)), NamedSharding(mesh, P("x", "y", None)))
    want = NamedSharding(mesh, P("x"))
    with jax.set_mesh(mesh):
        eager = zeros_beside(leaf, (4, 8), jnp.float32)
        assert eager.sharding.is_equivalent_to(want, 2) and eager.dtype == jnp.float32
        new = jax.jit(lambda x: place_statistic(jnp.sum(x, axis=-2), x))(leaf)
        assert new.sharding.is_equivalent_to(want, 2)
        np.testing.assert_array_equal(new, 2.0)
        if kind == "explicit":
            traced = jax.jit(lambda x: zeros_beside(x, (4, 8), jnp.float32))(leaf)
            assert traced.sharding.is_equivalent_to(want, 2)


def test_without_a_mesh_nothing_is_placed():
    x = jnp.ones((2, 3))
    assert zeros_beside(x, (3,), jnp.bfloat16).dtype == jnp.bfloat16
    assert place_statistic(x, x) is x
    shapes = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert zeros_beside(shapes, (3,), jnp.float32).shape == (3,)


def test_state_sharding_places_statistics_and_a_step_keeps_them_there():
    mesh = mesh_of("auto")
    specs = {"layers": {"kernel": P("x", None, "y")}, "kernel": P("x", "y")}
    params = {"layers": {"kernel": jnp.ones((4, 2, 8))}, "kernel": jnp.ones((4, 8))}
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
    params = jax.tree.map(place, params, specs)
    tx = optkit.scale_by_row_moment()
    state = jax.eval_shape(tx.init, params)
    wanted = optkit.state_sharding(state, params).moment
    assert wanted["layers"]["kernel"].spec == P("x") and wanted["kernel"].spec == P()
    with jax.set_mesh(mesh):
        state = tx.init(params)
        for _ in range(2):
            got = jax.tree.map(lambda x: x.sharding, state.moment)
            assert jax.tree.all(jax.tree.map(lambda a, b: a.is_equivalent_to(b, 2), got, wanted))
            state = jax.jit(tx.update)(params, state)[1]


def test_layout_zeros_has_one_statistic_a_part():
    params = {"up": jnp.ones((3, 4, 8), jnp.bfloat16), "qkv": jnp.ones((2, 12))}
    dims = {"up": optkit.MatrixDims(-2, -1), "qkv": optkit.MatrixDims(output_blocks=(8, 2, 2))}
    layout = optkit.tree.MatrixLayout(params, dims)
    zeros = layout.zeros(params, lambda view: (view.fan_out,))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), zeros)
    # A run of equal blocks is a batch.
    assert shapes == {
        "up": ((3, 8), "float32"),
        "qkv": (((8,), "float32"), ((2, 2), "float32")),
    }
