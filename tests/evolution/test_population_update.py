"""The update by the kernel that makes the noise itself: the same sum, and what it can't be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit
from optkit.evolution import population_perturb
from optkit.tree import MatrixDims

MEMBERS = 6
FITNESS = jnp.asarray(np.random.default_rng(1).standard_normal(MEMBERS), jnp.float32)
# Outputs before inputs; several axes of inputs, in the middle too; a stack; what has noise in full.
PARAMS = {
    "turned": jnp.ones((5, 7)),
    "heads": jnp.ones((2, 4, 3)),
    "layers": jnp.ones((2, 4, 5)),
    "bias": jnp.ones(3),
}
DIMS = {
    "turned": MatrixDims(1, 0),
    "heads": MatrixDims((0, 2), 1),
    "layers": MatrixDims(1, 2),
    "bias": None,
}
# A leaf alone costs one compilation of the kernel.
ONE = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}


def estimated(by: Any, params: Any, mesh: Any = None, reduce: Any = "replicate", **options: Any):
    """The update of a population, and how many kernels its program has."""
    es = population_perturb(
        MEMBERS, sigma=0.1, draws="counters", implementation=by, key=3, **options
    )
    es = es if mesh is None else es.on_mesh(mesh, reduce=reduce)
    state, fitness = es.init(params), FITNESS
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        params, state, fitness = jax.device_put((params, state, fitness), whole)

    def run(fitness: Any, state: Any, params: Any) -> Any:
        return es.update(fitness, state, params)[0]

    calls = str(jax.make_jaxpr(run)(fitness, state, params)).count("pallas_call")
    return jax.jit(run)(fitness, state, params), calls


def assert_same(found: Any, wanted: Any) -> None:
    for name, own in wanted.items():
        assert found[name].dtype == own.dtype and found[name].shape == own.shape
        np.testing.assert_allclose(
            jax.device_get(found[name]), own, rtol=2e-5, atol=2e-5, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("signs", [False, True])
def test_the_kernel_sums_what_xla_does(signs: bool) -> None:
    options: dict[str, Any] = {"rank": 2, "dims": DIMS, "signs": signs}
    wanted, none = estimated("xla", PARAMS, **options)
    found, calls = estimated("interpret", PARAMS, **options)
    assert_same(found, wanted)
    # The stack and the vector are left to XLA.
    assert (calls, none) == (2, 0)


def test_eggroll_hands_it_on_and_16_bits_are_summed_in_32() -> None:
    params = {"kernel": jnp.ones((4, 3), jnp.bfloat16)}

    def run(by: Any) -> Any:
        es = optkit.eggroll(MEMBERS, sigma=0.1, draws="counters", implementation=by)
        return jax.jit(es.update)(FITNESS, es.init(params), params)[0]["kernel"]

    found, wanted = run("interpret"), run("xla")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), wanted.astype(jnp.float32))


@pytest.mark.parametrize(
    ("kind", "reduce"),
    [(AxisType.Auto, "replicate"), (AxisType.Explicit, "replicate"), (AxisType.Auto, "psum")],
    ids=str,
)
def test_each_device_calls_the_kernel(kind: AxisType, reduce: str) -> None:
    mesh = jax.make_mesh((3,), ("members",), axis_types=(kind,), devices=jax.devices()[:3])
    wanted, _ = estimated("xla", ONE)
    with jax.set_mesh(mesh):
        found, calls = estimated("interpret", ONE, mesh, reduce)
    assert calls == 1
    assert_same(found, wanted)


def test_noise_that_is_given_is_summed_by_xla() -> None:
    es = population_perturb(MEMBERS, sigma=0.1, draws="counters", implementation="interpret")
    state = es.init(ONE)

    def run(noise: Any) -> Any:
        return es.update(FITNESS, state, ONE, noise=noise)[0]

    assert "pallas_call" not in str(jax.make_jaxpr(run)(es.noise(ONE, state)))


def test_by_xla_the_noise_of_all_members_is_never_there() -> None:
    members, size = 1024, 256
    params = {"kernel": jax.ShapeDtypeStruct((size, size), jnp.float32)}
    whole = 4 * (members // 2) * 2 * size
    for draws in ("jax", "counters"):
        es = population_perturb(members, sigma=0.1, draws=draws, chunk=8)
        state = jax.eval_shape(es.init, params)
        fitness = jax.ShapeDtypeStruct((members,), jnp.float32)
        compiled = jax.jit(es.update).lower(fitness, state, params).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < whole / 2, draws


def test_without_a_chunk_what_lives_together_fits_in_64_mib() -> None:
    members, size = 2**16, 512
    params = {"kernel": jax.ShapeDtypeStruct((size, size), jnp.float32)}
    es = population_perturb(members, sigma=0.1, draws="counters")
    shapes = jax.ShapeDtypeStruct((members,), jnp.float32), jax.eval_shape(es.init, params)
    jaxpr = str(jax.make_jaxpr(es.update)(*shapes, params))
    assert f"f32[{members // 2},{size}" not in jaxpr  # 128 MiB of noise
    assert f"f32[{2**24 // (2 * size)},{size}" in jaxpr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"noise": "gaussian"}, "noise='gaussian'; give noise='low_rank', or implementation='xla'"),
        ({"draws": "jax"}, "draws='jax'; give draws='counters', or implementation='xla'"),
        ({"implementation": "triton"}, "implementation='triton' is none of xla, pallas"),
    ],
)
def test_what_no_kernel_makes_is_refused(options: Any, text: str) -> None:
    given = {"draws": "counters", "implementation": "pallas", **options}
    with pytest.raises(ValueError, match=text):
        population_perturb(MEMBERS, sigma=0.1, **given)


def test_a_leaf_that_is_not_served_is_refused_by_its_path() -> None:
    es = population_perturb(
        MEMBERS, sigma=0.1, draws="counters", implementation="pallas", dtype=jnp.bfloat16
    )
    with pytest.raises(ValueError, match="leaf 'kernel': no kernel serves it: its noise is bfl"):
        es.init(ONE)
    wide = {"embedding": jax.ShapeDtypeStruct((2**25 + 1, 4), jnp.float32)}
    es = population_perturb(MEMBERS, sigma=0.1, draws="counters", implementation="pallas")
    with pytest.raises(ValueError, match=r"leaf 'embedding': .*33554433 columns are more than"):
        jax.eval_shape(es.init, wide)


def test_a_mesh_with_further_axes_is_refused() -> None:
    mesh = jax.make_mesh((3, 2), ("members", "model"), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[:6])  # fmt: skip
    with pytest.raises(ValueError, match=r"the mesh has the axes \{'model': 2\} beside"):
        estimated("interpret", ONE, mesh)


def test_on_the_cpu_the_kernel_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotImplementedError, match="give implementation='xla'"):
        estimated("pallas", ONE)
