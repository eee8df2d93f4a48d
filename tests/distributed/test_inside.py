"""Transformations inside shard_map: whole answers from parts, and errors that help."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.trees import assert_close, copy

SPECS = {"w": P("x", "y"), "b": P()}
PARAMS = {"w": np.ones((8, 4), np.float32), "b": np.ones(3, np.float32)}
random = np.random.default_rng(0)
GRADS = {k: np.float32(random.standard_normal(v.shape)) for k, v in PARAMS.items()}


def mesh_of() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def over(function: Any, into: Any, out: Any, check_vma: bool = True) -> Any:
    mapped = jax.shard_map(
        function, mesh=mesh_of(), in_specs=into, out_specs=out, check_vma=check_vma
    )
    return jax.jit(mapped)


def test_init_and_update_inside_are_those_of_whole_leaves() -> None:
    # Noise, a factored moment with a state of rows, and a norm over leaves that are not all split.
    tx = optax.chain(
        optax.clip_by_global_norm(0.5),
        optkit.scale_by_factored_rms(),
        optax.add_noise(0.1, 0.5, jax.random.key(0)),
    )
    inner, specs = optkit.inside(tx, SPECS), optkit.state_sharding(tx, PARAMS, SPECS)
    state = over(inner.init, (SPECS,), specs)(PARAMS)
    assert_close(copy(jax.device_get(state)), jax.device_get(tx.init(PARAMS)))
    got = over(inner.update, (SPECS, specs, SPECS), (SPECS, specs))(GRADS, state, PARAMS)
    want = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    assert_close(copy(jax.device_get(got)), jax.device_get(want))


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_local_norm_is_refused_and_a_local_norm_on_purpose_is_not(check_vma: bool) -> None:
    clip = optkit.clip_by_global_norm(1.0)
    run = lambda tx: over(lambda g: tx.update(g, tx.init(g))[0], (SPECS,), SPECS, check_vma)  # noqa: E731
    with pytest.raises(
        ValueError,
        match=r"clip_by_global_norm adds up .* of a leaf.*shard_map over \['x', 'y'\].*"
        r"optkit\.inside\(tx, specs\).*optkit\.inside\(tx, \(\)\)",
    ):
        run(clip)(GRADS)
    alone = {"w": GRADS["w"]}
    parts = over(
        lambda g: optkit.inside(clip, ()).update(g, optkit.inside(clip, ()).init(g))[0],
        ({"w": P("x", "y")},),
        {"w": P("x", "y")},
        check_vma,
    )(alone)["w"]
    blocks = np.asarray(parts).reshape(4, 2, 2, 2)
    norms = np.sqrt((blocks**2).sum((1, 3)))
    own = np.sqrt((GRADS["w"].reshape(4, 2, 2, 2) ** 2).sum((1, 3)))
    np.testing.assert_allclose(norms, np.minimum(own, 1.0), rtol=1e-5)
    assert np.allclose(run(optkit.inside(clip, SPECS))(GRADS)["w"], clip.update(GRADS, ())[0]["w"])


def test_a_leaf_that_all_devices_hold_is_as_good_as_outside() -> None:
    """Replicas that have averaged their gradients: types tell, so that nothing refuses."""
    tx = optkit.muon(0.1)

    def step(g: Any, params: Any) -> Any:
        g = jax.tree.map(lambda x: jax.lax.pmean(x[0], ("x", "y")), g)
        return tx.update(g, tx.init(params), params)[0]

    each = jax.tree.map(lambda x: np.stack([x * i for i in range(8)]), GRADS)
    got = over(step, (P(("x", "y")), P()), P())(each, PARAMS)
    mean = jax.tree.map(lambda x: x * np.float32(3.5), GRADS)
    want = jax.jit(tx.update)(mean, tx.init(PARAMS), PARAMS)[0]
    assert_close(copy(jax.device_get(got)), jax.device_get(want))


def test_the_outermost_of_what_combines_entries_is_named() -> None:
    def said(tx: Any) -> str:
        with pytest.raises(ValueError) as caught:
            jax.eval_shape(over(lambda g: tx.update(g, tx.init(g), g)[0], (SPECS,), SPECS), GRADS)
        return str(caught.value)

    assert said(optkit.muon(0.1)).startswith("muon ")
    assert said(optkit.cautious(optkit.orthogonalize())).startswith("cautious ")
    assert said(optax.chain(optax.scale(2.0), optkit.muon(0.1))).startswith("muon ")
    # A state of whole leaves beside parts of them: the answer says where that comes from.
    tx = optkit.scale_by_factored_rms()
    run = over(lambda g, s: tx.update(g, s)[0], (SPECS, P()), SPECS)
    with pytest.raises(
        (TypeError, ValueError), match=r"scale_by_factored_rms is used inside a shard"
    ):
        jax.eval_shape(run, GRADS, tx.init(PARAMS))


def test_a_scale_by_the_size_of_a_leaf_is_refused() -> None:
    tx = optkit.scale_by_shape("max1")
    only = {"w": GRADS["w"]}
    run = over(lambda g: tx.update(g, tx.init(g), g)[0], (P("x"),), P("x"))
    with pytest.raises(ValueError, match="scale_by_shape computes with the sizes of leaves"):
        jax.eval_shape(run, only)


def test_what_averages_by_itself_goes_on_doing_so_within_wrappers() -> None:
    tx = optkit.freeze("b", optkit.powersgd_mean(("x", "y"), rank=1))

    def step(g: Any) -> Any:
        g = jax.tree.map(lambda x: x[0], g)
        return tx.update(g, tx.init(g), g)[0]

    each = {k: np.stack([v] * 8) for k, v in GRADS.items()}
    assert jax.eval_shape(over(step, (P(("x", "y")),), P(), False), each)["w"].shape == (8, 4)


def test_wrong_use_is_answered() -> None:
    tx = optkit.lion(0.1)
    with pytest.raises(TypeError, match="not which dimension"):
        optkit.inside(tx, "x")
    with pytest.raises(TypeError, match="not which dimension"):
        optkit.inside(tx, ("x", "y"))
    with pytest.raises(TypeError, match="must be an optax"):
        optkit.inside(0.1, SPECS)
    wrong = optkit.inside(tx, {"w": P("z"), "b": P()})
    with pytest.raises(ValueError, match=r"'w' is split over 'z'.*shard_map is over \['x', 'y'\]"):
        jax.eval_shape(over(lambda p: wrong.init(p), (SPECS,), P()), PARAMS)
    right = optkit.inside(tx, SPECS)
    run = over(lambda g, s: right.update(g, s, g)[0], (SPECS, P()), SPECS)
    with pytest.raises(ValueError, match=r"on a device, and should be a part of \(8, 4\)"):
        jax.eval_shape(run, GRADS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="their trees differ"):
        jax.eval_shape(run, GRADS, optax.adam(0.1).init(PARAMS))


def test_outside_of_shard_map_nothing_changes() -> None:
    tx = optkit.muon(0.1)
    same = optkit.inside(tx, SPECS)
    state = same.init(PARAMS)
    assert_close(same.update(GRADS, state, PARAMS), tx.update(GRADS, tx.init(PARAMS), PARAMS))


def test_extra_arguments_like_the_parameters_are_split_like_them() -> None:
    tx = optkit.skip_spikes(optax.sgd(0.1))
    inner, specs = optkit.inside(tx, SPECS), optkit.state_sharding(tx, PARAMS, SPECS)
    run = over(
        lambda g, s, v: inner.update(g, s, g, value=v, other=g, word="kept"),
        (SPECS, specs, P()),
        (SPECS, specs),
    )
    got = run(GRADS, tx.init(PARAMS), jnp.float32(1.0))
    want = tx.update(GRADS, tx.init(PARAMS), GRADS, value=jnp.float32(1.0))
    assert_close(copy(jax.device_get(got)), jax.device_get(want))


def test_members_of_a_population_have_their_own_norms() -> None:
    """Laid along an axis by vmap under jit: each is whole there."""
    clip = optkit.clip_by_global_norm(1.0)
    each = jax.tree.map(lambda x: np.stack([x * i for i in range(1, 5)]), GRADS)
    one = lambda g: clip.update(g, clip.init(g))[0]  # noqa: E731
    with jax.set_mesh(mesh_of()):
        placed = jax.device_put(each, jax.sharding.NamedSharding(mesh_of(), P("x")))
        got = jax.jit(jax.vmap(one, spmd_axis_name="x"))(placed)
    want = [one(jax.tree.map(lambda x, i=i: x[i], each)) for i in range(4)]
    for name, x in got.items():
        np.testing.assert_allclose(x, np.stack([member[name] for member in want]), rtol=1e-6)
