"""Newton-Schulz in one kernel, or by tiled kernels, equals the iteration of optkit.linalg."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit import linalg
from optkit.kernels import blocks
from optkit.kernels.newton_schulz import iterate, plan, tpu
from optkit.kernels.newton_schulz.blocks import ResidentBlocks, resident_blocks
from tests.kernels.base import DTYPES, difference, few

ROWS = linalg.get_coefficients("jordan", 3)
interpreted = partial(iterate, implementation="interpret")


def matrices(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@few
@drawn(
    rows=st.lists(
        st.tuples(st.floats(0.5, 1.5), st.floats(-1, 0), st.sampled_from([0.0, 0.25])),
        min_size=1,
        max_size=6,
    ),
    resets=st.one_of(st.none(), st.sets(st.integers(0, 6))),
    seed=st.integers(0, 99),
)
def test_tasks_are_the_polynomials_of_the_steps(rows: Any, resets: Any, seed: int) -> None:
    """Worked through in float64, on diagonal matrices, they are polynomials of numbers."""
    tasks = plan.standard_tasks(rows) if resets is None else plan.gram_tasks(tuple(rows), resets)
    values = np.random.default_rng(seed).uniform(0.0, 1.0, 4)
    x, squares = np.diag(values), {}
    for kind, to, left, right, addend, alpha, beta in tasks:
        if kind == plan.GRAM:
            squares[to] = x @ x.T
        elif kind == plan.PRODUCT:
            squares[to] = alpha * squares[left] @ squares[right] + beta * squares[addend]
        elif kind == plan.SUM:
            squares[to] = squares[left] + beta * np.eye(4)
        else:
            x = alpha * squares[left] @ x + beta * x
    assert max(squares) < plan.slots(tasks) <= 4
    for a, b, c in rows:
        values = values * (a + values**2 * (b + c * values**2))
    np.testing.assert_allclose(np.diag(x), values, rtol=1e-9, atol=1e-12)


# One tile; two tiles, one of them half empty; tiles of 256.
@pytest.mark.parametrize(
    ("shape", "resets"), [((2, 3, 40), None), ((1, 129, 200), (1,)), ((2, 250, 260), ())], ids=str
)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_it_equals_the_iteration(shape: tuple[int, ...], resets: Any, dtype: str) -> None:
    x = matrices(shape)
    run = partial(iterate, x, ROWS, resets=resets, compute_dtype=dtype, margin=1.02, eps=1e-3)
    found, wanted = run(implementation="interpret"), run()
    assert found.dtype == wanted.dtype == dtype
    if dtype == "float32":
        assert difference(found, wanted) < 1e-6 * shape[-1] ** 0.5
        return
    # Both round to 8 bits at each step: neither is nearer to the iteration in float64.
    exact = np.asarray(iterate(x, ROWS, margin=1.02, eps=1e-3), np.float64)
    off = [np.linalg.norm(np.asarray(y, np.float64) - exact) for y in (found, wanted)]
    assert off[0] < 1.5 * off[1] + 1e-6


def test_units_do_not_matter_zeros_stay_and_what_is_not_a_number_shows() -> None:
    x = np.array(matrices((5, 20, 30)))
    x[1], x[2], x[3] = x[0] * 2.0**-100, x[0] * 2.0**90, 0.0
    x[4, 3, 3] = np.nan
    found = np.asarray(interpreted(jnp.asarray(x), ROWS))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    assert not found[3].any() and np.isnan(found[4]).all()
    clamped = interpreted(jnp.asarray(x[:3]), ROWS, eps=1.0, eps_mode="clamp")
    np.testing.assert_array_equal(np.asarray(clamped)[2], found[0])
    assert np.abs(clamped[1]).max() < 1e-20


def test_what_the_chip_does_not_hold_goes_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x = matrices((1, 40, 50))
    whole = interpreted(x, ROWS, resets=(2,))
    tasks = plan.gram_tasks(ROWS, (2,))
    monkeypatch.setitem(blocks.ON_CHIP, "tpu", tpu.memory((128, 128), x.dtype, x.dtype, tasks) - 1)
    assert difference(interpreted(x, ROWS, resets=(2,)), whole) < 1e-5
    y = jnp.zeros((1, 128, 128))
    with pytest.raises(ValueError, match=r"of \(128, 128\) needs 6,815,744 .* there are 6,815,743"):
        tpu.iterate(y, tasks, ResidentBlocks(128, 128), division=None, compute_dtype=y.dtype)


def test_each_form_of_linalg_takes_it() -> None:
    x = matrices((2, 40, 24))
    for form in (linalg.newton_schulz, linalg.gram_newton_schulz):
        for options in ({}, {"precondition": "schatten"}):
            run = partial(form, x, "jordan", 2, **options)
            assert difference(run(implementation="interpret"), run()) < 1e-5
    tx = optkit.orthogonalize(steps=2, implementation="interpret", dtype=jnp.bfloat16)
    plain = optkit.orthogonalize(steps=2, dtype=jnp.bfloat16)
    out = [own.update({"w": x[0]}, own.init(None))[0]["w"] for own in (tx, plain)]
    assert difference(*out) < 0.05


def test_recipes_take_it_by_option_or_by_method() -> None:
    params = {"w": matrices((8, 16)), "v": matrices((16, 8), 1)}
    factor = partial(
        linalg.orthogonal_factor, method="gram_ns", steps=2, implementation="interpret"
    )
    for plain, kernel in (
        (optkit.muon(0.1, steps=2), optkit.muon(0.1, steps=2, implementation="interpret")),
        (optkit.normuon(0.1, steps=2, coefficients="jordan"), optkit.normuon(0.1, method=factor)),
    ):
        found, wanted = (tx.update(params, tx.init(params), params)[0] for tx in (kernel, plain))
        for name in params:
            assert difference(found[name], wanted[name]) < 1e-5


def test_its_derivative_is_that_of_the_iteration() -> None:
    x = matrices((6, 8))

    def loss(x: jax.Array, by: Any) -> jax.Array:
        return jnp.sum(iterate(x, ROWS[:1], implementation=by) ** 3)

    found, wanted = (jax.grad(loss)(x, by) for by in ("interpret", "xla"))
    assert difference(found, wanted) < 1e-5


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=lambda kind: kind.name)
@pytest.mark.parametrize("count", (8, 3))
def test_on_a_mesh_each_device_works_on_its_own_matrices(kind: AxisType, count: int) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    x = matrices((count, 8, 16))
    place = P(("b", "a")) if count == 8 else P(None, "b")
    placed = jax.device_put(x, NamedSharding(mesh, place))
    run = jax.jit(partial(interpreted, rows=ROWS[:1]))
    found = run(placed)
    assert difference(found, iterate(x, ROWS[:1])) < 1e-5
    if count == 8:
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, place), 3)
        lowered = jax.jit(partial(iterate, rows=ROWS, implementation="pallas")).trace(placed)
        text = lowered.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == 1 and "1x8x16xf32" in text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: iterate(x.mT, ROWS), r"wide matrices \(..., m, n\), got \(6, 4\)"),
        (lambda x: iterate(x, ROWS, implementation="triton"), "'triton' is none of xla, pallas"),
        (
            lambda x: interpreted(x, ROWS, compute_dtype=jnp.float16),
            "newton_schulz of float16: it takes float32, bfloat16",
        ),
        (lambda x: linalg.newton_schulz(x, implementation="mosaic"), "'mosaic' is none of xla"),
        (
            lambda x: linalg.newton_schulz(x, blocks=3, implementation="pallas"),
            "blocks=3 are panels of implementation='xla'",
        ),
        (
            lambda x: linalg.orthogonal_factor(x, "svd", implementation="pallas"),
            "method='svd' has no kernel",
        ),
        (
            lambda x: optkit.orthogonalize("randomized", implementation="pallas"),
            "method='randomized' has no kernel",
        ),
        (lambda x: ResidentBlocks(rows=384), "rows=384.: at most 256"),
        (lambda x: ResidentBlocks(columns=100), "columns=100.: not a positive multiple of 128"),
        (
            lambda x: tpu.iterate(
                x[None], [plan.Task(plan.GRAM)], ResidentBlocks(), division=None,
                compute_dtype=x.dtype,
            ),
            "an axis of rows of 4 is no multiple of its block of 256",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_numbers(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(jnp.zeros((4, 6)))


def test_a_cpu_is_told_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match="newton_schulz has kernels for TPUs and NVIDIA"):
        iterate(jnp.zeros((4, 6)), ROWS, implementation="pallas")


def test_loops_do_the_work_of_the_tasks() -> None:
    m, n = 512, 1024
    tasks = plan.gram_tasks(ROWS, (1,))
    chosen = resident_blocks(m, n)
    assert chosen == ResidentBlocks(256, 256)
    work = sum(loop.trips * loop.products for loop in plan.loops(m, n, tasks, 256, 256))
    # The first step by itself; then R^2, R Z, Z R Z, R^2 and Q Z.
    grams, products, applied = 2, 1 + 5, 2
    # Tiles of half a tile on the diagonal: of 16 squares of 128, 10.
    assert work == (grams * m * m * n + products * m**3) * 10 // 16 + applied * m * m * n
