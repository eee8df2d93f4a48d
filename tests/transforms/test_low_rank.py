"""Laws of low-rank subspaces: projection, refresh, residuals, and what the inner state does."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"tall": (6, 4), "wide": (4, 6), "square": (5, 5), "stack": (2, 4, 5), "bias": (3,)}
MATRICES = [name for name in SHAPES if name != "bias"]
SIDES = ["std", "reverse_std", "left", "right", "full"]
DENSE = ["svd", "randomized_svd", "power_iteration", "gaussian", "orthonormal"]
COORDINATES = ["permutation", "columns", "rows", "randk"]
NOTHING = optax.scale(0.0)
seeds = st.integers(0, 2**32 - 1)


@functools.lru_cache
def compiled(inner=None, rank=2, **options):
    tx = optkit.low_rank(optax.identity() if inner is None else inner, rank, **options)
    return tx, jax.jit(tx.update)


def steps(grads, inner=None, rank=2, params=None, **options):
    """Updates and states after each step."""
    tx, update = compiled(inner, rank, **options)
    state, out = tx.init(grads[0]), []
    for g in grads:
        u, state = update(g, state, params)
        out.append((u, state))
    return out


def close(got, want, **options):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], **{"atol": 2e-6, **options}, err_msg=name)


@pytest.mark.sweep
@pytest.mark.parametrize("basis", ["svd", "orthonormal", "columns", "randk"])
@given(seed=seeds)
def test_a_full_basis_loses_nothing(basis, seed):
    """With as many directions as the side has, SGD inside is SGD, and other leaves pass."""
    (g,) = gradients(seed, 1, SHAPES)
    ((u, _),) = steps([g], rank=1.0, basis=basis)
    close(u, g, atol=5e-6)


@pytest.mark.parametrize("side", SIDES)
@given(seed=seeds)
def test_updates_are_projections_of_low_rank(side, seed):
    first, second = gradients(seed, 2, SHAPES)
    (_, (u, state)) = steps([first, second], side=side, refresh_every=5)
    for name in MATRICES:
        out = np.float64(u[name])
        assert np.max(np.linalg.svd(out, compute_uv=False)[..., 2:], initial=0.0) < 1e-5
        bases = [np.float64(tree[name]) for tree in state.basis]
        for p in bases:
            gram = np.swapaxes(p, -1, -2) @ p
            np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=1e-5)
        # The basis is that of the first gradient: (fan_in, fan_out) = U S V^T.
        left, _, right = np.linalg.svd(np.float64(first[name]), full_matrices=False)
        left, right = left[..., :2], right[..., :2, :]
        fan_in, fan_out = first[name].shape[-2:]
        use = {
            "full": (1, 1),
            "right": (1, 0),
            "left": (0, 1),
            "std": (fan_out >= fan_in, fan_out < fan_in),
            "reverse_std": (fan_out < fan_in, fan_out >= fan_in),
        }[side]
        want = np.float64(second[name])
        want = left @ np.swapaxes(left, -1, -2) @ want if use[0] else want
        want = want @ np.swapaxes(right, -1, -2) @ right if use[1] else want
        np.testing.assert_allclose(out, want, atol=1e-4)


def _flipped(sign):
    def draw(path, side, shape, refresh):
        del path, side, refresh
        basis = np.linalg.qr(np.random.default_rng(1).standard_normal(shape))[0]
        return basis * np.array([1.0, sign])

    return draw


def test_signs_of_a_basis_do_not_matter_to_adam():
    grads = gradients(0, 3, SHAPES)
    out = [
        steps(grads, optkit.scale_by_adam(), draw=_flipped(sign), refresh_every=9)
        for sign in (1.0, -1.0)
    ]
    for (a, _), (b, _) in zip(*out, strict=True):
        close(a, b)


@pytest.mark.sweep
@pytest.mark.parametrize("basis", [*DENSE, *COORDINATES])
@given(seed=seeds)
def test_what_the_subspace_holds_and_the_rest_are_the_gradient(basis, seed):
    rank = 0.5 if basis == "randk" else 2
    grads = gradients(seed, 2, SHAPES)
    options = {"rank": rank, "basis": basis, "residual": "sgd", "refresh_every": 1}
    for g, (u, _) in zip(grads, steps(grads, **options), strict=True):
        close(u, g, atol=5e-6)


@pytest.mark.sweep
@pytest.mark.parametrize("basis", COORDINATES)
@given(seed=seeds)
def test_signs_of_the_rest_spare_active_coordinates(basis, seed):
    rank = 0.5 if basis == "randk" else 2
    (g,) = gradients(seed, 1, SHAPES)
    ((u, _),) = steps([g], NOTHING, rank=rank, basis=basis, residual="sign")
    for name in MATRICES:
        out = np.asarray(u[name])
        free = out != 0
        np.testing.assert_array_equal(out[free], np.sign(g[name])[free])
        sizes = {"columns": 2 * g[name].shape[-1], "rows": 2 * g[name].shape[-2]}
        sizes["permutation"] = 2 * max(g[name].shape[-2:])
        sizes["randk"] = g[name].shape[-1] * g[name].shape[-2] // 2
        active = np.sum(~free, axis=(-2, -1))
        assert np.all(active == sizes[basis]), name


@given(seed=seeds)
def test_no_share_at_all_is_the_residual_alone(seed):
    (g,) = gradients(seed, 1, SHAPES)
    ((u, state),) = steps([g], optkit.scale_by_adam(), rank=0.0, basis="columns", residual="sign")
    close({k: u[k] for k in MATRICES}, {k: np.sign(g[k]) for k in MATRICES})
    matched = optkit.tree.match_state(state.projected, {k: g[k] for k in MATRICES})
    assert sum(m.leaf.size for m in matched if m.param is not None) == 0


@pytest.mark.sweep
@pytest.mark.parametrize("basis", ["columns", "rows", "permutation", "randk"])
def test_all_coordinates_are_adam_reset_at_each_refresh(basis):
    grads = gradients(3, 5, SHAPES)
    adam = optkit.scale_by_adam()
    options = {"basis": basis, "refresh_every": 2, "state_on_refresh": "reset"}
    got = steps(grads, adam, rank=1.0, **options)
    state = adam.init(grads[0])
    whole = adam.init(grads[0])
    for t, g in enumerate(grads):
        state = adam.init(g) if t % 2 == 0 else state
        want, state = adam.update(g, state)
        bias, whole = adam.update(g, whole)
        # Entries of a permuted basis are the same entries elsewhere.
        close(got[t][0], {**want, "bias": bias["bias"]}, atol=1e-5)


@pytest.mark.parametrize("basis", DENSE[:3])
def test_a_zero_gradient_keeps_the_basis_and_the_first_other_one_sets_it(basis):
    zero = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    first, second = gradients(0, 2, SHAPES)
    states = [s for _, s in steps([zero, first, zero, second], basis=basis, refresh_every=2)]
    for name in MATRICES:
        at = [np.asarray(s.basis[0][name]) for s in states]
        assert not at[0].any()
        assert at[1].any()
        np.testing.assert_array_equal(at[1], at[2])
        np.testing.assert_array_equal(at[2], at[3])


def test_one_expert_without_tokens_waits_alone():
    (g,) = gradients(0, 1, {"stack": (2, 4, 5)})
    g["stack"][0] = 0.0
    other = {"stack": np.flip(gradients(1, 1, {"stack": (2, 4, 5)})[0]["stack"])}
    (_, before), (_, after) = steps([g, other], refresh_every=9)
    assert not np.any(before.basis[0]["stack"][0]) and np.any(after.basis[0]["stack"][0])
    np.testing.assert_array_equal(before.basis[0]["stack"][1], after.basis[0]["stack"][1])


def test_staggered_leaves_take_turns():
    grads = gradients(0, 8, SHAPES)
    tx, _ = compiled(refresh_every=4, stagger=True)
    states = [tx.init(grads[0]), *(s for _, s in steps(grads, refresh_every=4, stagger=True))]
    turns = [
        [
            name
            for name in MATRICES
            if np.any(np.asarray(a.basis[0][name]) != np.asarray(b.basis[0][name]))
        ]
        for a, b in itertools.pairwise(states)
    ]
    assert all(len(turn) == 1 for turn in turns)
    assert {turn[0] for turn in turns[:4]} == set(MATRICES)
    assert turns[:4] == turns[4:]


def test_staggered_resets_are_each_leafs_own():
    grads = gradients(0, 4, SHAPES)
    options = {"refresh_every": 4, "stagger": True, "state_on_refresh": "reset"}
    (*_, (_, state)) = steps(grads, optkit.scale_by_adam(), **options)
    counts = sorted(int(inner.count) for inner in state.projected)
    assert counts == [1, 2, 3, 4]


def _primitives(jaxpr, inside=False):
    """(name, whether inside of a branch) of every operation."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, inside
        for value in equation.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                own = getattr(sub, "jaxpr", sub)
                if hasattr(own, "eqns"):
                    yield from _primitives(own, inside or equation.primitive.name == "cond")


@pytest.mark.parametrize("stagger", [False, True])
def test_the_decomposition_stands_in_a_branch(stagger):
    tx = optkit.low_rank(optkit.scale_by_adam(), 2, stagger=stagger)
    (g,) = gradients(0, 1, SHAPES)
    jaxpr = jax.make_jaxpr(tx.update)(g, tx.init(g)).jaxpr
    found = [inside for name, inside in _primitives(jaxpr) if name == "svd"]
    assert found and all(found)


def _orthonormal(path, side, shape, refresh):
    del path, side
    random = np.random.default_rng(5)
    both = np.stack([np.linalg.qr(random.standard_normal(shape))[0] for _ in range(3)])
    return jnp.asarray(both)[refresh]


def test_transport_turns_averages_into_the_new_basis():
    grads = gradients(2, 3, SHAPES)
    options = {"draw": _orthonormal, "refresh_every": 2, "state_on_refresh": "transport"}
    out = steps(grads, optkit.scale_by_adam(), **options)
    keep = steps(grads, optkit.scale_by_adam(), **options | {"state_on_refresh": "keep"})
    (adam,), (kept,) = out[2][1].projected, keep[1][1].projected
    for name in MATRICES:
        shape = SHAPES[name]
        right = shape[-1] >= shape[-2]
        size = shape[-2] if right else shape[-1]
        old, new = (np.float64(_orthonormal("", "", (*shape[:-2], size, 2), i)) for i in (0, 1))
        cosines = np.swapaxes(new, -1, -2) @ old
        g = np.float64(grads[2][name])
        g = np.swapaxes(new, -1, -2) @ g if right else g @ new
        turn = (lambda c, x: c @ x) if right else (lambda c, x: x @ np.swapaxes(c, -1, -2))
        mu = 0.9 * turn(cosines, np.float64(kept.mu[name])) + 0.1 * g
        nu = 0.999 * turn(cosines**2, np.float64(kept.nu[name])) + 0.001 * g**2
        np.testing.assert_allclose(adam.mu[name], mu, atol=1e-5)
        np.testing.assert_allclose(adam.nu[name], nu, atol=1e-6)


def test_transport_refuses_a_state_that_it_does_not_know():
    tx = optkit.low_rank(optkit.scale_by_entry_moment(), 2, state_on_refresh="transport")
    (g,) = gradients(0, 1, {"up": (4, 6)})
    with pytest.raises(ValueError, match="up"):
        jax.jit(tx.update)(g, tx.init(g))


@given(seed=seeds)
def test_feedback_loses_nothing(seed):
    """What was stepped and the error kept sum up to all gradients."""
    grads = gradients(seed, 4, SHAPES)
    out = steps(grads, residual="feedback", refresh_every=2)
    for name in MATRICES:
        stepped = sum(np.float64(u[name]) for u, _ in out)
        total = sum(np.float64(g[name]) for g in grads)
        np.testing.assert_allclose(stepped + out[-1][1].residual[name], total, atol=2e-5)


def test_parameters_are_projected_for_the_inner_transformation():
    grads = gradients(0, 1, SHAPES)
    inner = optax.chain(optax.scale(0.0), optax.add_decayed_weights(1.0))
    ((u, _),) = steps(grads, inner, params=grads[0])
    ((want, _),) = steps(grads)
    close(u, want)


def test_random_bases_depend_on_path_and_refresh_only():
    grads = gradients(0, 4, SHAPES)
    small = [{"wide": g["wide"]} for g in grads]
    options = {"basis": "gaussian", "refresh_every": 2}
    whole, alone = steps(grads, **options), steps(small, **options)
    for (a, state), (b, _) in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(a["wide"], b["wide"])
        assert state.basis == ()
    again = steps([grads[0]] * 3, **options)
    np.testing.assert_array_equal(again[0][0]["wide"], again[1][0]["wide"])
    assert np.any(again[1][0]["wide"] != again[2][0]["wide"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 7}, "up/kernel.*6 x 4.*no rank 7.*at most 4"),
        ({"rank": 0}, "at least 1"),
        ({"rank": 1.5}, "share"),
        ({"rank": 2, "basis": "randk"}, "share of the entries"),
        ({"rank": 2, "basis": "columns", "side": "left"}, "leave out side"),
        ({"rank": 2, "basis": "svdd"}, "did you mean 'svd'"),
        ({"rank": 2, "side": "full", "residual": "norm_scaled"}, "one projected side"),
        ({"rank": 2, "state_on_refresh": "forget"}, "keep"),
        ({"rank": 2, "refresh_every": 0}, "refresh_every=0"),
        ({"rank": 2, "draw": lambda *_: jnp.ones((3, 2))}, "up/kernel.*needed is"),
    ],
)
def test_wrong_use_is_refused(options, match):
    params = {"up": {"kernel": jnp.ones((4, 6))}}
    with pytest.raises(ValueError, match=match):
        tx = optkit.low_rank(optax.identity(), **options)
        jax.eval_shape(lambda p: tx.update(p, tx.init(p)), params)
