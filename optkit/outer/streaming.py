"""Streaming DiLoCo: parts of the parameters meet one after the other, while replicas work on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.distributed.workers import AxisName
from optkit.outer.base import Averaging, OuterStep, averaging, chosen
from optkit.outer.checks import check_due
from optkit.outer.diloco import default_outer
from optkit.outer.fragments import Fragments, assign, part, put
from optkit.transforms.base import Transformation, check_state, check_transformation
from optkit.transforms.hyperparams import check_number, check_static_int, check_static_number
from optkit.tree import PyTree, upcast

Due: TypeAlias = tuple[tuple[Literal["start", "finish"], int], ...]


class StreamingDilocoState(NamedTuple):
    """State of ``streaming_diloco``; common to all replicas but for what ``mean`` keeps."""

    anchor: PyTree  # like one replica's parameters, float32 or better
    optimizers: tuple[PyTree, ...]  # of the outer optimizer, one a fragment
    means: tuple[PyTree, ...]  # of the transformation that averages, one a fragment
    moving: tuple[PyTree, ...]  # mean displacements that are on their way; None for the others
    skipped: PyTree = None  # int32 scalar, finishes left out; None where none are


@dataclasses.dataclass(frozen=True, eq=False)
class StreamingStep(OuterStep):
    """What leads replicas fragment by fragment.

    Attributes:
      init: see ``OuterStep``.
      step: (parameters, state, what is due) -> new parameters and state. What is due is static:
        ``jax.jit(outer.step, static_argnums=2)`` compiles one program for each of at most twice as
        many settings as there are fragments.
      due: number of finished inner steps, from 1 -> what is to be done after them: pairs of
        ``"start"`` or ``"finish"`` and the fragment's index; empty after most steps.
    """

    due: Callable[[int], Due]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """When which fragment's exchange starts and finishes."""

    count: int
    every: int
    delay: int

    def __post_init__(self) -> None:
        """Refuses rounds that fragments do not fit into."""
        if self.every % self.count:
            raise ValueError(
                f"every={self.every} is no multiple of the {self.count} fragments, each of which "
                f"meets once in as many steps; give {self.every // self.count * self.count or 1} "
                "or another number of fragments"
            )
        if self.delay >= self.every // self.count:
            raise ValueError(
                f"delay={self.delay} must be below every/fragments={self.every // self.count}: one "
                "fragment is on its way at a time"
            )

    def __call__(self, count: int) -> Due:
        """Starts come first: without a delay a fragment starts and finishes at one step."""
        check_static_int("count", count)
        apart = self.every // self.count
        out: list[Any] = []
        for what, steps in (("start", count + self.delay), ("finish", count)):
            turn, rest = divmod(steps, apart)
            if not rest and turn:
                out.append((what, (turn - 1) % self.count))
        return tuple(out)


@register(
    kind="outer",
    family="communication",
    paper=(
        "Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch",
        "2501.18512",
        2025,
    ),
    state_bytes={"*": 8},
    tags=("local steps", "data parallel", "outer optimizer", "low communication", "overlap"),
    chain="by fragment: mean(x - x_i) > tau steps > outer_tx > x; x_i <- (1-alpha) x + alpha x_i",
    example={"fragments": 2, "every": 4},
)
def streaming_diloco(
    outer_tx: optax.GradientTransformation | None = None,
    *,
    fragments: int | Sequence[Sequence[str]],
    every: int = 500,
    delay: int = 0,
    alpha: float = 0.0,
    axis_name: AxisName = None,
    wire_dtype: Any = None,
    mean: optax.GradientTransformation | None = None,
    nonfinite: Literal["propagate", "skip"] = "propagate",
    coordinates_axis: AxisName = None,
) -> StreamingStep:
    """DiLoCo in fragments that meet one after the other, each while replicas go on working.

    Of F fragments one meets every H/F inner steps. Of fragment f, x the anchor, x_i the replica's:

    1. ``delay`` inner steps before its time (``"start"``): ``D = mean(x - x_i)``, the exchange;
    2. at its time (``"finish"``): ``x <- x + outer_tx(D)``, with a state for each fragment;
    3. ``x_i <- (1-alpha)*x + alpha*x_i``, with the replica's parameters of that time.

    Never is more sent at once than a fragment. A start does not hold up the inner steps that are
    compiled into one program with it and with the finish, ``delay`` of them, on devices that can
    send while they compute. With one fragment, no delay and alpha 0 it is ``optkit.diloco``.

    The host asks ``outer.due(count)`` after each inner step, and calls the jitted ``step`` if there
    is anything to do. What is due is static: ``jax.jit(outer.step, static_argnums=2)``. With
    a delay the state's tree changes while a fragment is on its way, when ``state.moving`` holds it:
    save where nothing is, or restore into a state of the same time. A place for it all the time
    would be 4 bytes a parameter; without a delay nothing is on its way between steps.

    Args:
      outer_tx: see ``optkit.diloco``.
      fragments: lists of globs of paths, one list a fragment, which name each leaf once; or how
        many to cut the leaves into, in their order and about equally large.
      every: H, inner steps in which each fragment meets once.
      delay: tau, inner steps between a start and its finish; the paper has about 1.
      alpha: how much of a replica's own parameters stays. The paper has 0.5 with a delay.
      axis_name: see ``optkit.diloco``.
      wire_dtype: see there.
      mean: see there.
      nonfinite: see there. With ``"skip"``, where the mean of one fragment is not finite, all of
        the parameters go back to ``x``: what is not finite elsewhere would be back in the fragment
        after one inner step. The fragments' means, optimizers and anchors stay as they are.
      coordinates_axis: see there.

    Returns:
      An ``optkit.outer.StreamingStep``. State bytes: those of ``optkit.diloco``, and 4 per
      parameter of the fragment that is on its way, between its start and its finish.

    Raises:
      ValueError: ``every`` no multiple of the fragments, ``delay`` not below every/fragments; in
        init a leaf that no fragment names, or two; in step a finish without a start, and what
        ``due`` never says. And what ``optkit.diloco`` raises.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> outer = optkit.streaming_diloco(optax.sgd(1.0), fragments=[["a"], ["b"]], every=4)
      >>> [outer.due(count) for count in (1, 2, 4)]
      [(), (('start', 0), ('finish', 0)), (('start', 1), ('finish', 1))]
      >>> params = optkit.replicas({"a": jnp.zeros(1), "b": jnp.zeros(1)}, 2)
      >>> state = outer.init(params)
      >>> worked = {"a": jnp.array([[1.0], [3.0]]), "b": jnp.array([[1.0], [3.0]])}
      >>> params, state = outer.step(worked, state, outer.due(2))
      >>> params["a"].tolist(), params["b"].tolist()
      ([[2.0], [2.0]], [[1.0], [3.0]])

    Reference:
      Douillard et al., Streaming DiLoCo with overlapping communication, arXiv 2501.18512; compared
      with pytorch/torchft@73dafea (torchft/local_sgd.py). The paper's exchange in 4 bits is
      ``mean``'s affair; its fragments are every so many layers: give their globs.
    """
    outer = check_transformation("outer_tx", default_outer() if outer_tx is None else outer_tx)
    average = averaging(
        "streaming_diloco", axis_name, wire_dtype, mean, nonfinite, coordinates_axis
    )
    check_static_int("every", every)
    check_static_int("delay", delay, low=0)
    check_static_number("alpha", alpha)
    check_number("alpha", alpha, low=0.0, high=1.0)
    given = fragments if isinstance(fragments, int) else tuple(map(tuple, fragments))
    if isinstance(given, int):
        check_static_int("fragments", given)
    plan = _Plan(given if isinstance(given, int) else max(len(given), 1), every, delay)
    made = _Streaming(outer, average, given, plan.count, alpha)
    return StreamingStep(made.init, made.step, plan)


@dataclasses.dataclass(frozen=True)
class _Streaming:
    outer: Transformation
    average: Averaging
    fragments: Fragments
    count: int
    alpha: float

    def init(self, params: PyTree) -> StreamingDilocoState:
        anchor = self.average.among.first(params)
        parts = [part(anchor, assign(anchor, self.fragments), f) for f in range(self.count)]
        return StreamingDilocoState(
            anchor,
            tuple(self.outer.init(own) for own in parts),
            tuple(self.average.init(own) for own in parts),
            (None,) * self.count,
            jnp.zeros((), jnp.int32) if self.average.skips else None,
        )

    def step(
        self, params: PyTree, state: StreamingDilocoState, due: Due
    ) -> tuple[PyTree, StreamingDilocoState]:
        check_state(state, StreamingDilocoState)
        check_due(due, self.count)
        places = assign(state.anchor, self.fragments)
        self.average.among.check(state.anchor, params)
        for what, fragment in due:
            if what == "start":
                state = self._start(params, state, places, fragment)
            else:
                params, state = self._finish(params, state, places, fragment)
        return params, state

    def _start(
        self, params: PyTree, state: StreamingDilocoState, places: PyTree, f: int
    ) -> StreamingDilocoState:
        anchor, own = (part(tree, places, f) for tree in (state.anchor, params))
        away = self.average.among.displacement(anchor, own)
        moving, kept = self.average(away, state.means[f], anchor)
        return state._replace(
            means=_set(state.means, f, kept), moving=_set(state.moving, f, moving)
        )

    def _finish(
        self, params: PyTree, state: StreamingDilocoState, places: PyTree, f: int
    ) -> tuple[PyTree, StreamingDilocoState]:
        anchor, own = (part(tree, places, f) for tree in (state.anchor, params))
        moved = state.moving[f]
        if moved is None:
            raise ValueError(
                f"fragment {f} finishes but has not started: step through all that outer.due says, "
                "in its order"
            )
        updates, optimizer = self.outer.update(moved, state.optimizers[f], anchor)
        anchor = optax.apply_updates(anchor, updates)
        after = state._replace(
            anchor=put(state.anchor, anchor, places, f),
            optimizers=_set(state.optimizers, f, optimizer),
            moving=_set(state.moving, f, None),
        )
        led = put(params, self._led(anchor, own), places, f)
        if not self.average.skips:
            return led, after
        back = self.average.among.lead(state.anchor, params)
        old = state._replace(moving=after.moving, skipped=state.skipped + 1)
        out: tuple[PyTree, StreamingDilocoState] = chosen(
            self.average.is_sound(moved), (led, after), (back, old)
        )
        return out

    def _led(self, anchor: PyTree, own: PyTree) -> PyTree:
        among, alpha = self.average.among, self.alpha
        if not alpha:
            return among.lead(anchor, own)
        return jax.tree.map(
            lambda a, p: jnp.asarray((1.0 - alpha) * among.beside(a) + alpha * upcast(p), p.dtype),
            anchor,
            own,
        )


def _set(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])
