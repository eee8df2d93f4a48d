"""Every recipe with the option ``sharding`` hands it to the work on its matrices."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit.tree import MatrixSharding

PUBLIC = {name: getattr(optkit, name) for name in dir(optkit)}
NAMES = sorted(
    name
    for name, make in PUBLIC.items()
    if inspect.isfunction(make) and "sharding" in inspect.signature(make).parameters
)
GIVEN: dict[str, Any] = {
    "lmo": {"norm": "spectral"},
    "scale_by_row_moment": {"factor": lambda x: x},
}
MESH = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))


def make(name: str, sharding: Any) -> Any:
    return PUBLIC[name](**GIVEN.get(name, {}), sharding=sharding)


def test_all_of_the_family_have_it() -> None:
    assert {"muon", "normuon", "dion", "dion2", "scion", "namo", "hyperp", "reg"} < set(NAMES)
    for name in NAMES:
        assert inspect.signature(PUBLIC[name]).parameters["sharding"].default == "auto"


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_the_matrices(name: str) -> None:
    with pytest.raises(ValueError, match=r"sharding must be one of .*'ring'"):
        make(name, "ring")
    tx = make(name, MatrixSharding(axes=("elsewhere",)))
    rows = NamedSharding(MESH, P("x", None))
    params = {"dense": {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)}}

    def step(params: Any) -> Any:
        return tx.update(params, tx.init(params), params)

    with jax.set_mesh(MESH), pytest.raises(ValueError, match="'elsewhere'"):
        jax.eval_shape(step, params)


@pytest.mark.parametrize("name", ("dion", "normuon"))
def test_where_the_work_is_done_changes_nothing(name: str) -> None:
    rng = np.random.default_rng(0)
    grads = {"dense": {"kernel": rng.standard_normal((8, 16)).astype(np.float32)}}
    alone = _first_update(make(name, "auto"), grads)
    with jax.set_mesh(MESH):
        rows = jax.device_put(grads, NamedSharding(MESH, P("x", None)))
        found = jax.device_get(_first_update(make(name, "replicate"), rows))
        with pytest.raises(ValueError, match="sharding='gram' is for Newton-Schulz"):
            _first_update(make(name, "gram"), rows)
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)


def _first_update(tx: Any, grads: Any) -> jax.Array:
    done, _ = jax.jit(lambda g: tx.update(g, tx.init(g), g))(grads)
    return done["dense"]["kernel"]
