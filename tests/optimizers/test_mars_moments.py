"""MARS-AdamW and MARS-Lion: identities with AdamW and Lion, who serves which leaf, the clip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"wide": (3, 7), "bias": (4,)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 6, SHAPES)
GAMMAS = st.sampled_from([0.0, 0.025, 0.3, 1.0])
RATES = st.sampled_from([0.0, 0.5, 0.9])
FREE = {"clip": None, "optimize_1d": True, "weight_decay": 0.2}


def assert_close(one, other, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


@functools.cache
def program(kind):
    """One compiled run for all numbers; they are arrays inside."""

    def build(gamma, b1):
        if kind == "mars_lion":
            return optkit.mars_lion(0.1, b1=b1, gamma=gamma, **FREE)
        return optkit.lion(0.1, b1=(1.0 - gamma) * b1, b2=b1, weight_decay=0.2)

    return jax.jit(lambda gamma, b1: run(build(gamma, b1), PARAMS, GRADS)[1])


@given(gamma=GAMMAS, b1=RATES)
def test_without_clip_mars_lion_is_a_lion_of_one_buffer(gamma, b1):
    both = [program(kind)(jnp.float32(gamma), jnp.float32(b1)) for kind in ("mars_lion", "lion")]
    assert_close(*both)


def test_without_correction_and_clip_mars_adamw_is_adamw():
    options = {"b1": 0.8, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.2}
    mars = optkit.mars_adamw(0.1, gamma=0.0, **FREE | options)
    assert_close(run(mars, PARAMS, GRADS)[1], run(optkit.adamw(0.1, **options), PARAMS, GRADS)[1])


def test_clipped_gradients_lead_whatever_their_length():
    """Of clipped gradients only the directions count: of their lengths AdamW remembers all."""
    sizes = (1e3, 7.0, 1e10, 30.0, 2e4, 50.0)
    unit = [jax.tree.map(lambda g: g / np.linalg.norm(g), tree) for tree in GRADS]
    longer = [
        jax.tree.map(lambda g, s=s: np.float32(s) * g, t) for s, t in zip(sizes, unit, strict=True)
    ]
    for factory in (optkit.mars_adamw, optkit.mars_lion):
        tx = factory(0.1, gamma=0.0, optimize_1d=True)
        assert_close(run(tx, PARAMS, longer)[1], run(tx, PARAMS, unit)[1])
    free = optkit.mars_adamw(0.1, gamma=0.0, clip=None, optimize_1d=True)
    apart = run(free, PARAMS, longer)[1]["wide"] - run(free, PARAMS, unit)[1]["wide"]
    assert np.max(np.abs(apart)) > 0.01


MODEL = {
    "conv1": {"kernel": jnp.ones((2, 2, 3))},
    "embed": {"embedding": jnp.ones((5, 3))},
    "head": {"kernel": jnp.ones((3, 5))},
    "layers": {"up": {"kernel": jnp.ones((2, 3, 4))}},
    "norm": {"scale": jnp.ones(3)},
    "up": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
}


def served_by_mars(**options):
    rows = optkit.plan(optkit.mars_adamw(0.1, **options), MODEL).rows
    assert {row.method for row in rows} <= {"mars_adamw", "adamw"}
    return {row.path for row in rows if row.method == "mars_adamw"}


def test_which_leaves_are_served():
    everything = {path for path, _ in optkit.tree.leaves_with_paths(MODEL)}
    assert served_by_mars() == everything - {"norm/scale", "up/bias"}
    of_rank_2 = served_by_mars(matrices=lambda path, leaf: leaf.ndim == 2)
    assert of_rank_2 == {"embed/embedding", "head/kernel", "up/kernel"}
    assert served_by_mars(matrices=("matrix", "norm")) == {"up/kernel", "norm/scale"}


def test_the_other_leaves_have_numbers_of_their_own():
    params = MODEL["up"]
    grads = {"kernel": np.ones((3, 4), np.float32), "bias": np.float32([2.0, -1.0, 0.5, 3.0])}
    first = np.sign(grads["bias"])

    def bias(tx):
        return run(tx, params, [grads])[1]["bias"][0]

    for factory in (optkit.mars_adamw, optkit.mars_lion):
        np.testing.assert_allclose(bias(factory(0.1)), 1 - 0.01 - 0.1 * first, rtol=1e-4)
        own = factory(0.1, adam_learning_rate=0.5, adam_weight_decay=0.0)
        np.testing.assert_allclose(bias(own), 1 - 0.5 * first, rtol=1e-4)
        other = factory(0.1, other=optax.sgd(0.1))
        np.testing.assert_allclose(bias(other), 1 - 0.1 * grads["bias"], rtol=1e-4)
        together = factory(0.1, optimize_1d=True, weight_decay=0.3)
        np.testing.assert_allclose(bias(together), 1 - 0.03 - 0.1 * first, rtol=1e-4)


@pytest.mark.parametrize("name", ["mars_adamw", "mars_lion"])
def test_a_stack_is_its_layers(name):
    tx = optkit.catalogue.get(name).factory(0.1, weight_decay=0.2)
    singles = {f"m{i}": (3, 5) for i in range(3)}
    params, grads = gradients(4, 1, singles)[0], gradients(5, 3, singles)
    # The first is not clipped, the second in one step.
    grads = [
        {**g, "m0": 0.01 * g["m0"], "m1": np.float32(10.0**i) * 0.01 * g["m1"]}
        for i, g in enumerate(grads)
    ]
    stack = lambda tree: {"m": np.stack([tree[key] for key in singles])}  # noqa: E731
    alone = run(tx, params, grads)[1]
    together = run(tx, stack(params), [stack(g) for g in grads])[1]["m"]
    for i, key in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[key], atol=2e-6)


@pytest.mark.parametrize("name", ["mars_adamw", "mars_lion"])
def test_exact_gradients(name):
    """On a fixed quadratic the last gradient is the exact one; it saves a buffer."""
    factory = optkit.catalogue.get(name).factory
    curvature, ends, sizes = np.float32([[3.0, 0.5, 1.0]]), [], []
    for exact in (False, True):
        tx = factory(0.1, gamma=0.3, exact=exact)
        x, last = {"w": jnp.full((1, 3), 0.2)}, {"w": jnp.zeros((1, 3))}
        state = tx.init(x)
        sizes.append(optkit.tree.tree_bytes(state))
        for _ in range(4):
            g = {"w": curvature * x["w"]}
            u, state = tx.update(g, state, x, **({"prev_grad": last} if exact else {}))
            x, last = optax.apply_updates(x, u), g
        ends.append(x)
    assert_close(*ends)
    assert sizes[0] - sizes[1] == 12
    with pytest.raises(ValueError, match=r"exact=True.*prev_grad=\.\.\."):
        tx.update(g, state, x)


@pytest.mark.parametrize("name", ["mars_adamw", "mars_lion"])
def test_options_that_exclude_each_other(name):
    for options in ({"other": optax.sgd(0.1)}, {"adam_learning_rate": 0.1}):
        with pytest.raises(ValueError, match=f"optimize_1d=True trains all leaves by {name}"):
            optkit.catalogue.get(name).factory(0.1, optimize_1d=True, **options)


def test_the_amsgrad_option_reaches_every_adam():
    params = MODEL["up"]

    def number_of_moments(tx):
        return sum(x.size for x in jax.tree.leaves(tx.init(params)) if x.ndim)

    kernel, bias = 12, 4
    for factory, each in ((optkit.mars_adamw, 4), (optkit.mars_lion, 2), (optkit.mars_shampoo, 2)):
        tx = factory(0.1, amsgrad=True)
        assert number_of_moments(tx) == each * kernel + 3 * bias
    every = optkit.mars_shampoo(0.1, amsgrad=True, optimize_1d=True)
    assert number_of_moments(every) == 2 * kernel + 4 * bias
