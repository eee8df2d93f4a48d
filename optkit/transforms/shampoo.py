"""Shampoo's direction: gradients between inverse roots of their second moments, a factor a side."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg import RootMethod
from optkit.transforms.base import (
    Transformation,
    check_gradients,
    check_same_leaves,
    keep_dtypes,
    map_leaves,
)
from optkit.transforms.grafting import (
    Magnitude,
    Per,
    magnitudes,
    moments_like,
    next_moments,
    ratios,
    wide,
)
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.kronecker import (
    Kronecker,
    KroneckerState,
    Lists,
    RootOf,
    new_factors,
    refresh,
    weights_sum,
)
from optkit.tree import BlockLayout, PyTree, RuleLike, zeros_like_params

PAPER = ("A Distributed Data-Parallel PyTorch Implementation of Shampoo", "2309.06497", 2023)
# Of leaves read as matrices: two factors and two roots.
FACTORS = "8 (fan_out^2 + fan_in^2)"


def factor_bytes(parameter: float) -> StateBytes:
    """State bytes of a method with so many per parameter, two factors a matrix and their roots."""

    def own(rows: int, columns: int) -> int:
        return 8 * (rows**2 + columns**2) if rows * columns else 0

    return StateBytes(parameter, own, FACTORS)


class ScaleByShampooState(NamedTuple):
    """State of ``scale_by_shampoo``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    failures: jax.Array  # int32 scalar, roots that failed so far; the last good ones were kept
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    moment: PyTree  # the same, second moment of the magnitude; masked if it has none
    kronecker: KroneckerState  # float32 (*batch, [blocks,] n, n), factors and their inverse roots
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": factor_bytes(8)},
    tags=("shampoo", "kronecker", "inverse root", "grafting", "second order"),
    chain="L, R <- b2 L + (1-b2) g g^T, g^T g; L^(-1/4) m R^(-1/4), long as Adam's",
    matrices_only=True,
)
def scale_by_shampoo(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    b3: float | None = None,
    eps: ScalarOrSchedule = 1e-12,
    ridge: float = 1e-6,
    graft: Magnitude = "adam",
    graft_b2: float | None = None,
    graft_eps: ScalarOrSchedule = 1e-8,
    refresh_every: int = 10,
    start: int | None = None,
    stagger: bool = False,
    block_size: int = 1024,
    keep: int = 2,
    exponent: float | None = None,
    bias_correction: bool = True,
    method: RootMethod = "auto",
    tolerance: float | None = None,
    dims: Any = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Multiplies the momentum with inverse roots of second moments, one of each side.

    For each block G of at most ``block_size`` rows and columns, and ``s`` the number of the update
    from 1:

    1. ``L <- b2*L + (1-b2)*G G^T``, ``R <- b2*R + (1-b2)*G^T G``; with ``b2=1`` sums;
    2. where roots are due, ``L' = (L/(1-b2**s) + e I)**(-1/4)``, R' likewise, with
       ``e = eps + ridge*lambda_max``; a root that fails stays what it was, and is counted;
    3. ``m <- b1*m + (1-b1)*G``; ``M = m/(1-b1**s)``;
    4. ``A``, which gives the length: of "adam" ``M/(sqrt(v/(1-graft_b2**s)) + graft_eps)``;
    5. ``u = L' M R'``, times ``norm(A)/norm(u)`` of each block; ``A`` itself before ``start``, or
       ``M`` if nothing is grafted.

    A tensor of k axes has k factors, and roots of ``-1/(2 k)``; a vector is preconditioned by the
    whole second moment of each block. In 1 a block with entries beyond 1e15, whose squares would
    overflow, is scaled down to that; a gradient that is not finite stays in L and R, so put
    ``optkit.skip_nonfinite`` around it.

    Args:
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the factors, in [0, 1].
      b3: the reference's beta3: ``M = (b3*m_old + (1-b3)*G)/(1-b3*b1**(s-1))``; None for ``b1``.
      eps: added to every eigenvalue.
      ridge: the same relative to the largest one (the reference has none). What lies far below
        1e-6 of it is rounding of float32, and its roots are not reproducible.
      graft: what gives the length: "none", "sgd" (M), "adagrad", "rmsprop" or "adam".
      graft_b2: decay rate of its second moment; None for ``b2``.
      graft_eps: added to its root.
      refresh_every: updates between two roots of a factor.
      start: number of the first update with roots; None for ``refresh_every``.
      stagger: refresh a part of the roots at each update, so that none takes longer than others.
      block_size: longer sides are cut into blocks, each a problem of its own.
      keep: axes that merging leaves, of leaves that are read by axes (``optkit.tree.merge_dims``).
        The reference leaves 1, by which a matrix of ``block_size`` entries becomes a vector.
      exponent: p of the roots ``-1/p``; None for twice the number of axes.
      bias_correction: divide by the sums of weights in 2 and 3.
      method: of the roots, see ``optkit.linalg.inverse_root``.
      tolerance: of their iteration.
      dims: see ``optkit.orthogonalize``; or "tensor" to read all leaves by axes, as the reference.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the momentum and of ``v``; factors and roots are float32.
      group_bytes: bytes of one stack of blocks.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 4 per parameter, 4
      more for a second moment, and ``8*(fan_in**2 + fan_out**2)`` a block.

    Raises:
      ValueError: an option out of range or unknown; ``stagger`` with a ``start`` before every root
        has had its turn.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_shampoo(0.0, graft="none", refresh_every=1, ridge=0.0)
      >>> g = {"w": jnp.array([[3.0, 0.0], [0.0, -4.0]])}
      >>> u, _ = tx.update(g, tx.init(g))
      >>> (u["w"].round(3) + 0.0).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Reference:
      Gupta et al., Shampoo, arXiv 1802.09568; Shi et al., arXiv 2309.06497, and its code
      (facebookresearch/optimizers), which stops after more than 3 failures one after the other.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0)
    for name, value in {"eps": eps, "graft_eps": graft_eps, "ridge": ridge}.items():
        check_number(name, value, low=0.0)
    third = b1 if b3 is None else b3
    check_number("b3", third, low=0.0, high=1.0)
    root_b2 = b2 if graft_b2 is None else graft_b2
    check_number("graft_b2", root_b2, low=0.0, high=1.0)
    check_choice("graft", graft, ("none", "sgd", "adagrad", "rmsprop", "adam"))
    first = refresh_every if start is None else start
    check_options(refresh_every, block_size, method, exponent, first, stagger, counted_from=1)
    numbers: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "graft_eps": graft_eps}
    numbers |= {} if b3 is None else {"b3": b3}
    numbers |= {} if graft_b2 is None else {"graft_b2": graft_b2}

    def factors_of(tree: PyTree) -> Kronecker:
        layout = BlockLayout(tree, block_size, dims=dims, rules=roles, keep=keep)
        return Kronecker(layout, group_bytes=group_bytes)

    def init_fn(params: PyTree) -> ScaleByShampooState:
        count = jnp.zeros((), jnp.int32)
        return ScaleByShampooState(
            count,
            jnp.zeros((), jnp.int32),
            zeros_like_params(params, state_dtype),
            moments_like(params, graft, state_dtype),
            factors_of(params).init(params),
            recorded(count, **numbers),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByShampooState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByShampooState]:
        del extra_args
        check_gradients(updates, params)
        check_same_leaves(updates, state.momentum, "state")
        kronecker, s = factors_of(updates), state.count + 1
        now = {name: value_at(value, state.count) for name, value in numbers.items()}
        beta, beta3 = now["b1"], now.get("b3", now["b1"])
        decay, decay_v = now["b2"], now.get("graft_b2", now["b2"])

        grads, held = wide(updates), wide(state.momentum)
        filtered = map_leaves(lambda m, g: beta * m + (1.0 - beta) * g, held, grads)
        moved = filtered
        if b3 is not None:
            moved = map_leaves(lambda m, g: beta3 * m + (1.0 - beta3) * g, held, grads)
        whole: Scalar = 1.0
        if bias_correction:
            whole = debias(beta, s) if b3 is None else 1.0 - beta3 * (1.0 - debias(beta, s - 1))
        given = jax.tree.map(lambda m: m / whole, moved)
        moments = next_moments(graft, grads, state.moment, decay_v)
        lengths = magnitudes(graft, given, moments, decay_v, now["graft_eps"], s)

        grams = kronecker.grams(kronecker.layout.split(grads))
        after = new_factors(kronecker.lists(state.kronecker.factors), grams, decay)
        options: dict[str, Any] = {
            "method": method,
            "eps": now["eps"],
            "ridge": ridge,
            "tolerance": tolerance,
        }
        roots, factors, failed = refresh(
            kronecker,
            state.kronecker,
            after,
            RootOf(exponent, options),
            weights_sum(decay, s) if bias_correction else 1.0,
            due=(s == first) | ((s > first) & (s % refresh_every == 0)),
            turn=state.count % refresh_every if stagger else None,
            every=refresh_every,
        )
        started = s >= first
        out = direction(kronecker, moved, whole, lengths, roots, graft, started, "block", updates)
        m, v = keep_dtypes((filtered, moments), (state.momentum, state.moment))
        record = recorded(state.count, **numbers)
        return out, ScaleByShampooState(s, state.failures + failed, m, v, factors, record)

    return Transformation(init_fn, update_fn)


def direction(
    kronecker: Kronecker,
    given: PyTree,
    whole: Scalar,
    lengths: PyTree,
    roots: Lists,
    graft: Magnitude,
    started: jax.Array | bool,
    per: Per,
    like: PyTree,
) -> PyTree:
    """The tree over ``whole``, preconditioned and grafted; before the start what is grafted.

    The division comes last, since XLA's CPU compiler takes long to stack results of one.
    """
    layout = kronecker.layout
    blocks, wanted = layout.split(given), layout.split(lengths)
    done, norms = kronecker.applied(blocks, roots)
    if graft != "none":
        factors = ratios(kronecker.norms(wanted), norms, layout, per=per)
        done = [u if f is None else u * f for u, f in zip(done, factors, strict=True)]
    elif not (isinstance(whole, float) and whole == 1.0):
        done = [u / whole for u in done]
    # Where nothing is preconditioned, that which gives the length is all there is.
    done = [
        jnp.where(started, u, a) if axes else a
        for u, a, axes in zip(done, wanted, kronecker.axes, strict=True)
    ]
    out = layout.merge(done, like)
    return jax.tree.map(lambda u, g: u.astype(g.dtype), out, like)


def check_options(
    refresh_every: int,
    block_size: int,
    method: RootMethod,
    exponent: float | None,
    start: int,
    stagger: bool,
    *,
    counted_from: int,
) -> None:
    """Raises for options out of range that both dialects have; they count updates differently."""
    check_static_int("refresh_every", refresh_every)
    check_static_int("block_size", block_size)
    check_choice("method", method, get_args(RootMethod))
    if exponent is not None:
        check_number("exponent", exponent, low=0.0)
    check_static_int("start", start, low=counted_from)
    least = refresh_every - 1 + counted_from
    if stagger and start < least:
        raise ValueError(
            f"start={start}: with stagger=True every root has had its turn after refresh_every="
            f"{refresh_every} updates; give at least {least}"
        )
