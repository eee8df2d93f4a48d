"""Laws of Dion's direction: orthonormal factors, error feedback, null directions, ranks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import directions, gradients

# Kernels (fan_in, fan_out): the short side is the output of "tall" and else the input.
SHAPES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5), "stack": (2, 4, 6)}
QR = ["qr", "cqr", "rcqr"]
seeds = st.integers(0, 2**32 - 1)


@functools.lru_cache
def compiled(**options):
    tx = optkit.scale_by_dion(**options)
    return tx.init, jax.jit(tx.update)


def steps(grads, state=None, **options):
    """Updates and states after each step."""
    init, update = compiled(**options)
    state = init(grads[0]) if state is None else state
    out = []
    for g in grads:
        u, state = update(g, state)
        out.append((u, state))
    return out


def long_first(name, x):
    """A leaf in float64 as the method reads it: (*batch, long side, short side)."""
    x = np.swapaxes(np.float64(x), -1, -2)  # (fan_out, fan_in)
    return np.swapaxes(x, -1, -2) if name == "tall" else x


def left_factor(name, u, q):
    """P of u = P Q^T."""
    return long_first(name, u) @ np.linalg.pinv(np.swapaxes(np.float64(q), -1, -2))


def transposed(x):
    return np.swapaxes(x, -1, -2)


@given(seeds, st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from([0.5, 0.95, 1.0]))
def test_factors_are_orthonormal_and_the_error_stays(seed, fraction, b1):
    grads = gradients(seed, 3, SHAPES)
    before = jax.tree.map(np.zeros_like, grads[0])
    for g, (u, state) in zip(
        grads, steps(grads, rank_fraction=fraction, b1=b1, qr_method="qr"), strict=True
    ):
        for name, shape in SHAPES.items():
            q = np.asarray(state.basis[name])
            rank = int(np.ceil(fraction * min(shape[-2:])))
            assert q.shape == (*shape[:-2], min(shape[-2:]), rank)
            np.testing.assert_allclose(np.linalg.norm(q, axis=-2), 1.0, atol=1e-6)
            p = left_factor(name, u[name], q)
            gram = transposed(p) @ p - np.eye(rank)
            assert np.max(np.abs(gram)) < 1e-3
            buffer = long_first(name, before[name]) + long_first(name, g[name])
            after = long_first(name, state.momentum[name])
            # What P spans decays, what is orthogonal to it does not.
            found = p @ (transposed(p) @ buffer)
            np.testing.assert_allclose(after, buffer - (1 - b1) * found, atol=2e-3)
            r = transposed(buffer) @ p
            np.testing.assert_allclose(q, r / np.linalg.norm(r, axis=-2, keepdims=True), atol=2e-3)
        before = jax.tree.map(np.asarray, state.momentum)


@given(seeds, st.floats(0.0, 1.0))
def test_at_full_rank_the_buffer_is_a_heavy_ball(seed, b1):
    grads = gradients(seed, 3, SHAPES)
    held = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    tx = optkit.scale_by_dion(b1)
    state = tx.init(grads[0])
    for g in grads:
        _, state = tx.update(g, state)
        for name in SHAPES:
            held[name] = b1 * (held[name] + g[name])
            np.testing.assert_allclose(state.momentum[name], held[name], atol=2e-5)


def test_without_error_feedback_the_buffer_is_the_sum():
    grads = gradients(0, 3, SHAPES)
    _, state = steps(grads, b1=1.0, rank_fraction=0.5)[-1]
    for name in SHAPES:
        total = (grads[0][name] + grads[1][name]) + grads[2][name]
        np.testing.assert_array_equal(state.momentum[name], total)


@given(seeds)
def test_signs_and_lengths_of_the_basis_do_not_matter(seed):
    grads = gradients(seed, 2, SHAPES)
    init, _ = compiled(rank_fraction=0.5)
    state = init(grads[0])
    rng = np.random.default_rng(seed)
    factors = {
        name: np.float32(rng.choice([-1.0, 1.0], q.shape[-1]) * 10.0 ** rng.uniform(-6, 6))
        for name, q in state.basis.items()
    }
    moved = state._replace(
        basis={name: np.asarray(q) * factors[name] for name, q in state.basis.items()}
    )
    one = steps(grads, state, rank_fraction=0.5)
    two = steps(grads, moved, rank_fraction=0.5)
    for (u, a), (v, b) in zip(one, two, strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(u[name], v[name], atol=1e-3)
            np.testing.assert_allclose(a.momentum[name], b.momentum[name], atol=1e-3)
            signs = np.sign(factors[name])
            np.testing.assert_allclose(np.asarray(a.basis[name]) * signs, b.basis[name], atol=1e-3)


def test_all_ways_to_orthonormalise_give_the_same_run():
    shapes = {"wide": (20, 300), "tall": (300, 20), "square": (6, 6)}
    grads = gradients(1, 3, shapes)
    runs = [
        directions(optkit.scale_by_dion(rank_fraction=0.5, qr_method=name), grads) for name in QR
    ]
    for run in runs[1:]:
        for name in shapes:
            np.testing.assert_allclose(run[name], runs[0][name], atol=1e-4)


@pytest.mark.parametrize("qr_method", QR)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_null_directions_are_left_alone(qr_method, scale):
    """Of a gradient of rank 1 the update is its direction, and idle columns of Q stay."""
    rng = np.random.default_rng(2)
    out, into = rng.standard_normal(300), rng.standard_normal(40)
    g = {"w": np.float32(scale * np.outer(into, out))}
    options = {"rank_fraction": 0.5, "qr_method": qr_method}
    state = compiled(**options)[0](g)
    start = np.float64(state.basis["w"])
    for u, after in steps([g, g], state, **options):
        direction = np.outer(into, out) / np.linalg.norm(into) / np.linalg.norm(out)
        np.testing.assert_allclose(u["w"], direction, atol=1e-5)
        idle = start[:, 1:] / np.linalg.norm(start[:, 1:], axis=0)
        np.testing.assert_allclose(after.basis["w"][:, 1:], idle, atol=1e-6)
        assert abs(np.float64(after.basis["w"])[:, 0] @ into) == pytest.approx(
            np.linalg.norm(into), rel=1e-5
        )


def test_zero_gradients_move_nothing():
    zeros = jax.tree.map(np.zeros_like, gradients(0, 1, SHAPES)[0])
    ((u, state),) = steps([zeros])
    assert not any(np.any(x) for x in jax.tree.leaves((u, state.momentum)))
    start = compiled()[0](zeros).basis
    for name, q in state.basis.items():
        length = np.linalg.norm(start[name], axis=-2, keepdims=True)
        np.testing.assert_allclose(q, start[name] / length, atol=1e-6)


def test_the_first_basis_depends_on_key_path_and_matrix_only():
    tree = gradients(0, 1, {"a": (4, 6), "b": (4, 6), "s": (3, 4, 6)})[0]
    basis = optkit.scale_by_dion(rank=2).init(tree).basis
    alone = optkit.scale_by_dion(rank=2).init({"b": tree["b"]}).basis
    np.testing.assert_array_equal(alone["b"], basis["b"])
    matrices = [basis["a"], basis["b"], *basis["s"]]
    assert len({np.asarray(q).tobytes() for q in matrices}) == 5
    for key in (1, jax.random.key(1)):
        other = optkit.scale_by_dion(rank=2, key=key).init(tree).basis
        assert not np.array_equal(other["a"], basis["a"])
    pooled = np.concatenate([np.ravel(q) for q in matrices])
    assert abs(np.mean(pooled)) < 0.5 and 0.6 < np.std(pooled) < 1.4


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({}, (4, 10)),
        ({"rank_fraction": 0.25}, (1, 3)),
        ({"rank_fraction": 0.3}, (2, 3)),
        ({"rank_fraction": 0.3, "rank_multiple_of": 3}, (3, 3)),
        ({"rank_fraction": 0.5, "rank_multiple_of": 4}, (4, 8)),
        ({"rank_multiple_of": 8}, (4, 10)),
        ({"rank": 3}, (3, 3)),
    ],
)
def test_ranks(options, ranks):
    shapes = {"a": jax.ShapeDtypeStruct((4, 9), jnp.float32), "b": jnp.zeros((12, 10))}
    basis = jax.eval_shape(optkit.scale_by_dion(**options).init, shapes).basis
    assert (basis["a"].shape, basis["b"].shape) == ((4, ranks[0]), (10, ranks[1]))


def test_wrong_ranks_are_named():
    tree = {"up": {"kernel": jnp.zeros((12, 3))}, "big": jnp.zeros((9, 9))}
    with pytest.raises(ValueError, match=r"'up/kernel' is read as 3 x 12 .*no rank 4; .*at most 3"):
        optkit.scale_by_dion(rank=4).init(tree)
    for options in (
        {"rank": 2, "rank_fraction": 0.5},
        {"rank": 0},
        {"rank_fraction": 0.0},
        {"rank_fraction": 1.5},
        {"rank_multiple_of": 0},
        {"power_iterations": 0},
        {"qr_method": "householder"},
    ):
        with pytest.raises(ValueError, match=next(reversed(options)).split("_")[0]):
            optkit.scale_by_dion(**options)


def test_init_basis_is_asked_for_each_matrix_and_must_fit():
    asked = []

    def basis(path, shape):
        asked.append((path, shape))
        return np.ones(shape)

    dims = {"qkv": optkit.MatrixDims(output_blocks=(8, 2, 2)), "s": MuonDimensionNumbers(1, 2)}
    tree = {"qkv": jnp.ones((6, 12)), "s": jnp.ones((3, 5, 4))}
    state = optkit.scale_by_dion(rank=2, init_basis=basis, dims=dims).init(tree)
    assert asked == [("qkv", (6, 2)), ("qkv", (2, 2, 2)), ("s", (3, 4, 2))]
    assert all(np.all(q == 1.0) for q in jax.tree.leaves(state.basis))
    wrong = optkit.scale_by_dion(init_basis=lambda path, shape: np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"init_basis gave leaf 's' shape \(2, 2\).*\(3, 4, 4\)"):
        wrong.init({"s": tree["s"]})


def test_fused_blocks_and_stacks_are_their_matrices():
    rng = np.random.default_rng(3)
    parts = [np.float32(rng.standard_normal((6, size))) for size in (8, 4, 4)]
    dims = {"fused": optkit.MatrixDims(output_blocks=(8, 4, 4))}
    draw = lambda path, shape: np.ones(shape) + np.eye(*shape[-2:])  # noqa: E731
    fused = optkit.scale_by_dion(rank_fraction=0.5, init_basis=draw, dims=dims)
    single = optkit.scale_by_dion(rank_fraction=0.5, init_basis=draw)
    whole = {"fused": np.concatenate(parts, axis=1)}
    got = fused.update(whole, fused.init(whole))[0]["fused"]
    want = [single.update({"w": x}, single.init({"w": x}))[0]["w"] for x in parts]
    np.testing.assert_allclose(got, np.concatenate(want, axis=1), atol=1e-5)
    stack = {"w": np.stack(parts[1:])}
    got = single.update(stack, single.init(stack))[0]["w"]
    np.testing.assert_allclose(got, np.stack(want[1:]), atol=1e-5)


def test_state_dtype_is_that_of_buffer_and_basis():
    tree = {"w": jnp.ones((4, 6), jnp.bfloat16)}
    for given_, want in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        tx = optkit.scale_by_dion(state_dtype=given_)
        u, state = tx.update(tree, tx.init(tree))
        assert u["w"].dtype == jnp.bfloat16
        assert state.momentum["w"].dtype == state.basis["w"].dtype == want


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("qr_method", ["qr", "rcqr"])
def test_sharded_runs_are_the_unsharded_one(qr_method, kind):
    """The default is in the conformance suite."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    tree = gradients(4, 1, {"rows": (16, 300), "stack": (8, 4, 300)})[0]
    specs = {"rows": P("x", None), "stack": P("x", None, None)}
    tx = optkit.scale_by_dion(rank_fraction=0.5, qr_method=qr_method)
    want, _ = tx.update(tree, tx.init(tree))
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}
        got, state = jax.jit(tx.update)(placed, tx.init(placed))
    for name in tree:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)
        assert state.basis[name].sharding.is_fully_replicated == (name == "rows")
