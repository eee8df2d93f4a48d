"""A state that is not of these gradients is told by the name of a leaf, with the remedy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit

MAKERS: dict[str, Callable[[], Any]] = {
    "muon": lambda: optkit.muon(0.1),
    "soap": lambda: optkit.soap(0.1),
    "adafactor": lambda: optkit.adafactor(0.1),
    "schedule_free": lambda: optkit.schedule_free(optkit.sgdp(0.1), 0.1),
    "adamw_8bit": lambda: optkit.adamw_8bit(0.1),
    "quantize_state": lambda: optkit.quantize_state(optax.scale_by_adam(), min_size=0),
}


def tree(rows: int, columns: int) -> Any:
    return {"dense": {"kernel": jnp.ones((rows, columns)), "bias": jnp.ones(columns)}}


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_of_other_shapes_is_told_by_leaf(name: str) -> None:
    tx = MAKERS[name]()
    old, new = tree(128, 64), tree(64, 128)
    state = jax.eval_shape(tx.init, old)
    with pytest.raises((TypeError, ValueError), match=r"dense/(kernel|bias)\S*: .*\(.*\("):
        jax.eval_shape(tx.update, new, state, new)


@pytest.mark.parametrize("given", [None, "adamw"])
def test_a_state_of_another_optimizer_is_refused(given: str | None) -> None:
    params, tx = tree(4, 3), optkit.muon(0.1)
    state = None if given is None else optkit.adamw(0.1).init(params)
    with pytest.raises(
        ValueError, match=r"(?s)muon: the state is not what init .*: not in the state"
    ):
        tx.update(params, state, params)


def test_a_route_of_other_names_is_refused() -> None:
    params = tree(4, 3)
    one, two = (
        optkit.route(
            {name: optkit.sgdp(0.1), "rest": optax.sgd(0.1)}, [("**/kernel", name), ("**", "rest")]
        )
        for name in ("m", "n")
    )
    with pytest.raises(ValueError, match=r"routes/m/.*: not in the state"):
        one.update(params, two.init(params), params)


def test_what_fails_for_another_reason_says_its_own() -> None:
    params, tx = tree(4, 3), optkit.adamw(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))
