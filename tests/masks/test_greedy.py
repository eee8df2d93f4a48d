"""Gauss-Southwell: the block with the largest promise, and the decrease that it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import masks

SIZE, CHUNK = 12, 3
BLOCKS = SIZE // CHUNK


def quadratic(seed):
    """A random ``x'Ax/2``, a point, and bounds of its blocks' curvature."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    a = (basis * 10.0 ** rng.uniform(-2, 2, SIZE)) @ basis.T
    blocks = [a[i : i + CHUNK, i : i + CHUNK] for i in range(0, SIZE, CHUNK)]
    x = rng.standard_normal(SIZE) * 10.0 ** rng.uniform(-1, 1, SIZE)
    top = np.array([np.linalg.eigvalsh(b)[-1] for b in blocks])
    # Inside a block the Hessian is at most so many times its diagonal.
    diagonal = CHUNK * np.diag(a)
    return a, x, np.stack(blocks), top, diagonal


def step(rule, a, x, blocks, top, diagonal, count=1):
    """The mask that a rule chooses and the decrease of the matching update."""
    bound = {"gs": None, "gsl": top, "gsd": diagonal, "gsq": blocks}[rule]
    curvature = None if bound is None else {"x": jnp.asarray(bound, jnp.float32)}
    g = a @ x
    matching = {
        "gs": g / top.max(),
        "gsl": g / np.repeat(top, CHUNK),
        "gsd": g / diagonal,
        "gsq": np.concatenate(
            [np.linalg.solve(b, r) for b, r in zip(blocks, g.reshape(-1, CHUNK), strict=True)]
        ),
    }[rule]
    policy = masks.greedy_blocks(count, rule=rule, blocks=CHUNK, curvature=curvature)
    tx = optkit.update_mask(optax.sgd(1.0), policy)
    params = {"x": jnp.asarray(x, jnp.float32)}
    _, state = tx.update({"x": jnp.asarray(g, jnp.float32)}, tx.init(params), params)
    mask = np.asarray(state.kept["x"])
    after = x - np.where(mask, matching, 0)
    return mask, (x @ a @ x - after @ a @ after) / 2


def scores(rule, a, x, blocks, top, diagonal):
    g = (a @ x).reshape(-1, CHUNK)
    if rule in ("gs", "gsl"):
        return (g**2).sum(1) / (top if rule == "gsl" else top.max())
    if rule == "gsd":
        return (g**2 / diagonal.reshape(-1, CHUNK)).sum(1)
    return np.array([r @ np.linalg.solve(b, r) for b, r in zip(blocks, g, strict=True)])


@pytest.mark.parametrize("rule", ["gs", "gsl", "gsd", "gsq"])
def test_the_decrease_is_at_least_half_of_the_score(rule):
    for seed in range(4):
        given_by = quadratic(seed)
        score = scores(rule, *given_by)
        mask, decrease = step(rule, *given_by)
        chosen = mask.reshape(-1, CHUNK)
        np.testing.assert_array_equal(chosen.all(1), np.arange(BLOCKS) == score.argmax())
        assert chosen.any(1).sum() == 1
        assert decrease >= 0.5 * score.max() * (1 - 1e-6)


def test_the_bound_of_gsq_is_above_those_of_gsl_and_gsd():
    for seed in range(20):
        given_by = quadratic(seed)
        best = scores("gsq", *given_by) * (1 + 1e-9)
        assert np.all(best >= scores("gsl", *given_by))
        assert np.all(best >= scores("gsd", *given_by))


def choice(policy):
    def choose(g):
        return policy.mask((), masks.Look(jnp.int32(0), g, g, None, {}))[0]

    return jax.jit(choose)


GS = choice(masks.greedy_blocks(2))
GSL = {x: choice(masks.greedy_blocks(2, rule="gsl", curvature=x)) for x in (1e-3, 7.0)}


@given(st.integers(0, 999), st.sampled_from(sorted(GSL)))
def test_gs_with_one_curvature_for_all_is_gsl(seed, curvature):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": ()}
    g = {k: np.float32(rng.standard_normal(s)) for k, s in shapes.items()}
    jax.tree.map(np.testing.assert_array_equal, GS(g), GSL[curvature](g))


def test_all_blocks_are_the_base_optimizer():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones(5)}
    g = jax.tree.map(lambda x: x * 0.3, params)
    for blocks, total in (("leaf", 2), ("row", 5), (5, 4), (1, 17)):
        tx = optkit.update_mask(optax.sgd(1.0), masks.greedy_blocks(total, blocks=blocks))
        u, _ = tx.update(g, tx.init(params), params)
        jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, -g), u, g)
        with pytest.raises(ValueError, match=f"count={total + 1} is more than the {total} blocks"):
            policy = masks.greedy_blocks(total + 1, blocks=blocks)
            optkit.update_mask(optax.sgd(1.0), policy).init(params)


def test_rows_are_what_leads_to_one_output():
    g = {"w": jnp.array([[1.0, 5.0, 0.0], [1.0, 0.0, 4.0]])}  # (fan_in, fan_out)
    tx = optkit.update_mask(optax.sgd(1.0), masks.greedy_blocks(1, blocks="row"))
    u, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(u["w"], [[0, -5.0, 0], [0, 0, 0]])
    dims = optkit.MatrixDims(1, 0)
    tx = optkit.update_mask(optax.sgd(1.0), masks.greedy_blocks(1, blocks="row", dims=dims))
    u, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(u["w"], [[-1.0, -5.0, 0], [0, 0, 0]])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_choice_does_not_depend_on_the_scale(scale):
    g = {"a": jnp.array([3.0, 4.0]) * scale, "b": jnp.array([4.9, 0.0]) * scale}
    tx = optkit.update_mask(optax.sgd(1.0), masks.greedy_blocks(1))
    u, _ = tx.update(g, tx.init(g), g)
    assert np.all(u["a"] != 0) and not np.any(u["b"])


def test_bad_curvature_is_refused():
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="'gs' compares gradients alone"):
        masks.greedy_blocks(1, curvature=2.0)
    tx = optkit.update_mask(optax.sgd(1.0), masks.greedy_blocks(1, rule="gsl"))
    with pytest.raises(ValueError, match=r"needs a bound.*none for leaf 'w'; give curvature="):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="rule='gqs' is not one of"):
        masks.greedy_blocks(1, rule="gqs")
    policy = masks.greedy_blocks(1, rule="gsl", blocks="row", curvature={"w": jnp.ones(2)})
    tx = optkit.update_mask(optax.sgd(1.0), policy)
    with pytest.raises(ValueError, match=r"leaf 'w' has shape \(2,\); give a number, or one a bl"):
        tx.update(params, tx.init(params), params)


def steps_needed(choose, a, target, most=4000):
    """Coordinate steps ``-g_i/a_ii`` until the loss is a millionth of what it was."""
    x, count = -target, 0
    g = a @ x
    first = x @ g
    while x @ g > 1e-6 * first and count < most:
        i = choose(g, count)
        x = x.copy()
        x[i] -= g[i] / a[i, i]
        g, count = a @ x, count + 1
    return count


def test_greedy_coordinates_need_fewer_steps_than_random_ones():
    """The spec's experiment in small: l2-regularised least squares, the policy's own choices."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 20)) * 10.0 ** rng.uniform(-0.5, 0.5, 20)
    a = x.T @ x / 40 + 0.01 * np.eye(20)
    target = rng.standard_normal(20) * (rng.random(20) < 0.3)
    diagonal = jnp.asarray(np.diag(a), jnp.float32)

    def greedy(rule):
        bound = None if rule == "gs" else {"x": diagonal}
        policy = masks.greedy_blocks(1, rule=rule, blocks=1, curvature=bound)
        zero = {"x": jnp.zeros(20)}
        choose = jax.jit(
            lambda g: jnp.argmax(policy.mask((), masks.Look(0, zero, {"x": g}, None, {}))[0]["x"])
        )
        return steps_needed(lambda g, t: int(choose(jnp.asarray(g, jnp.float32))), a, target)

    def at_random(seed):
        draw = np.random.default_rng(seed)
        return steps_needed(lambda g, t: draw.integers(20), a, target)

    random = np.median([at_random(seed) for seed in range(5)])
    cyclic = steps_needed(lambda g, t: t % 20, a, target)
    assert greedy("gsl") < 0.7 * random
    assert greedy("gsd") < min(random, cyclic)
    assert greedy("gs") < random


def test_curvatures_found_by_doubling_are_less_than_twice_too_large_and_descend():
    a, x, _, top, _ = quadratic(1)
    wide = jnp.asarray(a, jnp.float32)
    loss = lambda p: 0.5 * p["x"] @ (wide @ p["x"])  # noqa: E731
    policy = masks.greedy_blocks(1, rule="gsl", blocks=CHUNK)
    tx = optkit.update_mask(optax.identity(), policy)
    params = {"x": jnp.asarray(x, jnp.float32)}
    found = {"x": jnp.full(BLOCKS, 1e-3)}

    @jax.jit
    def step(params, state, found):
        g, state = tx.update(jax.grad(loss)(params), state, params, curvature=found)
        found, move = masks.curvature_search(loss, params, g, found, blocks=CHUNK)
        return optax.apply_updates(params, move), state, found

    state, before = tx.init(params), float(loss(params))
    for _ in range(40):
        params, state, found = step(params, state, found)
        now = float(loss(params))
        assert now <= before * (1 + 1e-5)
        before = now
    assert np.all(np.asarray(found["x"]) < 2 * top)
    assert before < 0.1 * float(loss({"x": jnp.asarray(x, jnp.float32)}))
