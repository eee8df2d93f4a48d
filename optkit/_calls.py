"""How the catalogue's factories are called: cached, observed, and answered when a call is wrong."""

import contextlib
import contextvars
import difflib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

from optkit.tree.paths import leaves_with_paths

Factory = TypeVar("Factory", bound=Callable[..., Any])

_MOST_LINES = 6  # of a message

Observer = Callable[[str, Any], None]
_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "optkit_observer", default=None
)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Calls ``observer(name, params)`` at each init of a wrapper that a user put around something.

    Wrappers inside a recipe are a part of it and not told.
    """
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def observed(factory: Factory, told: bool) -> Factory:
    """Makes what a factory builds tell the observer of its init, or keep all inside it untold."""

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        tx = factory(*args, **kwargs)
        if any(tx is given for given in args):
            return tx  # accumulate_gradients(inner, 1) is inner

        def init(params: Any) -> Any:
            observer = _OBSERVER.get()
            if observer is None:
                return tx.init(params)
            if told:
                observer(factory.__name__, params)
                return tx.init(params)
            token = _OBSERVER.set(None)
            try:
                return tx.init(params)
            finally:
                _OBSERVER.reset(token)

        return tx._replace(init=init)

    return cast(Factory, build)


class _Unfit(ValueError):
    """A state that is not of these gradients."""


def explained(factory: Factory) -> Factory:
    """Makes what a factory builds say so where a state is not what its init gives.

    Left alone, states of another optimizer or of other shapes are attributes that are not there,
    or arrays that do not broadcast, without a leaf's name. Looked at only once a call has failed.
    """

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        tx = factory(*args, **kwargs)
        if any(tx is given for given in args):
            return tx

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            try:
                return tx.update(updates, state, params, **extra)
            except _Unfit:
                raise
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # Errors of ours name a leaf already; what fails for another reason says its own.
                foreign = isinstance(error, AttributeError | KeyError) or "shapes" in str(error)
                given = updates if params is None else params
                lines = _misfits(tx.init, given, state) if foreign else []
                if not lines:
                    raise
                raise _Unfit(
                    f"{factory.__name__}: the state is not what init of this optimizer returns for "
                    "these leaves; call tx.init(params) anew, or fill it from an export of the old "
                    f"one (optkit.restore_state):\n{chr(10).join(lines)}"
                ) from error

        return tx._replace(update=update)

    return cast(Factory, build)


def _misfits(init: Callable[[Any], Any], params: Any, state: Any) -> list[str]:
    """Where a state differs from a fresh one, a line a leaf, the first few; none if unknown."""
    try:
        fresh = jax.eval_shape(init, params)
    except Exception:  # what init says of these leaves is another matter
        return []
    held, wanted = (
        {path: np.shape(leaf) for path, leaf in leaves_with_paths(tree)} for tree in (state, fresh)
    )
    lines = [f"  {path}: not in the state" for path in wanted if path not in held]
    lines += [f"  {path}: in the state only" for path in held if path not in wanted]
    lines += [
        f"  {path}: {held[path]} in the state, {shape} for these leaves"
        for path, shape in wanted.items()
        if held.get(path, shape) != shape
    ]
    return lines[:_MOST_LINES] + ["  ..."] * (len(lines) > _MOST_LINES)


# What recipes have built, by the identity of its update.
_RECIPES: weakref.WeakKeyDictionary[Callable[..., Any], str] = weakref.WeakKeyDictionary()


def remembered(factory: Factory) -> Factory:
    """Makes ``recipe_of`` know what a recipe builds."""

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        tx = factory(*args, **kwargs)
        _RECIPES[tx.update] = factory.__name__
        return tx

    return cast(Factory, build)


def recipe_of(tx: Any) -> str | None:
    """Returns the name of the recipe that built a transformation, a whole optimizer; else None."""
    return _RECIPES.get(tx.update)


def cached_factory(factory: Factory) -> Factory:
    """Makes equal calls of a factory return one object, and wrong ones say what it takes."""
    build = functools.lru_cache(maxsize=256, typed=True)(factory)
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Defaults filled in: lion(1e-3) and lion(learning_rate=1e-3) are one call.
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_misfit(factory.__name__, signature, kwargs, error)) from None
        bound.apply_defaults()
        try:
            hash((bound.args, tuple(bound.kwargs.values())))
        except TypeError:
            # Arrays, tracers, trees and lists have no hash; such calls are built each time.
            return factory(*args, **kwargs)
        return build(*bound.args, **bound.kwargs)

    return cast(Factory, call)


def _misfit(name: str, signature: inspect.Signature, options: Mapping[str, Any], said: Any) -> str:
    """Returns what is wrong with a call; Python's own message names neither function nor remedy."""
    takes = [p.name for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    unknown = next((option for option in options if option not in takes), None)
    if unknown is None:
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        return f"{name}() cannot be called so: {said}; it takes {inspect.Signature(bare)}"
    return _unknown(name, unknown, takes)


def _unknown(name: str, option: str, takes: Sequence[str]) -> str:
    close = difflib.get_close_matches(option, takes, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name}() got an unknown option {option!r}; {hint}it takes {', '.join(takes)}"


def check_options(
    name: str, options: Mapping[str, Any], factory: Callable[..., Any], own: Sequence[str]
) -> None:
    """Raises TypeError if options that are handed on are none of the factory that takes them.

    Args:
      name: who takes ``**options``, for the message.
      options: what it was given.
      factory: whose keyword arguments they have to be.
      own: names of the arguments that it takes itself.
    """
    parameters = inspect.signature(factory).parameters.values()
    takes = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in own]
    for option in options:
        if option not in takes:
            raise TypeError(_unknown(name, option, [*own, *takes]))
