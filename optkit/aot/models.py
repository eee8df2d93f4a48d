"""Shapes of well-known models, and where their parameters lie on a mesh; nothing is allocated."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optkit.tree import leaves_with_paths

# Of each kernel: which of its two last axes holds the model's width; the other one is split over
# a second mesh axis.
_WIDTH_LAST = ("out", "down", "embedding")
LAYOUTS = ("fsdp", "fsdp+tensor", "replicated")


def _gpt2(width: int, layers: int, stacked: bool) -> dict[str, Any]:
    """A GPT-2 with query, key and value apart and a tied embedding; the vocabulary is padded."""
    lead = (layers,) if stacked else ()

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def dense(fan_in: int, fan_out: int) -> dict[str, Any]:
        return {"kernel": leaf(*lead, fan_in, fan_out), "bias": leaf(*lead, fan_out)}

    def block() -> dict[str, Any]:
        norm = {"scale": leaf(*lead, width), "bias": leaf(*lead, width)}
        return {
            "norm_1": norm,
            "attention": {name: dense(width, width) for name in ("query", "key", "value", "out")},
            "norm_2": norm,
            "mlp": {"up": dense(width, 4 * width), "down": dense(4 * width, width)},
        }

    return {
        "embed": {"embedding": leaf(50304, width)},
        "position_embed": {"embedding": leaf(1024, width)},
        "blocks": block() if stacked else {str(number): block() for number in range(layers)},
        "final_norm": {"scale": leaf(width), "bias": leaf(width)},
    }


def _llama(width: int, hidden: int, layers: int, stacked: bool) -> dict[str, Any]:
    lead = (layers,) if stacked else ()

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def kernel(fan_in: int, fan_out: int) -> dict[str, Any]:
        return {"kernel": leaf(*lead, fan_in, fan_out)}

    def block() -> dict[str, Any]:
        return {
            "norm_1": {"scale": leaf(*lead, width)},
            "attention": {name: kernel(width, width) for name in ("query", "key", "value", "out")},
            "norm_2": {"scale": leaf(*lead, width)},
            "mlp": {
                "gate": kernel(width, hidden),
                "up": kernel(width, hidden),
                "down": kernel(hidden, width),
            },
        }

    return {
        "embed": {"embedding": leaf(32000, width)},
        "blocks": block() if stacked else {str(number): block() for number in range(layers)},
        "final_norm": {"scale": leaf(width)},
        "lm_head": {"kernel": leaf(width, 32000)},
    }


MODELS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "gpt2-small": lambda stacked: _gpt2(768, 12, stacked),
    "gpt2-medium": lambda stacked: _gpt2(1024, 24, stacked),
    "gpt2-xl": lambda stacked: _gpt2(1600, 48, stacked),
    "llama-7b": lambda stacked: _llama(4096, 11008, 32, stacked),
    "tiny": lambda stacked: _gpt2(128, 2, stacked),
}


def model_shapes(name: str, *, stacked: bool = True, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Returns the parameters of a model as shapes.

    Args:
      name: ``"gpt2-small"``, ``"gpt2-medium"``, ``"gpt2-xl"``, ``"llama-7b"``, or ``"tiny"`` for
        trying things out.
      stacked: whether each kernel holds all layers, as ``nnx.scan`` makes them; otherwise each
        layer has leaves of its own, and compiling takes longer.
      dtype: of the parameters.

    Returns:
      A tree of ``jax.ShapeDtypeStruct``: kernels ``([layers,] fan_in, fan_out)``.

    Raises:
      ValueError: the model is unknown.

    Example:
      >>> from optkit.aot import model_shapes
      >>> model_shapes("gpt2-medium")["blocks"]["mlp"]["up"]["kernel"].shape
      (24, 1024, 4096)
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    shapes = MODELS[name](stacked)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes)


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """Returns a mesh without devices, to say where arguments of a preflight lie.

    Args:
      axes: sizes by name.

    Returns:
      The mesh; its axes are Auto.
    """
    return AbstractMesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes))


def place_model(
    params: Any, axes: Mapping[str, int] | Mesh | AbstractMesh, layout: str = "fsdp"
) -> Any:
    """Returns the parameters of a built-in model, placed on a mesh.

    Args:
      params: from ``model_shapes``, or a tree with such names: leaves called ``kernel`` and
        ``embedding``, below ``out`` or ``down`` where the model's width is the last axis.
      axes: the mesh, or sizes of its axes by name. Axes called ``"slice"`` or ``"data"`` hold
        copies; of the others the first is that of ``"fsdp"``, the second that of ``"tensor"``.
      layout: ``"fsdp"`` splits the axis of the model's width, of stacked layers too;
        ``"fsdp+tensor"`` the other axis of each kernel as well; ``"replicated"`` nothing. Axes that
        do not divide stay whole, as do vectors.

    Returns:
      The tree with shardings.

    Raises:
      ValueError: the layout is unknown, or the mesh has too few axes for it.

    Example:
      >>> from optkit.aot import model_shapes, place_model
      >>> placed = place_model(model_shapes("gpt2-small"), {"fsdp": 4})
      >>> placed["blocks"]["mlp"]["down"]["kernel"].sharding.spec
      P(None, None, 'fsdp')
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    mesh = abstract_mesh(axes) if isinstance(axes, Mapping) else axes
    sizes = dict(mesh.shape)
    splitting = [name for name in sizes if name not in ("slice", "data")]
    wanted = 0 if layout == "replicated" else layout.count("+") + 1
    if len(splitting) < wanted:
        raise ValueError(
            f"layout {layout!r} splits over {wanted} mesh axes, and the mesh {sizes} has "
            f"{len(splitting)} besides 'slice' and 'data'"
        )
    out = []
    for path, leaf in leaves_with_paths(params):
        spec = _spec(path, leaf.shape, splitting[:wanted], sizes)
        placed = NamedSharding(mesh, spec)
        out.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed))
    return jax.tree.unflatten(jax.tree.structure(params), out)


def _spec(
    path: str, shape: tuple[int, ...], names: list[str], sizes: Mapping[str, int]
) -> PartitionSpec:
    """The partition of a leaf: kernels along the width first, then along their other axis."""
    entries: list[str | None] = [None] * len(shape)
    if path.endswith(("kernel", "embedding")):
        width = len(shape) - (1 if any(name in _WIDTH_LAST for name in path.split("/")) else 2)
        for name, axis in zip(names, (width, 2 * len(shape) - 3 - width), strict=False):
            if shape[axis] % sizes[name] == 0:
                entries[axis] = name
    return PartitionSpec(*entries)


def parameter_count(params: Any) -> int:
    """Returns how many parameters a tree has.

    Args:
      params: arrays or shapes.

    Returns:
      Their number.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


__all__ = ["LAYOUTS", "MODELS", "abstract_mesh", "model_shapes", "parameter_count", "place_model"]
