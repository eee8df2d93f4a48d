"""Axes that were forgotten or misspelt, states made elsewhere, few workers: answers that help."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optkit
from optkit.codecs import SignCodec
from tests.distributed.workers import AXIS, mapped, mesh_of

PARAMS = {"w": np.ones((8, 8), np.float32)}
MAKERS: dict[str, Any] = {
    "powersgd_mean": lambda axis: optkit.powersgd_mean(axis, rank=1),
    "compressed_mean": lambda axis: optkit.compressed_mean(SignCodec(), axis),
    "onebit_mean": optkit.onebit_mean,
    "onebit_adam": lambda axis: optkit.onebit_adam(axis_name=axis, warmup_steps=1),
    "onebit_lamb": lambda axis: optkit.onebit_lamb(axis_name=axis, warmup_steps=1),
}
METHODS = pytest.mark.parametrize("name", MAKERS)


def step(tx: Any, check_vma: bool) -> Any:
    """A first step of two devices on gradients of their own, to be traced."""

    def own(g: Any) -> Any:
        g = {"w": g[0]}
        return tx.update(g, tx.init(g), g)[0]["w"][None]

    return jax.shard_map(
        own, mesh=mesh_of(2), in_specs=P(AXIS), out_specs=P(AXIS), check_vma=check_vma
    )


@METHODS
@pytest.mark.parametrize("check_vma", [True, False])
def test_an_axis_left_out_is_told_with_and_without_types(name: str, check_vma: bool) -> None:
    given = jax.ShapeDtypeStruct((2, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"axis_name=None, one worker.*give axis_name='workers'"):
        jax.eval_shape(step(MAKERS[name](None), check_vma), given)
    assert jax.eval_shape(step(MAKERS[name](()), check_vma), given).shape == (2, 8, 8)


@METHODS
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_model_may_be_split_over_another_axis(name: str, check_vma: bool) -> None:
    types = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), (AXIS, "model"), axis_types=types, devices=jax.devices()[:4])
    tx, where = MAKERS[name](AXIS), P(AXIS, "model")

    def own(p: Any, g: Any) -> Any:
        return tx.update({"w": g}, tx.init({"w": p}), {"w": p})[0]["w"]

    one = jax.shard_map(
        own, mesh=mesh, in_specs=(P(None, "model"), where), out_specs=where, check_vma=check_vma
    )
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((8, 16), (16, 16))]
    assert jax.eval_shape(one, *given).shape == (16, 16)


@METHODS
def test_an_axis_that_is_not_there_is_named(name: str) -> None:
    tx, said = MAKERS[name]("dat"), r"averages over the axis 'dat', which is not there"
    state = jax.eval_shape(MAKERS[name](None).init, PARAMS)
    with pytest.raises(NameError, match=said):
        tx.update(PARAMS, state, PARAMS)
    with pytest.raises(NameError, match=said):
        optkit.wire_bytes(tx, PARAMS, 2, "data")


def test_an_axis_that_the_mesh_does_not_have_is_answered_with_its_axes() -> None:
    with pytest.raises(ValueError, match=r"no axis 'dat', only \['workers'\]"):
        optkit.init_workers(MAKERS["onebit_adam"]("dat"), PARAMS, mesh_of(2), "dat")


@METHODS
def test_one_worker_sends_nothing_and_none_are_refused(name: str) -> None:
    tx = MAKERS[name](AXIS)
    assert optkit.wire_bytes(tx, PARAMS, 1, AXIS)[:3] == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="workers=0"):
        optkit.wire_bytes(tx, PARAMS, 0, AXIS)


def test_a_mesh_of_one_device_trains() -> None:
    tx = MAKERS["onebit_adam"](AXIS)
    run, state = mapped(tx, PARAMS, 1)
    g = {"w": np.arange(-31.5, 32.0, dtype=np.float32).reshape(1, 8, 8)}
    alone = MAKERS["onebit_adam"](None)
    want, held = alone.update({"w": g["w"][0]}, alone.init(PARAMS), PARAMS)
    got, state = run(g, state, PARAMS)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)
    want, _ = alone.update({"w": g["w"][0]}, held, PARAMS)
    got, _ = run(g, state, PARAMS)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)


def test_a_state_that_was_made_outside_is_sent_to_init_workers() -> None:
    tx = MAKERS["powersgd_mean"](AXIS)
    state = tx.init(jax.tree.map(jnp.asarray, PARAMS))
    specs = optkit.worker_specs(state, AXIS)
    run = jax.shard_map(
        lambda g, s: tx.update({"w": g[0]}, s)[0],
        mesh=mesh_of(2),
        in_specs=(P(AXIS), specs),
        out_specs=P(),
    )
    with pytest.raises(ValueError, match=r"'w' has shape \(8, 8\), .*\(4, 8\).*init_workers"):
        jax.eval_shape(run, jax.ShapeDtypeStruct((2, 8, 8), np.float32), state)
