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
from optkit.kernels.newton_schulz.products import off_diagonal
from tests.kernels.base import ChoiceTests, KernelTests, difference, dtypes, few, sides

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
    # X is held without its scale up to where the powers of the scale bring it in.
    x, scale, squares = np.diag(values) * 8.0, 0.125, {}
    for task, powers in zip(tasks, plan.scale_powers(tasks), strict=True):
        kind, to, left, right, addend, alpha, beta, gamma = task
        alpha, beta = alpha * scale ** powers[0], beta * scale ** powers[1]
        if kind == plan.GRAM:
            squares[to] = x @ x.T
        elif kind == plan.PRODUCT:
            product = alpha * squares[left] @ squares[right]
            squares[to] = product + beta * squares[addend] + gamma * np.eye(4)
        else:
            x = alpha * squares[left] @ x + beta * x
    assert max(squares) < plan.slots(tasks) <= 4
    for a, b, c in rows:
        values = values * (a + values**2 * (b + c * values**2))
    np.testing.assert_allclose(np.diag(x), values, rtol=1e-9, atol=1e-12)


class TestOnTpu(KernelTests):
    """The kernel of a whole iteration, interpreted, on batches ``(b, m, n)``."""

    # One tile, or two of which one is nearly empty; or, of 256 rows, one.
    cases = st.tuples(
        st.integers(1, 2), sides(128), st.integers(0, 140),
        st.sampled_from([None, (), (1,)]), dtypes,
    )  # fmt: skip
    example = (3, 250, 10, (1,), "float32")
    degrees = (0,)
    exponents = (-100, 90)

    @classmethod
    def operands(cls, case: Any, seed: int) -> Any:
        """One batch; of three matrices the last is the first one times 8."""
        b, m, more, *_ = case
        x = np.random.default_rng(seed).standard_normal((b, m, m + more)).astype(np.float32)
        x[2:] = 8 * x[:1]
        return (x,)

    @classmethod
    def program(cls, case: Any) -> Any:
        """By the public function."""
        return partial(interpreted, rows=ROWS, **cls.given(case))

    @classmethod
    def given(cls, case: Any) -> dict[str, Any]:
        """Options of both forms."""
        return {"resets": case[3], "compute_dtype": case[4], "margin": 1.02}

    @classmethod
    def check(cls, case: Any, found: Any, *operands: Any) -> None:
        """As near to the iteration in float64 as what XLA makes of it."""
        (own,), (x,), (*_, dtype) = found, operands, case
        wanted = np.asarray(jax.jit(partial(iterate, rows=ROWS, **cls.given(case)))(x))
        assert own.dtype == wanted.dtype == dtype
        shown = np.isnan(wanted).any(axis=(1, 2))
        np.testing.assert_array_equal(np.isnan(own), np.broadcast_to(shown[:, None, None], x.shape))
        own, wanted, x = (y[~shown].astype(np.float64) for y in (own, wanted, x))
        if dtype == "float32":
            assert difference(own, wanted) < 1e-6 * x.shape[-1] ** 0.5
            return
        # Both round to 8 bits at each step: neither is nearer to the iteration in float64.
        exact = x / (1.02 * np.linalg.norm(x, axis=(1, 2), keepdims=True))
        for a, b, c in ROWS:
            gram = exact @ exact.mT
            exact = a * exact + (b * gram + c * gram @ gram) @ exact
        off = [np.linalg.norm(y - exact) for y in (own, wanted)]
        assert off[0] < 1.5 * off[1] + 1e-6

    def test_matrices_of_a_batch_stay_apart(self) -> None:
        """Whatever the units of each: zeros stay, and what is not a number stays where it is."""
        (x,) = self.operands(self.example, 1)
        (alone,) = self.run(self.example, x)
        np.testing.assert_array_equal(alone[2], alone[0])
        x[1] = 0.0
        x[2, 3, 3] = np.nan
        (found,) = self.run(self.example, x)
        np.testing.assert_array_equal(found[0], alone[0])
        assert not found[1].any() and np.isnan(found[2]).all()


def test_a_norm_is_guarded_as_asked() -> None:
    x = np.asarray(matrices((2, 20, 30)))
    x = np.stack([x[0] * 2.0**-100, x[1] * 2.0**90])
    run = jax.jit(partial(interpreted, rows=ROWS, eps=1.0, eps_mode="clamp"))
    clamped, free = run(x), jax.jit(partial(interpreted, rows=ROWS))(x)
    np.testing.assert_array_equal(np.asarray(clamped)[1], np.asarray(free)[1])
    assert np.abs(clamped[0]).max() < 1e-20 < np.abs(free[0]).max()


class TestChoice(ChoiceTests):
    """By name."""

    name = "newton_schulz"

    @staticmethod
    def call(implementation: Any) -> Any:
        """One step."""
        return jax.jit(partial(iterate, rows=ROWS[:1], implementation=implementation))(
            jnp.zeros((4, 6))
        )


def test_what_the_chip_does_not_hold_goes_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x = matrices((1, 40, 50))
    whole = jax.jit(partial(interpreted, rows=ROWS, resets=(2,)))(x)
    tasks = plan.gram_tasks(ROWS, (2,))
    monkeypatch.setitem(blocks.ON_CHIP, "tpu", tpu.memory((128, 128), x.dtype, x.dtype, tasks) - 1)
    tiled = jax.jit(partial(interpreted, rows=ROWS, resets=(2,)))(x)
    assert difference(tiled, whole) < 1e-5
    y = jnp.zeros((1, 128, 128))
    with pytest.raises(ValueError, match=r"of \(128, 128\) needs 6,815,744 .* there are 6,815,743"):
        tpu.iterate(y, tasks, ResidentBlocks(128, 128), division=None, compute_dtype=y.dtype)


def test_each_form_of_linalg_takes_it() -> None:
    x = matrices((2, 40, 24))
    for form, options in (
        (linalg.newton_schulz, {"precondition": "schatten"}),
        (linalg.gram_newton_schulz, {}),
    ):
        run = partial(form, coefficients="jordan", steps=2, **options)
        kernel = partial(run, implementation="interpret")
        assert difference(*jax.jit(lambda x, run=run, by=kernel: (by(x), run(x)))(x)) < 1e-5
    tx = optkit.orthogonalize(steps=2, implementation="interpret", dtype=jnp.bfloat16)
    plain = optkit.orthogonalize(steps=2, dtype=jnp.bfloat16)
    out = jax.jit(lambda g: [own.update(g, own.init(None))[0] for own in (tx, plain)])({"w": x[0]})
    assert difference(out[0]["w"], out[1]["w"]) < 0.05


def test_recipes_take_it_by_option_or_by_method() -> None:
    params = {"w": matrices((8, 16)), "v": matrices((16, 8), 1)}
    factor = partial(
        linalg.orthogonal_factor, method="gram_ns", steps=2, implementation="interpret"
    )
    for plain, kernel in (
        (optkit.muon(0.1, steps=2), optkit.muon(0.1, steps=2, implementation="interpret")),
        (optkit.normuon(0.1, steps=2, coefficients="jordan"), optkit.normuon(0.1, method=factor)),
    ):
        found, wanted = jax.jit(
            lambda g, both=(kernel, plain): [tx.update(g, tx.init(g), g)[0] for tx in both]
        )(params)
        for name in params:
            assert difference(found[name], wanted[name]) < 1e-5


def test_its_derivative_is_that_of_the_iteration() -> None:
    x = matrices((6, 8))

    def loss(x: jax.Array, by: Any) -> jax.Array:
        return jnp.sum(iterate(x, ROWS[:1], implementation=by) ** 3)

    found, wanted = jax.jit(lambda x: [jax.grad(loss)(x, by) for by in ("interpret", "xla")])(x)
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
    assert difference(found, jax.jit(partial(iterate, rows=ROWS[:1]))(x)) < 1e-5
    if count == 8:
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, place), 3)
        lowered = jax.jit(partial(iterate, rows=ROWS, implementation="pallas")).trace(placed)
        text = lowered.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == 1 and "1x8x16xf32" in text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: iterate(x.mT, ROWS), r"wide matrices \(..., m, n\), got \(6, 4\)"),
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


def test_the_work_of_the_tasks_is_half_of_each_symmetric_product() -> None:
    m, n = 512, 1024
    tasks = plan.gram_tasks(ROWS, (1,))
    chosen = resident_blocks(m, n)
    assert chosen == ResidentBlocks(256, 256)
    # The first step by itself; then R^2, R Q, Q R Q, R^2 and Q Z.
    grams, products, applied = 2, 1 + 5, 2
    # Tiles of half a tile on the diagonal: of 16 squares of 128, 10.
    assert plan.multiplications(m, n, tasks, 256) == (
        (grams * m * m * n + products * m**3) * 10 // 16 + applied * m * m * n
    )


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "kernels"),
    [
        ("tpu", (8, 16), "bfloat16", 1),
        ("cpu", (8, 16), "bfloat16", 0),
        ("cuda", (8, 16), "bfloat16", 0),
        ("tpu", (8, 16), "float16", 0),
        ("tpu", (4096, 4096), "bfloat16", 0),
    ],
)
def test_auto_takes_the_kernel_where_it_wins(
    platform: str, shape: Any, dtype: str, kernels: int
) -> None:
    """On TPUs, for matrices that one holds; it refuses nothing."""
    run = jax.jit(partial(linalg.orthogonal_factor, steps=1, implementation="auto"))
    traced = run.trace(jax.ShapeDtypeStruct((2, *shape), dtype))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("tpu_custom_call") == kernels
    assert ("triton" in text) is False and text.count("dot_general") == (0 if kernels else 3)


@pytest.mark.parametrize("depth", (128, 4096))
def test_each_tile_below_the_diagonal_is_computed_once(depth: int) -> None:
    for tiles in range(1, 9):
        found = [
            (row + i, column)
            for height, places in enumerate(off_diagonal(tiles, depth), start=1)
            for row, column in places
            for i in range(height)
        ]
        assert sorted(found) == [(row, column) for row in range(tiles) for column in range(row)]
