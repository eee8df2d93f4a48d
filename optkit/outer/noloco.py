"""NoLoCo: replicas of which pairs meet, and none waits for all."""

import dataclasses
import warnings
from collections.abc import Iterable
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.distributed.workers import AxisName
from optkit.outer.base import OuterStep, Replicas, fine
from optkit.outer.checks import check_leaves
from optkit.outer.groupings import Grouping, check_grouping, group_mean, groupings, switch
from optkit.transforms.base import check_state, prng_key
from optkit.transforms.hyperparams import (
    check_choice,
    check_number,
    check_static_int,
    check_static_number,
)
from optkit.tree import PyTree, compute_dtype, leaves_with_paths, upcast


class NolocoState(NamedTuple):
    """State of ``noloco``, of each replica its own; stacked as its parameters are."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished outer steps
    anchor: PyTree  # like params, float32 or better
    momentum: PyTree  # like it
    skipped: jax.Array | None  # int32 of each replica, steps left out; None where none is


@register(
    kind="outer",
    family="communication",
    paper=(
        "NoLoCo: No-all-reduce Low Communication Training Method for Large Models",
        "2506.10911",
        2025,
    ),
    state_bytes={"*": 8},
    tags=("local steps", "gossip", "outer optimizer", "low communication", "decentralised"),
    chain="d <- alpha d + beta mean(theta - phi) - gamma (phi - mean(phi)) in pairs; phi += d",
)
def noloco(
    *,
    alpha: float = 0.5,
    beta: float = 0.7,
    gamma: float | None = None,
    group: int = 2,
    axis_name: AxisName = None,
    key: int | jax.Array = 0,
    nonfinite: Literal["propagate", "skip"] = "propagate",
    coordinates_axis: AxisName = None,
) -> OuterStep:
    """Replicas that meet in random pairs every few dozen steps, with no exchange among all.

    Replica i has parameters theta_i, which an inner optimizer has moved for H steps, an anchor
    phi_i and a momentum d_i. At each outer step replicas are divided into groups; over i's:

    1. ``d_i <- alpha*d_i + beta*mean(theta - phi) - gamma*(phi_i - mean(phi))``;
    2. ``phi_i <- phi_i + d_i``; ``theta_i <- phi_i``.

    Replicas stay different, and the last term of 1 pulls them together. With gamma = beta it is
    ``alpha*d_i + beta*(mean(theta) - phi_i)``, and only theta is sent: half as much. Groups of all
    replicas give DiLoCo with a heavy ball.

    Which of ``optkit.outer.groupings`` it is, is drawn from the key and the number of the step, the
    same on all replicas. ``step(params, state, groups=...)`` takes one instead, static integers: a
    program of its own with a single exchange in it, by ``jax.jit(outer.step,
    static_argnames="groups")`` of tuples, or in a function around it. Under ``jax.vmap`` a drawn
    one costs all of them; there and in tests give groups.

    Stacked along a sharded axis or with an ``axis_name``, each replica is sent to each other member
    of its group and to nobody else, by collective permutes: what a device sends is (group - 1)
    times its replicas, twice that where gamma is not beta, whatever their number and however many
    lie on it. On TPUs stacks along an axis of type Auto are sent so in pairs of a power of 2 only;
    others go round in circles, several permutes of all of them: give an ``axis_name`` or a mesh of
    type Explicit. Of an odd number one rests when pairs meet: it steps alone, its own mean.

    Evidence: in ``python -m benchmarks.claims diloco``, a small byte model on four replicas, it
    comes nearer to synchronous training than DiLoCo and sends a third less, but not within the 1%
    that was asked: 1.079 times its bits a byte at 50 steps between meetings, 3.113 against 2.922 at
    10.

    Args:
      alpha: of the momentum.
      beta: the outer learning rate.
      gamma: how hard replicas are pulled together; beta by default, as in the authors' code. The
        paper bounds it. Not above alpha replicas drift apart, which is warned of; well above 1 they
        diverge.
      group: how many meet.
      axis_name: see ``optkit.diloco``.
      key: seed or PRNG key of the groups.
      nonfinite: what a replica that is not finite does. ``"propagate"``: it enters its partner, and
        one group after the other. ``"skip"``: the step is left out for its group, whose members go
        back to their anchors, from which they started; ``state.skipped`` counts it for each, and
        other groups do not notice. As with ``optkit.diloco``, inner optimizers need a guard of
        their own.
      coordinates_axis: see ``optkit.diloco``.

    Returns:
      An ``optkit.outer.OuterStep``, whose ``step`` also takes ``groups=``, indices of replicas
      (replicas/group, group). State bytes: 8 per parameter of each replica, and a counter with
      ``"skip"``.

    Raises:
      ValueError: a number out of range, another ``nonfinite``; in init and step
        ``group`` does not divide the replicas and is no pair, one replica alone, leading axes that
        differ, groups that are no division of them, no ``axis_name`` inside of an axis (see
        ``optkit.diloco``); in step another number of replicas than in init.
      TypeError: in step, another state, or groups that are arrays.
      NameError: used outside of its axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> outer = optkit.noloco(alpha=0.0, beta=0.5)
      >>> params = optkit.replicas(jnp.zeros(1), 4)
      >>> state = outer.init(params)
      >>> worked = jnp.array([[1.0], [2.0], [3.0], [6.0]])
      >>> params, state = outer.step(worked, state, groups=[(0, 3), (1, 2)])
      >>> params[:, 0].tolist()
      [1.75, 1.25, 1.25, 1.75]

    Reference:
      Kolehmainen et al., NoLoCo, arXiv 2506.10911; gensyn-ai/noloco@a1b4a42
      (sparse_optimizer_c.py), which has gamma = beta and sends anchors too, and draws any
      permutation. The paper's own form of the last term and its bounds on gamma are not compared.
      For parameters of 16 bits the anchor's finer digits are sent with them, in float32.
    """
    among = Replicas(axis_name, "noloco", coordinates_axis)
    pull = beta if gamma is None else gamma
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", pull)):
        check_static_number(name, value)
        check_number(name, value, low=0.0)
    check_static_int("group", group, low=2)
    check_choice("nonfinite", nonfinite, ("propagate", "skip"))
    if alpha >= pull:
        warnings.warn(
            f"noloco with alpha={alpha} and gamma={pull}: the momentum outweighs what pulls "
            "replicas together, and they drift apart; give a larger gamma or a smaller alpha",
            stacklevel=3,
        )
    made = _Noloco(alpha, beta, pull, group, prng_key(key), among, nonfinite == "skip")
    return OuterStep(made.init, made.step)


@dataclasses.dataclass(frozen=True, eq=False)
class _Noloco:
    alpha: float
    beta: float
    pull: float
    group: int
    key: jax.Array
    among: Replicas
    skips: bool

    def init(self, params: PyTree) -> NolocoState:
        groupings(self.among.count(params), self.group)  # or it would fail after the first round
        anchor = jax.tree.map(fine, params)
        momentum = jax.tree.map(lambda p: jnp.zeros_like(p, compute_dtype(p)), params)
        count = jnp.zeros((), jnp.int32)
        none = jnp.zeros_like(self._broken(anchor)) if self.skips else None
        return NolocoState(count, anchor, momentum, none)

    def step(
        self, params: PyTree, state: NolocoState, groups: Iterable[Iterable[int]] | None = None
    ) -> tuple[PyTree, NolocoState]:
        check_state(state, NolocoState)
        count = self.among.count(params)
        _check_replicas(params, state.anchor, self.among)
        if groups is None:
            ways = groupings(count, self.group)
            drawn = jax.random.randint(jax.random.fold_in(self.key, state.count), (), 0, len(ways))
        else:
            ways, drawn = (check_grouping(groups, count),), state.count
        momentum = switch(drawn, [partial(self._momentum, params, state, way) for way in ways])
        anchor, skipped = jax.tree.map(jnp.add, state.anchor, momentum), state.skipped
        if skipped is not None:
            # What a group shares is not finite for all of its members, or for none.
            broken = self._broken(anchor)
            old = state.anchor, state.momentum
            anchor, momentum = jax.tree.map(
                lambda new, was: jnp.where(_beside(broken, new), was, new), (anchor, momentum), old
            )
            skipped = skipped + broken
        out = jax.tree.map(lambda a, p: a.astype(p.dtype), anchor, params)
        return out, NolocoState(state.count + 1, anchor, momentum, skipped)

    def _broken(self, tree: PyTree) -> jax.Array:
        """Returns 1 for each replica that is not finite, else 0; int32, one number or a row."""
        first = 1 if self.among.stacked else 0
        each = [
            jnp.isfinite(x).all(axis=tuple(range(first, x.ndim))) for x in jax.tree.leaves(tree)
        ]
        own = 1 - reduce(jnp.logical_and, each).astype(jnp.int32)
        return jnp.minimum(self.among.any_part(own, tree), 1)

    def _momentum(self, params: PyTree, state: NolocoState, grouping: Grouping) -> PyTree:
        theta = jax.tree.map(_there, state.anchor, params)
        if self.pull == self.beta:
            return jax.tree.map(
                lambda d, t, a: self.alpha * d + self.beta * (t - a),
                state.momentum,
                group_mean(theta, grouping, self.among),
                state.anchor,
            )
        moved = jax.tree.map(jnp.subtract, theta, state.anchor)
        moved, centre = group_mean((moved, state.anchor), grouping, self.among)
        return jax.tree.map(
            lambda d, m, a, c: self.alpha * d + self.beta * m - self.pull * (a - c),
            state.momentum,
            moved,
            state.anchor,
            centre,
        )


def _beside(flags: jax.Array, x: jax.Array) -> jax.Array:
    """Flags of replicas as bools with as many axes as an array of them."""
    return (flags > 0).reshape(*flags.shape, *[1] * (x.ndim - flags.ndim))


def _there(anchor: jax.Array, p: jax.Array) -> jax.Array:
    """Where a replica is: of 16 bits, the anchor's finer digits and how far it went."""
    if compute_dtype(p) == p.dtype:
        return p
    return anchor + (upcast(p) - upcast(anchor.astype(p.dtype)))


def _check_replicas(params: PyTree, anchor: PyTree, among: Replicas) -> None:
    """Raises ValueError unless parameters are of the replicas that a state was made for."""
    check_leaves(anchor, params, among.who)
    pairs = zip(leaves_with_paths(params), jax.tree.leaves(anchor), strict=True)
    for (path, p), a in pairs:
        if jnp.shape(p) == jnp.shape(a):
            continue
        if among.stacked and jnp.shape(p)[1:] == jnp.shape(a)[1:]:
            raise ValueError(
                f"params has {jnp.shape(p)[0]} replicas, and the state of noloco {a.shape[0]}, "
                "each with an anchor and a momentum of its own: give the replicas of that state; "
                "or begin anew with outer.init(params), at these parameters and without momenta; "
                "or, to go on with some of them, take the same rows of params, state.anchor, "
                "state.momentum and state.skipped"
            )
        raise ValueError(
            f"params has shape {jnp.shape(p)} at leaf {path!r} where the state of noloco has "
            f"{a.shape}: give parameters of the replicas as init got them, "
            + (
                f"{a.shape[0]} of them stacked along a leading axis (optkit.replicas)"
                if among.stacked and a.shape
                else "those of one replica"
            )
        )
