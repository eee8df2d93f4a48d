"""MKOR: layers preconditioned by inverse factors that follow one vector a refresh each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit._calls import check_options
from optkit.catalogue import StateBytes, register
from optkit.curvature import Estimate
from optkit.linalg import RankOneMode
from optkit.transforms.base import (
    Transformation,
    branch,
    check_gradients,
    check_transformation,
    update_inner,
)
from optkit.transforms.estimates import check_estimate
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.transforms.layer_inverses import (
    LAYER_ROLES,
    LAYERS,
    Bias,
    LayerInverses,
    RestoreNorm,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import Dims, PyTree, RuleLike, Selector

PAPER = (
    "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates",
    "2306.01685",
    2023,
)


class LayerFactors(NamedTuple):
    """Inverses; trees like params, with masked nodes for what is no layer."""

    right: PyTree  # (*batch, fan_in, fan_in), one more with a bias; state_dtype
    left: PyTree  # (*batch, fan_out, fan_out), state_dtype


class MkorState(NamedTuple):
    """State of ``mkor``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    kronecker: LayerFactors
    resets: PyTree  # like those, (*batch, 2) bool: the next refresh resets (right, left)
    key: jax.Array  # threefry PRNG key, constant
    inner: PyTree  # state of the inner transformation
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


_BYTES = StateBytes(0, lambda o, i: 4 * (i * i + o * o) + 2, "4 (fan_in^2 + fan_out^2) a matrix")
BYTES: dict[str, float] = {"*": 0.0} | dict.fromkeys(LAYER_ROLES, _BYTES)


def mkor_core(
    inner: optax.GradientTransformation,
    *,
    name: str,
    statistics: Estimate | None = None,
    key: Key = None,
    **options: Any,
) -> Transformation:
    """``mkor`` whose update takes ``active`` too: whether factors follow and precondition."""
    rules = LayerInverses(**options)
    check_seed(key)
    own, inner = statistics, check_transformation("inner", inner)

    def init_fn(params: PyTree) -> MkorState:
        count = jnp.zeros((), jnp.int32)
        new = recorded(count, decay=rules.decay)
        right, left, resets = rules.start(params)
        held = LayerFactors(right, left), resets, fresh_key(key)
        return MkorState(count, *held, inner.init(params), new)

    def update_fn(
        updates: PyTree,
        state: MkorState,
        params: PyTree | None = None,
        *,
        statistics: Any = None,
        active: jax.Array | bool = True,
        **extra_args: Any,
    ) -> tuple[PyTree, MkorState]:
        check_gradients(updates, params)
        count, trees = state.count, (*state.kronecker, state.resets)
        given = _chosen(statistics, own, name)
        decay = value_at(rules.decay, count)

        def refreshed(trees: Any) -> Any:
            own_key = jax.random.fold_in(state.key, count)
            found = given(params, own_key) if callable(given) else given
            return rules.follow(found, updates, trees, decay)

        moved = updates
        if jax.tree.leaves(state.kronecker):
            due = rules.due(count) & active
            trees = branch(due, refreshed, lambda trees: trees, trees)

            def preconditioned(g: PyTree) -> PyTree:
                return rules.precondition(g, trees[0], trees[1])

            moved = branch(active, preconditioned, lambda g: g, updates)
        out, inner_state = update_inner(inner, moved, state.inner, params, extra_args)
        new = recorded(count, decay=rules.decay)
        held = LayerFactors(*trees[:2]), trees[2], state.key
        return out, MkorState(count + 1, *held, inner_state, new)

    return Transformation(init_fn, update_fn)


def _chosen(given: Any, own: Estimate | None, name: str) -> Any:
    """Returns what update was given, else the wrapper's own, or raises ValueError."""
    found = own if given is None else given
    if found is not None:
        check_estimate("statistics", found, "optkit.curvature.layer_means(loss_fn, batch)")
        return found
    raise ValueError(
        f"{name} needs statistics of the layers: call tx.update(grads, state, params, statistics="
        "optkit.curvature.layer_means(loss_fn, batch)), or give a mapping from the path of each "
        "kernel to (mean input, mean output gradient)"
    )


@register(
    kind="wrapper",
    family="curvature",
    paper=PAPER,
    state_bytes=BYTES,
    tags=("second order", "kronecker", "k-fac", "rank one"),
    chain="inner of c L G R; L, R inverse factors that follow one vector each",
)
def mkor(
    inner: optax.GradientTransformation,
    *,
    mode: RankOneMode = "code",
    decay: ScalarOrSchedule = 0.95,
    every: int = 10,
    warmup_steps: int = 0,
    clip: float = 100.0,
    threshold: float = 2.0,
    blend: float | None = None,
    restore_norm: RestoreNorm = "sum",
    layers: Selector = LAYERS,
    bias: Bias = "bias",
    statistics: Estimate | None = None,
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Preconditions layers as K-FAC does, with inverses that cost O(width^2), for any optimizer.

    Of a layer with gradient G, (fan_out, fan_in), its bias's gradient as one more column, let ``a``
    be the mean of its inputs over the batch, 1 appended if it has a bias, and ``d`` the sum over
    the batch of the gradients of its outputs. In update ``t``, counted from 0, if
    ``t % every == 0`` or ``t < warmup_steps``:

    1. entries of ``a`` and ``d`` are clipped to ``[-clip, clip]``;
    2. ``R <- rank_one_inverse(R, a, decay, mode)``, or the identity if R is to be reset, as it is
       at first, this ``a`` being dropped; an entry above ``threshold`` has R and L reset;
    3. the same for ``L`` and ``d``.

    And in every update, after those:

    4. ``U = L G R``, times ``(|G_kernel| + |G_bias|)/(|U_kernel| + |U_bias|)``;
    5. ``inner`` takes U for the gradient.

    What is no layer passes as it is. Pass the statistics to each update::

      means = optkit.curvature.layer_means(loss_fn, batch)
      updates, state = tx.update(grads, state, params, statistics=means)

    which are computed, at the cost of a gradient with regard to the outputs, inside ``lax.cond`` in
    the updates that refresh, and not in the others. Of a flax.nnx model ``loss_fn`` is a function
    of what ``graph, params, rest = nnx.split(model, nnx.Param, ...)`` gives, ``lambda p, batch:
    loss(nnx.merge(graph, p, rest), batch)``.

    Args:
      inner: any optimizer.
      mode: see ``optkit.linalg.rank_one_inverse``: "code" keeps eigenvalues in (0, 1]; "exact" is
        the inverse of the average of outer products, and relies on the reset; "paper" grows along
        the statistics and is there for the record.
      decay: of the average.
      every: updates from one refresh to the next.
      warmup_steps: first updates that all refresh.
      clip: largest entry of a statistic.
      threshold: largest entry of an inverse; infinity for none.
      blend: in place of a reset ``P <- blend*P + (1-blend)*I`` at once, as the paper says.
      restore_norm: line 4 with a sum of norms, as the code has it, with the norm of the whole
        "layer", as the paper has it, or "none".
      layers: kernels that are preconditioned.
      bias: name of the bias beside a kernel, a function from the kernel's path to the bias's, or
        None to leave biases alone.
      statistics: their estimate where update is given none.
      key: seed or PRNG key handed to it; None for 0.
      dims: matrix axes, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the inverses; None for float32. The reference keeps 16 bits.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      those of inner, and ``4*(fan_in**2 + fan_out**2) + 2`` a matrix, fan_in one more with a bias.

    Raises:
      ValueError: an option out of range, ``layers`` that name no leaf, statistics that are missing
        or of other sizes.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> params, x = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, jnp.eye(2)
      >>> loss = lambda p: jnp.mean((x @ p["up"]["kernel"] + p["up"]["bias"][None]) ** 2)
      >>> tx = optkit.mkor(optax.sgd(0.1), every=1)
      >>> state, means = tx.init(params), optkit.curvature.layer_means(loss)
      >>> for _ in range(3):
      ...   u, state = tx.update(jax.grad(loss)(params), state, params, statistics=means)
      >>> right, left = state.kronecker
      >>> right["up"]["kernel"].shape, left["up"]["kernel"].shape
      ((3, 3), (3, 3))

    Reference:
      Mozaffari et al., MKOR, arXiv 2306.01685, and its code, whose decay is 0.95 whatever is asked
      for, and whose stabiliser always resets. A gradient of 0 is 0 there, too; statistics that are
      NaN count as 0 here.
    """
    return mkor_core(
        inner,
        name="mkor",
        statistics=statistics,
        key=key,
        mode=mode,
        decay=decay,
        every=every,
        warmup_steps=warmup_steps,
        clip=clip,
        threshold=threshold,
        blend=blend,
        restore_norm=restore_norm,
        layers=layers,
        bias=bias,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )


class MkorHState(NamedTuple):
    """State of ``mkor_h``."""

    mkor: MkorState
    loss: jax.Array  # float32 scalar, average of the losses
    checked: jax.Array  # float32 scalar, what it was when last compared
    best: jax.Array  # float32 scalar, largest rate of decrease so far
    low: jax.Array  # int32 scalar, comparisons in a row that found a low rate
    switched: jax.Array  # bool scalar, whether inner goes on alone


@register(
    kind="wrapper",
    family="curvature",
    paper=PAPER,
    state_bytes=BYTES,
    tags=("second order", "kronecker", "k-fac", "rank one", "hybrid"),
    chain="mkor until the loss falls slowly, then inner alone",
)
def mkor_h(
    inner: optax.GradientTransformation,
    *,
    check_every: int = 10,
    kappa: float = 0.1,
    patience: int = 3,
    loss_decay: float = 0.9,
    statistics: Estimate | None = None,
    **options: Any,
) -> Transformation:
    """MKOR until it no longer pays, then the inner optimizer alone, for good.

    With ``e`` the average of the losses that updates are given as the extra argument ``value``,
    after every ``check_every`` updates:

    1. ``rate = (e_last - e)/check_every``; it is low if ``rate <= kappa*best``, where ``best`` is
       the largest rate before, at least 0;
    2. after ``patience`` low ones in a row: from this update on gradients pass to ``inner`` as they
       are, and neither statistics nor factors are computed.

    **This rule is ours.** The paper says that the rate of decrease decides, and neither how it is
    measured nor when it is too low; its code has no hybrid form. The factors keep their memory,
    shapes being fixed: to free it, go on with the state of inner, ``state.mkor.inner``.

    Args:
      inner: any optimizer.
      check_every: updates between two comparisons.
      kappa: share of the best rate below which a rate is low.
      patience: low rates in a row that end it.
      loss_decay: decay rate of the average of losses, in [0, 1).
      statistics: their estimate where update is given none.
      **options: those of ``optkit.mkor``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: those of ``optkit.mkor``. An update
      without ``value``, or with one that is not finite, leaves the average as it is.

    Raises:
      ValueError: as ``optkit.mkor``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"up": {"kernel": jnp.ones((2, 3))}}
      >>> tx = optkit.mkor_h(optax.sgd(0.1), check_every=1, patience=2, loss_decay=0.0)
      >>> means, state = {"up/kernel": (jnp.ones(2), jnp.ones(3))}, tx.init(params)
      >>> for loss in (9.0, 4.0, 3.9, 3.8, 3.7):
      ...   u, state = tx.update(params, state, params, statistics=means, value=loss)
      ...   print(bool(state.switched))
      False
      False
      False
      True
      True

    Reference:
      Mozaffari et al., MKOR, arXiv 2306.01685, section on MKOR-H.
    """
    for name, number in (("check_every", check_every), ("patience", patience)):
        check_static_int(name, number)
    check_number("kappa", kappa, low=0.0, high=1.0)
    check_number("loss_decay", loss_decay, low=0.0, high=1.0, open_high=True)
    own = ("inner", "check_every", "kappa", "patience", "loss_decay", "statistics")
    check_options("mkor_h", options, mkor, own)
    around = mkor_core(inner, name="mkor_h", statistics=statistics, **options)

    def init_fn(params: PyTree) -> MkorHState:
        loss, checked, best = (jnp.zeros((), jnp.float32) for _ in range(3))
        low, switched = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool_)
        return MkorHState(around.init(params), loss, checked, best, low, switched)

    def watched(state: MkorHState, value: Any) -> MkorHState:
        now, count = jnp.asarray(value, jnp.float32).reshape(()), state.mkor.count
        started = (count > 0) & (state.loss != 0)
        followed = jnp.where(started, loss_decay * state.loss + (1.0 - loss_decay) * now, now)
        loss = jnp.where(jnp.isfinite(now), followed, state.loss)
        checked = jnp.where(started, state.checked, loss)
        due = started & ((count + 1) % check_every == 0)
        rate = (checked - loss) / check_every
        low = jnp.where(rate <= kappa * state.best, state.low + 1, 0)
        low = jnp.where(due, low, state.low).astype(jnp.int32)
        best = jnp.where(due, jnp.maximum(state.best, rate), state.best)
        checked = jnp.where(due, loss, checked)
        switched = state.switched | (low >= patience)
        return MkorHState(state.mkor, loss, checked, best, low, switched)

    def update_fn(
        updates: PyTree,
        state: MkorHState,
        params: PyTree | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, MkorHState]:
        state = state if value is None else watched(state, value)
        if value is not None:
            extra_args["value"] = value
        active = ~state.switched
        out, held = around.update(updates, state.mkor, params, active=active, **extra_args)
        return out, state._replace(mkor=held)

    return Transformation(init_fn, update_fn)
