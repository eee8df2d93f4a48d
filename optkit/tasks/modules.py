"""Flax NNX models as pure functions of a nested dict of arrays."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from optkit.tasks.base import Params
from optkit.transfer import nnx_activations


def functional(
    build: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[jax.Array], Params], Callable[..., Any]]:
    """Splits an NNX model into `init(key) -> params` and `apply(params, *inputs) -> outputs`.

    The params are a nested dict with string keys only (list positions become "0", "1", ...), so
    that any checkpoint format and any path rule can read them.

    Args:
      build: makes the model from its random streams; all its state must be `nnx.Param`.

    Returns:
      The two pure functions. Both work under `jit`, `vmap` and `grad`.

    Example:
      >>> init, apply = functional(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
      >>> sorted(init(jax.random.key(0)))
      ['bias', 'kernel']
    """
    graph = _graph(build)

    @jax.jit
    def init(key: jax.Array) -> Params:
        return _string_keys(nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)))))

    def apply(params: Params, *inputs: Any) -> Any:
        return nnx.merge(graph, nnx.restore_int_paths(params))(*inputs)

    return init, apply


def observed(build: Callable[[nnx.Rngs], nnx.Module]) -> Callable[..., dict[str, jax.Array]]:
    """Returns `activations(params, *inputs)`, the outputs of an NNX model's modules by path.

    Args:
      build: as of `functional`, which gives the params.

    Returns:
      The function; works under `jit`.

    Example:
      >>> make = lambda rngs: nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.relu)
      >>> init, _ = functional(make)
      >>> sorted(observed(make)(init(jax.random.key(0)), jax.numpy.ones((1, 2))))
      ['', 'layers/0']
    """

    def activations(params: Params, *inputs: Any) -> dict[str, jax.Array]:
        graph = _graph(build)  # here, since few tasks are ever looked into
        return nnx_activations(nnx.merge(graph, nnx.restore_int_paths(params)), *inputs)

    return activations


def method(build: Callable[[nnx.Rngs], nnx.Module], name: str) -> Callable[..., Any]:
    """Returns a method of an NNX model as a function of its params.

    Args:
      build: as of `functional`, which gives the params.
      name: of the method.

    Returns:
      `called(params, *inputs)`, what the method returns; works under `jit`.

    Example:
      >>> make = lambda rngs: nnx.Embed(4, 3, rngs=rngs)
      >>> init, _ = functional(make)
      >>> method(make, "attend")(init(jax.random.key(0)), jax.numpy.ones((1, 3))).shape
      (1, 4)
    """

    def called(params: Params, *inputs: Any) -> Any:
        graph = _graph(build)  # here, as in `observed`
        return getattr(nnx.merge(graph, nnx.restore_int_paths(params)), name)(*inputs)

    return called


def _graph(build: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    return nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0]


def _string_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {str(name): _string_keys(value) for name, value in tree.items()}
