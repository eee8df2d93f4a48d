"""Shampoo's direction as Google's library has it: roots of the raw gradient, momentum behind."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.catalogue import register
from optkit.linalg import RootMethod
from optkit.linalg.roots import GROWTH, TRIES
from optkit.transforms.base import (
    Transformation,
    branch,
    check_gradients,
    check_same_leaves,
    keep_dtypes,
    map_leaves,
    need_params,
)
from optkit.transforms.grafting import (
    Magnitude,
    magnitudes,
    moments_like,
    next_moments,
    unit,
    wide,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
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
)
from optkit.transforms.shampoo import check_options, direction, factor_bytes
from optkit.tree import BlockLayout, PyTree, RuleLike, leaves_with_paths, zeros_like_params
from optkit.tree.tensor_blocks import Merging

PAPER = ("Scalable Second Order Optimization for Deep Learning", "2002.09018", 2020)
Sides = Literal["all", "in", "out"]
_GRAFTS = tuple(kind for kind in get_args(Magnitude) if kind != "adam")


class ScaleByShampooGoogleState(NamedTuple):
    """State of ``scale_by_shampoo_google``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    failures: jax.Array  # int32 scalar, roots that failed so far; the last good ones were kept
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    graft_momentum: PyTree  # the same, of what gives the length
    moment: PyTree  # the same, its second moment; masked if it has none
    kronecker: KroneckerState  # float32 (*batch, [blocks,] n, n), factors and their inverse roots
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": factor_bytes(8)},
    tags=("shampoo", "kronecker", "inverse root", "coupled newton", "grafting", "second order"),
    chain="L^(-1/4) g R^(-1/4), long as the gradient > momentum",
    matrices_only=True,
)
def scale_by_shampoo_google(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    eps: ScalarOrSchedule = 1e-6,
    relative: bool = True,
    graft: Magnitude = "sgd",
    graft_eps: ScalarOrSchedule = 1e-10,
    refresh_every: int = 1,
    statistics_every: int = 1,
    start: int = 5,
    stagger: bool = False,
    block_size: int = 1024,
    merging: Merging = "first",
    merge_limit: int = 4096,
    skip_size: int = 4096,
    skip_rank: int = 1,
    sides: Sides = "all",
    exponent: float | None = None,
    nesterov: bool = True,
    moving_average: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    method: RootMethod = "coupled_newton",
    tolerance: float | None = 1e-6,
    tries: int = TRIES,
    dims: Any = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Multiplies the gradient with inverse roots of second moments, and takes the momentum of that.

    With ``t`` the number of the update from 0, for each block G of at most ``block_size`` a side:

    1. every ``statistics_every``: ``L <- b2*L + (1-b2)*G G^T``, R likewise, with ``b2=1`` sums;
       both are ``eps*I`` at first;
    2. every ``refresh_every``: ``L' = (L + e I)**(-1/4)`` with ``e = eps*lambda_max(L)``, or
       ``eps`` unless ``relative``, R' likewise; ten times the ridge while a root's error is above
       0.05, ``tries`` in all; one with an error above 0.1 stays what it was, and is counted;
    3. ``A``, which gives the length: "sgd" ``g``, "sqrt_n" ``sign(g)``, "rmsprop"
       ``g/(sqrt(v) + graft_eps)``, "adagrad" the same with a sum, "..._normalized" these of
       ``g/norm(g)``;
    4. ``P = L' G R'``, times ``norm(A)/norm(P)`` over whole tensors; both plus ``weight_decay*W``;
    5. ``m <- b1*m + w*P``, ``a <- b1*a + w*A``; ``w`` is 1, or ``1-b1`` with ``moving_average``;
    6. ``u = m``, or ``w*P + b1*m`` with ``nesterov``; before ``start`` the same of a and A.

    ``optkit.scale_by_shampoo`` filters first and grafts the filtered gradient, block by block.

    Args:
      b1: decay rate of both momenta, in [0, 1).
      b2: decay rate of the factors and of v, in [0, 1].
      eps: of step 2.
      relative: see step 2.
      graft: what gives the length; "none" takes P as it is.
      graft_eps: added to the root of v.
      refresh_every: updates between two roots of a factor.
      statistics_every: updates between two changes of the factors.
      start: number of the first update with roots, counted from 0.
      stagger: refresh a part of the roots at each update, so that none takes longer than others.
      block_size: longer sides are cut into blocks.
      merging: how leaves that are read by axes are merged, see ``optkit.tree.merge_dims``.
      merge_limit: the most that merged axes may have.
      skip_size: leaves with a longer axis are not preconditioned.
      skip_rank: nor are those of a lower rank.
      sides: "all"; "in" preconditions all axes of a block but the last, "out" the last one.
      exponent: p of the roots ``-1/p``; None for twice the number of factors.
      nesterov: look one step ahead.
      moving_average: see step 5.
      weight_decay: of step 4; ``optkit.decay_weights`` behind it is decoupled.
      method: of the roots, see ``optkit.linalg.inverse_root``.
      tolerance: of their iteration.
      tries: see step 2.
      dims: see ``optkit.orthogonalize``; or "tensor" to read all leaves by axes, as the reference.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of momenta and v; factors and roots are float32.
      group_bytes: bytes of one stack of blocks.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 8 per parameter, 4
      more for a second moment, and ``8*(fan_in**2 + fan_out**2)`` a block.

    Raises:
      ValueError: an option out of range or unknown; ``stagger`` with a ``start`` before every root
        has had its turn.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_shampoo_google(0.0, start=0)
      >>> g = {"w": jnp.array([[3.0, 0.0], [0.0, -4.0]])}
      >>> u, _ = tx.update(g, tx.init(g))
      >>> (u["w"].round(2) + 0.0).tolist()  # as long as the gradient
      [[3.53..., 0.0], [0.0, -3.53...]]

    Reference:
      Anil et al., arXiv 2002.09018; google-research/precondition. Its tolerance of the largest
      eigenvalue is absolute, ours relative. Blocks with entries beyond 1e15 are scaled in factors.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0)
    for name, value in {"eps": eps, "graft_eps": graft_eps, "weight_decay": weight_decay}.items():
        check_number(name, value, low=0.0)
    check_choice("graft", graft, _GRAFTS)
    check_choice("merging", merging, get_args(Merging))
    check_choice("sides", sides, get_args(Sides))
    check_options(refresh_every, block_size, method, exponent, start, stagger, counted_from=0)
    for name, number in {"statistics_every": statistics_every, "tries": tries}.items():
        check_static_int(name, number)
    numbers: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps}
    numbers |= {"graft_eps": graft_eps, "weight_decay": weight_decay}
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def factors_of(tree: PyTree) -> Kronecker:
        layout = BlockLayout(
            tree,
            block_size,
            dims=dims,
            rules=roles,
            merging=merging,
            merge_limit=merge_limit,
        )
        shapes = {path: np.shape(leaf) for path, leaf in leaves_with_paths(tree)}

        def chosen(group: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
            shape = shapes[layout.paths[group]]
            skipped = len(shape) < skip_rank or max(shape, default=1) > skip_size
            return () if skipped else _sides(len(sizes), sides)

        return Kronecker(layout, chosen, group_bytes=group_bytes)

    def init_fn(params: PyTree) -> ScaleByShampooGoogleState:
        count = jnp.zeros((), jnp.int32)
        first = value_at(eps, count)
        return ScaleByShampooGoogleState(
            count,
            jnp.zeros((), jnp.int32),
            zeros_like_params(params, state_dtype),
            zeros_like_params(params, state_dtype),
            moments_like(params, graft, state_dtype),
            factors_of(params).init(params, first),
            recorded(count, **numbers),
        )

    def statistics(kronecker: Kronecker, factors: Lists, grads: PyTree, t: Any, b: Any) -> Lists:
        def grown(factors: Lists) -> Lists:
            grams = kronecker.grams(kronecker.layout.split(grads))
            return kronecker.placed(new_factors(factors, grams, b), factors)

        if statistics_every == 1 or not any(kronecker.axes):
            return grown(factors)
        same = lambda factors: kronecker.placed(factors, factors)  # noqa: E731
        return branch(t % statistics_every == 0, grown, same, factors)

    def update_fn(
        updates: PyTree,
        state: ScaleByShampooGoogleState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByShampooGoogleState]:
        del extra_args
        check_gradients(updates, params)
        check_same_leaves(updates, state.momentum, "state")
        kronecker, t = factors_of(updates), state.count
        now = {name: value_at(value, t) for name, value in numbers.items()}
        grads = wide(updates)
        given = jax.tree.map(unit, grads) if graft.endswith("_normalized") else grads
        moments = next_moments(graft, given, state.moment, now["b2"])
        lengths = magnitudes(graft, given, moments, now["b2"], now["graft_eps"], t + 1)

        held = kronecker.lists(state.kronecker.factors)
        after = statistics(kronecker, held, grads, t, now["b2"])
        options: dict[str, Any] = {
            "method": method,
            "tolerance": tolerance,
            "tries": tries,
            "growth": GROWTH,
        }
        options |= {"ridge" if relative else "eps": now["eps"]}
        roots, factors, failed = refresh(
            kronecker,
            state.kronecker,
            after,
            RootOf(exponent, options),
            1.0,
            due=t % refresh_every == 0,
            turn=t % refresh_every if stagger else None,
            every=refresh_every,
        )
        steps = direction(kronecker, grads, 1.0, lengths, roots, graft, True, "tensor", grads)
        if decays:
            own = wide(need_params(params, "weight_decay of scale_by_shampoo_google"))
            wd = now["weight_decay"]
            steps, lengths = (
                map_leaves(lambda u, p: u + wd * p, tree, own) for tree in (steps, lengths)
            )
        b = now["b1"]
        w = 1.0 - b if moving_average else 1.0

        grown, short = (
            map_leaves(lambda m, u: b * m + w * u, wide(held), new)
            for held, new in ((state.momentum, steps), (state.graft_momentum, lengths))
        )

        def out(m: jax.Array, a: jax.Array, u: jax.Array, v: jax.Array, g: jax.Array) -> Any:
            long, last = (jnp.where(t >= start, x, y) for x, y in ((m, a), (u, v)))
            return (w * last + b * long if nesterov else long).astype(g.dtype)

        result = jax.tree.map(out, grown, short, steps, lengths, updates)
        m, a, v = keep_dtypes(
            (grown, short, moments), (state.momentum, state.graft_momentum, state.moment)
        )
        record = recorded(t, **numbers)
        failures = state.failures + failed
        return result, ScaleByShampooGoogleState(t + 1, failures, m, a, v, factors, record)

    return Transformation(init_fn, update_fn)


def _sides(rank: int, sides: Sides) -> tuple[int, ...]:
    """The axes of a block that are preconditioned, from the end."""
    every = tuple(range(-rank, 0))
    if sides == "all" or rank < 2:
        return every
    return every[:-1] if sides == "in" else every[-1:]
