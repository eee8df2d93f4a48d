"""How estimates call functions of the parameters, and what they answer to those that do not fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.tree import PyTree
from optkit.tree.selection import masked_paths

_OF_NNX = (
    "{what} is called with the parameters, here an nnx.State, and not with a model: split it once, "
    "graph, params, rest = nnx.split(model, nnx.Param, ...), and make the model of them in the "
    "function, lambda params: loss(nnx.merge(graph, params, rest))"
)
_OF_TREE = (
    "{what} is called with the parameters, a {kind} of arrays, and not with a model: compute with "
    "them, as lambda params: loss(model.apply({{'params': params}}, inputs)) does"
)

_OF_PART = (
    "{what} failed on a part of the parameters ({error}): a mask hides the others from this "
    "optimizer. Bind it to all, curvature=optkit.curvature.at(hutchinson(loss_fn, batch), params), "
    "or choose leaves with optkit.route, which binds functions itself"
)


def call(function: Callable[..., Any], params: PyTree, args: tuple[Any, ...], what: str) -> Any:
    """Returns ``function(params, *args)``.

    Raises:
      TypeError: the function takes its parameters for a model; says how one is made of them.
    """
    try:
        return function(params, *args)
    except (TypeError, AttributeError) as error:
        kind = type(params).__name__
        as_model = f"'{kind}' object is not callable" in str(error)
        if kind == "State" and (as_model or "in State" in str(error)):
            raise TypeError(_OF_NNX.format(what=what)) from error
        if as_model or getattr(error, "obj", None) is params:
            raise TypeError(_OF_TREE.format(what=what, kind=kind)) from error
        if masked_paths(params):
            raise TypeError(_OF_PART.format(what=what, error=error)) from error
        raise
    except Exception as error:
        if masked_paths(params):
            raise TypeError(_OF_PART.format(what=what, error=error)) from error
        raise


def loss_of(
    loss_fn: Callable[..., Any], args: tuple[Any, ...], has_aux: bool
) -> Callable[[PyTree], jax.Array]:
    """Returns the loss as a function of the parameters alone.

    Raises:
      TypeError: when called: it does not return one number, or takes its parameters for a model.
    """

    def loss(params: PyTree) -> jax.Array:
        value = call(loss_fn, params, args, "the loss")
        if has_aux and not (isinstance(value, tuple) and len(value) == 2):
            raise TypeError(f"has_aux=True: the loss has to return (loss, aux), {_told(value)}")
        value = value[0] if has_aux else value
        if isinstance(value, tuple | list | dict):
            raise TypeError(
                f"curvature needs a loss that returns one number, {_told(value)}: of one that "
                "returns (loss, aux) give curvature=optkit.curvature.hutchinson(loss_fn, batch, "
                "has_aux=True), or value_fn=lambda p: loss_fn(p, batch)[0]"
            )
        if jnp.shape(value):
            raise TypeError(
                f"curvature needs a loss that returns one number, {_told(value)}: take the mean"
            )
        return value

    return loss


def logits_of(logits_fn: Callable[..., Any], params: PyTree, args: tuple[Any, ...]) -> jax.Array:
    """Returns the logits.

    Raises:
      TypeError: the function returns something else, such as a loss.
    """
    value: Any = call(logits_fn, params, args, "logits_fn")
    if isinstance(value, tuple | list | dict) or value is None or not jnp.shape(value):
        raise TypeError(
            "gauss_newton_bartlett takes a function that returns logits, an array (..., classes), "
            f"{_told(value)}: give what the model returns before any loss; of a loss take "
            "optkit.curvature.hutchinson(loss_fn, batch)"
        )
    return jnp.asarray(value)


def _told(value: Any) -> str:
    """What was returned, for a message."""
    if isinstance(value, tuple | list):
        return f"and this one returns a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, dict):
        return f"and this one returns {'None' if value is None else 'a dict'}"
    return f"and this one returns an array of shape {jnp.shape(value)}"
