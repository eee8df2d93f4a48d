"""State by name: what survives a change of the chain, and what is refused."""

import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.tree.export import FORMAT_KEY

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "list": [jnp.ones((3, 2))]}


def trained(tx, steps=2):
    state = tx.init(PARAMS)
    for _ in range(steps):
        _, state = tx.update(PARAMS, state, PARAMS)
    return state


def through_a_file(exported):
    buffer = io.BytesIO()
    np.savez(buffer, **exported)
    buffer.seek(0)
    return dict(np.load(buffer))


CHAINS = {
    "muon": lambda: optkit.muon(optax.linear_schedule(0.1, 0.0, 5)),
    "twins": lambda: optax.chain(optkit.momentum(0.9), optax.chain(optkit.momentum(0.5))),
    "guarded": lambda: optkit.skip_spikes(optkit.accumulate_gradients(optkit.lion(0.1), 2)),
    "16 bits": lambda: optkit.adamw(state_dtype={"mu": jnp.bfloat16, "nu": jnp.float16}),
    "8 bits": lambda: optkit.momentum(state_dtype=jnp.float8_e4m3fn),
    "injected": lambda: optax.inject_hyperparams(optkit.lion)(learning_rate=0.1),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)},
        {"dense": "a", "list": "b"},
    ),
    "rounded": lambda: optax.chain(optkit.lion(0.1), optkit.stochastic_round(3)),
    "rbg": lambda: optkit.stochastic_round(jax.random.key(3, impl="rbg")),
    "no state": lambda: optax.scale(2.0),
}


@pytest.mark.parametrize("name", CHAINS)
def test_round_trip_through_a_file(name):
    tx = CHAINS[name]()
    state = trained(tx)
    exported = optkit.export_state(state)
    assert len(exported) == 1 + len(jax.tree.leaves(state)), "two leaves have one name"
    back = optkit.restore_state(tx.init(PARAMS), through_a_file(exported))
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)
    words = lambda tree: [  # noqa: E731
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    chex.assert_trees_all_equal(words(back), words(state))


@pytest.mark.parametrize(
    "change",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.chain(tx, optax.scale(0.5)),
        lambda tx: optax.chain(optax.scale(1.0), optax.chain(optax.clip(1.0), tx)),
        optax.chain,
    ],
)
@pytest.mark.parametrize("recipe", ["lion", "muon", "adamw"])
def test_links_without_state_may_come_and_go(recipe, change):
    plain = optkit.catalogue.get(recipe).factory(0.1)
    changed = change(plain)
    for before, after in ((plain, changed), (changed, plain)):
        state = trained(before)
        back = optkit.restore_state(after.init(PARAMS), optkit.export_state(state))
        chex.assert_trees_all_equal(jax.tree.leaves(back), jax.tree.leaves(state))


def test_a_link_with_state_is_asked_for_or_kept_fresh():
    small, large = optkit.momentum(0.5), optax.chain(optkit.scale_by_adam(), optkit.momentum(0.5))
    state = trained(small)
    exported = optkit.export_state(state)
    template = large.init(PARAMS)
    with pytest.raises(ValueError, match=r"ScaleByAdamState\.mu/dense/kernel: missing(.|\n)*keep"):
        optkit.restore_state(template, exported)
    back = optkit.restore_state(template, exported, missing="keep")
    chex.assert_trees_all_equal(back, (template[0], state))
    removed = optkit.restore_state(small.init(PARAMS), optkit.export_state(back))
    chex.assert_trees_all_equal(removed, state)


def test_a_changed_shape_is_named_even_when_missing_is_kept():
    tx = optkit.momentum(0.5)
    exported = optkit.export_state(trained(tx))
    other = {**PARAMS, "list": [jnp.ones((3, 4))]}
    with pytest.raises(
        ValueError, match=r"momentum/list/0: has shape \(3, 2\), needed is \(3, 4\)"
    ):
        optkit.restore_state(tx.init(other), exported, missing="keep")


@pytest.mark.parametrize("version", [0, 2])
def test_another_format_is_refused(version):
    template = optkit.momentum(0.5).init(PARAMS)
    exported = {**optkit.export_state(template), FORMAT_KEY: np.asarray(version)}
    with pytest.raises(ValueError, match=f"cannot read state of format {version}; .* reads 1 to 1"):
        optkit.restore_state(template, exported)


@pytest.mark.parametrize("missing", ["error", "keep"])
def test_what_was_not_exported_whole_is_refused(missing):
    template = optkit.momentum(0.5).init(PARAMS)
    exported = optkit.export_state(template)
    del exported[FORMAT_KEY]
    with pytest.raises(ValueError, match=r"lacks 'optkit.format': it holds MomentumState.count, "):
        optkit.restore_state(template, exported, missing=missing)
    with pytest.raises(ValueError, match=r"lacks 'optkit.format': it is empty; give all that"):
        optkit.restore_state(template, {}, missing=missing)


def test_the_template_decides_dtype_and_placement():
    devices = np.asarray(jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(devices, ("x",)), jax.sharding.PartitionSpec("x")
    )
    exported = optkit.export_state(trained(optkit.momentum(0.5)))
    template = optkit.momentum(0.5, state_dtype=jnp.bfloat16).init(PARAMS)
    moved = jax.device_put(template.momentum["dense"]["kernel"], sharding)
    template.momentum["dense"]["kernel"] = moved
    back = optkit.restore_state(template, exported)
    kernel = back.momentum["dense"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding == sharding
    assert float(kernel[0, 0]) == 0.75


def test_wrong_words_and_swapped_arguments_are_refused():
    params = {"w": jnp.ones(2)}
    state = optkit.momentum(0.9).init(params)
    exported = optkit.export_state(state)
    with pytest.raises(ValueError, match="missing='kep' must be 'error' or 'keep'"):
        optkit.restore_state(state, exported, missing="kep")
    with pytest.raises(TypeError, match=r"is of type MomentumState; arguments are \(template"):
        optkit.restore_state(exported, state)
