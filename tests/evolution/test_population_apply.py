"""A population of any model equals its members one by one, and no matrix is made in full."""

import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.evolution import (
    MaterializedWarning,
    Perturbed,
    Varied,
    apply_perturbed,
    explain,
    population_apply,
    population_perturb,
)
from optkit.tree import leaves_with_paths
from tests.evolution.models import MODELS, Model

MEMBERS = 4
BELOW_MATRICES = 2  # leaves of fewer axes have noise in full


def is_leaf(x: Any) -> bool:
    return isinstance(x, Perturbed | Varied)


def population_of(params: Any, axes: dict[str, Any], rank: int = 2, pairs: bool = True) -> Any:
    """A population with factors on the given axes, and noise in full on all other leaves."""
    rng = np.random.default_rng(3)
    count = MEMBERS // 2 if pairs else MEMBERS
    scale = jnp.asarray(0.3 * rng.uniform(0.5, 1, MEMBERS) * (-1.0) ** np.arange(MEMBERS), "f4")

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def leaf(path: str, value: Any) -> Any:
        if path not in axes:
            return Varied(value + 0.3 * draw(MEMBERS, *value.shape))
        left, right = axes[path]
        a, b = (
            [size for axis, size in enumerate(value.shape) if axis not in other]
            for other in (right, left)
        )
        return Perturbed(value, draw(count, *a, rank), draw(count, *b, rank), scale, left, right)

    leaves = [leaf(*pair) for pair in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def full(population: Any) -> Any:
    """Every member in full, by NumPy: the oracle."""

    def leaf(x: Any) -> Any:
        if isinstance(x, Varied):
            return x.value
        if not isinstance(x, Perturbed):
            return jnp.broadcast_to(x, (MEMBERS, *x.shape))
        ndim = x.base.ndim
        a_axes = [axis for axis in range(ndim) if axis not in x.right]
        b_axes = [axis for axis in range(ndim) if axis not in x.left]
        base, a, b, scale = (np.asarray(y, np.float64) for y in (x.base, x.a, x.b, x.scale))
        delta = np.einsum(a, [26, *a_axes, 25], b, [26, *b_axes, 25], [26, *range(ndim)])
        delta = np.repeat(delta, MEMBERS // len(a), axis=0)
        return jnp.asarray(base + scale.reshape(-1, *[1] * ndim) * delta, x.base.dtype)

    return jax.tree.map(leaf, population, is_leaf=is_leaf)


def assert_close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def inputs(x: Any) -> Any:
    """An input for each member."""
    return jnp.stack([jnp.roll(x, shift, axis=-1) for shift in range(MEMBERS)])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_members_one_by_one(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):  # as models of users have it
        fn, params, x = MODELS[name]()
        found = explain(fn, params, x)
        assert not found.materialized
        sides = found.axes
        assert sides
        population, x = population_of(params, sides), inputs(x)
        # MaterializedWarning would be an error here.
        got = jax.jit(lambda p, x: population_apply(fn, p, x))(population, x)
        want = jax.jit(jax.vmap(fn))(full(population), x)
    assert_close(got, want)


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_is_kept_in_factors(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):
        fn, params, x = MODELS[name]()
        found = explain(fn, params, x)
    matrices = {
        row.path
        for row in found.rows
        if len(row.shape) >= BELOW_MATRICES and re.search("kernel|embedding|^w$|experts", row.path)
    }
    assert {row.path for row in found.rows if row.low_rank} == matrices


def mlp(params: Any, x: Any, *, power: int = 1) -> Any:
    for w in params:
        x = jnp.tanh(x @ w) ** power
    return x


@pytest.fixture(scope="module")
def small() -> Model:
    rng = np.random.default_rng(0)
    ws = [jnp.asarray(rng.standard_normal((6, 6)), jnp.float32) for _ in range(3)]
    return Model(mlp, ws, jnp.asarray(rng.standard_normal((MEMBERS, 2, 6)), jnp.float32))


SIDES = {str(n): ((1,), (0,)) for n in range(3)}


def test_pairs_nested_and_not_are_the_same(small: Model) -> None:
    nested = population_of(small.params, SIDES)
    apart = jax.tree.map(
        lambda x: Perturbed(x.base, x.a.repeat(2, 0), x.b.repeat(2, 0), x.scale, x.left, x.right),
        nested,
        is_leaf=is_leaf,
    )
    assert_close(population_apply(mlp, nested, small.x), population_apply(mlp, apart, small.x))


@pytest.mark.parametrize(("pairs", "chunk"), [(True, 2), (False, 3), (False, 1), (True, 8)])
def test_chunks_change_nothing(small: Model, pairs: bool, chunk: int) -> None:
    population = population_of(small.params, SIDES, pairs=pairs)
    want = population_apply(mlp, population, small.x)
    assert_close(population_apply(mlp, population, small.x, chunk=chunk), want)


def test_arguments_are_mapped_as_told(small: Model) -> None:
    population = population_of(small.params, SIDES)

    def scaled(params: Any, x: Any, more: Any, power: int) -> Any:
        return {"out": mlp(params, x, power=power) + more["by"][0], "count": jnp.zeros((), int)}

    by = jnp.arange(float(MEMBERS)).reshape(1, MEMBERS)
    out = population_apply(
        scaled, population, small.x[0], {"by": by}, in_axes=(None, {"by": -1}), power=2
    )
    members = full(population)
    for index in range(MEMBERS):
        one = jax.tree.map(lambda w, index=index: w[index], members)
        assert_close(out["out"][index], mlp(one, small.x[0], power=2) + index)
    assert out["count"].shape == (MEMBERS,)


def test_low_precision_stays_near_its_own_members(small: Model) -> None:
    low = [w.astype(jnp.bfloat16) for w in small.params]
    population, x = population_of(low, SIDES), small.x.astype(jnp.bfloat16)
    got = population_apply(mlp, population, x)
    assert got.dtype == jnp.bfloat16
    exact = population_of([w.astype(jnp.float32) for w in low], SIDES)
    # Not farther from the exact result than a forward whose weights were rounded.
    want = np.asarray(jax.vmap(mlp)(full(exact), x.astype(jnp.float32)))
    rounded = np.asarray(jax.vmap(mlp)(full(population), x), np.float32)
    error = np.abs(np.asarray(got, np.float32) - want).max()
    assert error < 2 * np.abs(rounded - want).max() + 2**-8


def test_one_member_of_one(small: Model) -> None:
    population = population_of(small.params, SIDES, pairs=False)
    member = jax.tree.map(
        lambda x: Perturbed(x.base, x.a[1], x.b[1], x.scale[1], x.left, x.right),
        population,
        is_leaf=is_leaf,
    )
    want = population_apply(mlp, population, small.x)[1]
    assert_close(apply_perturbed(mlp, member, small.x[1]), want)


def test_noise_on_the_axes_that_were_found() -> None:
    with jax.numpy_rank_promotion("allow"):
        fn, params, x = MODELS["own"]()
        found = explain(fn, params, x)
        es = population_perturb(MEMBERS, sigma=0.3, rank=2, dims=found.dims(params))
        state = es.init(params)
        population = jax.jit(es.perturb_lazy)(params, state)
        assert (population["w"].left, population["w"].right) == ((0,), (1,))  # w stands on the left
        got = jax.jit(lambda p: population_apply(fn, p, x, in_axes=None))(population)
        want = jax.jit(jax.vmap(fn, (0, None)))(jax.jit(es.perturb)(params, state), x)
    assert_close(got, want)


# --- what is shared, and what it costs ------------------------------------------------------------


def dots(jaxpr: Any) -> list[Any]:
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]


def test_the_shared_product_is_one_for_all_members(small: Model) -> None:
    population = population_of(small.params, SIDES)
    jaxpr = jax.make_jaxpr(lambda p: population_apply(mlp, p, small.x))(population)
    shared = [eqn for eqn in dots(jaxpr) if (6, 6) in [v.aval.shape for v in eqn.invars]]
    assert len(shared) == len(small.params)
    for eqn in shared:
        assert eqn.params["dimension_numbers"][1] == ((), ())  # no batch of members
        assert eqn.outvars[0].aval.size == small.x.size  # but all of them
    # The thin ones: a batch of pairs, whose two signs are rows.
    thin = [eqn for eqn in dots(jaxpr) if eqn not in shared]
    assert len(thin) == 2 * len(small.params)
    assert all(
        eqn.invars[0].aval.shape[eqn.params["dimension_numbers"][1][0][0]] == MEMBERS // 2
        for eqn in thin
    )


def test_memory_stays_far_below_a_matrix_for_each_member() -> None:
    size, members = 64, 32
    w = jax.ShapeDtypeStruct((size, size), jnp.float32)
    factor = jax.ShapeDtypeStruct((members // 2, size, 1), jnp.float32)
    scale = jax.ShapeDtypeStruct((members,), jnp.float32)
    population = [Perturbed(w, factor, factor, scale, (1,), (0,))] * 3
    x = jax.ShapeDtypeStruct((members, 1, size), jnp.float32)
    compiled = jax.jit(lambda p, x: population_apply(mlp, p, x)).lower(population, x).compile()
    in_full = 4 * members * size * size
    assert compiled.memory_analysis().temp_size_in_bytes < in_full / 8


def test_what_is_not_read_is_not_made(small: Model) -> None:
    def wasteful(params: Any, x: Any) -> Any:
        jnp.sum(params[0] ** 2)
        return x @ params[0]

    population = population_of(small.params[:1], SIDES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = population_apply(wasteful, population, small.x)
    assert_close(got, jax.vmap(wasteful)(full(population), small.x))


# --- what is told ---------------------------------------------------------------------------------


def test_a_matrix_that_is_made_in_full_is_told_with_its_line(small: Model) -> None:
    def decayed(params: Any, x: Any) -> Any:
        return x @ params[0] + jnp.sum(jnp.abs(params[0]))

    population = population_of(small.params[:1], SIDES)
    with pytest.warns(MaterializedWarning, match=r"'0' by abs at test_population_apply.py:\d+"):
        got = population_apply(decayed, population, small.x)
    assert_close(got, jax.vmap(decayed)(full(population), small.x))
    (row,) = explain(decayed, small.params[:1], small.x[0]).rows
    assert not row.low_rank
    assert row.reason.startswith("abs at test_population_apply.py")


def test_uses_that_ask_for_other_factors_are_told() -> None:
    both = lambda p, x: (jnp.einsum("bi,ihk->bhk", x, p), jnp.einsum("bh,ihk->bik", x, p))  # noqa: E731
    found = explain(both, jnp.zeros((3, 3, 2)), jnp.zeros((4, 3)))
    assert found.axes == {"": ((1, 2), (0,))}
    assert "used as (0,) -> (1, 2) and (1,) -> (2,)" in found.notes[0]


def test_a_branch_on_a_parameter_is_refused(small: Model) -> None:
    def branching(params: Any, x: Any) -> Any:
        return x if params[1][0, 0] > 0 else -x

    population = population_of(small.params, SIDES)
    with pytest.raises(TypeError, match=r"on the value of parameter '1'.*jax.lax.cond"):
        population_apply(branching, population, small.x)


def test_axes_of_members_that_disagree_are_refused(small: Model) -> None:
    population = population_of(small.params, SIDES)
    apply = lambda population, *args, **options: population_apply(mlp, population, *args, **options)  # noqa: E731
    with pytest.raises(ValueError, match=r"leaf '0': 4, .*array 0 of the arguments: 3"):
        apply(population, small.x[:3])
    with pytest.raises(ValueError, match="nothing has an axis of members"):
        apply(small.params, small.x[0], in_axes=None)
    with pytest.raises(ValueError, match="2 entries for 1 arguments"):
        apply(population, small.x, in_axes=(0, None))
    with pytest.raises(ValueError, match=r"chunk=3 .* even number"):
        apply(population, small.x, chunk=3)
    odd = Perturbed(
        small.params[0], jnp.ones((3, 6, 1)), jnp.ones((3, 6, 1)), jnp.ones(4), (1,), (0,)
    )
    with pytest.raises(ValueError, match="leaf '0': factors for 3 and 3 in a population of 4"):
        apply([odd], small.x)
    turned = Perturbed(
        jnp.ones((6, 5)), jnp.ones((6, 1)), jnp.ones((5, 1)), jnp.ones(()), (1,), (0,)
    )
    with pytest.raises(ValueError, match=r"leaf '0' .* needs a of shape \(5, 1\)"):
        apply_perturbed(mlp, [turned], small.x[0])
    with pytest.raises(ValueError, match="leaf '0' has no axis of members"):
        apply([turned], small.x)
