"""``optkit check``: whether what a method was tuned with at one width serves another."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from optkit import transfer
from optkit.catalogue import Entry
from optkit.cli import choices
from optkit.cli.chart import drawing, picture
from optkit.cli.console import say
from optkit.cli.errors import CommandError, message_of, require_extra
from optkit.cli.hyperparameters import bind, build, find_recipe, rates_of
from optkit.cli.logs import finite, write_text
from optkit.cli.options import Out, Params, Seeds, TaskOptions
from optkit.cli.parsing import parse_assignments, parse_seeds
from optkit.cli.report import document
from optkit.cli.results import Curve, Panel
from optkit.cli.running import versions
from optkit.cli.tasks import make_task
from optkit.tasks import Task

__all__ = ["check_app"]

check_app = typer.Typer(
    name="check", help="Measure whether an assumption holds.", no_args_is_help=True
)
_WIDTHS = "64,128,256,512"
Widths = Annotated[str, typer.Option(help="At least two, the first one that of the base model.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 1 unless muP's activations are flat.")
]
CheckSteps = Annotated[int, typer.Option(min=1, help="Steps before the measurement.")]


@check_app.callback()
def _root() -> None:
    """Keep `transfer` a word of its own while it is the only check."""


@check_app.command("transfer")
def check_transfer(
    method: Annotated[str, typer.Argument(help="A recipe (see `optkit list`).")] = "adamw",
    task: Annotated[str, typer.Option(help="A built-in task whose model has a width.")] = "digits",
    widths: Widths = _WIDTHS,
    steps: CheckSteps = 5,
    seeds: Seeds = None,
    param: Params = None,
    task_option: TaskOptions = None,
    strict: Strict = False,
    out: Out = None,
) -> None:
    """Coordinate check: how far activations move at several widths, with muP's factors and without.

    A few steps at each width; slopes of 0 over the width mean that one learning rate serves all.
    Writes transfer.html, transfer.png and transfer.json. The exit code is 0 whatever the slopes
    are, unless --strict asks for 1 where those with muP are not flat.
    """
    require_extra(["matplotlib"], purpose="a check's report")
    entry = find_recipe(method)
    given = choices.hyperparameters({"methods": {}}, method, param) or {}
    options = parse_assignments(task_option or [], flag="--task-option")
    sizes = _widths(widths)
    found = {}
    for name in ("standard", "mup"):
        run = _builder(entry, given, task, options, sizes[0], name)
        try:
            found[name] = transfer.coordinate_check(
                run, sizes, steps=steps, seeds=parse_seeds("0,1" if seeds is None else seeds)
            )
        except ValueError as error:
            raise CommandError(f"{task}, {name}: {message_of(error)}") from error
    for name, checked in found.items():
        print(f"{_TITLES[name]}\n{checked}\n")
    if entry.family == "matrix":
        say(
            f"muP's table is Adam's; {method} scales its matrices by itself: read it for comparison"
        )
    directory = Path(out or f"check-transfer-{task}")
    about = {"method": method, "task": task, "options": options, "hyperparameters": given}
    files = _write(found, about, directory)
    say("wrote " + ", ".join(str(path) for path in files))
    if strict and not found["mup"].flat:
        raise CommandError(f"{_TITLES['mup']}: {found['mup'].verdict}", exit_code=1)


_TITLES = {"standard": "one learning rate for all leaves", "mup": "muP: factors for each leaf"}


def _widths(text: str) -> tuple[int, ...]:
    """Reads different positive widths."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 1 or len(set(sizes)) != len(sizes):
        raise CommandError(f"--widths takes different widths like {_WIDTHS}, got {text!r}")
    return sizes


def _builder(
    entry: Entry,
    given: Mapping[str, Any],
    name: str,
    options: Mapping[str, Any],
    first: int,
    laws: str,
) -> Any:
    """Returns the function from a width to a trial."""

    def task_of(width: int) -> Task:
        own = {**options, "width": width}
        if name == "bytelm":
            # Heads of one size: where they grow, attention itself has to be scaled otherwise.
            heads = options.get("heads", 2)
            own["heads"] = max(1, heads * width // first)
        made = make_task(name, own)
        if made.activations is None:
            raise CommandError(f"task {name} has no model to look into; take bytelm or digits")
        return made

    base = task_of(first)

    def trial(width: int) -> transfer.Trial:
        made = task_of(width)
        activations = made.activations
        if laws == "standard" or activations is None:
            tx = build(entry, given)
            return transfer.Trial(made.init, tx, made.loss, made.batch, activations)  # type: ignore[arg-type]  # not None here
        key = jax.random.key(0)
        table = transfer.mup(jax.eval_shape(base.init, key), jax.eval_shape(made.init, key))

        def init(key: jax.Array) -> Any:
            return transfer.match_init(made.init(key), base.init(key), table)

        tx = table.route(lambda law: build(entry, _scaled(entry, given, law)))
        return transfer.Trial(init, tx, made.loss, made.batch, activations)

    return trial


def _scaled(entry: Entry, given: Mapping[str, Any], law: transfer.LeafLaw) -> dict[str, Any]:
    """Hyperparameters with the factors of a leaf."""
    bound = bind(entry, given)
    factors = dict.fromkeys(rates_of(entry, bound), law.learning_rate)
    factors |= {"weight_decay": law.weight_decay, "eps": law.eps}
    values = {
        name: bound.get(name, parameter.default)
        for name, parameter in entry.hyperparameters().items()
    }
    scaled = {
        name: values[name] * factor
        for name, factor in factors.items()
        if isinstance(values.get(name), int | float) and factor != 1.0
    }
    return {**given, **scaled}


def _panels(found: Mapping[str, transfer.Coordinates]) -> list[Panel]:
    """Changes of activations above, sizes of updates below."""
    panels = []
    for attribute, what in (("changes", "change of activations"), ("updates", "size of updates")):
        for name, checked in found.items():
            rows = getattr(checked, attribute)
            curves = [
                _curve(label or "(output)", checked.widths, row[-1] if row.ndim == 2 else row)
                for label, row in rows.items()
            ]
            title = f"{what.capitalize()}, {_TITLES[name]}"
            panels.append(
                Panel(title, "log2 of the width", f"log2 of the {what}", tuple(curves), None)
            )
    return panels


def _curve(label: str, widths: Sequence[int], sizes: Any) -> Curve:
    fine = np.asarray(sizes) > 0
    x, y = (np.log2(np.asarray(v, np.float64)[fine]).tolist() for v in (widths, sizes))
    return Curve(label, x, y, y, y)


def _write(
    found: Mapping[str, transfer.Coordinates], about: Mapping[str, Any], out: Path
) -> list[Path]:
    """Writes data, picture and page."""
    out.mkdir(parents=True, exist_ok=True)
    data, image, written = (out / f"transfer.{suffix}" for suffix in ("json", "png", "html"))
    record = {**about, "versions": versions(), **{k: v.record() for k, v in found.items()}}
    write_text(data, json.dumps(finite(record), indent=1, allow_nan=False, default=str) + "\n")
    verdicts = [f"{_TITLES[name]}: {checked.verdict}" for name, checked in found.items()]
    panels = _panels(found)
    title = f"optkit check transfer, {about['method']} on {about['task']}"
    picture(panels, image, caption=[title, *verdicts])
    tables = "".join(f"<h2>{_TITLES[name]}</h2><pre>{v}</pre>" for name, v in found.items())
    body = f"<p>{'<br>'.join(verdicts)}</p>{drawing(panels)}{tables}"
    write_text(written, document(title, body))
    return [data, image, written]
