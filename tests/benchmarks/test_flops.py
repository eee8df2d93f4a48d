"""The count of matrix work: products, loops, branches, factorisations."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import common, matrix_recipes
from benchmarks.flops import matrix_flops
from optkit import linalg
from optkit.linalg.factor import gram_flops, standard_flops

WIDE = jnp.ones((4, 10))
ROWS = [(1.0, 1.0, 1.0)] * 3


def test_newton_schulz_costs_what_its_formula_says() -> None:
    run = lambda x: linalg.newton_schulz(x, ROWS, 3)  # noqa: E731
    assert matrix_flops(run, WIDE) == standard_flops(4, 10, ROWS)
    run = lambda x: linalg.gram_newton_schulz(x, ROWS, 3, resets=())  # noqa: E731
    assert matrix_flops(run, WIDE) == gram_flops(4, 10, ROWS)


def test_loops_multiply_and_the_dearest_branch_counts() -> None:
    product = 2 * 4 * 10 * 10

    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 5, lambda i, y: y @ (x.T @ x), x)

    assert matrix_flops(looped, WIDE) == 5 * 2 * product
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x.T @ x, lambda x: x, x)  # noqa: E731
    assert matrix_flops(either, WIDE) == 2 * 2 * 4 * 4 * 10


@pytest.mark.parametrize("batch", [(), (3,)])
def test_factorisations_count_by_their_textbook_cost(batch: tuple[int, ...]) -> None:
    x = jnp.ones((*batch, 6, 3))
    once = 2 * 3 * 3 * (6 - 1)
    assert matrix_flops(jnp.linalg.qr, x) == 2 * once * (3 if batch else 1)


def test_quick_table_names_every_recipe_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compilation cache of the other tests in this process stays as it is.
    monkeypatch.setattr(common, "fresh_process", lambda: None)
    matrix_recipes.main(["--quick", "muon_rms"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("muon_rms")
    assert "muon" not in matrix_recipes.recipes() and "muon_dion" in matrix_recipes.recipes()
