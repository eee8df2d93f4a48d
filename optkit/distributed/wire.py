"""What a transformation sends over the wire, counted in the program that it traces to."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from optkit.distributed.workers import as_varying, axes_of
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, leaf_bytes, tree_bytes


class WireBytes(NamedTuple):
    """Bytes that each worker sends in a step."""

    least: float  # of the cheapest branches, where a step may go several ways
    most: float  # of the dearest ones, such as the plain averages before compression starts
    plain: float  # of a plain average of all gradients


def _reduced(size: float, workers: int) -> float:
    return 2.0 * size * (workers - 1) / workers


def _scattered(size: float, workers: int) -> float:
    return size * (workers - 1) / workers


def _gathered(size: float, workers: int) -> float:
    return size * (workers - 1)


# Bytes that a worker sends for operands of so many, by algorithms that send the least.
_COSTS: dict[str, Callable[[float, int], float]] = {
    "psum": _reduced,
    "psum_invariant": _reduced,
    "pmax": _reduced,
    "pmin": _reduced,
    "reduce_scatter": _scattered,
    "all_to_all": _scattered,
    "all_gather": _gathered,
    "all_gather_invariant": _gathered,
    "all_gather_reduced": _gathered,
    "ppermute": lambda size, _: size,
}


def _programs(value: Any) -> Iterator[Any]:
    """The programs inside a parameter of an equation."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _programs(item)
    elif hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        yield getattr(value, "jaxpr", value)


def axes_sent_along(program: Any) -> Iterator[Any]:
    """The names of the axes that a program sends along, each as often as it does."""
    for equation in program.eqns:
        if equation.primitive.name in _COSTS:
            for key in ("axes", "axis_name"):
                names = equation.params.get(key, ())
                yield from names if isinstance(names, tuple) else (names,)
        for value in equation.params.values():
            for inner in _programs(value):
                yield from axes_sent_along(inner)


def _count(program: Any, workers: int) -> tuple[float, float]:
    least = most = 0.0
    for equation in program.eqns:
        name = equation.primitive.name
        if name in _COSTS:
            size = sum(leaf_bytes(x.aval) for x in equation.invars)
            own = [(_COSTS[name](size, workers),) * 2]
        else:
            own = [
                _count(inner, workers)
                for value in equation.params.values()
                for inner in _programs(value)
            ]
        if name == "cond":
            own = [(min(low for low, _ in own), max(high for _, high in own))]
        times = equation.params["length"] if name == "scan" else 1
        least += times * sum(low for low, _ in own)
        most += times * sum(high for _, high in own)
    return least, most


def wire_bytes(
    tx: Any, params: PyTree, workers: int, axis_name: str | tuple[str, ...] = "data"
) -> WireBytes:
    """Counts the bytes that each worker sends in a step of a transformation.

    The step is traced for a mesh that need not be there, and its collectives are counted, by
    algorithms that send the least: an average of B bytes sends ``2 B (workers-1)/workers``, an
    exchange of rows half of it. A compiler may choose other ones.

    Args:
      tx: anything with ``init`` and ``update`` that communicates along one axis.
      params: the parameters or their shapes.
      workers: how many there are.
      axis_name: the name of their axis in ``tx``.

    Returns:
      ``WireBytes(least, most, plain)``.

    Raises:
      ValueError: several axes, or no workers.
      NameError: ``tx`` averages over another axis.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jax.ShapeDtypeStruct((1024, 4096), jnp.float32)}
      >>> sent = optkit.wire_bytes(optkit.powersgd_mean("data", rank=4), params, workers=8)
      >>> [round(number / 2**20, 2) for number in (sent.least, sent.plain)]
      [0.14, 28.0]
    """
    (name,) = axes_of(axis_name) if len(axes_of(axis_name)) == 1 else (None,)
    if name is None:
        raise ValueError(f"axis_name={axis_name!r} must be one axis: each has a wire of its own")

    check_static_int("workers", workers)

    def step(params: PyTree) -> tuple[()]:
        tx.update(as_varying(params, name), tx.init(params), params)
        return ()

    mapped = jax.shard_map(
        step,
        mesh=AbstractMesh((workers,), (name,)),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    least, most = _count(jax.make_jaxpr(mapped)(params).jaxpr, workers)
    return WireBytes(least, most, _reduced(tree_bytes(params), workers))
