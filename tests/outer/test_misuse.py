"""What would leave replicas apart, or fail in words of another library, is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import optkit
from tests.outer.test_diloco import AXIS

OUTERS = {
    "diloco": lambda **options: optkit.diloco(optax.sgd(1.0), **options),
    "noloco": lambda **options: optkit.noloco(**options),
    "streaming_diloco": lambda **options: optkit.streaming_diloco(fragments=1, every=1, **options),
}


def mesh() -> Any:
    return jax.make_mesh((2,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize("who", OUTERS)
def test_a_forgotten_axis_is_refused(who: str) -> None:
    outer, params = OUTERS[who](), jnp.ones((2, 2))
    state = outer.init(params)
    due: Any = ((("start", 0),),) if who == "streaming_diloco" else ()
    step = lambda params: outer.step(params, state, *due)  # noqa: E731
    for on, where in ((mesh(), r"shard_map over the mesh axes \['replica'\]"), (None, "vmap over")):
        for function in (outer.init, step):
            with pytest.raises(ValueError, match=rf"{who} has .*{where}.*axis_name='replica', or"):
                optkit.on_replicas(function, mesh=on)(jnp.ones((2, 2, 2)))
    # Within an axis of another name a stack is a stack.
    other = jax.vmap(outer.init, axis_name="models")(jnp.ones((3, 2, 2)))
    assert jax.tree.leaves(other.anchor)[0].shape[0] == 3


@pytest.mark.parametrize("on", [False, True])
def test_a_mean_that_averages_over_nothing_is_refused(on: bool) -> None:
    where = mesh() if on else None
    params = jnp.arange(8.0).reshape(2, 2, 2)
    for average in (optkit.powersgd_mean(), optax.identity()):
        outer = optkit.diloco(optax.sgd(1.0), mean=average, axis_name=AXIS)
        said = "mean of diloco does not average over 'replica'|powersgd_mean has axis_name=None"
        with pytest.raises(ValueError, match=said):
            optkit.on_replicas(outer.init, mesh=where)(params)
    average = optax.chain(optax.identity(), optkit.powersgd_mean(AXIS))
    outer = optkit.diloco(optax.sgd(1.0), mean=average, axis_name=AXIS)
    for jit in (jax.jit, lambda f: f):
        state = jit(optkit.on_replicas(outer.init, mesh=where))(params)
        got, _ = jit(optkit.on_replicas(outer.step, mesh=where))(params, state)
        assert got[0].tolist() == got[1].tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_one_replica_along_an_axis_may_average_by_itself() -> None:
    outer = optkit.diloco(optax.sgd(1.0), mean=optax.identity(), axis_name=AXIS)
    params = jnp.zeros((1, 2))
    state = optkit.on_replicas(outer.init)(params)
    assert optkit.on_replicas(outer.step)(params + 1.0, state)[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("who", OUTERS)
def test_swapped_arguments_are_told(who: str) -> None:
    outer, params = OUTERS[who](), {"w": jnp.ones((2, 2))}
    due: Any = ((("start", 0),),) if who == "streaming_diloco" else ()
    with pytest.raises(
        TypeError, match=r"state must be what init returned.* type dict.*\(params, state\)"
    ):
        outer.step(outer.init(params), params, *due)


@pytest.mark.parametrize(
    ("due", "said"),
    [
        ((("begin", 0),), r"due has \('begin', 0\), which must be \('start', fragment\) or"),
        (("start", 0), "due has 'start', which must be"),
        ("start", "due has 'start', which must be"),
        (3, "due has 3, which must be"),
        ((("start", 2),), r"due has \('start', 2\): the 2 fragments are integers from 0 to 1"),
        ((("finish", -1),), r"due has \('finish', -1\): the 2 fragments"),
        ((("start", True),), r"due has \('start', True\): the 2"),
    ],
)
def test_what_is_never_due_is_refused(due: Any, said: str) -> None:
    outer = optkit.streaming_diloco(fragments=[["a"], ["b"]], every=2)
    params = {"a": jnp.ones((2, 1)), "b": jnp.ones((2, 1))}
    state = outer.init(params)
    with pytest.raises(ValueError, match=said):
        outer.step(params, state, due)


def test_outside_of_its_axis_the_remedies_are_named() -> None:
    for make in OUTERS.values():
        said = "over the axis 'replica'.*optkit.on_replicas.*axis_name=None means replicas stacked"
        with pytest.raises(NameError, match=said):
            make(axis_name=AXIS).init(jnp.ones(2))


def test_noloco_names_replicas_and_static_groups() -> None:
    outer, params = optkit.noloco(), jnp.ones((4, 1))
    state = outer.init(params)
    with pytest.raises(ValueError, match="params has 6 replicas, and the state of noloco 4"):
        outer.step(jnp.ones((6, 1)), state)
    groups = ((0, 1), (2, 3))
    with pytest.raises(TypeError, match='static_argnames="groups"'):
        jax.jit(outer.step)(params, state, groups=groups)
    step = jax.jit(outer.step, static_argnames="groups")
    assert step(params, state, groups=groups)[0].tolist() == params.tolist()


def test_diloco_goes_on_with_other_replicas() -> None:
    outer = optkit.diloco(optax.sgd(1.0))
    state = outer.init(jnp.zeros((2, 1)))
    got, _ = outer.step(jnp.array([[1.0], [2.0], [6.0]]), state)
    assert got.tolist() == [[3.0]] * 3


@pytest.mark.parametrize("out", [lambda x: x, lambda x: (x,), lambda x: (x, x, x), lambda x: None])
def test_inner_steps_return_a_carry_and_more(out: Any) -> None:
    run = optkit.local_rounds(lambda x, g: out(x), every=2)
    with pytest.raises(TypeError, match=r"step must return \(carry, aux\), not"):
        run(jnp.zeros(2), jnp.ones(2))


def test_a_carry_alone_is_not_taken_for_carry_and_aux() -> None:
    run = optkit.local_rounds(lambda carry, g: (carry[0] - g, carry[1]), every=2)
    with pytest.raises(
        TypeError, match=r"step must return \(carry, aux\) with a carry of the tree"
    ):
        run((jnp.zeros(()), jnp.zeros(())), jnp.ones(2))
