"""PSGD's Kronecker whitening: triangular factors an axis, fitted by multiplicative steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.transforms.base import Transformation, branch, map_leaves
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key, normal_like
from optkit.transforms.psgd_factors import MemorySave, PsgdFactors, diagonal_axes
from optkit.transforms.psgd_step import direction, fitted, psgd_update_probability
from optkit.transforms.rotated_units import FACTOR_ROLES, Axes
from optkit.transforms.tensor_groups import map_tensors
from optkit.tree import (
    Dims,
    PyTree,
    RuleLike,
    upcast,
    zeros_like_params,
)
from optkit.tree.sharding import place_factor, place_like

_LONGEST = 8192
FACTOR_BYTES = StateBytes(
    4,
    lambda rows, columns: sum(4 * d * (d if d <= _LONGEST else 1) for d in (rows, columns)),
    "4 (rows^2 + columns^2)",
)


class ScaleByPsgdKronState(NamedTuple):
    """State of ``scale_by_psgd_kron``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    since: jax.Array  # int32 scalar, updates since the factors were last fitted
    failures: jax.Array  # int32 scalar, fits that were not finite and left the factors alone
    key: jax.Array  # PRNG key, constant
    mu: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    # One tree an axis: (*batch, d, d) upper triangular or (*batch, d), float32; None beyond a rank.
    kronecker: tuple[PyTree, ...]
    entries: PyTree  # like params, state_dtype: factors of vectors; None at tensors
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _unfitted(x: jax.Array, factors: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """What fits give of an empty tensor."""
    return *factors, jnp.zeros(x.shape[: x.ndim - len(factors)])


@register(
    kind="part",
    family="curvature",
    paper=("Preconditioned Stochastic Gradient Descent", "1512.04202", 2015),
    state_bytes=dict.fromkeys(FACTOR_ROLES, FACTOR_BYTES) | {"*": 8},
    tags=("psgd", "kronecker", "whitening", "second order"),
    chain="m -> Q^T Q m, at most 1.1 in root mean square; Q <- Q - lr triu(A A^T - B B^T) Q / norm",
)
def scale_by_psgd_kron(
    b1: ScalarOrSchedule = 0.9,
    *,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    update_probability: Any = None,
    init_scale: float | None = None,
    max_size_triangular: int | None = None,
    min_ndim_triangular: int | None = None,
    memory_save_mode: MemorySave | None = None,
    momentum_into_precond_update: bool = True,
    max_update_rms: float | None = 1.1,
    balance_probability: float = 0.01,
    key: Key = None,
    axes: Axes = "matrix",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    r"""Multiplies the momentum by a Kronecker product that is fitted to whiten the gradient.

    For a tensor G, with Q_i the factor of its axis i and ``n`` the number of the update from 1:

    1. ``mu <- b1*mu + (1-b1)*G``; ``M = mu/(1 - b1**n)``;
    2. every ``1/update_probability`` updates: with V standard normal,
       ``X = M + 3.5e-4*mean(abs(M))*V``; ``A = X`` multiplied by Q_i along every axis, ``B = V`` by
       ``Q_i^-T`` (triangular solves); for each axis, with T1 and T2 the Gram matrices of A and B:
       ``Q <- Q - preconditioner_lr*triu(T1 - T2) Q/bound(T1 + T2)``, the bound being within sqrt(2)
       of the spectral norm; of a diagonal ``Q <- Q - preconditioner_lr*(T1 - T2) Q/max(T1 + T2)``;
       before it, with ``balance_probability``, all factors of a tensor get one largest entry;
    3. ``u = M`` multiplied by ``Q_i^T Q_i`` along every axis, ``u <- u/max(1, RMS(u)/1.1)``.

    No inverse root is taken. Step 2 stands in a branch of the compiled program, which other steps
    do not pay for. A matrix costs ``4*m*n*(m + n)`` operations in products a step and about three
    times as much more where factors are fitted. New factors that are not finite are dropped and
    counted in the state.

    Hidden matrices, convolutions (inputs as one axis), embeddings and heads have two factors,
    stacked layers and experts their own; norms, biases and scalars one number an entry.

    Args:
      b1: decay rate of the momentum, in [0, 1).
      preconditioner_lr: step of the factors; below 0.7, or a diagonal may lose its sign.
      update_probability: number or schedule in (0, 1]; factors are fitted once 1/probability
        updates have passed. None for the reference's: 1.0 for 500 updates, then falling to 0.03,
        see ``optkit.psgd_update_probability``.
      init_scale: of the first product of all factors, multiples of the identity; None for 1.
      max_size_triangular: longer axes keep the diagonal of their factor; None for 8192.
      min_ndim_triangular: tensors of fewer axes keep diagonals; None for 2.
      memory_save_mode: "one_diag" keeps a diagonal of the longest axis, "all_diag" of all.
      momentum_into_precond_update: fit to M rather than to the gradient.
      max_update_rms: largest root mean square of a tensor's update; None for any.
      balance_probability: how often factors are balanced when they are fitted.
      key: seed or PRNG key of probes and balancing; None for 0. What is drawn for a leaf depends on
        key, step and path only. ``tx.update(..., probes=tree, balance=bool)`` gives them instead.
      axes: "matrix" as above, or "all" for a factor of every axis of every leaf, whatever its role,
        as the reference has it.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of mu and of vectors' factors; float32 for 16-bit parameters if None, as
        the factors of matrices always.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of tensors.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      4 per parameter, 4 d^2 for each axis of d entries (stored whole, zeros below the diagonal
      included) or 4 d for a diagonal; 8 per parameter of norms and biases.

    Raises:
      ValueError: an option out of range or unknown; probes that do not fit the updates; dimension
        numbers that do not fit a leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_psgd_kron()
      >>> params = {"w": jnp.ones((2, 3))}
      >>> u, state = tx.update(params, tx.init(params))
      >>> [q["w"].shape for q in state.kronecker], u["w"].shape
      ([(2, 2), (3, 3)], (2, 3))

    Reference:
      Li, arXiv 1512.04202, and for Lie groups and Kronecker products arXiv 2211.04422 and
      2402.11858; evanatyourservice/psgd_jax for the constants. It reads every leaf axis by axis
      (``axes="all"``) and draws probes from a key stream of its own. Gram matrices are taken in
      units in which they can be squared, so that gradients of any size have one.
    """
    init_scale = 1.0 if init_scale is None else init_scale
    longest = _LONGEST if max_size_triangular is None else max_size_triangular
    least_rank = 2 if min_ndim_triangular is None else min_ndim_triangular
    _check(b1, preconditioner_lr, update_probability, init_scale, max_update_rms)
    check_static_int("max_size_triangular", longest)
    check_static_int("min_ndim_triangular", least_rank, low=0)
    check_choice("axes", axes, get_args(Axes))
    if memory_save_mode is not None:
        check_choice("memory_save_mode", memory_save_mode, get_args(MemorySave))
    check_number("balance_probability", balance_probability, low=0.0, high=1.0)
    check_seed(key)
    chance = psgd_update_probability() if update_probability is None else update_probability
    numbers: dict[str, Any] = {
        "b1": b1,
        "preconditioner_lr": preconditioner_lr,
        "update_probability": chance,
    }

    read = functools.partial(
        PsgdFactors.of,
        dims=dims,
        roles=tuple(roles),
        whole=axes == "all",
        flat=lambda sizes: diagonal_axes(sizes, longest, least_rank, memory_save_mode),
    )

    def init_fn(params: PyTree) -> ScaleByPsgdKronState:
        own = read(params)
        kronecker, entries = own.pack(own.first(params, init_scale, state_dtype))
        zero = jnp.zeros((), jnp.int32)
        return ScaleByPsgdKronState(
            zero,
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            fresh_key(key),
            zeros_like_params(params, state_dtype),
            kronecker,
            entries,
            recorded(zero, **numbers),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByPsgdKronState,
        params: PyTree | None = None,
        *,
        probes: PyTree | None = None,
        balance: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByPsgdKronState]:
        del params, extra_args
        n = state.count + 1
        keep, rate = value_at(b1, state.count), value_at(preconditioner_lr, state.count)
        wide = jax.tree.map(upcast, updates)
        mu = map_leaves(lambda g, m: keep * upcast(m) + (1.0 - keep) * g, wide, state.mu)
        correction = debias(keep, n)
        mean = jax.tree.map(lambda m: m / correction, mu)
        own = read(updates)
        layout = own.layout
        tensors = layout.split(mean)
        old = own.unpack(state.kronecker, state.entries)
        share = value_at(chance, state.count)
        always = isinstance(share, int | float) and share >= 1.0
        due: Any = True if always else state.since + 1 >= 1.0 / share

        def fit(wide: PyTree, tensors: Any, old: Any) -> Any:
            source = tensors if momentum_into_precond_update else layout.split(wide)
            drawn = layout.split(normal_like(wide, state.key, state.count, probes))
            # Spread as factors before they lie as the gradient does: the numbers of all leaves
            # are drawn together, and each leaf's would travel by themselves.
            drawn = [place_like(place_factor(v, x), x) for v, x in zip(drawn, source, strict=True)]
            coin = balance
            if coin is None:
                coined = jax.random.fold_in(jax.random.fold_in(state.key, state.count), 1)
                coin = jax.random.uniform(coined) < balance_probability
            step = functools.partial(fitted, rate=rate, coin=coin, precision=precision)
            return _fit(own, step, source, drawn, old, group_bytes)

        none = jnp.zeros((), jnp.int32)
        new, failed = branch(due, fit, lambda wide, tensors, old: (old, none), wide, tensors, old)
        towards = functools.partial(direction, most=max_update_rms, precision=precision)
        done = map_tensors(
            towards, layout.views, [tensors], new, group_bytes, idle=lambda x, _: (x,), results=1
        )
        out = layout.merge([x[0] for x in done])
        out = jax.tree.map(lambda u, g: u.astype(g.dtype), out, updates)
        held = jax.tree.map(lambda m, was: m.astype(was.dtype), mu, state.mu)
        kronecker, entries = own.pack(new)
        entries = jax.tree.map(lambda q, was: q.astype(was.dtype), entries, state.entries)
        since = jnp.where(due, 0, state.since + 1).astype(jnp.int32)
        record = recorded(state.count, **numbers)
        return out, ScaleByPsgdKronState(
            n, since, state.failures + failed, state.key, held, kronecker, entries, record
        )

    return Transformation(init_fn, update_fn)


def _fit(
    own: PsgdFactors,
    step: Callable[..., Any],
    source: Any,
    drawn: Any,
    old: Any,
    group_bytes: int | None,
) -> tuple[Any, jax.Array]:
    """Returns the factors of each tensor after a step, and how many tensors kept theirs."""
    done = map_tensors(
        step, own.layout.views, [source, drawn], old, group_bytes, idle=_unfitted, results=0
    )
    failed = sum((jnp.sum(x[-1]) for x in done), jnp.zeros(()))
    new = [
        tuple(own.placed(i, q.astype(w.dtype), source[i]) for q, w in zip(x[:-1], was, strict=True))
        for i, (x, was) in enumerate(zip(done, old, strict=True))
    ]
    return new, failed.astype(jnp.int32)


def _check(b1: Any, rate: Any, chance: Any, init_scale: Any, most: Any) -> None:
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("preconditioner_lr", rate, low=0.0)
    if chance is not None:
        check_number("update_probability", chance, low=0.0, high=1.0, open_low=True)
    check_static_number("init_scale", init_scale)
    check_number("init_scale", init_scale, low=0.0, open_low=True)
    if most is not None:
        check_number("max_update_rms", most, low=0.0)
