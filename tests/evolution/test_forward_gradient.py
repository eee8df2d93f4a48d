"""Laws of forward gradients, with guesses of all kinds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.evolution import (
    activation_gradient,
    forward_gradient,
    local_guess,
    local_losses,
    project_guess,
    random_guess,
)

HOWS = ("per_sample", "sign", "avg", "span")


def net(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def losses(out, y):
    return jnp.sum(jnp.square(out - y), axis=1)


def mean_loss(params, batch):
    return jnp.mean(losses(net(params, batch[0]), batch[1]))


def problem(seed=0, sizes=(4, 5, 3, 2), n=6):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    layers = itertools.pairwise(sizes)
    return [{"w": draw(a, b), "b": draw(b)} for a, b in layers], (draw(n, sizes[0]), draw(n, 2))


@functools.cache
def estimator(project="avg", per="tree", normalize=True):
    """With the guess for an argument."""
    given_guess = lambda params, batch, guess: guess  # noqa: E731
    return jax.jit(
        forward_gradient(mean_loss, given_guess, project=project, per=per, normalize=normalize)
    )


def close(got, want, tolerance=1e-5):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=tolerance * max(1.0, float(np.abs(w).max())))


true_gradient = jax.jit(jax.grad(mean_loss))


@pytest.mark.parametrize("per", ["tree", "block", "leaf"])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e15])
def test_the_gradient_for_a_guess_is_returned_at_any_scale(per, size):
    params, batch = problem()
    true = true_gradient(params, batch)
    guess = jax.tree.map(lambda g: g * np.float32(size), true)
    value, gradient = estimator(per=per)(params, batch, guess)
    close(gradient, true)
    np.testing.assert_allclose(value, mean_loss(params, batch), rtol=1e-5)


@given(st.integers(0, 2**31), st.sampled_from(["tree", "block", "leaf"]))
def test_a_slope_is_that_of_the_groups_part_of_the_guess(seed, per):
    params, batch = problem()
    guess = problem(seed)[0]
    true = true_gradient(params, batch)
    gradient = estimator(per=per)(params, batch, guess)[1]
    groups = {"tree": [true], "block": true, "leaf": jax.tree.leaves(true)}[per]
    parts = [[guess], guess, jax.tree.leaves(guess)][("tree", "block", "leaf").index(per)]
    found = [[gradient], gradient, jax.tree.leaves(gradient)][("tree", "block", "leaf").index(per)]
    for t, g, f in zip(groups, parts, found, strict=True):
        t, g, f = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(y)]) for y in (t, g, f))
        np.testing.assert_allclose(f, (t @ g) / (g @ g) * g, atol=1e-4 * np.abs(t).max())


@pytest.mark.parametrize("how", HOWS)
def test_a_guess_of_nothing_gives_nothing(how):
    params, batch = problem()
    zeros = jax.tree.map(np.zeros_like, params)
    close(estimator(how)(params, batch, zeros)[1], zeros, 0.0)
    arrays = np.ones((3, 4), np.float32)
    assert not np.any(project_guess(arrays, 0 * arrays, how))


@pytest.mark.parametrize("how", ["per_sample", "sign", "span"])
def test_guesses_of_examples_are_projected_as_their_gradients_are(how):
    """The slopes that forward passes find are the inner products of ``project_guess``."""
    params, batch = problem()
    alone = jax.vmap(lambda x, y: jax.grad(mean_loss)(params, (x[None], y[None])), (0, 0))
    targets = alone(*batch)
    mixed = problem(1)[1]
    guesses = alone(mixed[0], batch[1])
    # A guess for each example: that of another network's input, found by the example's labels.
    table = jnp.asarray(mixed[0])
    labels = jnp.asarray(batch[1])

    def guess(params, one):
        at = jnp.argmin(jnp.sum(jnp.abs(labels - one[1]), 1))
        return jax.grad(mean_loss)(params, (table[at][None], one[1]))

    found = jax.jit(forward_gradient(mean_loss, guess, project=how, per="leaf"))(params, batch)[1]
    expected = jax.tree.map(lambda x: x / 6, project_guess(targets, guesses, how))
    close(found, expected, 1e-4)


@given(st.integers(0, 2**31))
def test_a_span_that_holds_the_target_returns_it(seed):
    rng = np.random.default_rng(seed)
    guess = rng.standard_normal((3, 7)).astype(np.float32)
    inside = (rng.standard_normal((3, 3)) @ guess).astype(np.float32)
    across = rng.standard_normal((3, 7))
    q = np.linalg.qr(guess.T)[0]
    across = (across - across @ q @ q.T).astype(np.float32)
    np.testing.assert_allclose(span(inside + across, guess), inside.sum(0), atol=1e-3)
    # Doubled rows span no more.
    doubled = np.concatenate([guess[:2], guess[:1]])
    expected = np.linalg.qr(doubled[:2].T)[0]
    want = inside.sum(0) @ expected @ expected.T
    np.testing.assert_allclose(span(inside, doubled), want, atol=1e-3)


span = jax.jit(lambda t, g: project_guess(t, g, "span"))


def test_random_guesses_are_unbiased_and_normalised_ones_too_short():
    params, batch = problem()
    true = true_gradient(params, batch)
    flat = lambda tree: jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])  # noqa: E731
    size, count = flat(params).shape[0], 4000

    @functools.partial(jax.jit, static_argnums=1)
    def mean(key, normalize):
        f = forward_gradient(mean_loss, random_guess, normalize=normalize)
        one = lambda k: flat(f(params, batch, k)[1])  # noqa: E731
        return jnp.mean(jax.lax.map(one, jax.random.split(key, count), batch_size=500), 0)

    length = float(jnp.linalg.norm(flat(true)))
    # E<t,v>v = t, each entry's variance |t|^2 + t_i^2: the mean's error is about |t| sqrt(d/N).
    error = float(jnp.linalg.norm(mean(jax.random.key(0), False) - flat(true)))
    assert error < 1.5 * length * np.sqrt((size + 1) / count)
    short = mean(jax.random.key(1), True)
    assert float(jnp.linalg.norm(size * short - flat(true))) < 1.5 * length * np.sqrt(size / count)


def dense(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None])


def linear(params, x):
    return x @ params["w"] + params["b"][None]


BLOCKS, HEADS = [dense, dense, linear], [linear, linear]


def heads(seed=3, sizes=(5, 3)):
    rng = np.random.default_rng(seed)
    return [
        {"w": rng.standard_normal((a, 2)).astype(np.float32), "b": np.zeros(2, np.float32)}
        for a in sizes
    ]


def test_local_losses_let_no_gradient_through():
    params, batch = problem()
    f = local_losses(BLOCKS, HEADS, losses)
    own = heads()
    np.testing.assert_allclose(
        f(params, own, batch)[-1], losses(net(params, batch[0]), batch[1]), rtol=1e-4
    )
    jacobian = jax.jit(jax.jacrev(lambda p: jnp.mean(f(p, own, batch), 1)))(params)
    for block, leaves in enumerate(jacobian):
        for leaf in jax.tree.leaves(leaves):
            others = [row for row in range(3) if row != block]
            assert not np.any(leaf[np.array(others)]) and np.any(leaf[block])


def test_local_guesses_have_the_last_blocks_gradient_and_train_the_heads():
    params, batch = problem()
    guess = local_guess(BLOCKS, HEADS, losses)
    f = jax.jit(forward_gradient(mean_loss, guess, per="block", has_aux=True))
    (value, of_heads), gradient = f(params, batch, heads())
    true = true_gradient(params, batch)
    close(gradient[-1], true[-1])
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    for g, t in zip(gradient[:-1], true[:-1], strict=True):
        # A projection: never longer than the gradient, never uphill.
        assert 0 <= flat(g) @ flat(t) <= (flat(t) @ flat(t)) * (1 + 1e-5)
        np.testing.assert_allclose(flat(g) @ flat(t), flat(g) @ flat(g), rtol=1e-3)
    total = lambda h: jnp.sum(jnp.mean(local_losses(BLOCKS, HEADS, losses)(params, h, batch), 1))  # noqa: E731
    close(of_heads, jax.grad(total)(heads()))
    np.testing.assert_allclose(value, mean_loss(params, batch), rtol=1e-5)


def slow_activation(params, own, batch, how):
    """Jacobians in full: project dL_n/da_n on l_n, then carry it back through the block."""
    x, labels = batch
    out = []
    for at in range(2):
        a = BLOCKS[at](params[at], x)

        def behind(a, at=at):
            for block, p in zip(BLOCKS[at + 1 :], params[at + 1 :], strict=True):
                a = block(p, a)
            return jnp.sum(losses(a, labels))

        t = np.asarray(jax.grad(behind)(a))
        g = np.asarray(jax.grad(lambda a, at=at: jnp.sum(losses(HEADS[at](own[at], a), labels)))(a))
        slope = np.sum(t * g, 1)
        weight = np.sign(slope) if how == "sign" else slope / np.sum(g * g, 1)
        _, back = jax.vjp(lambda p, at=at, x=x: BLOCKS[at](p, x), params[at])
        out.append(
            jax.tree.map(lambda d: d / len(labels), back(jnp.asarray(weight[:, None] * g))[0])
        )
        x = a
    return out


@pytest.mark.parametrize("how", ["per_sample", "sign"])
def test_activations_are_projected_example_by_example(how):
    params, batch = problem()
    own = heads()
    f = jax.jit(activation_gradient(BLOCKS, HEADS, losses, project=how))
    (value, of_heads), gradient = f(params, batch, own)
    close(gradient[:-1], slow_activation(params, own, batch, how), 1e-4)
    close(gradient[-1], true_gradient(params, batch)[-1])
    guess = local_guess(BLOCKS, HEADS, losses)
    close(of_heads, guess(params, batch, own)[1])
    np.testing.assert_allclose(value, mean_loss(params, batch), rtol=1e-5)


def test_heads_that_see_what_follows_give_the_gradient():
    """With the rest of the network for a head, the local gradient is the true one."""
    params, batch = problem()
    follow = [lambda p, x: net(p, x), lambda p, x: net(p, x)]
    own = [params[1:], params[2:]]
    gradient = jax.jit(activation_gradient(BLOCKS, follow, losses))(params, batch, own)[1]
    close(gradient, true_gradient(params, batch), 1e-4)


def test_wrong_use_says_what_to_do():
    params, batch = problem()
    with pytest.raises(ValueError, match="one for each block but the last"):
        local_guess(BLOCKS, HEADS[:1], losses)
    with pytest.raises(ValueError, match="did you mean 'span'"):
        forward_gradient(mean_loss, random_guess, project="spam")
    with pytest.raises(ValueError, match="'leaf'"):
        forward_gradient(mean_loss, random_guess, per="layer")
    with pytest.raises(ValueError, match="0/b"):
        forward_gradient(mean_loss, lambda p, b: [{"w": q["w"]} for q in p])(params, batch)
