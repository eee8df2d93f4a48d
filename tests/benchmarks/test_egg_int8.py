"""The float32 rival of the int8 benchmark is the same model, and its run learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import egg_int8
from optkit.evolution import integer
from optkit.tasks import int8_bytes


def test_the_model_in_floats_scores_nearly_the_same() -> None:
    task = int8_bytes.build(width=16, streams=8, tokens=6, held_out_texts=2, held_out_tokens=4)
    params = task.init(jax.random.key(0))
    es = integer.egg(16)
    hidden = task.hidden(params, 16)

    @jax.jit
    def both(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        population = es.perturb(params, es.init(params))
        scores, _ = integer.egg_scores(population, tokens, hidden)
        as_float = jax.tree.map(lambda x: x.astype(jnp.float32), population)
        return scores, egg_int8.float_scores(as_float, tokens, hidden.astype(jnp.float32))[0]

    scores, exact = both(jnp.asarray(task.batch(0)))
    # Rounding down moves every member by a fraction of a bit a byte; members differ by more.
    assert np.corrcoef(scores, exact)[0, 1] > 0.9
    np.testing.assert_allclose(np.asarray(scores) / 16 / 6, np.asarray(exact) / 6, atol=1.0)


def test_streams_go_on_where_they_stopped_and_begin_with_a_document() -> None:
    task = int8_bytes.build(width=4, streams=3, tokens=5, held_out_texts=2, held_out_tokens=4)
    first, second = task.batch(0), task.batch(1)
    np.testing.assert_array_equal(first[:, -1], second[:, 0])
    assert not first[:, 0].any() and not task.held_out_texts[:, 0].any()
    np.testing.assert_array_equal(first[0, 1:], task.train[1:6])


@pytest.mark.slow
def test_quick_run_falls_below_where_it_began(capsys: pytest.CaptureFixture[str]) -> None:
    egg_int8.main(["--quick", "--clock", "cpu"])
    curve = capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]
    bits = [float(line.split()[-1]) for line in curve]
    assert bits[-1] < bits[0]
