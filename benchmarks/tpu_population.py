"""A population on a TPU pod, by its compiler: ``python -m benchmarks.tpu_population``.

Needs ``pip install 'optkit[tpu]'`` and no TPU. A whole generation is compiled for a pod: a
decoder-only transformer, 2^16 perturbed copies of it by default, each on a text of its own, their
losses, and an Adam step on the estimate of EGGROLL. Parameters are replicated, or sharded over the
members' axis. Bytes are what the compiler allots on each device; collectives are those of the
compiled program with the bytes of their results. Nothing was run.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optkit
from optkit import aot
from optkit.evolution import evaluate, population_apply
from optkit.tasks.decoder import Decoder

RESULT = Path(__file__).parent / "results" / "tpu_population.json"


def told(found: list[aot.Collective]) -> dict[str, list[str]]:
    """Returns for each kind of collective how many results it has of each shape."""
    out: dict[str, Counter[str]] = {}
    for each in found:
        counts = out.setdefault(each.kind, Counter())
        for typed in each.result:
            counts[str(typed)] += each.times
    return {kind: [f"{n} x {typed}" for typed, n in each.items()] for kind, each in out.items()}


def generation(es: Any, model: Any, blocks: int) -> Any:
    """Returns a step of a population and its optimizer."""
    tx = optax.chain(es, optax.adam(1e-3))

    def fitness(population: Any, tokens: jax.Array) -> jax.Array:
        logits = population_apply(model, population, tokens[:, :-1])
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return -jnp.mean(nats, axis=-1)

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        found = evaluate(es, fitness, params, state, tokens, in_axes=0, blocks=blocks)
        updates, state = tx.update(found, state, params)
        return optax.apply_updates(params, updates), state, jnp.mean(found)

    return tx, step


def row(args: argparse.Namespace, sharded: bool, reduce: Any) -> dict[str, Any]:
    """Returns what a compiled generation takes."""
    devices = aot.find_target(args.topology).devices
    mesh = Mesh(devices, ("members",))
    graph, abstract = nnx.split(
        nnx.eval_shape(lambda: Decoder(args.width, args.layers, args.heads, rngs=nnx.Rngs(0)))
    )
    shapes = nnx.to_pure_dict(abstract)

    def model(params: Any, tokens: jax.Array) -> jax.Array:
        state = nnx.clone(abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(tokens)

    whole = optkit.eggroll(args.population, sigma=0.01, rank=args.rank)
    tx, step = generation(whole.on_mesh(mesh, reduce=reduce), model, args.blocks)

    def place(leaf: Any) -> Any:
        spread = sharded and leaf.ndim and leaf.shape[0] % len(devices) == 0
        spec = PartitionSpec("members") if spread else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(place, shapes)
    state = jax.tree.map(place, jax.eval_shape(tx.init, shapes))
    tokens = jax.ShapeDtypeStruct(
        (args.population, args.tokens + 1),
        jnp.int32,
        sharding=NamedSharding(mesh, PartitionSpec("members")),
    )
    out = jax.tree.map(lambda x: x.sharding, (params, state))
    placed = (*out, NamedSharding(mesh, PartitionSpec()))
    traced = jax.jit(step, donate_argnums=(0, 1), out_shardings=placed).trace(params, state, tokens)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    exchanged = aot.find_collectives(text, len(devices))
    return {
        "parameters": "sharded" if sharded else "replicated",
        "reduce": reduce,
        "arguments_bytes": memory.argument_size_in_bytes,
        "scratch_bytes": memory.temp_size_in_bytes,
        "collectives": told(exchanged),
        "collective_bytes": sum(each.bytes * each.times for each in exchanged),
        "cycles": aot.estimated_cycles(aot.read_hlo(text)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Compiles the generations, prints a table and stores it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_population",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--population", type=int, default=2**16)
    parser.add_argument("--blocks", type=int, default=4, help="parts of a device's members")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--store", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    rows = [
        row(args, *kind) for kind in ((False, "replicate"), (True, "replicate"), (False, "psum"))
    ]
    given = {k: v for k, v in vars(args).items() if k != "store"}
    print(f"{args.population} members over {args.topology}; {given}")
    print("bytes a device\nparameters  reduce     arguments MiB  scratch MiB  collectives MiB")
    for each in rows:
        mib = [each[k] / 2**20 for k in ("arguments_bytes", "scratch_bytes", "collective_bytes")]
        print(f"{each['parameters']:<11} {each['reduce']:<10}" + "".join(f"{x:13.2f}" for x in mib))
        for name, shapes in each["collectives"].items():
            print(f"    {name}: {', '.join(shapes)}")
    if args.store:
        RESULT.write_text(json.dumps({"settings": given, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
