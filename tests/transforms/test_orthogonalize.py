"""The matrix direction and the shape factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit import linalg
from tests.transforms.driver import gradients

TREE = gradients(5, 1, {"a": (3, 5), "b": (5, 3), "c": (2, 3, 5), "d": (4, 4)})[0]


def apply(tx, tree):
    return jax.jit(lambda x: tx.update(x, tx.init(x))[0])(tree)


def factor(x):
    u, _, vt = np.linalg.svd(np.float64(x), full_matrices=False)
    return u @ vt


@pytest.mark.sweep
@pytest.mark.parametrize("group_bytes", [1, None])
@pytest.mark.parametrize("method", ["svd", "qdwh", "ns", "gram_ns", "auto"])
def test_every_method_gives_the_polar_factor(method, group_bytes):
    options = {} if method in ("svd", "qdwh") else {"coefficients": "classic_quintic", "steps": 25}
    out = apply(optkit.orthogonalize(method, group_bytes=group_bytes, **options), TREE)
    for name, x in TREE.items():
        np.testing.assert_allclose(out[name], factor(x), atol=2e-4)


def test_coefficients_may_be_a_name_a_set_or_rows():
    rows = linalg.COEFFICIENTS["jordan"].expand(5)
    trees = [
        apply(optkit.orthogonalize("ns", coefficients=given), TREE)
        for given in ("jordan", linalg.COEFFICIENTS["jordan"], rows, np.asarray(rows))
    ]
    for other in trees[1:]:
        for name in TREE:
            np.testing.assert_allclose(trees[0][name], other[name], atol=1e-6)


def test_adaptive_multiplies_by_the_nuclear_norm_of_each_matrix():
    out = apply(optkit.orthogonalize("svd", adaptive=True), TREE)
    for name, x in TREE.items():
        nuclear = np.linalg.svd(np.float64(x), compute_uv=False).sum(-1)
        np.testing.assert_allclose(
            out[name], factor(x) * nuclear[..., None, None], rtol=1e-4, atol=1e-4
        )


def test_a_function_of_ones_own():
    out = apply(optkit.orthogonalize(lambda x: x * x.shape[-1]), TREE)
    for name, x in TREE.items():
        np.testing.assert_allclose(out[name], x * max(x.shape[-2:]), rtol=1e-6)


@pytest.mark.parametrize("form", ["one", "tree", "function"])
def test_dims(form):
    leaf = np.float32(TREE["c"])  # (2, 3, 5) read as one matrix of 10 x 3
    dims = MuonDimensionNumbers((0, 2), 1)
    given = {
        "one": dims,
        "tree": {"c": dims},
        "function": lambda p: jax.tree.map(lambda x: dims, p),
    }
    tx = optkit.orthogonalize("svd", dims=given[form])
    flat = factor(leaf.transpose(0, 2, 1).reshape(10, 3)).reshape(2, 5, 3).transpose(0, 2, 1)
    np.testing.assert_allclose(apply(tx, {"c": leaf})["c"], flat, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_iteration_leaves_that_of_the_updates(dtype):
    exact = apply(optkit.orthogonalize("ns"), TREE)
    out = apply(optkit.orthogonalize("ns", dtype=dtype), TREE)
    for name in TREE:
        assert out[name].dtype == jnp.float32
        np.testing.assert_allclose(out[name], exact[name], atol=0.1)
    assert any(np.any(np.asarray(out[name] != exact[name])) for name in TREE)
    low = apply(optkit.orthogonalize("ns"), {"a": jnp.asarray(TREE["a"], dtype)})["a"]
    assert low.dtype == dtype


def test_errors_name_leaf_or_option():
    bad = {"mlp": {"bias": jnp.ones(3)}}
    for tx in (optkit.orthogonalize(), optkit.scale_by_shape()):
        with pytest.raises(ValueError, match=r"'mlp/bias' of shape \(3,\) is not a matrix"):
            tx.update(bad, tx.init(bad))
    tx = optkit.orthogonalize(dims=MuonDimensionNumbers(0, 2))
    with pytest.raises(ValueError, match="leaf 'a' of rank 2 has no axis 2"):
        tx.update({"a": TREE["a"]}, optax.EmptyState())
    for options in ({"method": "newton"}, {"coefficients": "jordn"}, {"precondition": "l2"}):
        with pytest.raises((ValueError, KeyError), match=r"newton|jordn|l2"):
            optkit.orthogonalize(**options)


@pytest.mark.parametrize(
    ("mode", "law"),
    [
        ("max1", lambda out, into: np.sqrt(max(1, out / into))),
        ("rms_op", lambda out, into: np.sqrt(out / into)),
        ("match_rms", lambda out, into: 0.3 * np.sqrt(max(out, into))),
        ("none", lambda out, into: 1.0),
        (lambda out, into: out + 10.0 * into, lambda out, into: out + 10.0 * into),
    ],
)
def test_shape_factors(mode, law):
    ones = {
        "wide": jnp.ones((2, 6)),
        "tall": jnp.ones((6, 2)),
        "stack": jnp.ones((3, 2, 6)),
        "Conv_0": {"kernel": jnp.ones((2, 2, 3, 8))},
    }
    out = apply(optkit.scale_by_shape(mode, factor=0.3), ones)
    fans = {"wide": (6, 2), "tall": (2, 6), "stack": (6, 2), "Conv_0": (8, 12)}
    for name, (fan_out, fan_in) in fans.items():
        np.testing.assert_allclose(jax.tree.leaves(out[name])[0], law(fan_out, fan_in), rtol=1e-6)
    reference = apply(optkit.scale_by_shape(mode, factor=0.3, shape_from="last_two_axes"), ones)
    np.testing.assert_allclose(reference["Conv_0"]["kernel"], law(3, 8), rtol=1e-6)
    swapped = optkit.scale_by_shape(mode, factor=0.3, dims=MuonDimensionNumbers(1, 0))
    np.testing.assert_allclose(apply(swapped, {"w": ones["wide"]})["w"], law(2, 6), rtol=1e-6)


LOW = {"rank": 2, "oversampling": 0, "coefficients": "quintic_2", "steps": 7}


WIDE = gradients(8, 1, {"matrix": (12, 16)})[0]


def differ(got, other):
    assert np.max(np.abs(got - other)) > 1e-3


def two_steps(tx, tree):
    def step(state, _):
        out, state = tx.update(tree, state)
        return state, out

    return jax.jit(lambda tree: jax.lax.scan(step, tx.init(tree), length=2)[1])(tree)


def assert_equal(got, want, atol=1e-5):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("sketch", ["gaussian", "kaczmarz"])
def test_random_numbers_belong_to_the_key_the_step_and_the_leaf(sketch):
    build = lambda **more: optkit.orthogonalize("randomized", sketch=sketch, **LOW, **more)  # noqa: E731
    matrix, pair = WIDE["matrix"], np.stack([WIDE["matrix"]] * 2)
    tree = {"one": matrix, "two": matrix, "pair": pair}
    out = two_steps(build(), tree)
    assert np.all(np.linalg.matrix_rank(out["pair"], tol=1e-4) == 2)
    differ(out["one"][0], out["one"][1])  # steps
    differ(out["one"], out["two"])  # leaves
    differ(out["pair"][:, 0], out["pair"][:, 1])  # matrices of one leaf
    # Grouping, neighbours and the way the key is given change nothing.
    assert_equal(two_steps(build(group_bytes=1), tree), out)
    typed = two_steps(build(key=jax.random.key(0)), {"pair": pair})
    assert_equal(typed, {"pair": out["pair"]})
    differ(two_steps(build(key=1), {"pair": pair})["pair"], out["pair"])


def test_generators_whose_numbers_depend_on_the_batch_are_replaced():
    build = lambda **more: optkit.orthogonalize(  # noqa: E731
        "randomized", key=jax.random.key(3, impl="rbg"), **LOW, **more
    )
    tree = {f"m{i}": TREE["a"] for i in range(2)}
    assert_equal(two_steps(build(group_bytes=1), tree), two_steps(build(), tree))
    raw = optkit.orthogonalize("randomized", key=jax.random.PRNGKey(5), **LOW)
    typed = optkit.orthogonalize("randomized", key=5, **LOW)
    assert_equal(two_steps(raw, tree), two_steps(typed, tree))


@pytest.mark.parametrize("side", ["columns", "rows"])
def test_a_recorded_sketch_is_taken_for_the_own(side):
    def omega(x, first, second):
        return np.random.default_rng(x.size).standard_normal(
            (*x.shape[:-2], first if side == "columns" else second, 2)
        ).astype(np.float32)  # fmt: skip

    # kernels are (fan_in, fan_out): columns are mixed over fan_in
    sketches = {name: omega(x, *x.shape[-2:]) for name, x in TREE.items()}
    tx = optkit.orthogonalize("randomized", side=side, power_iterations=0, **LOW)
    out, state = jax.jit(lambda x, s: tx.update(x, tx.init(x), sketch=s))(TREE, sketches)
    assert int(state.count) == 1
    for name, x in TREE.items():
        for index in np.ndindex(x.shape[:-2]):
            m = np.float64(x[index]).T
            m = m if side == "columns" else m.T
            q = np.linalg.qr(m @ np.float64(sketches[name][index]))[0]
            want = q @ np.asarray(
                linalg.newton_schulz((q.T @ m).astype(np.float32), "quintic_2", 7)
            )
            want = want.T if side == "columns" else want
            np.testing.assert_allclose(out[name][index], want, atol=2e-5)


def test_columns_may_be_named_and_fused_leaves_have_sketches_by_number():
    dims = {"qkv": optkit.MatrixDims(output_blocks=(4, 2, 2)), "w": optkit.MatrixDims()}
    tree = gradients(6, 1, {"qkv": (5, 8), "w": (5, 4)})[0]
    options = {**LOW, "power_iterations": 0, "side": "columns"}
    tx = optkit.orthogonalize("randomized", dims=dims, **options)
    indices = {"qkv": (np.array([0, 3]), np.array([[1, 2], [4, 0]])), "w": np.array([2, 1])}
    out, _ = tx.update(tree, tx.init(tree), sketch=indices)
    blocks = np.split(out["qkv"], [4, 6], axis=1)
    for block, x, own in zip(
        [*blocks, out["w"]],
        [*np.split(tree["qkv"], [4, 6], axis=1), tree["w"]],
        [indices["qkv"][0], *indices["qkv"][1], indices["w"]],
        strict=True,
    ):
        # The update lies in the span of the chosen rows of fan_in.
        basis = np.linalg.qr(x[own].T)[0]
        np.testing.assert_allclose(block @ basis @ basis.T, block, atol=1e-5)
    with pytest.raises(ValueError, match=r"none for leaf 'qkv/1'; .* they have 'qkv/0', 'w'"):
        tx.update(tree, tx.init(tree), sketch={"qkv": (indices["qkv"][0],), "w": indices["w"]})


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("sketch", ["gaussian", "kaczmarz"])
def test_a_sharded_tree_has_the_same_sketches(sketch, kind):
    tree = gradients(7, 1, {"a": (8, 5), "b": (5, 8), "c": (8, 3, 5)})[0]
    tx = optkit.orthogonalize("randomized", sketch=sketch, **LOW)
    want, _ = tx.update(tree, tx.init(tree))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    specs = {"a": ("x", None), "b": (None, "x"), "c": ("x", None, None)}
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[name])))
            for name, x in tree.items()
        }
        got, _ = jax.jit(tx.update)(placed, tx.init(placed))
    assert_equal(jax.device_get(got), want)


def test_errors_of_the_randomized_method():
    tx = optkit.orthogonalize("randomized", rank=4)
    with pytest.raises(
        ValueError, match=r"leaf 'b/w': rank=4 is larger than the matrix .*\(5, 3\)"
    ):
        tx.init({"a": jnp.ones((4, 4)), "b": {"w": jnp.ones((3, 5))}})
    tx.init({"a": jnp.ones((4, 4)), "empty": jnp.ones((0, 9))})
    for name, value in (("rank", 2), ("oversampling", 1), ("power_iterations", 0), ("key", 1)):
        with pytest.raises(ValueError, match=f"{name}={value} is for method='randomized'"):
            optkit.orthogonalize("ns", **{name: value})
    for name, value in (
        ("rank", 0),
        ("rank", 1.5),
        ("rank", True),
        ("oversampling", -1),
        ("power_iterations", 0.5),
        ("key", "seed"),
        ("key", 1.0),
        ("key", jax.random.split(jax.random.key(0), 2)),
        ("sketch", "sparse"),
        ("side", "left"),
    ):
        with pytest.raises(ValueError, match=name):
            optkit.orthogonalize("randomized", **{name: value})
    with pytest.raises(TypeError, match="rank decides the compiled program"):
        optkit.orthogonalize("randomized", rank=jnp.float32(0.5))
