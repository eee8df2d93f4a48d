"""Laws of blocks that take turns, and of FRUGAL's split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {
    f"{i}/{name}": shape for i in range(3) for name, shape in {"a": (2, 3), "b": (3,)}.items()
}
SHAPES["embed"] = (4, 2)
seeds = st.integers(0, 2**32 - 1)


def tree(flat):
    return {"layers": {k: v for k, v in flat.items() if k != "embed"}, "embed": flat["embed"]}


@functools.lru_cache
def compiled(tx):
    return jax.jit(tx.update)


def steps(tx, grads):
    state, out = tx.init(grads[0]), []
    for g in grads:
        u, state = compiled(tx)(g, state)
        out.append((u, state))
    return out


def turns(tx, count=9):
    """The layers that moved in each step."""
    grads = [tree(g) for g in gradients(0, count, SHAPES)]
    moved = []
    for u, _ in steps(tx, grads):
        assert not np.any(u["embed"])
        own = {k.split("/")[0] for k, x in u["layers"].items() if np.any(x)}
        whole = {k.split("/")[0] for k, x in u["layers"].items() if np.all(np.asarray(x) != 0)}
        assert own == whole
        moved.append("".join(sorted(own)))
    return moved


def test_every_layer_has_its_turn_in_order():
    adam = optkit.scale_by_adam()
    down = turns(optkit.rotate_blocks(adam, refresh_every=2))
    assert down == list("221100221")
    short = optkit.rotate_blocks(adam, refresh_every=2, first_short=True)
    assert turns(short) == list("211002211")
    two = optkit.rotate_blocks(adam, refresh_every=3, active=2, order="ascending")
    assert turns(two) == ["01"] * 3 + ["02"] * 3 + ["12"] * 3
    assert turns(optkit.rotate_blocks(adam, refresh_every=1, order="fixed")) == list("0" * 9)


@given(seeds)
def test_an_epoch_has_each_layer_once(seed):
    tx = optkit.rotate_blocks(optax.identity(), refresh_every=1, order="epochs", key=seed % 7)
    moved = turns(tx)
    assert [sorted(moved[i : i + 3]) for i in (0, 3, 6)] == [["0", "1", "2"]] * 3


@given(seeds)
def test_a_turn_is_adam_from_its_beginning(seed):
    grads = [tree(g) for g in gradients(seed, 6, SHAPES)]
    adam = optkit.scale_by_adam()
    out = steps(optkit.rotate_blocks(adam, refresh_every=3, free="sign"), grads)
    for begin, layer in ((0, "2"), (3, "1")):
        state = adam.init(grads[0])
        for t in range(begin, begin + 3):
            want, state = adam.update(grads[t], state)
            for name, got in out[t][0]["layers"].items():
                other = np.sign(grads[t]["layers"][name])
                mine = name.startswith(layer)
                np.testing.assert_allclose(got, want["layers"][name] if mine else other, rtol=1e-5)


def test_state_is_that_of_one_layer():
    (g,) = gradients(0, 1, SHAPES)
    state = optkit.rotate_blocks(optkit.scale_by_adam()).init(tree(g))
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * (6 + 3)


def test_parameters_move_in_with_their_gradients():
    params = {"layers": {str(i): jnp.full(2, i + 1.0) for i in range(2)}}
    inner = optax.chain(optax.scale(0.0), optax.add_decayed_weights(1.0))
    tx = optkit.rotate_blocks(inner, refresh_every=1, order="ascending")
    state = tx.init(params)
    for _ in range(2):
        u, state = tx.update(params, state, params)
    np.testing.assert_array_equal(u["layers"]["1"], params["layers"]["1"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "no path has a number.*'embed'"),
        ({"blocks": ("embed", "**")}, "'embed' is in two blocks"),
        ({"blocks": "layer"}, "did you mean 'layers'"),
        ({"blocks": "leaves", "active": 0}, "active=0"),
        ({"blocks": "leaves", "order": "up"}, "order='up'"),
    ],
)
def test_wrong_blocks_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        optkit.rotate_blocks(optax.identity(), **options).init({"embed": jnp.ones(2)})


@pytest.mark.sweep
@pytest.mark.parametrize("select", ["columns", "orthonormal", "randk"])
@given(seed=seeds)
def test_sgd_on_both_halves_is_sgd(select, seed):
    grads = gradients(seed, 2, {"w": (6, 5), "stack": (2, 4, 4)})
    tx = optkit.split(optax.identity(), "sgd", select, density=0.5, refresh_every=1)
    for g, (u, _) in zip(grads, steps(tx, grads), strict=True):
        for name in g:
            np.testing.assert_allclose(u[name], g[name], atol=3e-6)


@given(seeds)
def test_density_is_the_share_of_state(seed):
    (g,) = gradients(seed, 1, {"w": (8, 5)})
    for density, columns in ((0.25, 2), (0.5, 4), (1.0, 8)):
        state = optkit.split(optkit.scale_by_adam(), density=density).init(g)
        assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * columns * 5


@pytest.mark.parametrize("density", [2.5, "8", 0])
def test_a_wrong_density_is_called_by_its_name(density):
    with pytest.raises((TypeError, ValueError), match="density="):
        optkit.frugal(density=density).init({"kernel": jnp.ones((8, 8))})
