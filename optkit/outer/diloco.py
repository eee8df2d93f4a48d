"""DiLoCo: replicas work on their own, and an optimizer steps along how far they went."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.distributed.workers import AxisName
from optkit.outer.base import OuterStep, averaging, chosen
from optkit.transforms.base import check_state, check_transformation
from optkit.tree import PyTree


class DilocoState(NamedTuple):
    """State of ``diloco``; common to all replicas but for what ``mean`` keeps of each."""

    anchor: PyTree  # like one replica's parameters, float32 or better
    optimizer: PyTree  # of the outer optimizer
    mean: PyTree  # of the transformation that averages; None without
    skipped: PyTree = None  # int32 scalar, steps left out; None where none are


def default_outer() -> optax.GradientTransformation:
    """The paper's outer optimizer: Nesterov's momentum."""
    return optax.sgd(0.7, momentum=0.9, nesterov=True)


@register(
    kind="outer",
    family="communication",
    paper=(
        "DiLoCo: Distributed Low-Communication Training of Language Models",
        "2311.08105",
        2023,
    ),
    state_bytes={"*": 8},
    tags=("local steps", "data parallel", "outer optimizer", "low communication"),
    chain="mean(x - x_i) > outer_tx > x; x_i <- x",
)
def diloco(
    outer_tx: optax.GradientTransformation | None = None,
    *,
    axis_name: AxisName = None,
    wire_dtype: Any = None,
    mean: optax.GradientTransformation | None = None,
    nonfinite: Literal["propagate", "skip"] = "propagate",
    coordinates_axis: AxisName = None,
) -> OuterStep:
    """Replicas that meet every few hundred steps: an optimizer steps along how far they went.

    After H steps of its own (``optkit.local_rounds``) by an inner optimizer, whose state is neither
    read nor changed, each replica has gone from ``x`` to ``x_i``:

    1. ``D = mean(x - x_i)`` over replicas, the one exchange;
    2. ``x <- x + outer_tx(D)``: an optimizer, to which D is a gradient;
    3. ``x_i <- x`` for all of them, in their dtype: equal bit for bit.

    ``optax.sgd(1.0)`` for the outer optimizer is federated averaging, ``optax.sgd(lr,
    momentum=mu)`` the heavy ball that the code of NoLoCo compares with under the name of DiLoCo.

    Call ``step`` by the host every H steps, jitted on its own: ``lax.cond`` in the inner step
    becomes, under ``jax.vmap``, an exchange at each of them. On a mesh whose axes are of type Auto
    give ``jax.jit`` the ``out_shardings`` of stacked parameters: nothing else tells the compiler
    to keep replicas apart. Of stacked parameters ``step`` takes another number of replicas than
    ``init``, too: some may leave, and others start at ``x``.

    With an ``axis_name`` inside ``jax.shard_map`` parameters that ``step`` returns are equal but
    typed as varying, so that ``out_specs`` has to name the axis. Without one, inside a
    ``shard_map`` or a default ``optkit.on_replicas``, it is refused; in a ``jax.vmap`` over an
    axis of another name replicas cannot be told from a stack, and would never meet.

    Evidence: the loss of synchronous training at meetings 500 steps apart is the paper's claim. In
    ``python -m benchmarks.claims diloco``, a small byte model, four replicas and the paper's outer
    optimizer, it is not reached: 1.096 times the bits a byte at 50 steps between meetings, for a
    fiftieth of what is sent; and more often is worse, 3.541 bits a byte at 10 steps and 4.687 at 1
    against 2.922.

    Args:
      outer_tx: any optimizer, of which one state is kept for all replicas; ``optax.sgd(0.7,
        momentum=0.9, nesterov=True)`` by default.
      axis_name: the replicas' axis of a mesh or of ``jax.vmap``, for ``init`` and ``step`` of one
        replica's parameters inside of it (``optkit.on_replicas``). None: parameters are stacked
        along a leading axis, and one that is sharded is averaged by the compiler's collective.
      wire_dtype: what displacements are sent in, such as ``"bfloat16"``; their own by default.
      mean: instead of the plain mean, a transformation that averages over ``axis_name``, such as
        ``optkit.compressed_mean(codec, axis_name)`` or ``optkit.powersgd_mean(axis_name)``; its
        errors stay with each replica. That it sends something along the axis is checked.
      nonfinite: what a mean that is not finite does, as one replica's overflow makes it.
        ``"propagate"``: it enters x, all replicas and the outer optimizer, for good. ``"skip"``:
        the step is left out, all replicas alike go back to x, from which they started, and
        ``state.skipped`` counts it; nothing is read on the host. The work of all of them since
        is lost. What the inner optimizer keeps is not seen: guard it
        (``optkit.skip_nonfinite``), or give the replica the state of another.
      coordinates_axis: for ``"skip"``, other mesh axes inside ``jax.shard_map`` that leaves are cut
        along: parts of a model are skipped all or none. None: leaves are whole, and others are
        refused as far as types tell (``check_vma=True``, the default). (): they are not, and each
        device has a model of its own.

    Returns:
      An ``optkit.outer.OuterStep``. State bytes: 4 per parameter of one replica for x, those of the
      outer optimizer (4 by default), those of ``mean``, and a counter with ``"skip"``.

    Raises:
      TypeError: no optimizer; in init, parameters that are no floats; in step, another state.
      ValueError: ``mean`` without ``axis_name`` or with ``wire_dtype``, another ``nonfinite``, one
        axis for replicas and coordinates; in init and step leading axes that differ, parameters of
        other shapes, no ``axis_name`` inside of an axis; in step a ``mean`` that does not average
        over it, with ``"skip"`` leaves that vary along an axis that has no name here.
      NameError: used outside of its axis.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> outer = optkit.diloco(optax.sgd(0.5))
      >>> params = optkit.replicas(jnp.array([10.0]), 2)
      >>> state = outer.init(params)
      >>> worked = jnp.array([[8.0], [4.0]])
      >>> outer.step(worked, state)[0].tolist()
      [[8.0], [8.0]]

    Reference:
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, arXiv
      2311.08105; compared with PrimeIntellect-ai/OpenDiloco@a5b7236 (train_diloco_torch.py). For
      parameters of 16 bits x is kept in float32, and a replica starts at x as they can say it.
    """
    given = default_outer() if outer_tx is None else outer_tx
    outer = check_transformation("outer_tx", given)
    average = averaging("diloco", axis_name, wire_dtype, mean, nonfinite, coordinates_axis)
    among = average.among

    def init(params: PyTree) -> DilocoState:
        anchor = among.first(params)
        none = jnp.zeros((), jnp.int32) if average.skips else None
        return DilocoState(anchor, outer.init(anchor), average.init(anchor), none)

    def step(params: PyTree, state: DilocoState) -> tuple[PyTree, DilocoState]:
        check_state(state, DilocoState)
        anchor = state.anchor
        moved, kept = average(among.displacement(anchor, params), state.mean, anchor)
        updates, optimizer = outer.update(moved, state.optimizer, anchor)
        anchor, skipped = optax.apply_updates(anchor, updates), state.skipped
        if average.skips:
            sound = average.is_sound(moved)
            old = (state.anchor, state.optimizer)
            anchor, optimizer = chosen(sound, (anchor, optimizer), old)
            skipped = skipped + jnp.where(sound, 0, 1)
        return among.lead(anchor, params), DilocoState(anchor, optimizer, kept, skipped)

    return OuterStep(init, step)
