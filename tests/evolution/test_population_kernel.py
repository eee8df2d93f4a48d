"""population_apply with the kernel: the numbers are the same, and where it is taken."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optkit.evolution import (
    Perturbed,
    Varied,
    apply_perturbed,
    population_apply,
    population_perturb,
)

MEMBERS = 4


def numbers(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape), dtype)


def population(rank: int = 2, dtype: Any = jnp.float32) -> Any:
    """Pairs that share their factors; one matrix is used as it is, one from the left, one tied."""
    scale = jnp.asarray([0.3, -0.3, 0.2, -0.2], jnp.float32)

    def matrix(n: int, m: int) -> Perturbed:
        base, a, b = numbers(n, m, dtype=dtype), numbers(2, m, rank), numbers(2, n, rank)
        return Perturbed(base, a, b, scale, left=(1,), right=(0,))

    return {"up": matrix(5, 9), "down": matrix(7, 9), "bias": Varied(numbers(MEMBERS, 9))}


def model(params: Any, x: jax.Array) -> jax.Array:
    inner = x @ params["up"]
    hidden = jnp.tanh(inner + jnp.broadcast_to(params["bias"], inner.shape))
    back = hidden @ (2.0 * params["down"]).T  # the axis of outputs is summed over
    left = jax.lax.dot_general(params["down"], back, (((0,), (back.ndim - 1,)), ((), ())))
    return back.sum(axis=-1) + left.sum(axis=0)


def calls(function: Callable[..., Any], *args: Any) -> int:
    return str(jax.make_jaxpr(function)(*args)).count("pallas_call")


@pytest.mark.parametrize(
    ("x", "chunk", "products"),
    [(numbers(MEMBERS, 3, 5), None, 3), (numbers(MEMBERS, 5), 2, 3), (numbers(3, 5), None, 2)],
    ids=("tokens", "one row, in chunks", "the same for all"),
)
def test_the_kernel_computes_what_xla_does(x: Any, chunk: Any, products: int) -> None:
    axes = None if x.shape == (3, 5) else 0

    def run(x: Any, by: Any) -> Any:
        return population_apply(
            model, population(), x, in_axes=axes, chunk=chunk, implementation=by
        )

    wanted = run(x, "xla")
    np.testing.assert_allclose(run(x, "interpret"), wanted, rtol=2e-5, atol=2e-5)
    # One a product for all members, none where all have the same rows.
    assert calls(partial(run, by="interpret"), x) == products
    assert calls(partial(run, by="xla"), x) == 0


def test_inside_of_shard_map_a_device_has_its_own_members() -> None:
    mesh, x = jax.make_mesh((2,), ("members",), axis_types=(AxisType.Auto,)), numbers(MEMBERS, 3, 5)

    def run(by: Any) -> Any:
        spread = jax.shard_map(
            lambda tree, x: population_apply(lambda p, x: x @ p["w"], tree, x, implementation=by),
            mesh=mesh,
            in_specs=({"w": Perturbed(P(), *[P("members")] * 3, (1,), (0,))}, P("members")),
            out_specs=P("members"),
            check_vma=False,
        )
        return jax.jit(spread)({"w": population()["up"]}, x)

    np.testing.assert_allclose(run("interpret"), run("xla"), rtol=2e-5, atol=2e-5)


def test_16_bits_are_summed_in_32() -> None:
    x = numbers(MEMBERS, 3, 5, dtype=jnp.bfloat16)
    run = partial(population_apply, lambda p, x: x @ p["up"])
    found = run(population(dtype=jnp.bfloat16), x, implementation="interpret")
    wide = population(dtype=jnp.bfloat16)
    wide["up"] = Perturbed(**{**vars(wide["up"]), "base": wide["up"].base.astype(jnp.float32)})
    wanted = np.asarray(run(wide, x.astype(jnp.float32)))
    assert found.dtype == jnp.bfloat16
    bound = 2.0**-8 * np.abs(wanted) + 1e-5 * np.abs(wanted).max()
    assert (np.abs(np.asarray(found, np.float32) - wanted) <= bound).all()


def test_what_it_does_not_serve_is_refused_by_the_leaf() -> None:
    x = numbers(MEMBERS, 3, 5)
    with pytest.raises(ValueError, match="leaf 'up': no kernel serves it: rank 9 is above 8"):
        population_apply(model, population(rank=9), x, implementation="interpret")
    with pytest.raises(ValueError, match="implementation='triton' is none of xla, pallas"):
        population_apply(model, population(), x, implementation="triton")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="give implementation='xla'"):
        population_apply(model, population(), x, implementation="pallas")


def test_one_member_alone_is_left_to_xla() -> None:
    tree = {
        "w": Perturbed(numbers(5, 9), numbers(9, 1), numbers(5, 1), jnp.float32(0.1), (1,), (0,))
    }
    assert calls(lambda x: apply_perturbed(lambda p, x: x @ p["w"], tree, x), numbers(3, 5)) == 0


# ---- noise that the kernel makes itself


@pytest.mark.slow
def test_what_the_kernel_makes_is_the_members_noise() -> None:
    es = population_perturb(8, sigma=0.1, rank=2, draws="counters")
    params = {"w": numbers(40, 300), "b": jnp.zeros(300)}
    state, x = es.init(params), numbers(8, 40)

    def run(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["w"] + params["b"]

    wanted = jax.vmap(run)(es.perturb(params, state), x)
    lazy = es.perturb_lazy(params, state)
    second = es.perturb_lazy(params, state, block=(1, 2))
    by = partial(population_apply, run, implementation="interpret")
    found = {
        "in chunks": (by(lazy, x, chunk=4), wanted),
        "a block": (by(second, x[4:]), wanted[4:]),
        "by XLA": (population_apply(run, lazy, x), wanted),
    }
    for name, (own, want) in found.items():
        np.testing.assert_allclose(own, want, rtol=2e-5, atol=2e-5, err_msg=name)


def test_an_update_is_the_sum_of_the_members_noise() -> None:
    es = population_perturb(6, sigma=0.1, draws="counters", scale="sum", shaping=None, chunk=2)
    params = {"conv": numbers(2, 3, 4), "w": numbers(4, 5)}
    state, fitness = es.init(params), numbers(6)
    updates, _ = es.update(fitness, state, params)
    moved = jax.tree.map(
        lambda full, own: (full - own[None]) / 0.1, es.perturb(params, state), params
    )
    for key, update in updates.items():
        wanted = -np.tensordot(np.asarray(fitness), np.asarray(moved[key]), axes=1)
        np.testing.assert_allclose(update, wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="compat='hyperscalees' repeats draws"):
        population_perturb(6, sigma=0.1, draws="counters", compat="hyperscalees")
