"""What curvature costs, step by step: ``python -m benchmarks.refresh [--quick]``.

A perceptron of three layers, 1024 rows of 256 inputs, 512 units, 256 classes. A step is loss,
gradients and update, with state and parameters donated; curvature is estimated on the same rows in
every tenth step, inside the one program that serves all steps. Steps of all methods take turns
within one process. Times are medians, as shares of a step of signum (for ``mkor``: of SGD with
momentum, its inner optimizer) in the same turn; FLOPs are those of all matrix products, counted
from the jaxpr with the refreshing branch.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from benchmarks import common
from benchmarks.flops import matrix_flops
from optkit import curvature

EVERY = 10


def model(quick: bool) -> tuple[Any, jax.Array, jax.Array]:
    """Returns parameters, inputs and labels."""
    width, rows = (64, 128) if quick else (512, 1024)
    sizes = (256, width, width, 256)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    params = {
        f"layer_{i}": {
            "kernel": jax.random.normal(next(keys), (a, b)) / a**0.5,
            "bias": jnp.zeros(b),
        }
        for i, (a, b) in enumerate(pairwise(sizes))
    }
    x = jax.random.normal(next(keys), (rows, sizes[0]))
    return params, x, jax.random.randint(next(keys), (rows,), 0, sizes[-1])


def logits(params: Any, x: jax.Array) -> jax.Array:
    """The model."""
    for i, layer in enumerate(params.values()):
        x = (jnp.tanh(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels).mean()


METHODS: dict[str, tuple[Any, Callable[[Any, Any], dict[str, Any]]]] = {
    "signum": (optkit.signum(1e-4), lambda x, y: {}),
    "sophia_g": (
        optkit.sophia_g(1e-4, every=EVERY, weight_decay=0.0),
        lambda x, y: {"curvature": curvature.gauss_newton_bartlett(logits, x)},
    ),
    "sophia_h": (
        optkit.sophia_h(1e-4, every=EVERY, weight_decay=0.0),
        lambda x, y: {"curvature": curvature.hutchinson(loss, x, y)},
    ),
    "sgd": (optax.sgd(1e-3, momentum=0.9), lambda x, y: {}),
    "mkor": (
        optkit.mkor(optax.sgd(1e-3, momentum=0.9), every=EVERY),
        lambda x, y: {"statistics": curvature.layer_means(loss, x, y)},
    ),
}


def steps(quick: bool) -> Iterator[tuple[str, Any, Any, float]]:
    """Yields (name, compiled step, what it starts from, FLOPs of a refreshing step)."""
    params, x, labels = model(quick)
    for name, (tx, extra) in METHODS.items():
        given = optax.with_extra_args_support(tx)

        def step(
            state: Any, params: Any, x: Any, y: Any, given: Any = given, extra: Any = extra
        ) -> Any:
            grads = jax.grad(loss)(params, x, y)
            updates, state = given.update(grads, state, params, **extra(x, y))
            return state, optax.apply_updates(params, updates)

        start = (given.init(params), jax.tree.map(jnp.copy, params), x, labels)
        yield name, jax.jit(step, donate_argnums=(0, 1)), start, matrix_flops(step, *start)


def measure(quick: bool = False) -> list[list[str]]:
    """Returns one row a method."""
    runs = {name: [run, list(start), flops] for name, run, start, flops in steps(quick)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(EVERY * (2 if quick else 6)):
        for name, (run, given, _) in runs.items():
            began = time.perf_counter()
            given[0], given[1] = jax.block_until_ready(run(*given))
            times[name].append(time.perf_counter() - began)
    rows = []
    for name, own in times.items():
        base = "sgd" if name in ("sgd", "mkor") else "signum"
        pairs = list(zip(own, times[base], strict=True))[EVERY:]  # the first ones compile
        share = [a / b for a, b in pairs]
        due = statistics.median(x for t, x in enumerate(share) if t % EVERY == 0)
        other = statistics.median(x for t, x in enumerate(share) if t % EVERY)
        mean = (due + (EVERY - 1) * other) / EVERY
        flops = runs[name][2] / runs[base][2]
        rows.append([name, f"{flops:.2f}", f"{due:.2f}", f"{other:.2f}", f"{mean:.2f}"])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, a few steps")
    quick = parser.parse_args().quick
    header = ["method", "FLOPs, refreshing", "time, refreshing", "time, other steps", "mean"]
    print(common.table(header, measure(quick)))


if __name__ == "__main__":
    main()
