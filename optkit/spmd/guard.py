"""An error, not a local answer, from what combines entries of leaves that devices hold in parts."""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal, jaxprs_in_params

from optkit.spmd.blocks import Block, Devices, Kind, Part, Parts, manual_axes, varying
from optkit.spmd.control import evaluate

Factory = TypeVar("Factory", bound=Callable[..., Any])
_ON_ITS_OWN: contextvars.ContextVar[bool] = contextvars.ContextVar("optkit_own", default=False)
_LOOKING: contextvars.ContextVar[bool] = contextvars.ContextVar("optkit_looking", default=False)


_REMEDY = (
    "Outside of shard_map, under jit, leaves are whole. Here: average gradients first if devices "
    "are workers (jax.lax.pmean); optkit.inside(tx, specs), with the PartitionSpecs of the "
    "parameters, computes on parts what jit does on whole leaves; optkit.inside(tx, ()) takes what "
    "a device holds for all there is, on purpose"
)


_FACTOR = 64  # so large that bounds like max(1, fan_out / fan_in) are met


class _Mixed(Exception):
    """Devices would have to exchange something; says what the transformation does."""


class _Answered(Exception):
    """A part of what is looked at knows that it is inside of shard_map."""


class _Looking(Devices):
    """Devices of which each dimension may be split, and which must not exchange anything."""

    def __init__(self) -> None:
        super().__init__({})

    def count(self, part: Part) -> int:
        """One: shapes are those of blocks."""
        return 1

    def gather(self, x: jax.Array, axis: int, part: Part) -> NoReturn:
        """Refuses."""
        raise _Mixed("needs whole rows, columns or leaves")

    def own(self, x: jax.Array, axis: int, part: Part) -> NoReturn:
        """Refuses."""
        raise _Mixed("treats entries by their position in the whole leaf, or draws numbers for it")

    def total(self, x: jax.Array, names: Part, kind: Kind) -> NoReturn:
        """Refuses."""
        raise _Mixed("adds up or compares entries of a leaf")

    def marked(self, value: jax.Array, parts: Parts) -> jax.Array:
        """Nothing varies in what is only looked at."""
        return value


@contextlib.contextmanager
def _during(variable: contextvars.ContextVar[bool], value: bool = True) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def on_its_own() -> contextlib.AbstractContextManager[None]:
    """Lets transformations inside ``shard_map`` take a device's part for all there is.

    Returns:
      A context: it holds while updates are traced in it.
    """
    return _during(_ON_ITS_OWN)


def answers_for_itself(update: Callable[..., Any]) -> Callable[..., Any]:
    """Marks an update that knows that it is inside ``shard_map``, and what it is made of, too.

    Args:
      update: the update of a transformation.

    Returns:
      The same update, which nothing around it looks into, and nothing in it refuses.
    """

    @functools.wraps(update)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _LOOKING.get():
            raise _Answered
        with _during(_ON_ITS_OWN):
            return update(*args, **kwargs)

    return call


def guarded(factory: Factory) -> Factory:
    """Makes what a factory builds refuse parts of leaves inside ``shard_map`` if it combines them.

    Outside of ``shard_map`` nothing changes. A factory that takes an ``axis_name`` knows what to do
    inside, and is left alone.

    Args:
      factory: returns something with ``update``, a NamedTuple.

    Returns:
      A factory of the same signature.
    """
    knows = "axis_name" in inspect.signature(factory).parameters

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        tx = factory(*args, **kwargs)
        if any(tx is given for given in args):
            return tx
        if knows:
            return tx._replace(update=answers_for_itself(tx.update))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            if not manual_axes() or _ON_ITS_OWN.get() or _LOOKING.get():
                return tx.update(updates, state, params, **extra)
            known = _look(factory.__name__, tx.update, (updates, state, params), extra)
            # What is inside was looked at together with the whole, if that was looked at.
            with _during(_ON_ITS_OWN, known):
                return tx.update(updates, state, params, **extra)

        return tx._replace(update=update)

    return cast(Factory, build)


def _look(
    name: str, update: Callable[..., Any], args: tuple[Any, ...], extra: dict[str, Any]
) -> bool:
    """Raises ValueError if an update combines entries of leaves that may be in parts.

    Returns whether this could be told.
    """
    leaves, structure = jax.tree.flatten((args, extra))
    is_array = [hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [jnp.asarray(x) for x, is_one in zip(leaves, is_array, strict=True) if is_one]
    split, said = _split(args[0], arrays)
    if not any(split):
        return True
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in arrays]

    def whole(*given: Any) -> Any:
        rest = iter(given)
        filled = [next(rest) if one else x for x, one in zip(leaves, is_array, strict=True)]
        own, options = jax.tree.unflatten(structure, filled)
        return update(*own, **options)

    def parts(x: Any, is_split: bool) -> Parts:
        return tuple((str(axis),) if is_split else () for axis in range(x.ndim))

    where = f"is used inside a shard_map over {sorted(manual_axes())}, where {said}"
    try:
        with _during(_LOOKING):
            program = jax.make_jaxpr(whole)(*shapes)
            _run(program, [parts(x, is_one) for x, is_one in zip(shapes, split, strict=True)])
            _compare_sizes(program, whole, shapes, split)
    except _Answered:
        return False
    except _Mixed as mixed:
        raise ValueError(f"{name} {mixed}, and {where}. {_REMEDY}") from None
    except (TypeError, ValueError) as error:
        # A state of whole leaves, for example, and parts of leaves beside it.
        said = str(error).rstrip(".")
        raise type(error)(f"{name} {where}, and answers: {said}. {_REMEDY}") from error
    return True


def _run(program: Any, laid: list[Parts]) -> None:
    """Follows what may be split through a program; raises _Mixed at what would need an exchange."""
    shapes = [var.aval for var in program.jaxpr.invars]

    def run(*values: jax.Array) -> list[jax.Array]:
        given = [Block(x, own, x.shape) for x, own in zip(values, laid, strict=True)]
        return [block.value for block in evaluate(_Looking(), program, given)]

    jax.eval_shape(run, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes))


def _compare_sizes(
    program: Any, whole: Callable[..., Any], shapes: list[Any], split: list[bool]
) -> None:
    """Raises _Mixed if numbers in a program depend on how large leaves are, as fan_in does."""
    for axis in (0, -1):
        longer = []
        for x, is_split in zip(shapes, split, strict=True):
            size = list(x.shape)
            if is_split:
                size[axis] *= _FACTOR
            longer.append(jax.ShapeDtypeStruct(size, x.dtype, weak_type=x.weak_type))
        try:
            other = jax.make_jaxpr(whole)(*longer)
        except (TypeError, ValueError):
            return  # it knows its leaves
        if _numbers(program) != _numbers(other):
            raise _Mixed("computes with the sizes of leaves")


def _numbers(program: Any) -> list[bytes]:
    """The single numbers that stand in a program."""
    jaxpr = getattr(program, "jaxpr", program)
    out = [np.asarray(x).tobytes() for x in getattr(program, "consts", ()) if np.ndim(x) == 0]
    for eqn in jaxpr.eqns:
        out += [np.asarray(x.val).tobytes() for x in eqn.invars if isinstance(x, Literal)]
        for inner in jaxprs_in_params(eqn.params):
            out += _numbers(inner)
    return out


def _split(updates: Any, arrays: list[jax.Array]) -> tuple[list[bool], str]:
    """Which arrays may be parts of larger ones, and why that is so."""
    if varying(lax.axis_index(min(manual_axes()))):
        split = [bool(varying(x)) and x.ndim > 0 for x in arrays]
        path, names = next(
            (
                (jax.tree_util.keystr(path), sorted(varying(leaf)))
                for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
                if hasattr(leaf, "dtype") and varying(leaf)
            ),
            ("of the state or the parameters", []),
        )
        return split, f"leaf {path} differs along {names}"
    # Without types that keep track of it, parts look like whole leaves.
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(updates)} - {()}
    said = "each device may have a part of each leaf (check_vma=False does not tell)"
    return [x.shape in shapes for x in arrays], said
