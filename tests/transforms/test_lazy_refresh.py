"""Laws of lazy refreshes, of bases stored as codes, and of bases that move online."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs import AffineCodec, Fp8Codec, TableCodec
from optkit.linalg import leading_basis, subspace_gradient
from tests.transforms.driver import gradients
from tests.transforms.test_low_rank import compiled, steps

INT4 = AffineCodec(4, packed=True)
SHAPES = {"tall": (6, 4), "stack": (2, 4, 5), "bias": (3,)}
seeds = st.integers(0, 2**32 - 1)


def turning(angles, size=4, scale=3.0):
    """Gradients (size, size) whose first singular vectors are at these angles in a plane."""
    out = []
    for angle in angles:
        p = np.zeros(size)
        p[:2] = np.cos(angle), np.sin(angle)
        rest = np.diag([0.0, 0.0, *np.linspace(0.5, 0.2, size - 2)])
        out.append({"w": (scale * np.outer(p, p) + rest).astype(np.float32)})
    return out


def lazily(grads, rank=1, every=1, **options):
    lazy = optkit.LazyRefresh(**options)
    return [s for _, s in steps(grads, rank=rank, refresh_every=every, lazy=lazy)]


@pytest.mark.parametrize(("angle", "threshold", "grows"), [(0.5, 0.87, True), (0.5, 0.89, False)])
def test_the_cosine_is_that_of_the_angle(angle, threshold, grows):
    """cos(0.5) lies between both thresholds."""
    states = lazily(turning([0.0, angle, angle, angle]), threshold=threshold, window=1)
    np.testing.assert_allclose(states[1].lazy.cosines["w"], [np.cos(angle)], atol=1e-6)
    assert (int(states[1].lazy.interval["w"]) == 2) == grows


def test_intervals_are_powers_of_the_growth_and_bases_stay_between():
    """Of a gradient that never turns, refreshes are 1, 2, 4 ... steps apart once there are two."""
    states = lazily(turning([0.2] * 14), every=2, window=2, growth=1.5)
    intervals = [int(s.lazy.interval["w"]) for s in states]
    refreshes = [int(s.lazy.refreshes["w"]) for s in states]
    # At 0, 2, 4: two cosines, so 3. At 6 (and 4): 4. At 8: 6. At 12: 9.
    assert intervals == [2] * 4 + [3] * 2 + [4] * 2 + [6] * 4 + [9] * 2
    assert refreshes == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6]


def test_a_mean_of_the_window_decides():
    """Cosines 1, 1, cos(1.2): two of them may be quiet, and the mean of three is not."""
    states = lazily(turning([0.0, 0.0, 0.0, 1.2]), threshold=0.9, window=3)
    assert [int(s.lazy.interval["w"]) for s in states] == [1] * 4
    states = lazily(turning([0.0, 0.0, 0.0, 1.2]), threshold=0.7, window=3)
    assert [int(s.lazy.interval["w"]) for s in states] == [1] * 3 + [2]


def test_the_sign_of_a_vector_counts_only_if_asked():
    """At 3/4 pi the largest entry changes, and with it the sign that is made positive."""
    angles = np.pi * np.array([0.74, 0.76])
    for signed, want in ((False, 1.0), (True, -1.0)):
        (_, state) = lazily(turning(angles), window=1, signed=signed)
        cosine = state.lazy.cosines["w"].item()
        np.testing.assert_allclose(cosine, want * np.cos(0.02 * np.pi), atol=1e-5)


def test_matrices_of_a_stack_have_intervals_of_their_own():
    quiet = turning([0.3] * 6)
    restless = turning([0.0, 1.5, 0.0, 1.5, 0.0, 1.5])
    grads = [{"w": np.stack([a["w"], b["w"]])} for a, b in zip(quiet, restless, strict=True)]
    states = lazily(grads, window=1, threshold=0.5)
    # At 0 and 1 to 2, then to 4, and at 4 to 8.
    assert states[-1].lazy.interval["w"].tolist() == [8, 1]
    assert states[-1].lazy.refreshes["w"].tolist() == [4, 6]
    # The quiet one, alone, is the same.
    alone = lazily(quiet, window=1, threshold=0.5)
    for a, b in zip(states, alone, strict=True):
        np.testing.assert_allclose(a.basis[0]["w"][0], b.basis[0]["w"], atol=1e-6)


def test_a_high_threshold_is_no_laziness_and_fewer_refreshes_the_lower_it_is():
    grads = gradients(0, 12, SHAPES)
    plain = steps(grads, refresh_every=2)
    counts = []
    for threshold in (1.1, 0.5, -1.0):
        lazy = optkit.LazyRefresh(threshold, window=1)
        out = steps(grads, refresh_every=2, lazy=lazy)
        counts.append(int(out[-1][1].lazy.refreshes["tall"]))
        if threshold > 1:
            for (a, _), (b, _) in zip(plain, out, strict=True):
                jax.tree.map(np.testing.assert_array_equal, a, b)
    assert counts[0] == 6 and counts[0] >= counts[1] >= counts[2] and counts[2] < 6


def test_a_zero_gradient_counts_as_no_refresh():
    first, second, third = turning([0.0, 0.1, 0.2])
    zero = {"w": np.zeros_like(first["w"])}
    states = lazily([zero, first, zero, second, third], window=1, threshold=2.0)
    assert [int(s.lazy.refreshes["w"]) for s in states] == [0, 1, 1, 2, 3]
    cosines = [s.lazy.cosines["w"].item() for s in states]
    np.testing.assert_allclose(cosines[1:], [0.0, 0.0, np.cos(0.1), np.cos(0.1)], atol=1e-6)


def test_no_program_is_compiled_anew():
    grads = turning([0.3] * 6)
    lazy = optkit.LazyRefresh(window=1)
    tx, update = compiled(rank=1, refresh_every=1, lazy=lazy, stored_as=INT4)
    state = tx.init(grads[0])
    for g in grads:
        _, state = update(g, state)
    assert int(state.lazy.interval["w"]) == 8
    assert update._cache_size() == 1


def test_transport_turns_only_what_was_refreshed():
    quiet, restless = turning([0.3] * 4), turning([0.0, 0.7, 0.0, 0.7])
    grads = [{"w": np.stack([a["w"], b["w"]])} for a, b in zip(quiet, restless, strict=True)]
    lazy = optkit.LazyRefresh(0.9, window=1)
    options = {"refresh_every": 1, "lazy": lazy, "state_on_refresh": "transport"}
    out = steps(grads, optkit.scale_by_adam(), rank=2, stored_as=INT4, **options)
    plain = steps(grads[:3], optkit.scale_by_adam(), rank=2, stored_as=INT4, **options)
    assert out[-1][1].lazy.refreshes["w"].tolist() == [3, 4]
    # At the last step the first matrix keeps its codes: Adam's average is an ordinary one.
    (after,), (before,) = out[-1][1].projected, plain[-1][1].projected
    codec, node = AffineCodec(4, packed=True, layout="rows"), out[-1][1].basis[0]["w"]
    parts = {name.split("@")[0]: value for name, value in node.items()}
    p = np.asarray(codec.decode(parts, (2, 8)))[0].reshape(2, 4)
    r = p @ grads[-1]["w"][0]
    want = 0.9 * np.asarray(before.mu["w"][0]) + 0.1 * r
    np.testing.assert_allclose(after.mu["w"][0], want, atol=1e-5)


def _read(codec, node, shape):
    return np.asarray(codec.decode({k.split("@")[0]: v for k, v in node.items()}, shape))


@pytest.mark.sweep
@pytest.mark.parametrize("codec", [INT4, AffineCodec(8, group=7), TableCodec(block=6)])
def test_a_stored_basis_is_that_of_the_codec_along_each_matrix(codec):
    """Sizes that groups do not divide too; gradients are projected with what is read."""
    (g,) = gradients(7, 1, SHAPES)
    ((u, state),) = steps([g], rank=2, stored_as=codec)
    own = type(codec)(**{**vars(codec), "layout": "rows"})
    for name, shape in (("tall", (6, 4)), ("stack", (2, 4, 5))):
        x = jnp.asarray(g[name])
        right = shape[-1] >= shape[-2]  # fan_out is the last axis here
        basis = leading_basis(x if right else x.mT, 2)
        rows = basis.mT if right else basis
        want = own.round_trip(rows.reshape(*shape[:-2], -1))
        got = _read(own, state.basis[0][name], want.shape)
        np.testing.assert_allclose(got, want, atol=1e-6)
        p = np.float64(got).reshape(rows.shape)
        p = np.swapaxes(p, -1, -2) if right else p
        want = (
            p @ np.swapaxes(p, -1, -2) @ g[name] if right else g[name] @ p @ np.swapaxes(p, -1, -2)
        )
        np.testing.assert_allclose(u[name], want, atol=1e-5)


def test_state_bytes_of_a_stored_basis_are_those_of_the_table():
    """0.5 + 8/256 an entry of P, where groups fill up; and a group for each matrix where not."""
    params = {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}
    tx = optkit.low_rank(optax.identity(), 128, stored_as=INT4)
    held = optkit.tree.tree_bytes(jax.eval_shape(tx.init, params).basis)
    assert held == 512 * 128 * (0.5 + 8 / 256)
    small = {"w": jax.ShapeDtypeStruct((3, 5, 7), jnp.float32)}
    tx = optkit.low_rank(optax.identity(), 1, stored_as=INT4)
    held = optkit.tree.tree_bytes(jax.eval_shape(tx.init, small).basis)
    assert held == 3 * (3 + 8)  # 5 codes in 3 bytes


def test_groups_beside_zero_are_not_collapsed():
    """All entries of this basis are positive, and near each other."""
    v = np.linspace(1.0, 1.3, 8)
    g = {"w": np.outer(v, v).astype(np.float32)}
    unit = v / np.linalg.norm(v)
    for widen, most in ((True, 0.02), (False, np.inf)):
        codec = AffineCodec(4, group=4, widen=widen)
        ((_, state),) = steps([g], rank=1, stored_as=codec)
        own = AffineCodec(4, group=4, widen=widen, layout="rows")
        got = _read(own, state.basis[0]["w"], (8,))
        assert np.max(np.abs(got - unit)) < most
        collapsed = all(len(set(group)) == 1 for group in got.reshape(2, 4).tolist())
        assert collapsed != widen


@given(seed=seeds)
def test_the_gradient_of_a_basis_is_that_of_the_loss(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 4, 6)).astype(np.float32)
    p = rng.standard_normal((2, 4, 3)).astype(np.float32)

    def loss(p):
        y = x / jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
        return jnp.sum(jnp.square(p @ (p.mT @ y) - y))

    np.testing.assert_allclose(subspace_gradient(x, p), jax.grad(loss)(p), atol=2e-5)


@pytest.mark.parametrize("side", ["std", "left", "full"])
def test_online_bases_move_from_the_second_step_on(side):
    """The step maps down and back with the basis that it found."""
    grads = gradients(4, 3, SHAPES)
    rate = 0.05
    options = {"basis": "online", "basis_optimizer": optax.sgd(rate), "side": side}
    out = steps(grads, **options)
    first = steps(grads[:1], basis="svd", side=side)[0][1].basis
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), out[0][1].basis, first)
    held = first
    for g, (u, state) in zip(grads[1:], out[1:], strict=True):
        for name in ("tall", "stack"):
            x = np.float64(g[name])
            sides = ("right", "left") if side == "full" else ("right",)
            if side == "left" or (side == "std" and x.shape[-1] < x.shape[-2]):
                sides = ("left",)
            want = x
            for which, old, new in zip(sides, held, state.basis, strict=True):
                p = np.float64(old[name])
                y = x if which == "right" else np.swapaxes(x, -1, -2)
                slope = np.float64(subspace_gradient(jnp.float32(y), jnp.float32(p)))
                np.testing.assert_allclose(new[name], p - rate * slope, atol=1e-5)
                q = p @ np.swapaxes(p, -1, -2)
                want = q @ want if which == "right" else want @ q
            np.testing.assert_allclose(u[name], want, atol=1e-4)
        held = state.basis


def test_online_bases_find_the_subspace_of_a_gradient_that_turned():
    old, new = turning([0.0, 1.4])
    optimizer = optax.sgd(0.2)
    out = steps([old] + [new] * 40, rank=1, basis="online", basis_optimizer=optimizer)
    p = np.asarray(out[-1][1].basis[0]["w"])[:, 0]
    np.testing.assert_allclose(np.abs(p[:2]), [np.cos(1.4), np.sin(1.4)], atol=0.02)


def test_a_zero_gradient_starts_no_online_basis():
    (g, h) = gradients(5, 2, {"w": (4, 5)})
    zero = {"w": np.zeros((4, 5), np.float32)}
    out = [s.basis[0]["w"] for _, s in steps([zero, g, h], basis="online")]
    assert not np.any(out[0])
    np.testing.assert_array_equal(out[1], steps([g])[0][1].basis[0]["w"])
    assert np.all(np.any(out[2] != out[1], axis=0))


def test_adamw_moves_online_bases_by_default():
    grads = gradients(6, 3, SHAPES)
    own = optkit.adamw(1 / 7, weight_decay=0.01)
    default = steps(grads, basis="online", refresh_every=7)
    given_one = steps(grads, basis="online", refresh_every=3, basis_optimizer=own)
    jax.tree.map(np.testing.assert_array_equal, default[-1][1].basis, given_one[-1][1].basis)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"basis": "gaussian", "lazy": optkit.LazyRefresh()}, "first singular vectors"),
        ({"basis": "power_iteration", "lazy": optkit.LazyRefresh()}, "power_iteration"),
        ({"draw": lambda *_: 0, "lazy": optkit.LazyRefresh()}, "drawn bases"),
        ({"state_on_refresh": "reset", "lazy": optkit.LazyRefresh()}, "transport"),
        ({"basis": "columns", "stored_as": INT4}, "basis='columns'"),
        ({"basis": "online", "stored_as": INT4}, "basis='online'"),
        ({"stored_as": Fp8Codec(block=None, layout="flat", rounding="stochastic")}, "at random"),
        ({"stored_as": optkit.codecs.TopK(2)}, "layout"),
        ({"basis": "online", "stagger": True}, "stagger"),
        ({"basis": "online", "state_on_refresh": "reset"}, "never refreshed"),
        ({"basis_optimizer": optax.sgd(1.0)}, "basis='online'"),
    ],
)
def test_wrong_use_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        optkit.low_rank(optax.identity(), 2, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"growth": 0.5}, "growth=0.5"),
        ({"window": 0}, "window=0"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        optkit.LazyRefresh(**options)


def test_moments_that_a_codec_stored_are_not_transported():
    inner = optkit.quantize_state(optkit.scale_by_adam(), min_size=0)
    tx = optkit.low_rank(inner, 2, state_on_refresh="transport")
    g = {"w": jnp.ones((4, 8))}
    with pytest.raises(ValueError, match="a codec stored"):
        jax.jit(tx.update)(g, tx.init(g))


def test_staggered_leaves_wait_each_from_its_own_turn():
    """A leaf a step has its turn, and of gradients that never turn, each waits twice as long."""
    (g,) = gradients(9, 1, {"a": (4, 6), "b": (4, 6)})
    lazy = optkit.LazyRefresh(window=1)
    out = steps([g] * 9, rank=1, refresh_every=2, stagger=True, lazy=lazy, stored_as=INT4)
    counts = [[int(s.lazy.refreshes[k]) for k in "ab"] for _, s in out]
    # a at 0, 2 (then 4 apart), 4 (8), 8; b one step earlier in its rhythm: 1, 3 (4), 7 (8).
    assert [c[0] for c in counts] == [1, 1, 2, 2, 3, 3, 3, 3, 4]
    assert [c[1] for c in counts] == [0, 1, 1, 2, 2, 2, 2, 3, 3]
