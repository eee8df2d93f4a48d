"""What a round of many simulated clients takes: ``python -m benchmarks.federated_scale``.

A thousand clients of a perceptron of some 100,000 parameters take a step each. A rule that
adds up keeps the vectors of a chunk; one that needs all vectors (a trimmed mean) keeps a thousand.
Scratch is what the compiled program allocates beside arguments and results, in vectors of the
model's size; the aggregate's own memory is an argument.
"""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks import common
from optkit.aggregate import Aggregate

CLIENTS, WIDTHS, IMAGES = 1000, (64, 256, 256, 64, 10), 8
QUICK_CLIENTS, QUICK_WIDTHS = 20, (4, 8, 2)
CHUNKS = (1, 10, 100)


def network(widths: tuple[int, ...]) -> list[jax.Array]:
    """Kernels of a perceptron."""
    pairs = itertools.pairwise(widths)
    return common.random_like([jax.ShapeDtypeStruct(pair, np.float32) for pair in pairs], scale=0.1)


def loss(params: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean squared error of one client's images."""
    x, y = batch
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return jnp.mean(jnp.square(x @ params[-1] - y))


def local(params: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
    """One step of SGD."""
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, batch))


def measure(
    label: str, rule: Aggregate, chunk: int, clients: int, widths: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    """Compiles a round and times it."""
    params = network(widths)
    data = (jnp.ones((clients, IMAGES, widths[0])), jnp.ones((clients, IMAGES, widths[-1])))
    server = optkit.server_step(rule, optax.sgd(1.0))
    state = server.init(params, clients)
    common.fresh_process()
    # Donated: a memory of what each client sent last is written in place.
    run = jax.jit(optkit.federated_round(local, server, chunk=chunk), donate_argnums=(0, 1))
    compiled = run.lower(params, state, data).compile()
    seconds = []
    for turn in range(repeats + 1):
        begin = time.perf_counter()
        params, state, _ = jax.block_until_ready(compiled(params, state, data))
        if turn:
            seconds.append(time.perf_counter() - begin)
    vector = optkit.tree.tree_bytes(params)
    return {
        "rule": label,
        "chunk": chunk,
        "seconds": min(seconds),
        "scratch_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "scratch_vectors": compiled.memory_analysis().temp_size_in_bytes / vector,
        "state_vectors": optkit.tree.tree_bytes(state) / vector,
        "parameters": vector // 4,
        "clients": clients,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = common.parser("federated_scale", __doc__)
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds")
    args = parser.parse_args(arguments)
    clients = QUICK_CLIENTS if args.quick else CLIENTS
    widths = QUICK_WIDTHS if args.quick else WIDTHS
    largest = CHUNKS[0] if args.quick else CHUNKS[-1]
    cases = [("mean", optkit.aggregate.mean(), chunk) for chunk in CHUNKS]
    cases += [("fedvarp", optkit.aggregate.fedvarp(), CHUNKS[1])]
    cases += [("trimmed mean", optkit.aggregate.trimmed_mean(trim=clients // 10), largest)]
    rows = [measure(*case, clients, widths, args.repeats) for case in cases]
    header = ("rule", "chunk", "s a round", "scratch MiB", "scratch/model", "state/model")
    text = common.table(
        header,
        [
            (
                row["rule"],
                str(row["chunk"]),
                f"{row['seconds']:.3f}",
                f"{row['scratch_bytes'] / 2**20:.1f}",
                f"{row['scratch_vectors']:.1f}",
                f"{row['state_vectors']:.1f}",
            )
            for row in rows
        ],
    )
    first = rows[0]
    said = f"{first['clients']} clients, {first['parameters']} parameters"
    common.report(rows, f"{said}\n{text}", as_json=args.json)


if __name__ == "__main__":
    main()
