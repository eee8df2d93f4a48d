"""Factorizations of batches of several shapes in one program, which can make jaxlib 0.10 hang."""

import jax
import jax.numpy as jnp
import numpy as np

from optkit.linalg import one_by_one as module
from tests.processes import printed, started

# More calls at a time than a machine for tests has threads, of sizes that are spread over them.
PROGRAM = """
import jax
from optkit import linalg

keys = jax.random.split(jax.random.key(0), 6)
stacks = [jax.random.normal(key, (4, 192, 128 + 8 * i)) for i, key in enumerate(keys)]
run = jax.jit(lambda stacks: [linalg.leading_basis(x, 8) for x in stacks])
for _ in range(3):
    jax.block_until_ready(run(stacks))
print(jax.device_count(), "done")
"""


def test_many_batches_at_a_time_come_to_an_end():
    # As a user's: one device, and flags that leave it its threads.
    with started([["-c", PROGRAM]], XLA_FLAGS="") as processes:
        assert printed(processes)[0][-1] == "1 done"


def test_a_loop_gives_what_a_batch_gives(monkeypatch):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 4)), jnp.float32)
    y = jnp.arange(24.0).reshape(2, 3, 4, 1)

    def both(x, y):
        u, s, _ = jnp.linalg.svd(x, full_matrices=False)
        return {"left": u, "product": x @ y, "sizes": s}

    monkeypatch.setattr(module, "_HANGS", True)
    monkeypatch.setattr(module, "_has_cpu_devices", lambda: False)
    program = jax.jit(lambda *given: module.one_by_one(both, *given))
    assert "while" in program.lower(x, y).as_text()
    got, want = program(x, y), both(x, y)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)
