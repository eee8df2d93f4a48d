"""Extra arguments reach the inner transformation through every wrapper, route and chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from tests.conformance.methods import Method


class Probe:
    """A transformation that notes the extra arguments it was given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    @property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple:
            del params
            self.seen.append(extra)
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _update(tx: Any, method: Method) -> Any:
    """Traces an update: what reaches a transformation shows without running it."""
    params, grads = method.params(), method.grads(0)

    def update(grads: Any, state: Any) -> Any:
        return tx.update(grads, state, params, value=2.0, grad=grads)[0]

    return jax.eval_shape(update, grads, jax.eval_shape(tx.init, params))


def test_wrappers_forward_extras(wrapper: Method) -> None:
    probe = Probe()
    _update(wrapper.around(probe.tx), wrapper)
    assert probe.seen
    for extra in probe.seen:
        assert float(extra["value"]) == 2.0
        assert jax.tree.leaves(extra["grad"])


def test_wrappers_take_transformations_without_extras(wrapper: Method) -> None:
    plain = optax.GradientTransformation(*optax.scale(-1.0))
    updates = _update(wrapper.around(plain), wrapper)
    assert jax.tree.structure(updates) == jax.tree.structure(wrapper.params())


def test_methods_let_extras_pass_in_a_chain(method: Method) -> None:
    probe = Probe()
    _update(optax.chain(method.tx, probe.tx), method)
    assert [set(extra) for extra in probe.seen] == [{"value", "grad"}]


def test_recipes_forward_extras_to_the_other_leaves(recipe: Method) -> None:
    if "other" not in recipe.hyperparameters:
        return
    probe = Probe()
    _update(recipe.build(other=probe.tx), recipe)
    assert all(float(extra["value"]) == 2.0 for extra in probe.seen) and probe.seen


def test_route_cuts_trees_to_its_leaves() -> None:
    probe = Probe()
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones(2)}}
    tx = optkit.route({"one": probe.tx, "two": optax.identity()}, [("a", "one"), ("**", "two")])
    tx = optax.chain(optkit.in_float32(tx))
    tx.update(params, tx.init(params), params, grad=params, value=1.0, other={"x": jnp.ones(1)})
    (extra,) = probe.seen
    assert isinstance(extra["grad"]["b"]["c"], optax.MaskedNode)
    assert extra["grad"]["a"].shape == (3,)
    assert extra["value"] == 1.0 and extra["other"]["x"].shape == (1,)
