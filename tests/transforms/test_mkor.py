"""MKOR by its rule in float64, its modes against dense inverses, and what it leaves alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit import curvature

RNG = np.random.default_rng(0)
# fan_in x fan_out, one of the two with a bias.
SHAPES = {"up/kernel": (4, 3), "up/bias": (3,), "down/kernel": (3, 2), "norm/scale": (3,)}
PARAMS = {k: RNG.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}


def nested(flat):
    out = {}
    for path, x in flat.items():
        layer, name = path.split("/")
        out.setdefault(layer, {})[name] = jnp.asarray(x)
    return out


def draw(steps, size=1.0):
    """(gradients, statistics) of each step."""
    grads = []
    for _ in range(steps):
        grads.append({k: RNG.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()})
    means = [
        {
            path: tuple((size * RNG.standard_normal(n)).astype(np.float32) for n in SHAPES[path])
            for path in ("up/kernel", "down/kernel")
        }
        for _ in range(steps)
    ]
    return grads, means


def updated(p, v, mode, b=0.95):
    eye = np.eye(len(p))
    if mode == "exact":
        return np.linalg.inv(b * np.linalg.inv(p) + (1 - b) * np.outer(v, v))
    p = b * p + (1 - b) * eye
    return np.linalg.inv(np.linalg.inv(p) + np.outer(v, v))


def oracle(grads, means, *, every, warmup, clip, mode, threshold, restore):
    """The updates of a wrapper around the identity, in float64."""
    sides = {path: [None, None] for path in means[0]}
    resets = {path: [True, True] for path in means[0]}
    for t, (g, mean) in enumerate(zip(grads, means, strict=True)):
        out = {k: np.float64(x) for k, x in g.items()}
        for path, (a, d) in mean.items():
            has_bias = path == "up/kernel"
            vectors = [np.append(a, 1.0) if has_bias else a, d]
            if t % every == 0 or t < warmup:
                for i, v in enumerate(vectors):
                    v = np.clip(np.float64(v), -clip, clip)
                    if resets[path][i]:
                        sides[path][i], resets[path][i] = np.eye(len(v)), False
                        continue
                    sides[path][i] = updated(sides[path][i], v, mode)
                    if np.max(np.abs(sides[path][i])) > threshold:
                        resets[path] = [True, True]
            right, left = sides[path]
            whole = out[path].T
            if has_bias:
                whole = np.concatenate([whole, out["up/bias"][:, None]], axis=1)
            moved = left @ whole @ right
            cut = SHAPES[path][0]
            parts = [[x[:, :cut]] + [x[:, cut:]] * has_bias for x in (whole, moved)]
            norms = [np.array([np.linalg.norm(x) for x in side]) for side in parts]
            order = {"sum": 1, "layer": 2}.get(restore)
            scale = 1.0
            if order:
                scale = np.linalg.norm(norms[0], order) / np.linalg.norm(norms[1], order)
            out[path] = scale * parts[1][0].T
            if has_bias:
                out["up/bias"] = scale * parts[1][1][:, 0]
        yield out


RULES = {
    "code": {},
    "seldom": {"every": 3, "warmup": 2},
    "clipped": {"clip": 0.3, "restore": "layer"},
    # Where no vector points the average's inverse grows, until both sides begin anew.
    "exact": {"mode": "exact", "threshold": 1.3},
    "plain": {"mode": "exact", "threshold": np.inf, "restore": "none"},
}


@pytest.mark.parametrize("name", RULES)
def test_it_is_the_rule_in_float64(name):
    rule = {"every": 1, "warmup": 0, "clip": 100.0, "mode": "code", "threshold": 2.0}
    rule |= {"restore": "sum"} | RULES[name]
    grads, means = draw(9)
    tx = optkit.mkor(
        optax.identity(),
        every=rule["every"],
        warmup_steps=rule["warmup"],
        clip=rule["clip"],
        mode=rule["mode"],
        threshold=rule["threshold"],
        restore_norm=rule["restore"],
    )
    state, step = tx.init(nested(PARAMS)), jax.jit(tx.update)
    for t, want in enumerate(oracle(grads, means, **rule)):
        u, state = step(nested(grads[t]), state, nested(PARAMS), statistics=means[t])
        for path, x in want.items():
            layer, leaf = path.split("/")
            np.testing.assert_allclose(u[layer][leaf], x, rtol=2e-4, atol=2e-5, err_msg=path)


def test_the_sum_of_norms_is_kept_and_other_leaves_pass():
    grads, means = draw(4)
    tx = optkit.mkor(optax.identity(), every=1)
    state, step = tx.init(nested(PARAMS)), jax.jit(tx.update)
    for g, mean in zip(grads, means, strict=True):
        u, state = step(nested(g), state, nested(PARAMS), statistics=mean)
    g, norm = nested(g), np.linalg.norm
    for side in ("up", "down"):
        before, after = (sum(norm(x) for x in tree[side].values()) for tree in (g, u))
        np.testing.assert_allclose(after, before, rtol=1e-5)
    assert np.max(np.abs(u["up"]["kernel"] - g["up"]["kernel"])) > 0.05
    np.testing.assert_array_equal(u["norm"]["scale"], g["norm"]["scale"])
    zero = jax.tree.map(jnp.zeros_like, g)
    u, _ = step(zero, state, nested(PARAMS), statistics=mean)
    assert not any(np.any(x) for x in jax.tree.leaves(u))


def test_factors_that_never_follow_are_the_base_optimizer():
    grads, means = draw(3)
    base = optax.sgd(0.1, momentum=0.9)
    tx, params = optkit.mkor(base, every=10**6), nested(PARAMS)
    state, other = tx.init(params), base.init(params)
    for g, mean in zip(grads, means, strict=True):
        u, state = tx.update(nested(g), state, params, statistics=mean)
        want, other = base.update(nested(g), other, params)
        same = zip(jax.tree.leaves(u), jax.tree.leaves(want), strict=True)
        for a, b in same:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_statistics_that_are_no_numbers_or_huge_do_no_harm():
    grads, means = draw(3)
    bad = [means[0], {k: (a * np.nan, d * np.inf) for k, (a, d) in means[1].items()}, means[2]]
    tx, params = optkit.mkor(optax.identity(), every=1), nested(PARAMS)
    state = tx.init(params)
    for g, mean in zip(grads, bad, strict=True):
        u, state = tx.update(nested(g), state, params, statistics=mean)
        assert all(
            np.all(np.isfinite(x))
            for x in jax.tree.leaves((u, state.kronecker.right, state.kronecker.left))
        )


def test_a_stabiliser_that_blends():
    """The paper's: an inverse that grew beyond the threshold is mixed with the identity."""
    tx = optkit.mkor(
        optax.identity(), every=1, mode="exact", decay=0.5, threshold=1.5, blend=0.25, bias=None
    )
    params, zeros = {"up": {"kernel": jnp.ones((2, 2))}}, {"up/kernel": (jnp.zeros(2),) * 2}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params, statistics=zeros)
    np.testing.assert_allclose(state.kronecker.right["up"]["kernel"], 1.25 * np.eye(2), rtol=1e-6)
    assert not np.any(state.resets["up"]["kernel"])


def model_and_loss():
    x = jnp.asarray(RNG.standard_normal((8, 3)), jnp.float32)
    model = nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(2)])
    params = jax.jit(model.init)(jax.random.key(0), x)

    def loss(p):
        return jnp.mean(jnp.square(model.apply(p, x) - x[:, :2]))

    return params, loss


def run(tx, params, loss, steps, **extra):
    runs = []

    def estimate(p, key):
        jax.debug.callback(lambda: runs.append(1))
        return curvature.layer_means(loss)(p, key)

    @jax.jit
    def step(params, state):
        value, g = jax.value_and_grad(loss)(params)
        given = {k: v(value) for k, v in extra.items()}
        u, state = tx.update(g, state, params, statistics=estimate, **given)
        return optax.apply_updates(params, u), state, value

    state, values = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    jax.effects_barrier()
    return params, state, values, len(runs)


def test_statistics_are_computed_in_refreshing_steps_only():
    params, loss = model_and_loss()
    _, state, values, runs = run(optkit.mkor(optax.sgd(0.1), every=4), params, loss, 9)
    assert runs == 3
    assert values[-1] < values[0]
    assert state.kronecker.right["params"]["layers_0"]["kernel"].shape == (4, 4)


def test_the_hybrid_is_mkor_until_it_switches_and_the_base_afterwards():
    params, loss = model_and_loss()
    options = {"check_every": 2, "patience": 2, "loss_decay": 0.0, "every": 1}
    tx = optkit.mkor_h(optax.sgd(0.1), **options)
    plain, _, _, runs = run(optkit.mkor(optax.sgd(0.1), every=1), params, loss, 3)
    same, state, _, _ = run(tx, params, loss, 3, value=lambda v: v)
    assert not state.switched and runs == 3
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    # A loss that falls once and then stands still.
    stuck, state, _, runs = run(tx, params, loss, 8, value=lambda v: jnp.float32(3.0) + 0 * v)
    assert state.switched and runs == 3  # updates 1 and 3 compare, the latter switches at once
    g = jax.grad(loss)(stuck)
    u, _ = tx.update(g, state, stuck, statistics={}, value=1.0)
    for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(g), strict=True):
        np.testing.assert_allclose(a, -0.1 * b, rtol=1e-6)


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        (None, "layer_means"),
        (lambda p: jnp.sum(p["up"]["kernel"]), "layer_means"),
        ({"up/kernel": (jnp.ones(4),), "down/kernel": (jnp.ones(3),)}, "must be a pair"),
        ({}, r"inside of jax\.lax\.scan"),
        ([1], "mapping from the path of a kernel"),
        ({"up/kernel": (jnp.ones(4), jnp.ones(3))}, r"no statistics for the layers \['down/kernel"),
        (dict.fromkeys(("up/kernel", "down/kernel"), (jnp.ones(4), jnp.ones(3))), "down/kernel"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_told(statistics, said):
    tx, params = optkit.mkor(optax.sgd(0.1)), nested(PARAMS)
    with pytest.raises((ValueError, TypeError), match=said):
        tx.update(params, tx.init(params), params, statistics=statistics)


def test_options_and_layers_that_name_nothing_are_refused():
    with pytest.raises(TypeError, match=r"mkor_h.* unknown option 'evry'; did you mean 'every'"):
        optkit.mkor_h(optax.sgd(0.1), evry=3)
    with pytest.raises(ValueError, match=r"layers='nothing/.*' names no leaf"):
        optkit.mkor(optax.sgd(0.1), layers="nothing/**").init(nested(PARAMS))
    with pytest.raises(ValueError, match="layers"):
        optkit.mkor(optax.sgd(0.1), layers=("conv",)).init(nested(PARAMS))


def test_a_bias_of_another_size_is_told():
    params = nested({"up/kernel": jnp.ones((4, 3)), "up/bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="'up/bias' of shape"):
        optkit.mkor(optax.sgd(0.1)).init(params)


def test_a_route_reads_the_statistics_of_the_whole_model():
    x, params = jnp.eye(3), {"up": {"kernel": jnp.ones((3, 2))}, "down": {"kernel": jnp.eye(2)}}

    def loss(p):
        return jnp.mean((x @ p["up"]["kernel"] @ p["down"]["kernel"]) ** 2)

    tx = optkit.freeze("down/**", optkit.mkor(optax.sgd(0.1), every=1))
    means, state = optkit.curvature.layer_means(loss), tx.init(params)
    u, _ = tx.update(jax.grad(loss)(params), state, params, statistics=means)
    assert jnp.any(u["up"]["kernel"]) and not jnp.any(u["down"]["kernel"])
