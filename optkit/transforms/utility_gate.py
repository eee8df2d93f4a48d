"""Utility-based gates: what a weight is good for decides how far gradient and noise may move it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.catalogue import register
from optkit.linalg.norms import norm_over
from optkit.transforms.base import (
    Transformation,
    check_same_leaves,
    check_transformation,
    map_leaves,
    need_params,
)
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key, normal_like
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    Role,
    RuleLike,
    dims_by_path,
    leaves_with_paths,
    matrix_view,
    rule_of,
    upcast,
    zeros_like_params,
)

Profile = Literal[
    "paper_global",
    "readme_global",
    "experiment_global",
    "experiment_local",
    "nonprotecting_global",
    "nonprotecting_local",
    "safe",
]


class _Rule(NamedTuple):
    scope: Literal["global", "local", "magnitude"] = "global"
    corrected: bool = True  # the maximum is that of the debiased utilities
    factor: float = 1.0  # k
    protects: bool = True  # the gate holds back the gradient too, and not the noise alone


PROFILES: dict[str, _Rule] = {
    "paper_global": _Rule(),
    "readme_global": _Rule(corrected=False, factor=2.0),
    "experiment_global": _Rule(corrected=False),
    "experiment_local": _Rule("local"),
    "nonprotecting_global": _Rule(corrected=False, protects=False),
    "nonprotecting_local": _Rule("local", protects=False),
    "safe": _Rule("magnitude"),
}


class UtilityGateState(NamedTuple):
    """State of ``utility_gate``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    utility: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    key: jax.Array  # threefry PRNG key, constant
    direction: PyTree  # state of the direction
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _row_axes(tree: PyTree, dims: Dims, roles: Sequence[RuleLike]) -> list[tuple[int, ...]]:
    """Returns the axes of each leaf over which one output sums; the last axis of what is no matrix.

    Heads count as matrices here: they have outputs.
    """
    named = dims_by_path(tree, dims)
    out: list[tuple[int, ...]] = []
    for path, leaf in leaves_with_paths(tree):
        rank, rule = np.ndim(leaf), rule_of(path, leaf, roles)
        is_matrix = rank >= 2 and rule.role in (*MATRIX_ROLES, Role.HEAD)
        own = rule.dims if dims is None else dims if named is None else named[path]
        if named is not None:
            is_matrix = own is not None
        role = rule.role if rule.role in MATRIX_ROLES else Role.MATRIX
        last = (rank - 1,) if rank else ()
        out.append(matrix_view(leaf, own, path=path, role=role).in_axes if is_matrix else last)
    return out


def _last_axes(tree: PyTree) -> list[tuple[int, ...]]:
    return [(x.ndim - 1,) if x.ndim else () for x in jax.tree.leaves(tree)]


def _largest(utility: PyTree, magnitude: bool) -> jax.Array:
    """The largest entry of all leaves, one number for the whole tree; 1e-38 instead of 0."""
    leaves = [x for x in jax.tree.leaves(utility) if x.size]
    if not leaves:
        return jnp.ones(())
    # One number a leaf, then one of all: a single exchange where leaves lie on several devices.
    tops = [jnp.max(jnp.abs(x) if magnitude else x).astype(jnp.float32) for x in leaves]
    # Sorted: XLA copies a plain maximum of all leaves into the arithmetic of each of them.
    top = jnp.sort(jnp.stack(tops))[-1]
    return jnp.where(top == 0, jnp.finfo(jnp.float32).tiny, top)


@register(
    kind="part",
    family="continual",
    paper=(
        "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
        "2302.03281",
        2023,
    ),
    state_bytes={"*": 4},
    tags=("upgd", "plasticity", "noise"),
    chain="U <- b U - (1-b) g p; (u + sigma z) * sigmoid(-U/max(U))",
)
def utility_gate(
    direction: optax.GradientTransformation | None = None,
    *,
    b: ScalarOrSchedule = 0.999,
    sigma: ScalarOrSchedule = 1e-3,
    profile: Profile = "paper_global",
    rows: Literal["fan_in", "last_axis"] = "fan_in",
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Holds back useful weights, and stirs the useless ones with noise.

    The utility of a weight is to first order what the loss would gain were it set to 0. With ``n``
    the number of the update, counted from 1, and ``z`` standard normal:

    1. ``a = direction(g)``, or ``g``;
    2. ``U <- b*U + (1-b)*(-g*p)``; with the extra argument ``hessian``, a tree of diagonals ``h``,
       ``h*p**2/2`` is added to ``-g*p``; ``V = U/(1-b**n)``;
    3. ``w = 1 - sigmoid(V/eta)``; ``u = k*(a + sigma*z)*w``.

    ==================== ==================================== === =====================
    profile              eta                                  k   step 3
    ==================== ==================================== === =====================
    paper_global         ``max(V)`` over all leaves           1
    readme_global        ``max(U)``, not debiased             2
    experiment_global    ``max(U)``                           1
    experiment_local     ``max(norm(V), 1e-12)`` of each row  1
    nonprotecting_global ``max(U)``                           1   ``u = a + sigma*z*w``
    nonprotecting_local  as experiment_local                  1   ``u = a + sigma*z*w``
    safe                 ``max(abs(V))`` over all leaves      1
    ==================== ==================================== === =====================

    An undebiased ``U`` makes the ratio ``1/(1-b**n)`` times too large, a thousandfold at the first
    step with b = 0.999: early gates are 0 or 1. Where all utilities are negative, a global maximum
    is negative too and turns the order round; "safe", which is ours, has no such case. Zero divided
    by zero is 0: a gate of 1/2.

    Noise is drawn from the key, the number of the step and the leaf's path, so that any sharding
    gives the same run; ``update(..., noise=tree)`` takes recorded standard normal numbers.

    The part takes a direction because utility belongs to the raw gradient, while the gate stands
    behind what is made of it.

    Args:
      direction: what makes the step of the gradient, such as ``optkit.scale_by_adam()``; None
        takes the gradient itself.
      b: decay rate of the utility, in [0, 1).
      sigma: deviation of the noise, in units of the direction.
      profile: see above.
      rows: what a local profile calls a row: all inputs of one output ("fan_in"; the last axis of
        what is no matrix), or the "last_axis" of every leaf, as the reference does with whatever
        layout it meets.
      key: seed or PRNG key; None for 0.
      dims: matrix axes for "fan_in", see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules for "fan_in".
      state_dtype: dtype of ``U``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one number per parameter, a key, and the state of the direction. A global profile exchanges
      one number for the whole tree where parameters are sharded.

    Raises:
      ValueError: an option out of range or unknown, params not given to update, or noise or a
        Hessian diagonal that does not fit the updates.
      TypeError: ``direction`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx, params = optkit.utility_gate(sigma=0.0), {"w": jnp.array([1.0, 2.0, -1.0])}
      >>> u, _ = tx.update({"w": jnp.array([-1.0, -1.0, -1.0])}, tx.init(params), params)
      >>> [round(float(-x), 3) for x in u["w"]]  # the second weight is the most useful
      [0.378, 0.269, 0.622]

    Reference:
      Elsayed and Mahmood, arXiv 2302.03281 (ICLR 2024). Paper, README and experiments of the
      reference differ as the table says; a gate that is 0/0 there is NaN.
    """
    check_number("b", b, low=0.0, high=1.0, open_high=True)
    check_number("sigma", sigma, low=0.0)
    check_choice("profile", profile, tuple(PROFILES))
    check_choice("rows", rows, ("fan_in", "last_axis"))
    check_seed(key)
    inner = check_transformation("direction", optax.identity() if direction is None else direction)
    rule = PROFILES[profile]
    silent = not isinstance(sigma, jax.Array) and sigma == 0.0

    def ratios(utility: PyTree, correction: Scalar) -> PyTree:
        """Returns ``V/eta``."""
        if rule.scope != "local":
            eta = _largest(utility, rule.scope == "magnitude")
            above = 1.0 if rule.corrected else 1.0 / correction
            return jax.tree.map(lambda x: upcast(x) / eta * above, utility)
        axes = _row_axes(utility, dims, roles) if rows == "fan_in" else _last_axes(utility)
        leaves: list[jax.Array] = []
        for x, along in zip(jax.tree.leaves(utility), axes, strict=True):
            value = upcast(x) / correction
            leaves.append(value / jnp.maximum(norm_over(value, along), 1e-12))
        return jax.tree.unflatten(jax.tree.structure(utility), leaves)

    def init_fn(params: PyTree) -> UtilityGateState:
        if rule.scope == "local" and rows == "fan_in":
            _row_axes(params, dims, roles)  # to refuse dimension numbers that do not fit
        return UtilityGateState(
            jnp.zeros((), jnp.int32),
            zeros_like_params(params, state_dtype),
            fresh_key(key),
            inner.init(params),
            recorded(jnp.zeros((), jnp.int32), b=b, sigma=sigma),
        )

    def update_fn(
        updates: PyTree,
        state: UtilityGateState,
        params: PyTree | None = None,
        *,
        noise: PyTree | None = None,
        hessian: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, UtilityGateState]:
        params = need_params(params, "utility_gate")
        check_same_leaves(updates, params, "parameters", shapes=True)
        decay, deviation = value_at(b, state.count), value_at(sigma, state.count)

        def follow(g: jax.Array, p: jax.Array, old: jax.Array, *h: jax.Array) -> jax.Array:
            p32 = upcast(p)
            gain = -upcast(g) * p32
            if h:
                gain = gain + 0.5 * upcast(h[0]) * p32 * p32
            return (decay * upcast(old) + (1.0 - decay) * gain).astype(old.dtype)

        second = () if hessian is None else (hessian,)
        utility = map_leaves(follow, updates, params, state.utility, *second)
        ratio = ratios(utility, debias(decay, state.count + 1))
        out, directed = inner.update(updates, state.direction, params, **extra_args)

        def gate(u: jax.Array, g: jax.Array, r: jax.Array, *z: jax.Array) -> jax.Array:
            w, moved = jax.nn.sigmoid(-r), upcast(u)
            stirred = deviation * upcast(z[0]) if z else 0.0
            moved = (moved + stirred) * w if rule.protects else moved + stirred * w
            return (rule.factor * moved).astype(g.dtype)

        drawn = () if silent else (normal_like(updates, state.key, state.count, noise),)
        out = map_leaves(gate, out, updates, ratio, *drawn)
        new = recorded(state.count, b=b, sigma=sigma)
        return out, UtilityGateState(state.count + 1, utility, state.key, directed, new)

    return Transformation(init_fn, update_fn)
