"""The ratio of norms: laws that follow from the shape of the gradients, and a slow oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import directions, gradients, run

SVD = optkit.orthogonalize("svd")
FUSED = optkit.MatrixDims(0, 1, output_blocks=3)
TORCH = MuonDimensionNumbers(1, 0)
RATES = st.sampled_from([0.0, 0.5, 0.8, 0.95])
STEPS = 6


@functools.cache
def tx(**options):
    return optkit.scale_by_norm_ratio(SVD, **options)


def with_dims(dims, **options):
    direction = optkit.orthogonalize("svd", dims=dims)
    return optkit.scale_by_norm_ratio(direction, dims=dims, **options)


@functools.cache
def program(nesterov, per):
    """One compiled program for all numbers that hypothesis draws."""

    @jax.jit
    def go(stacked, numbers):
        part = optkit.scale_by_norm_ratio(SVD, nesterov=nesterov, per=per, **numbers)

        def step(state, g):
            u, state = part.update(g, state)
            return state, u

        return jax.lax.scan(step, part.init(jax.tree.map(lambda x: x[0], stacked)), stacked)[1]

    return go


def follow(grads, nesterov=True, per="matrix", **numbers):
    """Updates of a kernel ``w``, stacked."""
    given = {"b1": 0.95, "b2": 0.99, "clamp": 0.0} | numbers
    stacked = {"w": jnp.stack([g["w"] for g in grads])}
    return program(nesterov, per)(stacked, {k: jnp.float32(x) for k, x in given.items()})["w"]


def orthogonal_gradients(steps, side=4):
    """Equally long gradients of which no two have an entry in common: noise without chance."""
    return [{"w": np.roll(np.eye(side, dtype=np.float32), shift, axis=1)} for shift in range(steps)]


def length(update):
    """What a direction with orthonormal rows was multiplied by."""
    return np.linalg.norm(np.asarray(update, np.float64), axis=(-2, -1)) / np.sqrt(update.shape[-1])


def weights(b1, steps, nesterov):
    """Weights of the last look-ahead in its gradients, the newest first."""
    w = (1 - b1) * b1 ** np.arange(steps)
    return np.append(w[0], 0 * w[1:]) + b1 * w if nesterov else w


@given(b1=RATES, nesterov=st.booleans())
def test_gradients_that_never_change_give_their_full_direction(b1, nesterov):
    grads = [{"w": 0.3 * np.eye(4, dtype=np.float32)}] * 40
    out = follow(grads, nesterov, b1=b1)
    n = np.arange(1, 41)
    law = 1.0 if not nesterov else ((1 - b1) + b1 * (1 - b1**n)) / (1 - b1**n)
    np.testing.assert_allclose(length(out), law * np.ones(40), rtol=2e-5)
    # The first step of the look-ahead is longer by b1, as in the reference.
    np.testing.assert_allclose(length(out)[0], 1 + b1 * nesterov, rtol=2e-5)


@given(b1=RATES, b2=st.sampled_from([0.0, 0.9, 0.99]), nesterov=st.booleans())
def test_noise_shrinks_the_step(b1, b2, nesterov):
    """Norms of orthogonal gradients add in squares: sqrt((1-b1)/(1+b1)) in the long run."""
    side = 24
    out = follow(orthogonal_gradients(side, side), nesterov, b1=b1, b2=b2)
    law = np.linalg.norm(weights(b1, side, nesterov)) / (1 - b1**side)
    np.testing.assert_allclose(length(out)[-1], law, rtol=1e-4)
    if not nesterov and b1 < 0.9:
        np.testing.assert_allclose(law, np.sqrt((1 - b1) / (1 + b1)), rtol=1e-2)


@given(power=st.integers(-90, 80), per=st.sampled_from(["matrix", "column"]))
def test_the_scale_of_the_gradients_does_not_matter(power, per):
    """Powers of two are exact, so that nothing at all may change."""
    grads = gradients(1, 4, {"w": (3, 5)})
    scaled = [{"w": np.float32(np.ldexp(g["w"], power))} for g in grads]
    want = follow(grads, per=per, clamp=0.5)
    np.testing.assert_array_equal(follow(scaled, per=per, clamp=0.5), want)


def test_eps_is_a_length_of_the_gradient():
    g = [{"w": 2.0 * np.eye(4, dtype=np.float32)}]  # of norm 4
    out = directions(tx(b1=0.0, b2=0.0, eps=4.0), g)["w"]
    np.testing.assert_allclose(length(out), 0.5, rtol=1e-5)


def oracle(grads, params, *, b1, b2, eps, nesterov, debias, per, clamp, rms, limit, decay):
    """Updates of one (fan_in, fan_out) kernel in float64."""
    m = v = 0.0
    out = []
    for n, g in enumerate(grads, 1):
        g = np.float64(g).T  # (fan_out, fan_in)
        axis = None if per == "matrix" else 0
        m = b1 * m + (1 - b1) * g
        u = (1 - b1) * g + b1 * m if nesterov else m
        v = b2 * v + (1 - b2) * np.sum(g * g, axis)
        r = np.sqrt(np.sum(u * u, axis)) / (np.sqrt(v) + eps)
        r = r * np.sqrt(1 - b2**n) / (1 - b1**n) if debias else r
        if per == "column" and clamp:
            r = np.clip(r, clamp * r.mean(), r.mean() / clamp)
        left, _, right = np.linalg.svd(u, full_matrices=False)
        k = 1.0 if rms is None else rms * np.sqrt(max(g.shape))
        shrink = np.minimum(decay * np.minimum(r, limit), limit)
        out.append((np.minimum(r * k, limit) * (left @ right) + shrink * np.float64(params).T).T)
    return np.stack(out)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("per", ["matrix", "column"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"debias": False, "eps": 0.3, "rms": 0.2},
        {"clamp": 0.9, "limit": 0.6, "decay": 0.4, "rms": 0.5},
        {"clamp": 1.0, "decay": 3.0, "limit": 0.8},
    ],
    ids=["plain", "uncorrected", "limited", "strong decay"],
)
def test_the_slow_form(options, per, nesterov):
    options = {"b1": 0.7, "b2": 0.8, "eps": 0.0, "debias": True, "clamp": 0.0, "rms": None,
               "limit": np.inf, "decay": 0.0} | options  # fmt: skip
    grads = gradients(3, STEPS, {"w": (4, 6)})
    params = gradients(4, 1, {"w": (4, 6)})[0]
    want = oracle([g["w"] for g in grads], params["w"], nesterov=nesterov, per=per, **options)
    given = {**options, "update_rms": options["rms"], "weight_decay": options["decay"]}
    del given["rms"], given["decay"]
    got = directions(tx(nesterov=nesterov, per=per, **given), grads, params)["w"]
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_columns_are_inputs_in_either_layout():
    """Input 1 of a Flax kernel (in, out) changes its sign at every step and must slow down."""
    signs = np.array([[1, 1, 1], [1, -1, 1]] * 2, np.float32)
    grads = [{"w": np.eye(3, 6, dtype=np.float32) * sign[:, None]} for sign in signs]
    options = {"per": "column", "nesterov": False, "b1": 0.5}
    flax = directions(tx(**options), grads)["w"][-1]
    lengths = np.linalg.norm(flax, axis=1)  # of what each input feeds
    assert lengths[1] < 0.5 * lengths[0]
    np.testing.assert_allclose(lengths[[0, 2]], 1.0, rtol=1e-5)
    turned = [{"w": g["w"].T} for g in grads]
    torch = directions(with_dims(TORCH, **options), turned)["w"][-1]
    np.testing.assert_allclose(torch.T, flax, atol=1e-6)


@given(clamp=st.floats(0.05, 1.0))
def test_columns_are_held_to_their_mean(clamp):
    grads = [
        {"w": g["w"] * np.array([[1.0], [0.01], [1.0], [1.0]], np.float32)}
        for g in gradients(8, 5, {"w": (4, 4)})
    ]
    free = np.linalg.norm(follow(grads, per="column"), axis=2)
    held = np.linalg.norm(follow(grads, per="column", clamp=clamp), axis=2)
    mean = free.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(held, np.clip(free, clamp * mean, mean / clamp), rtol=1e-4)


def test_a_stack_is_its_matrices_and_a_fused_kernel_its_blocks():
    singles = {f"m{i}": (3, 5) for i in range(3)}
    grads = gradients(5, 4, singles)
    for per in ("matrix", "column"):
        alone = directions(tx(per=per), grads)
        stack = [{"layers": {"kernel": np.stack(list(g.values()))}} for g in grads]
        together = directions(tx(per=per), stack)["layers"]["kernel"]
        fused = [{"qkv": np.concatenate(list(g.values()), axis=1)} for g in grads]
        blocks = directions(with_dims(FUSED, per=per), fused)["qkv"]
        for i, name in enumerate(singles):
            np.testing.assert_allclose(together[:, i], alone[name], atol=1e-5)
            np.testing.assert_allclose(blocks[..., 5 * i : 5 * i + 5], alone[name], atol=1e-5)


@pytest.mark.parametrize("per", ["matrix", "column"])
def test_a_matrix_without_gradient_rests_and_wakes(per):
    zero, one = ({"w": x * np.eye(4, dtype=np.float32)} for x in (0.0, 1.0))
    out = length(directions(tx(per=per, b1=0.5, nesterov=False), [zero, zero, one, zero])["w"])
    assert out[0] == out[1] == 0.0
    # Adam's answer to a gradient after two zeros: (1-b1)/(1-b1**3) over sqrt of the same of b2.
    law = (0.5 / (1 - 0.5**3)) / np.sqrt(0.01 / (1 - 0.99**3))
    np.testing.assert_allclose(out[2], law, rtol=1e-4)
    assert 0.0 < out[3] < out[2]


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_statistic_is_a_norm_that_stays_in_range(scale):
    grads = [{"w": np.float32(scale) * np.eye(4, dtype=np.float32)}] * 3
    for per, shape in (("matrix", ()), ("column", (4,))):
        u, _, state = run(tx(per=per), grads[0], grads)
        assert state.norm["w"].shape == shape and state.norm["w"].dtype == jnp.float32
        want = scale * (2.0 if per == "matrix" else 1.0) * np.sqrt(1 - 0.99**3)
        np.testing.assert_allclose(state.norm["w"], want, rtol=1e-5)
        assert np.all(np.isfinite(u["w"]))


def test_decay_has_the_ratio_and_the_mask():
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    grads = [jax.tree.map(lambda p: jnp.eye(3), params)] * 2
    options = {"nesterov": False, "b1": 0.9}
    plain = directions(tx(**options), grads, params)
    decayed = directions(tx(weight_decay=0.25, mask=("a",), **options), grads, params)
    np.testing.assert_allclose(decayed["a"] - plain["a"], 0.25, rtol=1e-5)
    np.testing.assert_array_equal(decayed["b"], plain["b"])


def test_the_direction_is_any_transformation_and_gets_extra_arguments():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(set(extra))
        return jax.tree.map(jnp.sign, updates), state

    sign = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    part = optkit.scale_by_norm_ratio(sign, b1=0.0)
    g = {"w": jnp.array([[3.0, -4.0]])}
    out, _ = part.update(g, part.init(g), value=1.0)
    np.testing.assert_allclose(out["w"], [[1.0, -1.0]], rtol=1e-6)
    assert seen == [{"value"}]
    with pytest.raises(TypeError, match=r"direction must be an optax\.GradientTransformation"):
        optkit.scale_by_norm_ratio("svd")


def test_wrong_options_are_named():
    for options, said in (
        ({"per": "row"}, "per='row'"),
        ({"clamp": 1.5}, "clamp=1.5"),
        ({"limit": -1.0}, "limit=-1.0"),
        ({"update_rms": -0.2}, "update_rms=-0.2"),
        ({"shape_from": "last_two_axes"}, "shape_from='last_two_axes'"),
    ):
        with pytest.raises(ValueError, match=said):
            optkit.scale_by_norm_ratio(**options)
