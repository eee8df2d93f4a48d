"""``optkit preflight``: what a method's step costs on a TPU or GPU that need not be there."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import typer
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

import optkit.tasks
from optkit import aot
from optkit.catalogue import Entry
from optkit.cli.console import say
from optkit.cli.errors import CommandError, message_of, suggestion
from optkit.cli.hyperparameters import build, find_recipe
from optkit.cli.options import Params, TaskOptions
from optkit.cli.parsing import MethodSpec, parse_assignments, parse_method
from optkit.cli.running import Prepared, prepare
from optkit.cli.tasks import make_task
from optkit.tasks import Task

__all__ = ["parse_mesh", "preflight_method"]

Spec = "NAME[:NAME=VALUE,...]"
Model = Annotated[str, typer.Option(help=f"Shapes of a model: {', '.join(aot.MODELS)}.")]
MethodName = Annotated[str, typer.Option("--method", metavar=Spec, help="A recipe.")]
Topology = Annotated[
    str, typer.Option(help="Such as v5e:4x4, v5p:2x2x4, 2xv5e:4x4 (two slices), h100:8.")
]
MeshText = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        help="Mesh axes inside a slice: 16 (fsdp), 4x4 (fsdp, tensor), or name=size,...",
        show_default="one axis",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help=f"Of the parameters: {', '.join(aot.LAYOUTS)}.", show_default="by mesh"),
]
TaskStep = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"A whole training step of a task, with loss and gradient, in place of a model's "
        f"update alone: {', '.join(optkit.tasks.names())}.",
    ),
]
Against = Annotated[
    str | None, typer.Option(metavar=Spec, help="A second recipe, in a column beside the first.")
]
PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="Kernels of single layers instead of stacked ones.")
]
Dtype = Annotated[str, typer.Option(help="Of the parameters, such as bfloat16.")]
KernelCycles = Annotated[
    bool,
    typer.Option(
        "--kernel-cycles",
        help="Count the instructions of Pallas kernels too; compiling takes several times longer.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def preflight_method(
    model: Model = "gpt2-small",
    method: MethodName = "adamw",
    topology: Topology = "v5e:4x4",
    mesh: MeshText = None,
    layout: Layout = None,
    task: TaskStep = None,
    against: Against = None,
    param: Params = None,
    per_layer: PerLayer = False,
    dtype: Dtype = "float32",
    task_option: TaskOptions = None,
    kernel_cycles: KernelCycles = False,
    as_json: AsJson = False,
) -> None:
    """Compile a method's step for a TPU or GPU that need not be there, and say what it costs."""
    with contextlib.suppress(RuntimeError):
        # No device is wanted, and a TPU that is attached stays free for others.
        jax.config.update("jax_platforms", "cpu")
    target = _target(topology)
    if kernel_cycles and target.chip.platform == "tpu":
        aot.write_schedules()
    recipes = _recipes(method, param, against)
    if task is None and task_option:
        raise CommandError("--task-option belongs to --task, which was not given")
    options = parse_assignments(task_option or [], flag="--task-option")
    whole = None if task is None else make_task(task, options)
    shapes = _shapes(model, per_layer, dtype) if whole is None else _init(whole)
    axes = {} if target.size == 1 and mesh is None else parse_mesh(mesh, target)
    params = _placed(shapes, axes, layout)
    found = []
    for label, entry, given, tx in recipes:
        what = model if whole is None else f"a training step of {task}"
        with _waiting(f"compiling {label} of {what} for {target.name}"), _mistakes(label):
            if whole is None:
                found.append(aot.preflight(tx, params, topology=target, name=label))
            else:
                prepared = prepare(whole, entry, given)
                found.append(_training(label, prepared, params, target, axes))
    outcome = aot.compare(*found)
    if as_json:
        typer.echo(outcome.json() if len(found) > 1 else found[0].json())
    else:
        say(str(outcome))
    if not all(each.compiles for each in found):
        raise typer.Exit(1)


def _recipes(
    method: str, words: list[str] | None, against: str | None
) -> list[tuple[str, Entry, Mapping[str, Any], Any]]:
    """Returns label, entry, hyperparameters and optimizer of each method."""
    spec = parse_method(method)
    values = {**spec.hyperparameters, **parse_assignments(words or [], flag="-p")}
    specs = [MethodSpec(spec.label, spec.name, values)]
    if against is not None:
        specs.append(parse_method(against))
    out: list[tuple[str, Entry, Mapping[str, Any], Any]] = []
    for each in specs:
        entry = find_recipe(each.name)
        out.append((each.label, entry, each.hyperparameters, build(entry, each.hyperparameters)))
    return out


def _training(
    label: str, prepared: Prepared, params: Any, target: aot.Target, axes: Mapping[str, int]
) -> aot.Preflight:
    """Returns the preflight of a whole step; its batch is split over all axes but tensor."""
    _, (_, state, params), _ = aot.update_step(prepared.tx, params, target)
    batch = jax.eval_shape(lambda: prepared.task.batch(0, 0))
    split = tuple(name for name in axes if name != "tensor")
    parts = math.prod(axes[name] for name in split)
    if axes:
        mesh = aot.abstract_mesh(axes)

        def place(x: Any) -> Any:
            entry = split if x.ndim and x.shape[0] % parts == 0 else None
            spec = PartitionSpec(*[entry][: x.ndim])
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        batch = jax.tree.map(place, batch)
    kinds = ("other", "state", "parameters")
    return aot.preflight(
        prepared.step, batch, state, params, topology=target, parts=kinds, name=label
    )


@contextlib.contextmanager
def _mistakes(label: str) -> Iterator[None]:
    """Turns what a preflight refuses into one line."""
    try:
        yield
    except aot.UnavailableTarget as error:
        raise CommandError(message_of(error), exit_code=1) from error
    except (TypeError, ValueError, NameError) as error:
        raise CommandError(f"{label}: {message_of(error)}") from error


def _target(topology: str) -> aot.Target:
    try:
        return aot.find_target(topology)
    except ValueError as error:
        raise CommandError(message_of(error)) from error


def _init(task: Task) -> Any:
    return jax.eval_shape(task.init, jax.random.key(0))


def _shapes(model: str, per_layer: bool, dtype: str) -> Any:
    """Returns the parameters of a built-in model."""
    if model not in aot.MODELS:
        close = suggestion(model, aot.MODELS)
        raise CommandError(f"unknown model {model!r}{close}; known: {', '.join(aot.MODELS)}")
    try:
        return aot.model_shapes(model, stacked=not per_layer, dtype=dtype)
    except TypeError as error:
        raise CommandError(
            f"--dtype {dtype}: {message_of(error)}; give bfloat16, float16 or float32"
        ) from error


def _placed(params: Any, axes: Mapping[str, int], layout: str | None) -> Any:
    """Returns parameters with their places; none without axes."""
    if not axes:
        return params
    splitting = [name for name in axes if name not in ("slice", "data")]
    try:
        return aot.place_model(
            params, axes, layout or ("fsdp+tensor" if len(splitting) > 1 else "fsdp")
        )
    except ValueError as error:
        raise CommandError(message_of(error)) from error


def parse_mesh(text: str | None, target: aot.Target) -> dict[str, int]:
    """Returns the axes of a mesh.

    Args:
      text: ``16``, ``4x4``, ``2x2x4``, ``fsdp=4,tensor=4`` or None for one axis; sizes without
        names are those inside a slice, called fsdp; fsdp and tensor; data, fsdp and tensor.
      target: whose devices; several slices get an axis ``slice`` in front.

    Returns:
      Sizes by name.

    Raises:
      CommandError: the text is none of these, or the sizes do not multiply to the devices.
    """
    lead: Mapping[str, int] = {"slice": target.slices} if target.slices > 1 else {}
    if text is None:
        return {**lead, "fsdp": target.size // target.slices}
    named = re.findall(r"(\w+)=(\d+)(?:,|$)", text)
    if named and ",".join(f"{name}={size}" for name, size in named) == text:
        axes = {name: int(size) for name, size in named}
        axes = axes if "slice" in axes else {**lead, **axes}
    elif re.fullmatch(r"\d+(x\d+){0,2}", text):
        sizes = [int(size) for size in text.split("x")]
        names = ("data", "fsdp", "tensor") if len(sizes) == 3 else ("fsdp", "tensor")
        axes = {**lead, **dict(zip(names, sizes, strict=False))}
    else:
        raise CommandError(f"--mesh {text!r} is neither sizes such as 4x4 nor fsdp=4,tensor=4")
    count = math.prod(axes.values())
    if count != target.size:
        raise CommandError(
            f"--mesh {text} makes {axes}, {count} devices; {target.name} has {target.size}"
        )
    return axes


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Says what is going on where the result is not printed: it may take a minute."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.print(f"{what} ...", soft_wrap=True)
        yield
        return
    with console.status(f"{what} ..."):
        yield
