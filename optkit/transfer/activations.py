"""What the modules of a Flax model put out, by the module's path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.tree import PyTree, leaves_with_paths

Activations = dict[str, jax.Array]


def linen_activations(model: Any, **options: Any) -> Callable[..., Activations]:
    """Returns a function that runs a linen model and gives the output of each of its modules.

    Args:
      model: a ``flax.linen.Module``.
      **options: passed on to ``model.apply``, such as ``train=False``.

    Returns:
      ``activations(params, *inputs) -> {path of a module: its output}``; ``""`` is the whole model.
      For ``optkit.transfer.Trial``; works under ``jit``.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
      >>> seen = optkit.transfer.linen_activations(model)(params, jnp.ones((1, 4)))
      >>> {path: value.shape for path, value in sorted(seen.items())}
      {'': (1, 2), 'layers_0': (1, 3), 'layers_1': (1, 2)}
    """

    def activations(params: PyTree, *inputs: Any) -> Activations:
        _, seen = model.apply(
            {"params": params},
            *inputs,
            capture_intermediates=True,
            mutable=["intermediates"],
            **options,
        )
        return _by_module(seen["intermediates"])

    return activations


def nnx_activations(model: Any, *inputs: Any) -> Activations:
    """Runs an nnx model and returns the output of each of its modules.

    Args:
      model: a ``flax.nnx.Module``; for a function of parameters, ``nnx.merge(graphdef, params)``.
      *inputs: what it is called with.

    Returns:
      ``{path of a module: its output}``; ``""`` is the whole model. Works under ``jit``.

    Raises:
      ImportError: this Flax cannot capture the outputs of modules.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> seen = optkit.transfer.nnx_activations(model, jnp.ones((1, 4)))
      >>> {path: value.shape for path, value in sorted(seen.items())}
      {'': (1, 3), 'layers/0': (1, 3)}
    """
    from flax import nnx  # takes a second

    if not hasattr(nnx, "capture"):
        raise ImportError("this Flax has no nnx.capture; install flax>=0.12.8, or use linen")
    run = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    _, seen = run(*inputs)
    return _by_module(nnx.to_pure_dict(seen))


def _by_module(seen: PyTree) -> Activations:
    """The last output of each module's ``__call__``, by the module's path."""
    out: Activations = {}
    for path, value in leaves_with_paths(seen):
        name, called, _ = f"/{path}".rpartition("/__call__")
        if called and jnp.issubdtype(jnp.asarray(value).dtype, jnp.floating):
            out[name.removeprefix("/")] = value
    return out
