"""Weight deltas: which share of the weights does a small AdamW step change, in 32 and in 16 bits?

SparseRL-Sync (arXiv 2605.07330) sends only weights whose bits changed, and finds 99.5% of them in
float32 and 0.61% in bfloat16 after a step of reinforcement learning. Here: 2**18 weights of
deviation 0.02 after warmed-up AdamW steps on random gradients, at four learning rates. bfloat16
once as the view of float32 weights that are trained, and once as what is trained itself, where
steps below half a unit vanish.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import Outcome, Setting, number, spread

RATES = (3e-7, 3e-6, 3e-5, 3e-4)
WARM = 20


def shares(rate: float, seed: int, size: int) -> dict[str, tuple[float, float]]:
    """Returns the changed share of one step and the ratio of whole bytes to sent ones, by form."""
    random = np.random.default_rng([seed, 9])
    start = jnp.asarray(0.02 * random.standard_normal(size), jnp.float32)
    grads = jnp.asarray(random.standard_normal((WARM + 1, size)), jnp.float32)
    tx = optkit.adamw(rate)

    @jax.jit
    def run(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(carry: tuple, g: jax.Array) -> tuple:
            state, w = carry
            u, state = tx.update(g.astype(w.dtype), state, w)
            return (state, optax.apply_updates(w, u)), w

        (_, after), before = jax.lax.scan(body, (tx.init(w), w), grads)
        return before[-1], after

    master, trained = run(start), run(start.astype(jnp.bfloat16))
    forms = {
        "float32": master,
        "bfloat16 view of it": tuple(w.astype(jnp.bfloat16) for w in master),
        "bfloat16 alone": trained,
    }
    found = {}
    for name, (old, new) in forms.items():
        delta = optkit.encode_delta({"w": old}, {"w": new})
        bits = [np.asarray(w).view(f"u{w.dtype.itemsize}") for w in (old, new)]
        sent = max(optkit.payload_bytes(delta), 1)
        found[name] = float(np.mean(bits[0] != bits[1])), new.nbytes / sent
    return found


def experiment(setting: Setting) -> Outcome:
    """Counts what changes at each rate."""
    size, rows, low = setting.pick(2**18, 2**8), [], {}
    for rate in RATES[: setting.pick(None, 2)]:
        runs = [shares(rate, seed, size) for seed in setting.seeds]
        for name in runs[0]:
            share = np.array([run[name][0] for run in runs])
            ratio = np.array([run[name][1] for run in runs])
            low[name, rate] = share
            rows.append((name, number(rate), spread(100 * share), f"{ratio.mean():.3g}x"))
    at = RATES[1]
    view, alone, wide = (
        low[name, at].mean() for name in ("bfloat16 view of it", "bfloat16 alone", "float32")
    )
    return Outcome(
        claim=f"at a learning rate of {at:g} a step changes more than 90% of the weights in "
        "float32 and at most 1% where they are trained in bfloat16",
        holds=bool(wide > 0.9 and alone <= 0.01),
        finding=f"{100 * wide:.1f}% in float32, {100 * view:.2f}% of its bfloat16 view, "
        f"{100 * alone:.2f}% where bfloat16 itself is trained; at {RATES[-1]:g} "
        f"{100 * low.get(('bfloat16 view of it', RATES[-1]), np.full(1, np.nan)).mean():.0f}% of "
        "the view",
        header=("weights", "learning rate", "% changed", "whole over sent bytes"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
