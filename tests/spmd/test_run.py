"""Operations on parts of arrays against the same operations on whole ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optkit.spmd import Devices, run_on_blocks
from tests.conformance.hlo import collectives

SIZES = {"x": 4, "y": 2}
Arrays = dict[str, jax.Array]


def mesh_of() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def parts_of(spec: P, rank: int) -> tuple[tuple[str, ...], ...]:
    named = [() if p is None else p if isinstance(p, tuple) else (p,) for p in spec]
    return (*named, *((),) * (rank - len(named)))


def on_parts(
    function: Callable[..., Any], specs: list[P], out: P, check_vma: bool = True
) -> Callable[..., Any]:
    """The function on parts of its arguments; all results are to be split like ``out``."""

    def local(*parts: jax.Array) -> Any:
        laid = [parts_of(spec, x.ndim) for x, spec in zip(parts, specs, strict=True)]

        def where(shapes: Any) -> list:
            return [parts_of(out, len(x.shape)) for x in jax.tree.leaves(shapes)]

        return run_on_blocks(function, Devices(SIZES), parts, laid, where)

    mapped = jax.shard_map(
        local, mesh=mesh_of(), in_specs=tuple(specs), out_specs=out, check_vma=check_vma
    )
    return jax.jit(mapped)


def check(function: Callable[..., Any], args: list, specs: list[P], **options: Any) -> None:
    got = jax.device_get(on_parts(function, specs, P(), **options)(*args))
    want = jax.device_get(jax.jit(function)(*args))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=str(path))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.float32(np.random.default_rng([seed, *shape]).standard_normal(shape))


def entries(a: jax.Array, b: jax.Array) -> Arrays:
    """Entry by entry, reductions, products, shapes: a is (8, 4), b is (4, 8)."""
    stacked = jnp.stack([a, b.T, jnp.zeros((8, 4))])
    ones = jnp.ones((8, 4))  # held once on each device
    return {
        "mixed": a * b.T + ones * 2.0 - jnp.arange(8.0)[:, None] * ones,
        "rows": jnp.sum(a, axis=1),
        "columns": jnp.max(a, axis=0),
        "all": jnp.min(b) + jnp.mean(a) + jnp.sum(ones),
        "any": jnp.any(a > 1.0, axis=0) & jnp.all(b.T > -2.0, axis=0),
        "product": jnp.prod(a, axis=0),
        "where": jnp.argmax(a, axis=0) + jnp.argmin(b, axis=1),
        "gram": a @ a.T,
        "inner": a.T @ a,
        "chain": a @ b @ a,
        "batched": jnp.einsum("kij,kil->kjl", stacked, stacked),
        "flat": a.reshape(32) + b.T.reshape(-1),
        "split": a.reshape(2, 4, 2, 2).sum((1, 3)),
        "merged": stacked.reshape(24, 4)[3:20:2],
        "padded": jnp.pad(a, ((1, 0), (0, 0)))[:-1] + jnp.flip(a, 0),
        "joined": jnp.concatenate([a, b.T, ones], axis=0).sum(1),
        "beside": jnp.concatenate([a, b.T], axis=1),
        "sorted": jnp.sort(a, axis=0) + jnp.cumsum(a, axis=0),
        "one": a[3] + lax.dynamic_slice_in_dim(a, 2, 1)[0] + a[jnp.array([1, 5])].sum(0),
        "set": a.at[2].set(0.0),
        "update": lax.dynamic_update_slice(a, jnp.ones((1, 4)), (3, 0)),
        "chosen": jnp.where(a > 0, a, b.T).clip(-1.0, 1.0),
        "empty": jnp.zeros((0, 4)) + a[:0],
        "halves": sum(jnp.split(a, 2, axis=0)),
        "noise": a + jax.random.normal(jax.random.key(3), (8, 4)),
        "unit": jax.nn.softmax(a, axis=0) * jax.jit(jnp.linalg.norm)(a),
    }


@pytest.mark.parametrize(
    "specs",
    [
        [P("x"), P()],
        [P(("x", "y")), P("y", "x")],
        [P("y", "x"), P("x", None)],
        [P(None, "x"), P("x", "y")],
    ],
    ids=str,
)
def test_entries_sums_products_and_shapes(specs: list[P]) -> None:
    check(entries, [numbers(8, 4), numbers(4, 8)], specs)


def programs(a: jax.Array, b: jax.Array) -> Arrays:
    """Branches, loops, decompositions: a is (8, 4), b is (8, 3, 3)."""

    def turn(carry: tuple, x: jax.Array) -> tuple:
        total, square = carry
        return (total + x.sum(), square * 0.5 + a), x * 2.0

    held, each = lax.scan(turn, (0.0, jnp.zeros_like(a)), a)
    looped = lax.while_loop(
        lambda c: jnp.sum(c[1]) < 100.0, lambda c: (c[0] + 1, c[1] * 2.0), (0, jnp.abs(a))
    )
    square = b @ b.mT + jnp.eye(3)[None]
    q, r = jnp.linalg.qr(a)
    return {
        "scan": (held, each),
        "while": looped,
        "cond": lax.cond(a.sum() > 0, lambda x: x + 1.0, lambda x: jnp.zeros_like(x), a),
        "switch": lax.switch(2, [lambda x: x[0], lambda x: x.sum(0), lambda x: x.max(0)], a),
        "cholesky": jnp.linalg.cholesky(square),
        "eigh": jnp.linalg.eigvalsh(square),
        "solve": jnp.linalg.solve(square, b),
        "qr": jnp.abs(q @ r),
        "svd": jnp.linalg.svd(a, compute_uv=False),
    }


@pytest.mark.parametrize("check_vma", [True, False])
def test_branches_loops_and_decompositions(check_vma: bool) -> None:
    args = [numbers(8, 4), numbers(8, 3, 3)]
    check(programs, args, [P("x", "y"), P(("y", "x"))], check_vma=check_vma)


def test_entries_alone_exchange_nothing_and_sums_exchange_sums() -> None:
    def apart(a: jax.Array, b: jax.Array) -> jax.Array:
        moved = jnp.stack([a, b]).transpose(0, 2, 1).reshape(2, 4, 4, 2)
        return (jnp.tanh(moved) * 2.0).reshape(2, 4, 8)[0].T + jnp.ones((8, 4))

    args, specs = [numbers(8, 4), numbers(8, 4, seed=1)], [P(None, "x")] * 2
    compiled = on_parts(apart, specs, P(None, "x")).lower(*args).compile()
    assert collectives(compiled, scalars=True) == {}
    total = on_parts(lambda a: a / jnp.linalg.norm(a), [P(("x", "y"))], P(("x", "y")))
    compiled = total.lower(args[0]).compile()
    assert collectives(compiled, scalars=True) == {"all-reduce": 1}
    gram = on_parts(lambda a: a.T @ a, [P("x")], P())
    assert collectives(gram.lower(args[0]).compile()) == {"all-reduce": 1}


def test_axes_beside_the_parts_stay_apart() -> None:
    """Workers along y have their own numbers; leaves are split along x."""

    def own(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        twice = lax.fori_loop(0, 2, lambda _, carry: carry * x.max(), x)
        return x / jnp.sum(x), twice, lax.fori_loop(0, 2, lambda _, c: c * 2.0, jnp.sum(x))

    def local(a: jax.Array) -> Any:
        parts = [(("x",),), (("x",),), ()]
        out = run_on_blocks(own, Devices(SIZES, ["y"]), [a[0]], parts[:1], lambda _: parts)
        return jax.tree.map(lambda x: x[None], out)

    out = (P("y", "x"), P("y", "x"), P("y"))
    mapped = jax.shard_map(local, mesh=mesh_of(), in_specs=P("y", "x"), out_specs=out)
    given = np.abs(numbers(2, 8))
    got = jax.jit(mapped)(given)
    np.testing.assert_allclose(got[0], given / given.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(got[1], given * given.max(1, keepdims=True) ** 2, rtol=1e-5)
    np.testing.assert_allclose(got[2], 4 * given.sum(1), rtol=1e-5)
