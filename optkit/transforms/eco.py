"""Training without master weights: the rounding error of the weights goes into the momentum."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.catalogue import register
from optkit.codecs import Codec, Fp8Codec
from optkit.codecs.base import divided
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_transformation,
    keep_dtypes,
    need_params,
    update_inner,
)
from optkit.transforms.error_feedback import fresh_key
from optkit.transforms.grid import check_steps, grid_of, is_matrix, step_to
from optkit.transforms.moment_rules import RULES
from optkit.transforms.momentum import momentum
from optkit.transforms.stored_leaves import leaf_key, round_trip
from optkit.tree import (
    PyTree,
    Selector,
    leaves_with_paths,
    match_state,
    selects,
    zeros_like_params,
)


class EcoState(NamedTuple):
    """State of ``eco``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    key: jax.Array | None  # PRNG key, constant; None if rounding is not random
    error: PyTree | None  # like params, float32: the last rounding error; None unless exact
    inner: PyTree  # state of the inner transformation, with the injected momentum


@register(
    # A wrapper, but not around any transformation: one without momentum is refused.
    kind="part",
    family="precision",
    paper=(
        "ECO: Quantized Training without Full-Precision Master Weights",
        "2601.22101",
        2026,
    ),
    state_bytes={"*": 4},
    tags=("quantization", "mixed precision", "fp8", "momentum"),
    chain="p + u rounded to a codec's grid; momentum <- momentum + (1-b1)*error/(du/dm)",
    example={"inner": optax.chain(momentum(0.9), optax.scale(-0.05))},
)
def eco(
    inner: optax.GradientTransformation,
    codec: Codec | None = None,
    *,
    rounding: Literal["nearest", "stochastic"] = "stochastic",
    exact: bool = False,
    leaves: Selector | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """Keeps weights on a codec's grid, and hands the rounding error to the momentum.

    For each chosen leaf:

    1. ``u`` and the momentum ``m`` from ``inner``, at the rounded weights;
    2. ``w = p + u``; ``p' = round(w)``, with scales anew; 3. ``e = w - p'``;
    4. ``m <- m + (1-b1)*e/J``, where ``J = du/dm_old`` and ``b1 = dm/dm_old``.

    Both derivatives are those of ``inner``, by forward differentiation. For SGD with momentum 4 is
    ``m + (1/lr)*(1 - 1/b1)*e`` and for Adam
    ``m + (c1/lr)*(1 - 1/b1)*(sqrt(nu/c2) + eps)*e``: the paper's Algorithms 2 and 3, and with
    decoupled decay the same. Where ``J`` is 0 (a learning rate of 0) nothing is injected.

    The update leads to the rounded weight; that it can be stored in the codec's bytes is the point,
    and up to the caller: ``codec.encode(p)`` gives those, exact but for the last bit. Float32
    gradients are wanted: an update of 16 bits does not lead to the grid, and what it misses is
    part of ``e``.

    Args:
      inner: a whole optimizer that is differentiable in a momentum: ``mu``, ``momentum``, ``trace``
        or ``m``. Adam, SGD and their like; not Lion, whose sign has no derivative.
      codec: grid of the weights; float8 with a scale for each leaf if None.
      rounding: "stochastic" (the mean is the value), or "nearest".
      exact: also keep the last error, 4 bytes a parameter, to compare with: for SGD with momentum
        at a constant rate the trajectory is then that of float32 master weights.
      leaves: which leaves are rounded: role, glob or function of (path, leaf); those of at least
        two axes if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose updates of 16-bit parameters are float32.
      State bytes: the inner state, and 4 per parameter if ``exact``.

    Raises:
      ValueError: an unknown rounding; params not given to update; a chosen leaf without momentum,
        or of a dtype of 8 bits, in which JAX adds no updates.
      TypeError: a codec of another type.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.eco(optax.sgd(0.5, momentum=0.9), rounding="nearest")
      >>> p = {"w": jnp.array([[448.0, 16.0]])}
      >>> u, state = tx.update({"w": jnp.array([[0.0, -2.0]])}, tx.init(p), p)
      >>> (p["w"] + u["w"]).tolist()  # 17 is between 16 and 18
      [[448.0, 16.0]]
      >>> state.inner[0].trace["w"].round(3).tolist()  # -2 + (1/0.5)*(1 - 1/0.9)*1
      [[0.0, -2.22...]]

    Reference:
      ECO: Quantized Training without Full-Precision Master Weights, arXiv 2601.22101, of which the
      authors have published no code.
    """
    around = check_transformation("inner", inner)
    grid = grid_of(Fp8Codec(block=None) if codec is None else codec, rounding)
    choose: Selector = is_matrix if leaves is None else leaves

    def init_fn(params: PyTree) -> EcoState:
        check_steps(params)
        state = around.init(params)
        _momenta(state, params, choose)
        error = zeros_like_params(params, jnp.float32) if exact else None
        return EcoState(jnp.zeros((), jnp.int32), fresh_key(grid, key), error, state)

    def update_fn(
        updates: PyTree, state: EcoState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, EcoState]:
        params = need_params(params, "eco")
        check_gradients(updates, params)
        flat, structure = jax.tree.flatten(state.inner)
        owners = _momenta(state.inner, params, choose)
        places = list(owners)

        def run(momenta: list[jax.Array]) -> tuple[list[Any], list[Any]]:
            held = list(flat)
            for place, m in zip(places, momenta, strict=True):
                held[place] = m
            old = jax.tree.unflatten(structure, held)
            out, new = update_inner(around, updates, old, params, extra_args)
            return jax.tree.leaves(out), jax.tree.leaves(keep_dtypes(new, old))

        primals = [flat[place] for place in places]
        out, moved, new, decay = _with_derivatives(run, primals, places, owners)
        step_key = None if state.key is None else jax.random.fold_in(state.key, state.count)
        named, given = leaves_with_paths(params), jax.tree.leaves(updates)
        rounded = {owners[place] for place in places}
        # Those on the grid are cast below, when they are known.
        out = [
            u if i in rounded else u.astype(jnp.float32 if p.dtype.itemsize < 4 else g.dtype)
            for i, (u, (_, p), g) in enumerate(zip(out, named, given, strict=True))
        ]
        last = [None] * len(named) if state.error is None else jax.tree.leaves(state.error)
        errors = list(last)
        for place, j, b in zip(places, moved, decay, strict=True):
            i = owners[place]
            path, p = named[i]
            p32 = p.astype(jnp.float32)
            target = p32 + out[i].astype(jnp.float32)
            on_grid = round_trip(grid, target, leaf_key(step_key, path))
            out[i] = step_to(on_grid, p, given[i].dtype)
            error = target - (p32 + out[i].astype(jnp.float32))
            # Without the last error it is taken for the one before.
            before = error if last[i] is None else last[i]
            new[place] = (new[place] + divided(error - b * before, j)).astype(new[place].dtype)
            if last[i] is not None:
                errors[i] = error
        again = (
            None if state.error is None else jax.tree.unflatten(jax.tree.structure(params), errors)
        )
        result = jax.tree.unflatten(jax.tree.structure(updates), out)
        held = jax.tree.unflatten(structure, new)
        return result, EcoState(state.count + 1, state.key, again, held)

    return Transformation(init_fn, update_fn)


def _with_derivatives(
    run: Any, primals: list[jax.Array], places: list[int], owners: dict[int, int]
) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Updates, what they change by with the old momentum, the new state, and what that changes by.

    Of an element-wise optimizer the derivative along ones is each entry's own.
    """
    if not primals:
        out, new = run(primals)
        return out, [], new, []
    ones = [jnp.ones_like(m) for m in primals]
    (out, new), (dout, dnew) = jax.jvp(run, (primals,), (ones,))
    return out, [dout[owners[i]] for i in places], new, [dnew[i] for i in places]


def _momenta(state: PyTree, params: PyTree, choose: Selector) -> dict[int, int]:
    """Which leaf of a state is the momentum of which chosen parameter, both by number."""
    numbers = {path: i for i, (path, _) in enumerate(leaves_with_paths(params))}
    out: dict[int, int] = {}
    for i, match in enumerate(match_state(state, params)):
        path, field = match.param_path, match.owner.rsplit("/", 1)[-1]
        if path is None:
            continue
        fits = np.shape(match.leaf) == np.shape(match.param)
        if fits and field in RULES["signed"] and selects(choose, path, match.param):
            if numbers[path] in out.values():
                raise ValueError(
                    f"leaf {path!r} has two momenta, the second one {match.owner!r}; "
                    "put eco around one optimizer with one momentum"
                )
            out[i] = numbers[path]
    for path, leaf in leaves_with_paths(params):
        if selects(choose, path, leaf) and numbers[path] not in out.values():
            raise ValueError(
                f"leaf {path!r} has no momentum in the inner state for its rounding error; give an "
                f"optimizer with one ({', '.join(RULES['signed'])}), or leave the leaf out: leaves="
            )
    return out
