"""What a step will cost on an accelerator, found out by its compiler before one is rented."""

import inspect
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optkit.aot.collectives import find_collectives
from optkit.aot.compiling import (
    MeshLike,
    argument_bytes,
    place_shapes,
    target_mesh,
    trace_for,
)
from optkit.aot.flops import matmul_flops
from optkit.aot.hlo import estimated_cycles, kernel_calls, read_hlo
from optkit.aot.kernels import find_kernels
from optkit.aot.reports import Memory, Preflight
from optkit.aot.schedules import forget_schedules, schedules
from optkit.aot.targets import Target, find_target
from optkit.tree import leaves_with_paths, state_sharding

PARTS = ("parameters", "gradients", "state", "other")
_GUESSES = (("grad", "gradients"), ("state", "state"), ("opt", "state"), ("param", "parameters"))


def preflight(
    step: Callable[..., Any] | optax.GradientTransformation,
    *args: Any,
    topology: str | Target,
    mesh: MeshLike = None,
    donate: tuple[int, ...] | None = None,
    parts: Sequence[str] | None = None,
    out_shardings: Any = None,
    name: str = "",
) -> Preflight:
    """Compiles a step for a TPU or GPU that need not be there, and tells what it will cost.

    The compiler is the accelerator's own; nothing is allocated or run. Memory is what it allots.
    Its cycles are a static estimate of computation and copies, without collectives. Lower bounds
    follow from the peak numbers of the chip: no run can take less. All is per device.

    Args:
      step: your own step, a function of ``args``. Or an optimizer: then ``args`` are the
        parameters alone, and the step is its update, applied, with gradients like the parameters,
        and state and parameters donated.
      *args: arrays or ``jax.ShapeDtypeStruct``s. Those with a ``NamedSharding``, over any mesh, an
        abstract one too, are placed like that on the topology; others are replicated.
      topology: such as ``"v5e:4x4"``, ``"v5p:2x2x4"``, ``"2xv5e:4x4"`` (two slices), ``"h100:8"``.
      mesh: sizes of the mesh axes by name; by default the mesh that the arguments are placed on,
        and one device if there is none.
      donate: numbers of arguments that the results may take the memory of; of a jitted step its
        own.
      parts: what each argument is: ``"parameters"``, ``"gradients"``, ``"state"`` or ``"other"``;
        by default guessed from the names of the step's arguments.
      out_shardings: shardings of the results, as of ``jax.jit``.
      name: what to call it.

    Returns:
      A ``Preflight``: ``print`` it, or read ``.compiles``, ``.memory``, ``.collectives``,
      ``.bounds``, ``.advice``; ``.json()`` is all of it. If the compiler refuses the step,
      ``.compiles`` is False and ``.error`` says why.

    Raises:
      TypeError: the step is one of ``nnx.jit``; the message says what to give.
      UnavailableTarget: the compiler is not installed (the message has the command) or locked.
      IndivisibleShape: an argument's dimension does not divide by its mesh axes.
      ValueError: the topology is unknown, the mesh does not fit, or ``parts`` are wrong.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"up": {"kernel": jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)}}
      >>> try:
      ...     print(optkit.preflight(optkit.muon(), params, topology="v5e:3x3"))
      ... except ValueError as error:
      ...     print(str(error).split(";")[0][:34])
      v5e has no size '3x3' in 'v5e:3x3'
    """
    target = find_target(topology)
    if type(step).__module__.startswith("flax.nnx"):
        raise TypeError(
            "a function under nnx.jit keeps its modules apart from its arguments: give preflight a "
            "function of arrays, graphdef, state = nnx.split((model, optimizer)) outside and "
            "model, optimizer = nnx.merge(graphdef, state) inside of it"
        )
    if isinstance(step, optax.GradientTransformation):
        if len(args) != 1:
            raise ValueError(f"an optimizer is followed by the parameters alone, not {len(args)}")
        step, args, out_shardings = update_step(step, args[0], target, mesh)
        donate = (1, 2) if donate is None else donate
        parts = ("gradients", "state", "parameters") if parts is None else parts
    parts = _parts(step, args, parts)
    real = target_mesh(target, mesh, args)
    placed = place_shapes(args, target, real)
    whole = _replicated(placed, parts) if real is not None and target.size > 1 else 0
    split = {part: 0 for part in PARTS}
    for part, tree in zip(parts, placed, strict=True):
        split[part] += argument_bytes(tree)
    about: dict[str, Any] = {
        "name": name,
        "topology": target.name,
        "target": target,
        "axes": dict(real.shape) if real is not None else {},
    }
    begin = time.perf_counter()
    forget_schedules()
    traced = trace_for(
        target, step, *args, donate=donate or (), mesh=real, out_shardings=out_shardings
    )
    try:
        compiled = traced.lower(lowering_platforms=(target.chip.platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        about["seconds"] = time.perf_counter() - begin
        memory = Memory(**split, replicated_state=whole, limit=target.chip.memory_bytes)
        return Preflight(**about, error=_reason(error), memory=memory)
    about["seconds"] = time.perf_counter() - begin
    memory = _memory(compiled.memory_analysis(), split, whole, target)
    return Preflight(**about, memory=memory, **_read(compiled, traced.jaxpr, target, real))


def _read(
    compiled: jax.stages.Compiled, jaxpr: Any, target: Target, mesh: Mesh | None
) -> dict[str, Any]:
    """What a compiled program tells of its work and its exchanges, as fields of ``Preflight``."""
    program = read_hlo(compiled.as_text() or "")
    found = schedules(line.name for line in kernel_calls(program))
    collectives: tuple[Any, ...] = ()
    if mesh is not None:
        slices = _slices(list(mesh.devices.flat), target)
        axes = dict(mesh.shape)
        collectives = tuple(find_collectives(program, target.size, axes=axes, slice_of=slices))
    return {
        "collectives": collectives,
        "flops": matmul_flops(program),
        "accessed": _accessed(compiled),
        "cycles": estimated_cycles(program) if target.chip.platform == "tpu" else None,
        "kernels": find_kernels(program, jaxpr, found, target.chip.platform),
        "unknown_trips": any(line.endless for line in program),
    }


def update_step(
    tx: optax.GradientTransformation, params: Any, topology: str | Target, mesh: MeshLike = None
) -> tuple[Callable[..., Any], tuple[Any, Any, Any], Any]:
    """Returns the step of an optimizer alone, to compile.

    Args:
      tx: the optimizer.
      params: parameters or shapes; their shardings are also those of gradients and state.
      topology: what to compile for.
      mesh: as of ``preflight``.

    Returns:
      ``step(grads, state, params) -> (state, params)``, its abstract arguments, and the shardings
      of its results (None on one device).
    """
    target = find_target(topology)
    real = target_mesh(target, mesh, params)
    (placed,) = place_shapes((params,), target, real)
    state = jax.eval_shape(lambda p: tx.init(p), params)
    out = None
    if real is not None:
        places = jax.tree.map(lambda x: x.sharding, placed)
        where = state_sharding(state, params, places)
        state = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, where
        )
        out = (where, places)

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    return step, (placed, state, placed), out


def _parts(step: Any, args: Sequence[Any], given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != len(args) or not set(given) <= set(PARTS):
            raise ValueError(
                f"parts has to name one of {PARTS} for each of {len(args)} arguments, not {given}"
            )
        return tuple(given)
    try:
        names = [*inspect.signature(step).parameters][: len(args)]
    except (TypeError, ValueError):
        names = []
    names += [""] * (len(args) - len(names))
    return tuple(
        next((part for word, part in _GUESSES if word in name.lower()), "other") for name in names
    )


def _replicated(placed: Sequence[Any], parts: Sequence[str]) -> int:
    """Bytes of large state that is whole on each device."""
    return sum(
        argument_bytes(leaf)
        for part, tree in zip(parts, placed, strict=True)
        if part == "state"
        for _, leaf in leaves_with_paths(tree)
        if getattr(leaf, "size", 0) > 1024 and leaf.sharding.is_fully_replicated
    )


def _slices(devices: Sequence[Any], target: Target) -> list[int]:
    """The slice, or host with GPUs, of each device."""
    if target.chip.platform == "cuda":
        return [device.process_index for device in devices]
    return [getattr(device, "slice_index", None) or 0 for device in devices]


def _memory(stats: Any, split: dict[str, int], whole: int, target: Target) -> Memory:
    return Memory(
        **split,
        padding=max(stats.argument_size_in_bytes - sum(split.values()), 0),
        results=stats.output_size_in_bytes,
        reused=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        replicated_state=whole,
        limit=target.chip.memory_bytes,
    )


def _accessed(compiled: jax.stages.Compiled) -> int | None:
    """What the compiler counts; not each of them counts."""
    found = compiled.cost_analysis()
    return int(found["bytes accessed"]) if found and "bytes accessed" in found else None


def _reason(error: Exception) -> str:
    """The first sentences of what a compiler says, without the list of its allocations."""
    text = str(error).split("\n\n")[0]
    return re.sub(r"\s+", " ", text).strip()[:600]


__all__ = ["PARTS", "preflight", "update_step"]
