"""Schedules, injection, readable values, and what is refused at construction."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.tree import leaves_with_paths
from tests.conformance.methods import OPTIONS, RATE, SEE_THE_RATE, Method, takes_schedule
from tests.conformance.methods import method as method_named
from tests.conformance.trees import PAIR, assert_close


def _schedulable(method: Method) -> dict[str, float]:
    """The parameters annotated as number or schedule, with the constant that the run used."""
    own = OPTIONS.get(method.entry.name, {})
    given = {"learning_rate": RATE, **method.entry.example, **own}
    out = {}
    for name, parameter in method.hyperparameters.items():
        if takes_schedule(parameter):
            default = given.get(name, parameter.default)
            # None stands for the learning rate.
            out[name] = RATE if default is None else default
    return out


@pytest.mark.sweep
def test_a_constant_schedule_is_the_constant(method: Method) -> None:
    schedules = {
        name: optax.constant_schedule(value) for name, value in _schedulable(method).items()
    }
    if schedules:
        got, _ = method.run(method.build(**schedules))
        # Powers and logarithms are taken of float32 values and not of Python's.
        assert_close(got, method.eager[0], units=256)


@pytest.mark.sweep
def test_schedules_start_at_0_and_advance_by_1(method: Method) -> None:
    """Each scheduled value is in the state, as it was in the update that was just made."""
    constants = _schedulable(method)

    def value(index: int, time: Any) -> Any:
        return list(constants.values())[index] * (0.99 - 0.01 * index) + 1e-4 * (index + time)

    schedules = {
        name: lambda time, index=index: value(index, time) for index, name in enumerate(constants)
    }
    tx = method.build(**schedules)
    params = method.params(PAIR)
    state = tx.init(params)
    for time in (0, 0, 1):  # as init leaves it, after the first update, after the second
        recorded = [float(x) for x in optkit.hyperparams(state).values()]
        for index, name in enumerate(constants):
            want = np.float32(value(index, time))
            close = np.isclose(recorded, want, rtol=1e-6, atol=0.0)
            assert close.any(), f"{name} at {time}: {want} is not in {recorded}"
        if time == 1:
            break
        _, state = tx.update(method.grads(0, PAIR), state, params)


@pytest.mark.sweep
def test_a_schedule_acts_at_the_step_it_names(recipe: Method) -> None:
    rates = {n: v for n, v in _schedulable(recipe).items() if n.endswith("learning_rate")}
    halved = {
        name: lambda time, rate=rate: jnp.where(time == 0, rate, rate / 2)
        for name, rate in rates.items()
    }
    got, _ = recipe.run(recipe.build(**halved))
    first, second = recipe.eager[0]
    assert_close(got[0], first)
    if recipe.entry.name in SEE_THE_RATE:
        return
    units = 64.0 if recipe.is_linear_in_rate else RATE / float(jnp.finfo(jnp.float32).eps)
    assert_close(got[1], jax.tree.map(lambda u: u / 2, second), units=units)


@pytest.mark.sweep
def test_injection_of_the_learning_rate(recipe: Method) -> None:
    given = {**recipe.entry.example, **OPTIONS.get(recipe.entry.name, {})}
    injected = optax.inject_hyperparams(recipe.entry.factory, static_args=tuple(given))
    tx = injected(learning_rate=RATE, **given)
    got, state = recipe.run(tx)
    # 1e-5: every number becomes a float32 array, that of the decays near 1 included.
    assert_close(got, recipe.eager[0], units=1e-5 / float(jnp.finfo(jnp.float32).eps))
    assert float(optkit.hyperparams(state)["learning_rate"]) == np.float32(RATE)


def test_injection_traces_with_numbers_as_arrays(method: Method) -> None:
    kinds = {parameter.kind for parameter in method.hyperparameters.values()}
    if method.entry.kind == "wrapper" or inspect.Parameter.VAR_KEYWORD in kinds:
        return  # inject_hyperparams takes functions of numbers, each with a name
    given = dict(method.entry.example)
    static = tuple(name for name, value in given.items() if callable(value))  # no schedules
    if method.entry.kind == "recipe":
        given["learning_rate"] = RATE  # and whatever else defaults to a number
    else:
        static = tuple(n for n, p in method.hyperparameters.items() if not takes_schedule(p))
    tx = optax.inject_hyperparams(method.entry.factory, static_args=static)(**given)
    params = method.params()
    updates, _ = jax.eval_shape(tx.update, method.grads(0), tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.sweep
def test_injected_learning_rates_differ_over_a_population(recipe: Method) -> None:
    """A sweep: the updates of vmapped rates scale with them."""
    if "adam_learning_rate" in recipe.hyperparameters:
        paths = ("up/kernel",)  # the other leaves have a rate of their own
    else:
        paths = tuple(PAIR)
    factory = lambda learning_rate: recipe.build(learning_rate=learning_rate)  # noqa: E731
    tx = optax.inject_hyperparams(factory)(learning_rate=RATE)
    params, grads = recipe.params(PAIR), recipe.grads(0, PAIR)

    def update(rate: jax.Array) -> Any:
        state = tx.init(params)
        state = state._replace(hyperparams={"learning_rate": rate})
        updates, _ = tx.update(grads, state, params)
        return {path: x for path, x in leaves_with_paths(updates) if path in paths}

    out = jax.vmap(update)(jnp.array([RATE, 2 * RATE]))
    units = 64.0 if recipe.is_linear_in_rate else 2 * RATE / float(jnp.finfo(jnp.float32).eps)
    twice = {k: 2 * x[0] for k, x in out.items()}
    assert_close({k: x[1] for k, x in out.items()}, twice, units=units)
    assert set(out) == set(paths)


WRONG = {
    "learning_rate": "0.1",
    "b1": 1.5,
    "b2": -0.5,
    "eps": -1.0,
    "weight_decay": -0.1,
    "decay": "decuopled",
    "kind": "no such kind",
    "method": "no such method",
    "coefficients": "no such set",
    "every": 0,
    "window": 1,
    "scale": "no such law",
    "rescale": "mode",
    "eps_mode": "corected",
    "adam_learning_rate": "0.1",
    "adam_b1": 1.5,
    "adam_b2": 1.5,
    "adam_eps": -1.0,
    "adam_weight_decay": -0.1,
    "update_rms": -0.2,
    "rules": [("**", "nowhere")],
    "factor": -1.0,
}
# A recipe hands these on: the part that refuses them says its own name for them.
PARTS_NAME = {
    "coefficients": "coefficient set",
    "rules": "rule",
    "scale": "mode",
    "update_rms": "factor",
    "adam_learning_rate": "learning_rate",
    "adam_b1": "b1",
    "adam_b2": "b2",
    "adam_eps": "eps",
    "adam_weight_decay": "weight_decay",
}


# The rules of a part are role rules, those of a wrapper routes.
WRONG_USES = [
    (entry.name, name)
    for entry in optkit.catalogue.entries()
    if entry.kind != "strategy"  # see tests/evolution
    for name in entry.hyperparameters()
    if name in WRONG and not (name == "rules" and entry.kind == "part")
]


@pytest.mark.parametrize(("of", "name"), WRONG_USES)
def test_a_wrong_value_raises_and_is_named(of: str, name: str) -> None:
    method, value = method_named(of), WRONG[name]
    with pytest.raises((ValueError, TypeError, KeyError)) as caught:
        method.build(**{name: value})
    said = str(caught.value)
    shown = "nowhere" if name == "rules" else str(value)
    assert shown in said, said
    assert name in said or PARTS_NAME.get(name, name) in said, said


NUMBERS = [
    (entry.name, name)
    for entry in optkit.catalogue.entries(kind="recipe")
    for name, parameter in entry.hyperparameters().items()
    if takes_schedule(parameter)
]


@pytest.mark.parametrize(("of", "name"), NUMBERS)
def test_a_number_that_is_not_finite_is_named(of: str, name: str) -> None:
    for value in (float("nan"), float("inf"), np.float32("-inf")):
        with pytest.raises(ValueError, match=r"=.*(nan|inf).* is not a finite number"):
            method_named(of).build(**{name: value})


def test_a_learning_rate_may_be_0_and_not_negative(recipe: Method) -> None:
    with pytest.raises(ValueError, match=r"learning_rate=-0\.1 is below 0"):
        recipe.build(learning_rate=-0.1)
    recipe.build(learning_rate=0.0)


def test_infinite_thresholds_stay_allowed() -> None:
    params = {"w": jnp.ones(4)}
    out, _ = (tx := optkit.clip_by_global_norm(float("inf"))).update(params, tx.init(params))
    assert_close(out, params)
    assert optkit.skip_spikes(optax.sgd(1.0), factor=float("inf"))
    with pytest.raises(ValueError, match="max_norm=nan is not a finite number"):
        optkit.clip_by_global_norm(float("nan"))


@pytest.mark.parametrize("value", [1j, object(), "0.1", [0.1], None, np.ones(2)])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate must be a number or a schedule"):
        optkit.scale_by_learning_rate(value)


def test_missing_parameters_raise_with_the_remedy(recipe: Method) -> None:
    tx = recipe.build(weight_decay=0.1)
    with pytest.raises(ValueError, match=r"tx\.update\(updates, state, params\)"):
        tx.update(recipe.grads(0), tx.init(recipe.params()))


def test_gradients_of_another_tree_name_the_leaf(method: Method) -> None:
    params, state = method.params(), method.tx.init(method.params())
    grads = method.grads(0)
    grads["extra"] = {"kernel": grads["up"].pop("kernel")}
    if not any(match.param is not None for match in optkit.tree.match_state(state, params)):
        return  # holds no tree that the gradients could fail to match
    with pytest.raises(ValueError, match="up/kernel"):
        method.tx.update(grads, state, params)
