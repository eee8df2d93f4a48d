"""Outer steps between two slices of TPUs, by their compiler: ``python -m benchmarks.tpu_outer``.

Needs ``pip install 'optkit[tpu]'`` and no TPU. Two slices of v5e:4x4 hold a replica each of
``optkit.aot``'s gpt2-medium (float32), every leaf of which is split over the 16 chips along the
model's width, vectors too. MiB is what a chip sends to the other slice in an outer step, and within
its own, by ring formulas; what the compiler turned exchanges into is counted, and nothing was run.

Rows of compressed averages have every chip average the blocks it holds with the chip of the same
place in the other slice. The inner step is AdamW's update of both replicas. ``--only NAME`` picks
rows; compressed ones take the compiler minutes, which ``--layers 2`` shortens: what is allowed is
then in proportion to the parameters. ``--store`` keeps the rows of the whole model.

Of int8 a chip holds 21.2 MiB, and sends half of them to be averaged and half as averages: what was
asked for, 11, takes 4 bits, signs or PowerSGD at rank 4; rank 8 sends a little more.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from optkit import aot
from optkit.codecs import UniformCodec
from optkit.outer import OuterStep
from optkit.tree import leaves_with_paths, map_with_path, tree_bytes

RESULT = Path(__file__).parent / "results" / "tpu_outer.json"
MIB, LAYERS = 2**20, 24
TOPOLOGY, SIZES = "2xv5e:4x4", {"slice": 2, "fsdp": 16}


@dataclasses.dataclass(frozen=True)
class Model:
    """Shapes of one replica and of both, on the mesh of a target."""

    mesh: jax.sharding.Mesh
    one: Any
    stacked: Any


def model(layers: int = LAYERS) -> Model:
    """Places the model, or its first layers."""
    mesh = aot.find_target(TOPOLOGY).mesh(SIZES)

    def split(x: Any) -> Any:
        spec = tuple(x.sharding.spec)
        own = spec if any(spec) else (*[None] * (len(x.shape) - 1), "fsdp")
        shape = (layers, *x.shape[1:]) if x.shape[0] == LAYERS else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, P(*own)))

    def stack(x: Any) -> Any:
        place = NamedSharding(mesh, P("slice", *x.sharding.spec))
        return jax.ShapeDtypeStruct((SIZES["slice"], *x.shape), x.dtype, sharding=place)

    one = jax.tree.map(split, aot.place_model(aot.model_shapes("gpt2-medium"), mesh))
    return Model(mesh, one, jax.tree.map(stack, one))


def placed(state: Any, given: Model) -> Any:
    """A state's shapes: what is of a parameter's shape lies like it, one replica's or both's."""
    known = [*leaves_with_paths(given.one), *leaves_with_paths(given.stacked)]

    def place(path: str, x: Any) -> Any:
        whole = NamedSharding(given.mesh, P())
        fits = (like for name, like in known if path.endswith(name) and x.shape == like.shape)
        like = next(fits, None)
        where = whole if like is None else like.sharding
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return map_with_path(place, state)


def stacked(outer: OuterStep, given: Model, **options: Any) -> jax.stages.Compiled:
    """Compiles a step of replicas along a leading axis that is split over slices."""
    state = placed(jax.eval_shape(outer.init, given.stacked), given)
    out = jax.tree.map(lambda x: x.sharding, (given.stacked, state))
    return aot.compile_for(
        TOPOLOGY,
        lambda params, state: outer.step(params, state, **options),
        given.stacked,
        state,
        donate=(0, 1),
        mesh=given.mesh,
        out_shardings=out,
    )


def by_blocks(outer: OuterStep, given: Model) -> jax.stages.Compiled:
    """Compiles a step in which each chip sees its blocks alone; all state is a chip's own."""
    specs, chip = jax.tree.map(lambda x: x.sharding.spec, given.stacked), P(tuple(SIZES))

    def up(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[None], tree)

    def down(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    def step(params: Any, state: Any) -> Any:
        return up(outer.step(down(params), down(state)))

    start = jax.shard_map(
        lambda params: up(outer.init(down(params))),
        mesh=given.mesh,
        in_specs=(specs,),
        out_specs=chip,
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(given.mesh, chip)),
        jax.eval_shape(start, given.stacked),
    )
    both = (specs, chip)
    mapped = jax.shard_map(step, mesh=given.mesh, in_specs=both, out_specs=both)
    return aot.compile_for(TOPOLOGY, mapped, given.stacked, state, donate=(0, 1), mesh=given.mesh)


def inner(given: Model) -> jax.stages.Compiled:
    """Compiles the inner optimizer's step of both replicas."""
    tx = optkit.adamw(3e-4)
    state = placed(jax.eval_shape(tx.init, given.stacked), given)

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    out = jax.tree.map(lambda x: x.sharding, (state, given.stacked))
    return aot.compile_for(
        TOPOLOGY,
        step,
        given.stacked,
        state,
        given.stacked,
        donate=(1, 2),
        mesh=given.mesh,
        out_shardings=out,
    )


def averaged(mean: optax.GradientTransformation) -> OuterStep:
    """DiLoCo by a compressed average over slices."""
    return optkit.diloco(axis_name="slice", mean=mean)


def coded(bits: int) -> OuterStep:
    """DiLoCo with codes of so many bits."""
    return averaged(optkit.compressed_mean(UniformCodec(bits=bits, packed=bits <= 4), "slice"))


def ranked(rank: int) -> OuterStep:
    """DiLoCo through factors."""
    return averaged(optkit.powersgd_mean("slice", rank=rank))


# What to compile, and the most MiB between slices; None where nothing was asked for.
ROWS: dict[str, tuple[Callable[[Model], jax.stages.Compiled], float | None]] = {
    "inner step": (inner, 0.0),
    "diloco": (lambda given: stacked(optkit.diloco(), given), 84.65),
    "diloco, bfloat16": (
        lambda given: stacked(optkit.diloco(wire_dtype="bfloat16"), given),
        42.35,
    ),
    "noloco": (lambda given: stacked(optkit.noloco(), given, groups=((0, 1),)), 84.65),
    "noloco, gamma 0.8": (
        lambda given: stacked(optkit.noloco(gamma=0.8), given, groups=((0, 1),)),
        169.3,
    ),
    "diloco, PowerSGD rank 4": (lambda given: by_blocks(ranked(4), given), 11.0),
    "diloco, PowerSGD rank 8": (lambda given: by_blocks(ranked(8), given), 11.0),
    "diloco, int8": (lambda given: by_blocks(coded(8), given), 11.0),
    "diloco, 4 bits": (lambda given: by_blocks(coded(4), given), 11.0),
    "diloco, signs": (lambda given: by_blocks(averaged(optkit.onebit_mean("slice")), given), 11.0),
}


def row(name: str, given: Model) -> dict[str, Any]:
    """Compiles one row of the table."""
    build, most = ROWS[name]
    if most is not None:
        most *= tree_bytes(given.one) / tree_bytes(aot.model_shapes("gpt2-medium"))
    begun = time.monotonic()
    compiled = build(given)
    seconds = time.monotonic() - begun
    devices = given.mesh.devices.size
    slices = [index // SIZES["fsdp"] for index in range(devices)]
    sent, kinds = {True: 0.0, False: 0.0}, dict[str, int]()
    for each in aot.find_collectives(
        compiled.as_text() or "", devices, axes=SIZES, slice_of=slices
    ):
        sent[each.between_slices] += each.wire_bytes * each.times / MIB
        if each.between_slices:
            kinds[each.kind] = kinds.get(each.kind, 0) + each.times
    return {
        "name": name,
        "between_slices_mib": sent[True],
        "at_most_mib": most,
        "within_mib": sent[False],
        "compile_seconds": seconds,
        "between_slices": kinds,
    }


def line(found: dict[str, Any]) -> str:
    """Returns a row as text."""
    out, most = found["between_slices_mib"], found["at_most_mib"]
    late = "" if most is None or out <= most else f"MISSED: {out:.1f} > {most:.1f}"
    target = "" if most is None else f"{most:.2f}"
    numbers = f"{out:9.2f}{target:>9}{found['within_mib']:9.2f}{found['compile_seconds']:9.0f}"
    return f"{found['name']:26}{numbers}  {found['between_slices']} {late}"


def store(rows: list[dict[str, Any]]) -> None:
    """Keeps rows, and what was there of others."""
    known = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    named = {each["name"]: each for each in [*known, *rows]}
    kept = [named[name] for name in ROWS if name in named]
    RESULT.write_text(json.dumps({"topology": TOPOLOGY, "rows": kept}, indent=1) + "\n")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, help="rows to compile")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model's 24")
    parser.add_argument("--store", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    if args.store and args.layers != LAYERS:
        parser.error(f"--store is for the whole model of {LAYERS} layers")
    given, rows = model(args.layers), []
    heads = ("MiB out", "at most", "MiB in", "seconds")
    print(f"{'':26}" + "".join(f"{head:>9}" for head in heads) + "  exchanges between slices")
    for name in args.only or ROWS:
        rows.append(row(name, given))
        print(line(rows[-1]), flush=True)
        if args.store:
            store(rows)


if __name__ == "__main__":
    main()
