"""Weights that live on the grid of a codec: the one way there, and a wrapper that takes it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from optkit.catalogue import register
from optkit.codecs import AffineCodec, Codec
from optkit.codecs.base import codec_name, parts_of
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_transformation,
    keep_dtypes,
    need_params,
    update_inner,
)
from optkit.transforms.error_feedback import check_codec, fresh_key
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.stored_leaves import leaf_key, read, renewed, round_trip, write
from optkit.tree import PyTree, Selector, leaves_with_paths, selects
from optkit.tree.selection import check_selects
from optkit.tree.sharding import spec_of

GridRounding = Literal["nearest", "stochastic"]
# Gives uniform numbers by path, shape and step.
Uniforms = Callable[[str, tuple[int, ...], jax.Array], Any]


class QuantizeParamsState(NamedTuple):
    """State of ``quantize_params``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    key: jax.Array | None  # PRNG key, constant; None if rounding is not random
    codes: PyTree  # at chosen leaves what the codec stored, else masked nodes; () unless asked for
    inner: PyTree  # state of the inner transformation


def is_matrix(path: str, leaf: Any) -> bool:
    """Selects leaves of at least two axes."""
    del path
    return np.ndim(leaf) >= 2


def grid_of(codec: Any, rounding: GridRounding) -> Codec:
    """Returns a codec that rounds as asked, if it is one with a choice."""
    check_choice("rounding", rounding, ("nearest", "stochastic"))
    grid = check_codec("codec", codec, "AffineCodec()")
    if any(field.name == "rounding" for field in dataclasses.fields(grid)):
        grid = dataclasses.replace(grid, rounding=rounding)  # type: ignore[call-arg]
    return grid


def check_steps(params: PyTree) -> None:
    """Raises for leaves that no update can be added to."""
    for path, leaf in leaves_with_paths(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 2:
            raise ValueError(
                f"leaf {path!r} is {leaf.dtype}, in which JAX adds no updates; give it in "
                "float32 or bfloat16 with values on the grid: codec.round_trip(leaf)"
            )


def step_to(value: jax.Array, p: jax.Array, dtype: Any) -> jax.Array:
    """Returns the update from p to a value, as far as p's dtype holds it; float32 for 16 bits."""
    step = value.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32)
    return step if p.dtype.itemsize < 4 else step.astype(dtype)


@register(
    kind="wrapper",
    family="precision",
    paper=(
        "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
        "2407.08296",
        2024,
    ),
    state_bytes={"*": 0},
    tags=("quantization", "mixed precision", "8-bit", "rounding"),
    chain="p + u rounded to a codec's grid",
)
def quantize_params(
    inner: optax.GradientTransformation,
    codec: Codec | None = None,
    *,
    rounding: GridRounding = "stochastic",
    leaves: Selector | None = None,
    store: bool = False,
    key: int | jax.Array = 0,
    uniforms: Uniforms | None = None,
) -> Transformation:
    """Keeps weights on the grid of a codec, with scales anew at every step and no master copy.

    For each chosen leaf:

    1. ``u`` from ``inner``, at the weights on the grid; 2. ``p <- round(p + u)``.

    Rounded at random a weight is on average what it should be, so that steps far below the grid's
    are not lost. What rounding leaves goes nowhere; ``optkit.eco`` hands it to the momentum.

    With ``store=True`` the state holds the codes, and they are the weights: parameters are what is
    read of them, in any dtype, and need not be kept (``optkit.stored_params``). It has to be the
    last link then: what changes the updates after it, or parameters between steps, is not seen.
    Begin with ``stored_params(state, params)``, which are on the grid. Without it the
    updates lead to the grid; ``codec.encode(p)`` gives codes of a grid that may be a little
    narrower, so that only ``store`` keeps weights exactly from step to step in so few bytes.

    Args:
      inner: a whole optimizer, with its learning rate.
      codec: grid of the weights; ``AffineCodec()``, 8 bits in groups of 256, if None.
      rounding: "stochastic" or "nearest".
      leaves: which leaves are rounded: role, glob or function of (path, leaf); those of at least
        two axes if None.
      store: keep the codes in the state.
      key: seed or PRNG key of stochastic rounding.
      uniforms: what stands in for random numbers: ``uniforms(path, shape, step)`` returns as many
        of [0, 1) as the codec's blocks have entries.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose updates of 16-bit parameters are float32.
      State bytes: the inner state, and with ``store`` the codec's: ``1 + 8/256`` per parameter.

    Raises:
      ValueError: an unknown rounding; params not given to update; at init ``leaves`` that name
        none, or a leaf of a dtype of 8 bits, in which JAX adds no updates.
      TypeError: a codec of another type.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> codec = optkit.codecs.AffineCodec(bits=2)
      >>> tx = optkit.quantize_params(optax.sgd(1.0), codec, rounding="nearest")
      >>> p = {"w": jnp.array([[0.0, 1.0, 2.0, 3.0]])}
      >>> u, state = tx.update({"w": jnp.array([[0.0, 0.4, 0.6, 0.0]])}, tx.init(p), p)
      >>> (p["w"] + u["w"]).tolist()
      [[0.0, 1.0, 1.0, 3.0]]

    Reference:
      Zhang et al., Q-GaLore, arXiv 2407.08296, with the range widened to 0 (see
      ``optkit.codecs.AffineCodec``).
    """
    around = check_transformation("inner", inner, swapped_with=codec)
    grid = grid_of(AffineCodec() if codec is None else codec, rounding)
    choose: Selector = is_matrix if leaves is None else leaves

    def flags(params: PyTree) -> list[bool]:
        return [selects(choose, path, leaf) for path, leaf in leaves_with_paths(params)]

    def init_fn(params: PyTree) -> QuantizeParamsState:
        check_steps(params)
        if leaves is not None:
            check_selects("leaves", leaves, params)
        codes: PyTree = ()
        if store:
            nearest = grid_of(grid, "nearest")
            nodes = [
                write(nearest, jnp.copy(p).astype(jnp.float32)) if on else optax.MaskedNode()
                for on, p in zip(flags(params), jax.tree.leaves(params), strict=True)
            ]
            codes = jax.tree.unflatten(jax.tree.structure(params), nodes)
        count = jnp.zeros((), jnp.int32)
        held = _read(grid, codes, params) if store else params
        return QuantizeParamsState(count, fresh_key(grid, key), codes, around.init(held))

    def landed(
        path: str, w: jax.Array, u: jax.Array, p: jax.Array, state: QuantizeParamsState
    ) -> tuple[jax.Array, Any]:
        """The value on the grid, and its codes if they are kept."""
        random = None
        if state.key is not None:
            random = leaf_key(jax.random.fold_in(state.key, state.count), path)
            if uniforms is not None:
                random = jnp.asarray(uniforms(path, p.shape, state.count))
        target = w.astype(jnp.float32) + u.astype(jnp.float32)
        if not store:
            return round_trip(grid, target, random), None
        node = write(grid, target, random)
        return read(grid, node, p.shape, spec_of(p)), node

    def update_fn(
        updates: PyTree, state: QuantizeParamsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, QuantizeParamsState]:
        params = need_params(params, "quantize_params")
        check_gradients(updates, params)
        weights, given = params, updates
        if store:
            weights = _read(grid, state.codes, params)
            given = jax.tree.map(
                lambda g, w: g.astype(jnp.promote_types(g.dtype, w.dtype)), updates, weights
            )
        out, after = update_inner(around, given, state.inner, weights, extra_args)
        steps, nodes = [], []
        trees = map(jax.tree.leaves, (out, weights, updates))
        for on, (path, p), u, w, g in zip(
            flags(params), leaves_with_paths(params), *trees, strict=True
        ):
            value, node = landed(path, w, u, p, state) if on else (None, optax.MaskedNode())
            wide = jnp.float32 if p.dtype.itemsize < 4 else g.dtype
            steps.append(u.astype(wide) if value is None else step_to(value, p, g.dtype))
            nodes.append(node)
        codes = _renewed(state.codes, nodes, params) if store else ()
        return jax.tree.unflatten(jax.tree.structure(updates), steps), QuantizeParamsState(
            state.count + 1, state.key, codes, keep_dtypes(after, state.inner)
        )

    return Transformation(init_fn, update_fn)


def _renewed(codes: PyTree, nodes: list[Any], params: PyTree) -> PyTree:
    structure: Any = jax.tree.structure(params)
    pairs = zip(structure.flatten_up_to(codes), nodes, strict=True)
    held = [new if isinstance(new, optax.MaskedNode) else renewed(old, new) for old, new in pairs]
    return jax.tree.unflatten(structure, held)


def stored_params(state: PyTree, params: PyTree, codec: Codec | None = None) -> PyTree:
    """Returns the weights that ``optkit.quantize_params(..., store=True)`` keeps in its state.

    Between two steps that state is all there has to be of them.

    Args:
      state: of any optimizer with ``quantize_params`` in it.
      params: the parameters; where their weights are stored, their shapes and dtypes are enough.
      codec: the grid; ``AffineCodec()`` if None.

    Returns:
      A tree like ``params``: weights that are stored in their dtype, all others as they are.

    Raises:
      ValueError: a state without stored weights, or with those of another codec.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> tx = optkit.quantize_params(optax.sgd(0.1), store=True)
      >>> shapes = {"w": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
      >>> state = tx.init({"w": jnp.array([[0.0, 255.0]])})
      >>> optkit.stored_params(state, shapes)["w"].tolist()
      [[0.0, 255.0]]
    """
    grid = AffineCodec() if codec is None else codec
    is_ours: Callable[[Any], bool] = lambda node: isinstance(node, QuantizeParamsState)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(node)]
    found = [node for node in found if jax.tree.leaves(node.codes)]
    if not found:
        raise ValueError(
            "the state holds no stored weights; build it with quantize_params(..., store=True)"
        )
    out = params
    for node in found:
        exact = _read(grid, node.codes, out)
        out = jax.tree.map(lambda w, p: w if w is p else w.astype(p.dtype), exact, out)
    return out


def _read(grid: Codec, codes: PyTree, params: PyTree) -> PyTree:
    """The parameters, with the exact float32 weights in place of those that are stored."""
    structure: Any = jax.tree.structure(params)
    try:
        nodes = structure.flatten_up_to(codes)
    except ValueError as error:
        raise ValueError(
            f"the stored weights are those of another tree than these parameters ({error}); give "
            "parameters of the tree that init was given"
        ) from error
    leaves = []
    for node, (path, p) in zip(nodes, leaves_with_paths(params), strict=True):
        if isinstance(node, optax.MaskedNode):
            leaves.append(p)
            continue
        if codec_name(node) != grid.name:
            raise ValueError(
                f"weights were stored by codec {codec_name(node)!r}, and {grid.name!r} reads them; "
                "give that codec"
            )
        found = {name: part.shape for name, part in parts_of(node).items()}
        needed = {name: part.shape for name, part in grid.shapes(p.shape).items()}
        if found != needed:
            raise ValueError(
                f"leaf {path!r} of shape {p.shape} would be stored as {needed}, and the state has "
                f"{found}; give the shape that init was given"
            )
        placed = None if isinstance(p, jax.core.Tracer) else getattr(p, "sharding", None)
        value = read(grid, node, p.shape, spec_of(p) if isinstance(p, jax.Array) else None)
        # Without jit, beside the parameter; with it the compiler knows where its sum will lie.
        leaves.append(jax.device_put(value, placed) if isinstance(placed, NamedSharding) else value)
    return jax.tree.unflatten(structure, leaves)
