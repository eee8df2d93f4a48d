"""Adapters on a regression of low rank: does it pay to follow the weight's own gradient?

LoRA-Pro (arXiv 2407.18242) and AltLoRA (arXiv 2505.12455) choose the changes of A and B by what
they do to ``W + B A``; plain LoRA takes AdamW's steps of both, LoRA+ (arXiv 2402.12354) larger ones
of B. Here: a change of rank 4 of a matrix of 32 inputs and 24 outputs, singular values from 1 to
1/10, is learned from 32 samples a step without noise by an adapter of rank 4 that starts at B = 0,
in 200 steps at rates that fall as a cosine to 0. Losses are exact, relative to the start; rates are
chosen on other teachers and samples. Told beside them is how much of W's gradient the first order
of a step misses, ``norm(c E - G)/norm(G)`` at its best length c, on average along the method's own
way: of plain gradient steps on A and B, and of the projection that LoRA-Pro takes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims import lm, streams
from benchmarks.claims.engine import Outcome, Setting, number
from optkit.lora import equivalent_gradient

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
LARGE = (1.0, 3.0, 10.0, 30.0)  # of directions that are gradients, whose size is the loss's
INPUTS, OUTPUTS, RANK, BATCH, LEAST = 32, 24, 4, 32, 0.1
Build = Callable[[Any], optax.GradientTransformation]
METHODS: dict[str, Build] = {
    "lora": lambda rate: optkit.lora_plus(rate, ratio=1.0),
    "lora_plus": lambda rate: optkit.lora_plus(rate),
    "lora_pro": lambda rate: optkit.lora_pro(rate),
    "altlora": lambda rate: optkit.altlora(rate),
    "altlora, joint": lambda rate: optkit.altlora(rate, schedule="joint"),
    "altlora_plus": lambda rate: optkit.altlora_plus(rate),
    "altlora_plus, joint": lambda rate: optkit.altlora_plus(rate, schedule="joint"),
    "adamw on W": lambda rate: optkit.adamw(rate, weight_decay=0.0),
}
CLAIMED, WHOLE = ("lora_pro", "altlora", "altlora_plus"), "adamw on W"


def start(key: jax.Array, name: str) -> Any:
    """Returns the adapter with B = 0, or for training without one a matrix of zeros."""
    if name == WHOLE:
        return {"kernel": jnp.zeros((INPUTS, OUTPUTS))}
    a = jax.random.normal(key, (INPUTS, RANK)) / np.sqrt(INPUTS)
    return {"lora_a": a, "lora_b": jnp.zeros((RANK, OUTPUTS))}


def change(params: Any) -> jax.Array:
    """Returns what is added to W, (inputs, outputs)."""
    return params["kernel"] if "kernel" in params else params["lora_a"] @ params["lora_b"]


def drawn(seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a teacher of low rank and the inputs of all steps."""
    random = np.random.default_rng([seed, 23])
    left = np.linalg.qr(random.standard_normal((INPUTS, RANK)))[0]
    right = np.linalg.qr(random.standard_normal((OUTPUTS, RANK)))[0]
    teacher = (left * np.geomspace(1.0, LEAST, RANK)) @ right.T
    samples = random.standard_normal((steps, BATCH, INPUTS))
    return teacher.astype(np.float32), samples.astype(np.float32)


def missed(params: Any, of_w: jax.Array) -> dict[str, jax.Array]:
    """Returns how much of W's gradient gradient steps of the factors miss, and the projection."""
    if "kernel" in params:
        return {"gradient": jnp.zeros(()), "projection": jnp.zeros(())}
    a, b, g = params["lora_a"].T, params["lora_b"].T, of_w.T
    ga, gb = b.T @ g, g @ a.T
    steps = {"gradient": b @ ga + gb @ a, "projection": equivalent_gradient(a, b, ga, gb)}

    def share(e: jax.Array) -> jax.Array:
        cosine = jnp.sum(e * g) / jnp.sqrt(jnp.sum(e * e) * jnp.sum(g * g) + 1e-30)
        return jnp.sqrt(jnp.maximum(1.0 - cosine**2, 0.0))

    return {name: share(e) for name, e in steps.items()}


def learner(name: str, steps: int) -> streams.Run:
    """Returns (rate, seed) -> the exact loss at the end relative to the start, and what was missed.

    What is missed is averaged while the loss is above a millionth: rounding has no direction.
    """

    @jax.jit
    def run(rate: jax.Array, key: jax.Array, teacher: jax.Array, samples: jax.Array) -> Any:
        tx = METHODS[name](optax.cosine_decay_schedule(rate, steps))
        size = jnp.sum(jnp.square(teacher))

        def loss(delta: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(x @ (delta - teacher)))

        def step(carry: Any, x: jax.Array) -> tuple[Any, Any]:
            state, params = carry
            of_w = jax.grad(loss)(change(params), x)
            grads = jax.grad(lambda p: loss(change(p), x))(params)
            updates, state = tx.update(grads, state, params)
            rest = jnp.sum(jnp.square(change(params) - teacher)) / size
            told = missed(params, of_w) | {"counts": (rest > 1e-6).astype(jnp.float32)}
            return (state, optax.apply_updates(params, updates)), told

        params = start(key, name)
        (_, params), told = jax.lax.scan(step, (tx.init(params), params), samples)
        counts = told.pop("counts")
        means = {k: jnp.sum(x * counts) / jnp.sum(counts) for k, x in told.items()}
        return {"loss": jnp.sum(jnp.square(change(params) - teacher)) / size, **means}

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        return run(rate, jax.random.key(seed), *drawn(seed, steps))

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Learns the change with every method at its best rate and compares the orders of losses."""
    steps = setting.pick(200, 4)
    rates, decades, shares, sizes = {}, {}, {}, {}
    for name, build in METHODS.items():
        run = learner(name, steps)
        rates_of = LARGE if name.split(",")[0] == "altlora" else RATES
        given = rates_of[: setting.pick(None, 1)]
        rates[name], _, found = streams.tuned(run, given, setting, "loss")
        decades[name] = np.log10(np.maximum(found["loss"], 1e-30))
        shares[name] = found["gradient"].mean(), found["projection"].mean()
        sizes[name] = lm.state_bytes(build(1e-3), lambda key, name=name: start(key, name))

    def lower(better: str) -> tuple[bool, str]:
        gain = decades["lora"] - decades[better]
        text = f"{better} {gain.mean():+.2f} (+- {gain.std(ddof=1):.2f}) decades below LoRA"
        return bool(gain.mean() > gain.std(ddof=1)), text

    results = [lower(name) for name in CLAIMED]
    gradient, projection = shares["lora"]
    return Outcome(
        claim="LoRA-Pro, AltLoRA and AltLoRA+ each reach a lower loss than AdamW on both factors "
        "in 200 steps, and the projection misses less of W's gradient than gradient steps of A "
        "and B",
        holds=all(yes for yes, _ in results) and bool(projection < gradient),
        finding=", ".join(text for _, text in results)
        + f"; along LoRA's own way gradient steps miss {gradient:.2f} of W's gradient, the "
        f"projection {projection:.2f}",
        header=("method", "state bytes", "rate", "loss / start", "decades", "missed", "projection"),
        rows=tuple(
            (
                name,
                f"{sizes[name]:,}",
                number(rates[name]),
                f"{10 ** decades[name].mean():.1e}",
                f"{decades[name].mean():.2f} +- {decades[name].std(ddof=1):.2f}",
                *(("-", "-") if name == WHOLE else (f"{x:.2f}" for x in shares[name])),
            )
            for name in METHODS
        ),
        seeds=setting.seeds,
    )
